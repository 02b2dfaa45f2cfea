"""What the dtype rules ask of a graph, read from it once: who reads and writes which float value, as plain names.

A search assigns dtypes for hundreds of plans to the same three graphs; walking the graphs each time is what would cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from precision_search.model.graph import SHAPE_OPS, Graph, NodeKind, float_inputs, is_float
from precision_search.model.layout import SEQ2SEQ
from precision_search.precision.low import LowDtype, is_exact_or_mask

Ends = frozenset[str | None]
"""Keys of compute nodes at one end of a tensor; None stands for whatever is fp32 in every plan."""


class MovedConstants:
    """The constants that a movement node moves, and in which low dtypes they survive, looked at once."""

    def __init__(self, tensors: tuple[ir.TensorProtocol, ...]) -> None:
        self._tensors = tensors
        self._survive: dict[LowDtype, bool] = {}

    def __iter__(self) -> Iterator[ir.TensorProtocol]:
        return iter(self._tensors)

    def survive(self, dtype: LowDtype) -> bool:
        """Whether each number is exact in the low dtype or so large that it saturates."""
        if dtype not in self._survive:
            self._survive[dtype] = all(is_exact_or_mask(tensor.numpy(), dtype) for tensor in self._tensors)
        return self._survive[dtype]


@dataclass(frozen=True, slots=True)
class WiredNode:
    """A node and the float values around it.

    Attributes:
        key: its key.
        kind: what it is to a precision decision.
        reads: names of the float values it reads, constants left out; none for a node that only asks for a shape.
        constants: names of the float initializers it reads.
        writes: names of its float outputs.
        sinks: of a movement node: keys of the compute nodes that read its outputs in the end, behind all data movement;
            None stands for whoever reads fp32 in every plan.
        crossings: of a movement node: the crossing tensors that its outputs leave by in the end.
        moved: of a movement node that moves constants only: these constants; else None.
    """

    key: str
    kind: NodeKind
    reads: tuple[str, ...]
    constants: tuple[str, ...]
    writes: tuple[str, ...]
    sinks: Ends
    crossings: frozenset[str]
    moved: MovedConstants | None


@dataclass(frozen=True, slots=True)
class Wiring:
    """The float values of one graph.

    Attributes:
        nodes: those that read or write floats, in topological order.
        inputs: names of the float graph inputs.
        outputs: names of the float graph outputs.
        makers: for each crossing tensor that leaves the graph, the keys of the nodes that make it; None stands for
            something that is fp32 in every plan.
        readers: for each crossing tensor that enters it, who reads it in the end, likewise.
    """

    nodes: tuple[WiredNode, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    makers: Mapping[str, Ends]
    readers: Mapping[str, Ends]


def wiring_of(graph: Graph) -> Wiring:
    """The wiring of a graph, read on the first call."""
    return graph.once(_read)


def crossing_ends(wirings: Iterable[Wiring]) -> tuple[Mapping[str, Ends], Mapping[str, Ends]]:
    """Makers and readers of every crossing tensor that some graph makes, over all graphs."""
    makers: dict[str, Ends] = {}
    readers: dict[str, Ends] = {}
    for wiring in wirings:
        for found, here in ((makers, wiring.makers), (readers, wiring.readers)):
            for crossing, ends in here.items():
                found[crossing] = found.get(crossing, frozenset()) | ends
    return makers, {crossing: readers.get(crossing, frozenset()) for crossing in makers}


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
            stack.extend(moved for _, moved in float_inputs(producer))
        else:
            yield current


def _read(graph: Graph) -> Wiring:
    inputs = [value for value in graph.model.graph.inputs if is_float(value)]
    outputs = [value for value in graph.model.graph.outputs if is_float(value)]
    makers, readers = dict[str, Ends](), dict[str, Ends]()
    for value in outputs:
        if (crossing := SEQ2SEQ.crossing(str(value.name))) is not None:
            makers[crossing] = _makers(value, crossing, graph)
    for value in inputs:
        if (crossing := SEQ2SEQ.crossing(str(value.name))) is not None:
            readers[crossing] = _readers(value, crossing, graph)
    return Wiring(
        nodes=tuple(wired for node in graph.model.graph if (wired := _wire(node, graph)) is not None),
        inputs=tuple(str(value.name) for value in inputs),
        outputs=tuple(str(value.name) for value in outputs),
        makers=MappingProxyType(makers),
        readers=MappingProxyType(readers),
    )


def _wire(node: ir.Node, graph: Graph) -> WiredNode | None:
    facts = graph.nodes[str(node.name)]
    read = [] if node.op_type in SHAPE_OPS else [value for _, value in float_inputs(node)]
    written = [value for value in node.outputs if is_float(value)]
    if not read and not written:
        return None
    is_movement = facts.kind is NodeKind.MOVEMENT
    sinks, crossings = _sinks(written, graph) if is_movement else (Ends(), frozenset[str]())
    return WiredNode(
        key=facts.key,
        kind=facts.kind,
        reads=tuple(dict.fromkeys(str(value.name) for value in read if not value.is_initializer())),
        constants=tuple(dict.fromkeys(str(value.name) for value in read if value.is_initializer())),
        writes=tuple(str(value.name) for value in written),
        sinks=sinks,
        crossings=crossings,
        moved=_moved_constants(read, graph) if is_movement else None,
    )


def _sinks(values: Iterable[ir.Value], graph: Graph) -> tuple[Ends, frozenset[str]]:
    """Who reads the values in the end, behind all data movement, as in `WiredNode`."""
    stack, seen = list(values), set[ir.Value]()
    nodes, crossings = set[str | None](), set[str]()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.is_graph_output():
            crossing = SEQ2SEQ.crossing(str(current.name))
            if crossing is None:
                nodes.add(None)
            else:
                crossings.add(crossing)
        for node, _ in current.uses():
            if graph.nodes[str(node.name)].kind is NodeKind.MOVEMENT:
                stack.extend(output for output in node.outputs if is_float(output))
            elif node.op_type not in SHAPE_OPS:
                nodes.add(_choice(node, graph))
    return frozenset(nodes), frozenset(crossings)


def _choice(node: ir.Node | None, graph: Graph) -> str | None:
    """The key under which a plan decides the node, or None if it is fp32 in every plan."""
    key = "" if node is None else str(node.name)
    return key if node is not None and graph.nodes[key].kind is NodeKind.COMPUTE else None


def _moved_constants(read: Iterable[ir.Value], graph: Graph) -> MovedConstants | None:
    moved = []
    for value in read:
        for source in sources(value, graph):
            if not source.is_initializer() or source.const_value is None:
                return None
            moved.append(source.const_value)
    return MovedConstants(tuple(moved))


def _makers(value: ir.Value, crossing: str, graph: Graph) -> Ends:
    """A tensor that passes through a graph is not made there; constants take any dtype."""
    return frozenset(
        _choice(source.producer(), graph)
        for source in sources(value, graph)
        if not source.is_initializer()
        and not (source.is_graph_input() and SEQ2SEQ.crossing(str(source.name)) == crossing)
    )


def _readers(value: ir.Value, crossing: str, graph: Graph) -> Ends:
    nodes, crossings = _sinks([value], graph)
    return nodes | {None} if crossings - {crossing} else nodes
