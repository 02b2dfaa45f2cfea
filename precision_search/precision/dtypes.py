"""From a plan to the dtype of every tensor: compute nodes by the plan, data movement and cache tensors by their
neighbours.

Two rules keep it lossless: a tensor that somebody reads in fp32 is never rounded on the way, unless it was low where it
was made; and a tensor that crosses from one graph to another is low if all its makers are low or all its readers are,
else fp32, so that the three graphs always agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.model.graph import SHAPE_OPS, Graph, GraphName, NodeKind, float_inputs, is_float
from precision_search.precision.kernels import low_max, round_to
from precision_search.precision.plan import LowDtype, Plan

BFLOAT16_OPSET = 16
"""From here on the operators of a T5 take bfloat16: Add and Relu since 14, Pow since 15, Where since 16."""

PAST = "past_key_values."
PRESENT = "present."


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which nodes and values of one graph are low.

    Attributes:
        low_nodes: keys of the compute and movement nodes that work in the low dtype.
        low_values: names of the float values stored in the low dtype: node outputs, graph inputs.
        low_outputs: names of the graph outputs that leave in the low dtype.
    """

    low_nodes: frozenset[str]
    low_values: frozenset[str]
    low_outputs: frozenset[str]


def assign(graphs: Mapping[GraphName, Graph], plan: Plan) -> Mapping[GraphName, Assignment]:
    """The dtype of every tensor of the three graphs under a plan.

    Raises:
        InputError: operators of the graphs' opset do not take the plan's dtype.
    """
    _check_opsets(graphs, plan)
    low_keys = {
        name: frozenset(node.key for node in graph.compute if node.key not in plan.fp32)
        for name, graph in graphs.items()
    }
    crossing = _crossing_tensors(graphs, low_keys)
    return MappingProxyType(
        {name: _assign_graph(graph, low_keys[name], crossing, plan.dtype) for name, graph in graphs.items()}
    )


def planned_casts(graph: Graph, assignment: Assignment) -> frozenset[tuple[str, bool]]:
    """The casts that a conversion under the assignment adds: name of the value that is cast, and whether to low.

    One for each value and direction, however many readers share it; none for constants.
    """
    found: set[tuple[str, bool]] = set()
    for node in graph.model.graph:
        if node.op_type in SHAPE_OPS:
            continue
        wanted = str(node.name) in assignment.low_nodes
        for _, value in float_inputs(node):
            if not value.is_initializer() and (str(value.name) in assignment.low_values) != wanted:
                found.add((str(value.name), wanted))
    for value in graph.model.graph.outputs:
        wanted = str(value.name) in assignment.low_outputs
        if is_float(value) and (str(value.name) in assignment.low_values) != wanted:
            found.add((str(value.name), wanted))
    return frozenset(found)


def crossing_name(value_name: str) -> str | None:
    """The common name of a tensor that leaves one graph and enters another, or None for other inputs and outputs."""
    if value_name in ("last_hidden_state", "encoder_hidden_states"):
        return "encoder_hidden_states"
    if value_name.startswith(PAST):
        return value_name.removeprefix(PAST)
    if value_name.startswith(PRESENT):
        return value_name.removeprefix(PRESENT)
    return None


def movement_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """The float inputs of a movement node: all of them carry data of the output's dtype."""
    for _, value in float_inputs(node):
        yield value


def sources(value: ir.Value, graph: Graph) -> Iterator[ir.Value]:
    """The values that `value` is made of, behind all data movement: node outputs, graph inputs and initializers."""
    stack, seen = [value], set[ir.Value]()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        producer = current.producer()
        if producer is not None and graph.nodes[str(producer.name)].kind is NodeKind.MOVEMENT:
            stack.extend(movement_inputs(producer))
        else:
            yield current


def _check_opsets(graphs: Mapping[GraphName, Graph], plan: Plan) -> None:
    for name, graph in graphs.items():
        opset = graph.model.graph.opset_imports.get("", 0)
        if plan.dtype == "bfloat16" and opset < BFLOAT16_OPSET and any(n.key not in plan.fp32 for n in graph.compute):
            raise InputError(
                f"the {name} cannot be bfloat16",
                why=f"it uses ONNX opset {opset}; Pow takes bfloat16 from opset 15 on and Where from {BFLOAT16_OPSET}",
                fix=f"export with opset {BFLOAT16_OPSET} or later, or search in float16",
            )


def _sinks(value: ir.Value, graph: Graph) -> Iterator[ir.Node | str]:
    """Who reads `value` in the end, behind all data movement: nodes, and names of graph outputs."""
    stack, seen = [value], set[ir.Value]()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.is_graph_output():
            yield str(current.name)
        for node, _ in current.uses():
            if graph.nodes[str(node.name)].kind is NodeKind.MOVEMENT:
                stack.extend(output for output in node.outputs if is_float(output))
            elif node.op_type not in SHAPE_OPS:
                yield node


