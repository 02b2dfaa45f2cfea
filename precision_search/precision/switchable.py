"""One graph for all plans: every node that may be low holds its fp32 and its low form, and a flag chooses.

What `emulate` builds anew for each plan is chosen here while the graph runs, so that another plan needs other flags and
no other session. Each form is a whole node with constants of its own, kept in the outer graph: a run rounds no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.model.graph import Graph, NodeKind, drop_unused_initializers, float_inputs
from precision_search.precision.dtypes import Assignment
from precision_search.precision.kernels import kernel_for
from precision_search.precision.low import LowDtype, low_max, round_to
from precision_search.precision.lowering import Rounding, kernel_of, lower, round_constants, take_over
from precision_search.precision.weights import WeightCache
from precision_search.precision.wiring import wiring_of

FLAG = "low/"
"""What the names of the flag inputs begin with; the node key follows."""


Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Switches:
    """The flags of a switchable graph.

    Attributes:
        flags: keys of the nodes that have a flag, in topological order.
        fixed: keys of the compute nodes that have none: pinned, or without a low kernel.
    """

    flags: tuple[str, ...]
    fixed: frozenset[str]

    def of(self, assignment: Assignment) -> Flags:
        """The flags of a plan, from the plan's assignment for the graph: bool [len(flags)], True for low.

        Raises:
            InputError: a compute node that has no flag is low.
        """
        stuck = sorted(self.fixed & assignment.low_nodes)
        if stuck:
            raise InputError(
                f"the plan makes {stuck[0]} low, which cannot be",
                why="it is index arithmetic, or how its low kernel rounds is not known",
                fix="keep that node in fp32",
            )
        return np.array([key in assignment.low_nodes for key in self.flags], np.bool_)

    def feed(self, flags: Flags) -> Mapping[str, Flags]:
        """Flags as the model takes them: for each flag input, by name, an array without dimensions."""
        return {f"{FLAG}{key}": flags[index, ...] for index, key in enumerate(self.flags)}


@dataclass(frozen=True, slots=True)
class Switchable:
    """An fp32 graph whose nodes can be made low from outside.

    Attributes:
        model: the graph with an input `low/<node key>` (bool, no dimensions) for each flag; node names, value names and
            all other inputs and outputs are as they were.
        switches: the flags.
    """

    model: ir.Model
    switches: Switches


def switchable(graph: Graph, dtype: LowDtype, weights: WeightCache) -> Switchable:
    """Gives each node that some plan can make low a second form, and a flag that chooses it.

    That is every compute node with a low kernel that is not pinned, and data movement whose constants change when they
    are rounded. With the flags of a plan the model computes what `emulate` makes of the plan.

    Args:
        graph: the fp32 graph.
        dtype: the low dtype.
        weights: shared rounded weights.
    """
    switcher = _Switcher(graph, dtype, weights)
    flags: list[str] = []
    fixed: list[str] = []
    for node in list(switcher.model.graph):
        facts = graph.nodes[str(node.name)]
        if facts.kind is NodeKind.COMPUTE:
            may_be_low = facts.pinned is None and kernel_for(node.op_type, dtype) is not None
            (flags if may_be_low else fixed).append(facts.key)
            if may_be_low:
                switcher.switch_compute(node)
        elif facts.kind is NodeKind.MOVEMENT and switcher.has_changing_constants(node):
            flags.append(facts.key)
            switcher.switch_movement(node)
    drop_unused_initializers(switcher.model)
    return Switchable(switcher.model, Switches(tuple(flags), frozenset(fixed)))


class _Switcher:
    """Replaces nodes of one graph by an If over their two forms."""

    def __init__(self, graph: Graph, dtype: LowDtype, weights: WeightCache) -> None:
        self.model = graph.model.clone()
        self._dtype = dtype
        self._weights = weights
        self._twins: dict[ir.Value, ir.Value] = {}
        # Data movement over constants that fit (a transposed weight): its low readers see the constants rounded, its
        # fp32 readers see them exact, whatever the plan. Left are masks, and what leaves the graph.
        self._moved = frozenset(
            node.key
            for node in wiring_of(graph).nodes
            if node.moved is not None
            and not node.crossings
            and all(weights.largest(tensor) <= low_max(dtype) for tensor in node.moved)
        )

    def has_changing_constants(self, node: ir.Node) -> bool:
        """Whether a movement node itself moves constants that are others in the low dtype, and fp32 may read them."""
        return str(node.name) not in self._moved and any(
            value.const_value is not None and self._changes(value.const_value)
            for _, value in float_inputs(node)
            if value.is_initializer()
        )

    def switch_compute(self, node: ir.Node) -> None:
        """The low form reads rounded values and constants, and rounds as its kernel does."""
        plain, low = _branch(node, "fp32"), _branch(node, "low")
        inner = low[0]
        round_constants(self.model.graph, inner, self._dtype, self._weights)
        twins = set()
        for index, value in list(float_inputs(inner)):
            producer = value.producer()
            if producer is not None and str(producer.name) in self._moved:
                twins.add(self._twin(value))
                inner.replace_input_with(index, self._twin(value))
        Rounding(low, self._dtype).round_inputs(inner, twins)
        lower(low, inner, kernel_of(node, self._dtype), self._dtype)
        self._choose(node, low, plain)

    def switch_movement(self, node: ir.Node) -> None:
        """The low form moves rounded constants."""
        plain, low = _branch(node, "fp32"), _branch(node, "low")
        round_constants(self.model.graph, low[0], self._dtype, self._weights)
        self._choose(node, low, plain)

    def _changes(self, tensor: ir.TensorProtocol) -> bool:
        array = tensor.numpy()
        return not np.array_equal(round_to(array, self._dtype, saturate=True), array, equal_nan=True)

    def _twin(self, value: ir.Value) -> ir.Value:
        """What data movement makes of its constants when these are rounded."""
        if value not in self._twins:
            producer = value.producer()
            assert producer is not None
            twin = _copy(producer, self._dtype)
            for index, read in list(float_inputs(twin)):
                if not read.is_initializer():
                    twin.replace_input_with(index, self._twin(read))
            round_constants(self.model.graph, twin, self._dtype, self._weights)
            self.model.graph.insert_after(producer, twin)
            self._twins.update(zip(producer.outputs, twin.outputs, strict=True))
        return self._twins[value]

    def _choose(self, node: ir.Node, low: ir.Graph, plain: ir.Graph) -> None:
        """Puts an If in the node's place, under its name and with its outputs."""
        flag = ir.Value(name=f"{FLAG}{node.name}", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        self.model.graph.inputs.append(flag)
        choice = ir.node(
            "If", [flag], {"then_branch": low, "else_branch": plain}, num_outputs=len(node.outputs), name=node.name
        )
        self.model.graph.insert_before(node, choice)
        for old, new in zip(node.outputs, choice.outputs, strict=True):
            name = str(old.name)
            old.name = f"{name}/unused"
            new.name, new.type, new.shape = name, old.type, old.shape
            take_over(self.model.graph, old, new, list(old.uses()))
        self.model.graph.remove(node, safe=True)


def _branch(node: ir.Node, name: str) -> ir.Graph:
    """A graph that holds nothing but a copy of the node and reads what the node reads."""
    copy = _copy(node, name)
    opsets = {} if node.graph is None else dict(node.graph.opset_imports)
    return ir.Graph([], copy.outputs, nodes=[copy], opset_imports=opsets, name=copy.name)


def _copy(node: ir.Node, suffix: str) -> ir.Node:
    """The node once more, its own name and those of its outputs with a suffix; not yet part of a graph."""
    copy = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        node.attributes.values(),
        num_outputs=len(node.outputs),
        name=f"{node.name}/{suffix}",
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.name, new.type, new.shape = f"{old.name}/{suffix}", old.type, old.shape
    return copy
