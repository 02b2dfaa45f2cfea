"""What a model is made of, seen by a precision decision: graphs, op types, roles, nodes, and how large values get.

In: a bundle, and ranges if somebody measured them. Out: an `InspectReport`. The same computation in both decoder graphs
is one decision, so it is counted once in a family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from precision_search.cost.ceiling import Ceiling
from precision_search.cost.estimate import Workload
from precision_search.judging.ranges import NodeRange, hard_set, measure_ranges
from precision_search.model.bundle import Bundle
from precision_search.model.generation_config import ModelConfig
from precision_search.model.graph import Family, Graph, GraphName, NodeKind
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.onnx_files import weight_bytes
from precision_search.precision.kernels import why_fp32
from precision_search.precision.low import LowDtype, low_max
from precision_search.precision.plan import FAMILIES
from precision_search.reporting import NOBODY, Reporter
from precision_search.runtime.generator import Generator
from precision_search.runtime.reference import make_reference
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.teacher_forcing import by_target_length, forced_batches

DEFAULT_SAFETY = 2.0
"""As `search.range_safety`: values must stay below the largest low number divided by this."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """One graph: its nodes by what they are to a precision decision.

    Attributes:
        name: which of the three.
        nodes: all of them.
        compute: those that a plan decides about.
        movement: those that copy values and follow their neighbours.
        other: the rest: shapes, integers.
        weight_bytes: of its weights, in fp32.
    """

    name: GraphName
    nodes: int
    compute: int
    movement: int
    other: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One decision.

    Attributes:
        key: the node's key.
        family: whose decision it is.
        op_type: ONNX op type.
        role: the key without its layer number.
        pinned: why it can never be low, None if it can.
        beyond_range: whether its values do not fit into the low dtype with the safety factor: it starts in fp32.
        range: what it met. Both are None where ranges were not measured, and for a pinned node, which asks for none.
    """

    key: str
    family: Family
    op_type: str
    role: str
    pinned: str | None
    beyond_range: bool | None
    range: NodeRange | None


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """The nodes of one op type, or of one role, within a family.

    Attributes:
        name: the op type or role.
        family: whose nodes.
        op_type: their op type.
        nodes: how many decisions.
        searchable: how many of them may be low.
        why: why the others may not, None if all may.
        beyond_range: how many of the searchable do not fit into the low dtype.
        largest: largest magnitude among the searchable that would have to fit; both are None where not measured.
    """

    name: str
    family: Family
    op_type: str
    nodes: int
    searchable: int
    why: str | None
    beyond_range: int | None
    largest: float | None


@dataclass(frozen=True, slots=True)
class InspectReport:
    """What a model is made of.

    Attributes:
        name: what the model is called.
        content_hash: of the ONNX files.
        config: the model's dimensions.
        dtype: the low dtype that everything below is about.
        largest_number: of that dtype.
        range_safety: the factor that values must stay below it by.
        samples: on how many samples ranges were measured, None if on none.
        graphs: the three graphs.
        op_types: by family, then name.
        roles: by family, in topological order.
        nodes: by family, in topological order.
        workload: what `ceiling` is for.
        ceiling: what lower precision could gain at most; None, as `workload`, where that was not asked.
    """

    name: str
    content_hash: str
    config: ModelConfig
    dtype: LowDtype
    largest_number: float
    range_safety: float
    samples: int | None
    graphs: tuple[GraphFacts, ...]
    op_types: tuple[GroupFacts, ...]
    roles: tuple[GroupFacts, ...]
    nodes: tuple[NodeFacts, ...]
    workload: Workload | None = None
    ceiling: Ceiling | None = None

    def worst(self, count: int) -> tuple[NodeFacts, ...]:
        """The nodes with the largest values, among those that may be low; empty where ranges were not measured."""
        measured = [node for node in self.nodes if node.range is not None]
        return tuple(sorted(measured, key=lambda node: -_largest(node))[:count])