def _crossing_tensors(
    graphs: Mapping[GraphName, Graph], low_keys: Mapping[GraphName, frozenset[str]]
) -> Mapping[str, bool]:
    """For each tensor that crosses between graphs, whether it is low."""
    makers: dict[str, list[bool]] = {}
    readers: dict[str, list[bool]] = {}
    for name, graph in graphs.items():
        for output in graph.model.graph.outputs:
            crossing = crossing_name(str(output.name))
            if crossing is not None and is_float(output):
                makers.setdefault(crossing, []).extend(_maker_lowness(output, crossing, graph, low_keys[name]))
        for value in graph.model.graph.inputs:
            crossing = crossing_name(str(value.name))
            if crossing is not None and is_float(value):
                readers.setdefault(crossing, []).extend(_reader_lowness(value, crossing, graph, low_keys[name]))
    return {
        crossing: bool(found and all(found)) or bool(readers.get(crossing) and all(readers[crossing]))
        for crossing, found in makers.items()
    }


def _maker_lowness(value: ir.Value, crossing: str, graph: Graph, low: frozenset[str]) -> Iterator[bool]:
    for source in sources(value, graph):
        if source.is_initializer() or (source.is_graph_input() and crossing_name(str(source.name)) == crossing):
            continue
        producer = source.producer()
        yield producer is not None and str(producer.name) in low


def _reader_lowness(value: ir.Value, crossing: str, graph: Graph, low: frozenset[str]) -> Iterator[bool]:
    for sink in _sinks(value, graph):
        if isinstance(sink, str):
            if crossing_name(sink) != crossing:
                yield False
        else:
            yield str(sink.name) in low


def _assign_graph(graph: Graph, low: frozenset[str], crossing: Mapping[str, bool], dtype: LowDtype) -> Assignment:
    def leaves_low(name: str) -> bool:
        return crossing.get(crossing_name(name) or "", False)

    def wants_low(sink: ir.Node | str) -> bool:
        return leaves_low(sink) if isinstance(sink, str) else str(sink.name) in low

    low_nodes = set(low)
    low_values = {
        str(value.name) for value in graph.model.graph.inputs if is_float(value) and leaves_low(str(value.name))
    }
    for node in graph.model.graph:
        facts = graph.nodes[str(node.name)]
        if facts.kind is NodeKind.MOVEMENT and _movement_is_low(node, graph, low_values, wants_low, dtype):
            low_nodes.add(facts.key)
        if facts.key in low_nodes:
            low_values.update(str(output.name) for output in node.outputs if is_float(output))
    low_outputs = set()
    for output in graph.model.graph.outputs:
        name = str(output.name)
        if is_float(output) and (leaves_low(name) or (crossing_name(name) is None and name in low_values)):
            low_outputs.add(name)
    return Assignment(frozenset(low_nodes), frozenset(low_values), frozenset(low_outputs))


def _movement_is_low(
    node: ir.Node, graph: Graph, low_values: set[str], wants_low: Callable[[ir.Node | str], bool], dtype: LowDtype
) -> bool:
    data = [value for value in movement_inputs(node) if not value.is_initializer()]
    if data and all(str(value.name) in low_values for value in data):
        return True
    wants = [wants_low(sink) for output in node.outputs if is_float(output) for sink in _sinks(output, graph)]
    if not wants:  # nobody reads more than its shape: whatever needs no cast of a value that is low already
        return any(str(value.name) in low_values for value in data)
    if all(wants):
        return True
    # A mask made of constants only: low for everybody as soon as one reader is low, so that its fp32 minimum saturates
    # where it is stored instead of turning into -inf in a cast.
    return any(wants) and _constants_survive(node, graph, dtype)


def _constants_survive(node: ir.Node, graph: Graph, dtype: LowDtype) -> bool:
    """Whether the node moves constants only, each exact in the low dtype or so large that it saturates."""
    for value in movement_inputs(node):
        for source in sources(value, graph):
            if not source.is_initializer() or source.const_value is None:
                return False
            if not is_exact_or_mask(source.const_value.numpy(), dtype):
                return False
    return True


def is_exact_or_mask(array: npt.NDArray[Any], dtype: LowDtype) -> bool:
    """Whether each number is exact in the low dtype or so large that it can only be a mask, which saturates."""
    exact = round_to(array, dtype, saturate=True) == array
    return bool(np.all(exact | (np.abs(array) > low_max(dtype))))
