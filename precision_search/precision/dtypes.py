"""From a plan to the dtype of every tensor: compute nodes by the plan, data movement and cache tensors by their
neighbours.

Two rules keep it lossless: a tensor that somebody reads in fp32 is never rounded on the way, unless it was low where it
was made; and a tensor that crosses from one graph to another is low if all its makers are low or all its readers are,
else fp32, so that the three graphs always agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from precision_search.errors import InputError
from precision_search.model.graph import Graph, GraphName, NodeKind
from precision_search.model.layout import SEQ2SEQ
from precision_search.precision.low import BFLOAT16_OPSET, LowDtype
from precision_search.precision.plan import Plan
from precision_search.precision.wiring import Ends, WiredNode, Wiring, crossing_ends, wiring_of


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
    wirings = {name: wiring_of(graph) for name, graph in graphs.items()}
    crossing = _crossing_tensors(wirings.values(), plan.fp32)
    return MappingProxyType({name: _assign_graph(wiring, plan, crossing) for name, wiring in wirings.items()})


def planned_casts(graph: Graph, assignment: Assignment) -> frozenset[tuple[str, bool]]:
    """The casts that a conversion under the assignment adds: name of the value that is cast, and whether to low.

    One for each value and direction, however many readers share it; none for constants.
    """
    wiring, low_values = wiring_of(graph), assignment.low_values
    found: set[tuple[str, bool]] = set()
    for node in wiring.nodes:
        wanted = node.key in assignment.low_nodes
        found.update((name, wanted) for name in node.reads if (name in low_values) != wanted)
    for name in wiring.outputs:
        wanted = name in assignment.low_outputs
        if (name in low_values) != wanted:
            found.add((name, wanted))
    return frozenset(found)


def _check_opsets(graphs: Mapping[GraphName, Graph], plan: Plan) -> None:
    for name, graph in graphs.items():
        opset = graph.model.graph.opset_imports.get("", 0)
        if plan.dtype == "bfloat16" and opset < BFLOAT16_OPSET and any(n.key not in plan.fp32 for n in graph.compute):
            raise InputError(
                f"the {name} cannot be bfloat16",
                why=f"it uses ONNX opset {opset}; Pow takes bfloat16 from opset 15 on and Where from {BFLOAT16_OPSET}",
                fix=f"export with opset {BFLOAT16_OPSET} or later, or search in float16",
            )


def _crossing_tensors(wirings: Iterable[Wiring], fp32: frozenset[str]) -> Mapping[str, bool]:
    """For each tensor that crosses between graphs, whether it is low."""
    makers, readers = crossing_ends(wirings)
    return {name: _all_low(makers[name], fp32) or _all_low(readers[name], fp32) for name in makers}


def _all_low(keys: Ends, fp32: frozenset[str]) -> bool:
    return bool(keys) and None not in keys and keys.isdisjoint(fp32)


def _assign_graph(wiring: Wiring, plan: Plan, crossing: Mapping[str, bool]) -> Assignment:
    low_nodes = set[str]()
    low_values = {name for name in wiring.inputs if crossing.get(SEQ2SEQ.crossing(name) or "", False)}
    for node in wiring.nodes:
        if node.kind is NodeKind.COMPUTE:
            is_low = node.key not in plan.fp32
        else:
            is_low = node.kind is NodeKind.MOVEMENT and _movement_is_low(node, plan, low_values, crossing)
        if is_low:
            low_nodes.add(node.key)
            low_values.update(node.writes)
    low_outputs = {name for name in wiring.outputs if crossing.get(SEQ2SEQ.crossing(name) or name, name in low_values)}
    return Assignment(frozenset(low_nodes), frozenset(low_values), frozenset(low_outputs))


def _movement_is_low(node: WiredNode, plan: Plan, low_values: set[str], crossing: Mapping[str, bool]) -> bool:
    if node.reads and low_values.issuperset(node.reads):
        return True
    if not node.sinks and not node.crossings:
        # Nobody reads more than its shape: whatever needs no cast of a value that is low already.
        return not low_values.isdisjoint(node.reads)
    wants = [key is not None and key not in plan.fp32 for key in node.sinks]
    wants += [crossing[name] for name in node.crossings]
    if all(wants):
        return True
    # A mask made of constants only: low for everybody as soon as one reader is low, so that its fp32 minimum saturates
    # where it is stored instead of turning into -inf in a cast.
    return any(wants) and constants_survive(node, plan.dtype)


def constants_survive(node: WiredNode, dtype: LowDtype) -> bool:
    """Whether the node moves constants only, each exact in the low dtype or so large that it saturates."""
    return node.moved is not None and node.moved.survive(dtype)