def measure(
    bundle: Bundle,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    dtype: LowDtype,
    settings: SessionSettings,
    *,
    reporter: Reporter = NOBODY,
) -> Mapping[str, NodeRange]:
    """Ranges of every compute node on some samples, teacher-forced with what the fp32 bundle generates for them.

    Args:
        bundle: the fp32 bundle.
        rows: input ids of each sample.
        batch_size: rows at once.
        dtype: whose range and kernels count.
        settings: session settings.
        reporter: told how many samples of a pass are done.

    Raises:
        InputError: the fp32 model itself gives non-finite logits.
    """
    generator = Generator(bundle.models, bundle.generation, settings)
    reference = make_reference(bundle, generator, rows, batch_size, settings, progress=reporter.progress)
    batches = forced_batches(rows, reference.tokens, bundle.generation, batch_size, by_target_length(reference.tokens))
    encoder, decoder = bundle.graphs[SEQ2SEQ.encoder.name], bundle.graphs[SEQ2SEQ.decoder.name]
    return measure_ranges(encoder, decoder, batches, dtype, settings, progress=reporter.progress)


def inspect_bundle(
    bundle: Bundle,
    dtype: LowDtype,
    *,
    name: str,
    ranges: Mapping[str, NodeRange] | None = None,
    samples: int | None = None,
    safety: float = DEFAULT_SAFETY,
    workload: Workload | None = None,
    ceiling: Ceiling | None = None,
) -> InspectReport:
    """Describes a bundle for plans in `dtype`.

    Args:
        bundle: the fp32 bundle.
        dtype: the low dtype.
        name: what the model is called.
        ranges: those that `measure` found on `samples` samples.
        samples: see there.
        safety: the factor that values must stay below the largest low number by.
        workload: what `ceiling` is for.
        ceiling: what lower precision could gain at most.
    """
    nodes = _nodes(bundle.graphs, dtype, ranges, safety)
    return InspectReport(
        name=name,
        content_hash=bundle.content_hash,
        config=bundle.config,
        dtype=dtype,
        largest_number=low_max(dtype),
        range_safety=safety,
        samples=samples,
        graphs=tuple(_graph_facts(graph) for graph in bundle.graphs.values()),
        op_types=tuple(sorted(_groups(nodes, lambda n: n.op_type), key=lambda g: (FAMILIES.index(g.family), g.name))),
        roles=tuple(_groups(nodes, lambda node: node.role)),
        nodes=nodes,
        workload=workload,
        ceiling=ceiling,
    )


def _graph_facts(graph: Graph) -> GraphFacts:
    kinds = [node.kind for node in graph.nodes.values()]
    return GraphFacts(
        name=graph.name,
        nodes=len(kinds),
        compute=kinds.count(NodeKind.COMPUTE),
        movement=kinds.count(NodeKind.MOVEMENT),
        other=kinds.count(NodeKind.OTHER),
        weight_bytes=weight_bytes(graph.model),
    )


def _nodes(
    graphs: Mapping[GraphName, Graph], dtype: LowDtype, ranges: Mapping[str, NodeRange] | None, safety: float
) -> tuple[NodeFacts, ...]:
    ranges = ranges or {}
    hard = hard_set(ranges, dtype, safety)
    found: dict[str, NodeFacts] = {}
    for graph in graphs.values():
        for node in graph.compute:
            if node.key in found:
                continue
            why = node.pinned or why_fp32(node.op_type, dtype)
            measured = ranges.get(node.key) if why is None else None
            beyond = None if measured is None else node.key in hard
            found[node.key] = NodeFacts(node.key, graph.family, node.op_type, node.role, why, beyond, measured)
    return tuple(found.values())


def _groups(nodes: Iterable[NodeFacts], name_of: Callable[[NodeFacts], str]) -> list[GroupFacts]:
    members: dict[tuple[Family, str], list[NodeFacts]] = {}
    for node in nodes:
        members.setdefault((node.family, name_of(node)), []).append(node)
    return [_group(family, name, group) for (family, name), group in members.items()]


def _group(family: Family, name: str, nodes: Sequence[NodeFacts]) -> GroupFacts:
    searchable = [node for node in nodes if node.pinned is None]
    reasons = sorted({node.pinned for node in nodes if node.pinned is not None})
    measured = [node for node in searchable if node.range is not None]
    return GroupFacts(
        name=name,
        family=family,
        op_type=nodes[0].op_type,
        nodes=len(nodes),
        searchable=len(searchable),
        why="; ".join(reasons) or None,
        beyond_range=sum(bool(node.beyond_range) for node in measured) if measured else None,
        largest=max(map(_largest, measured)) if measured else None,
    )


def _largest(node: NodeFacts) -> float:
    """The largest magnitude that must fit; a NaN counts as infinite, which nothing holds."""
    largest = math.nan if node.range is None else node.range.largest
    return math.inf if math.isnan(largest) else largest
