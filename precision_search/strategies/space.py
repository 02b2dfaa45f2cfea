"""The search space of a bundle: what has a choice at op-type level, what stays in fp32 whatever happens, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from precision_search.errors import ConfigError, InputError, did_you_mean
from precision_search.judging.ranges import NodeRange, hard_set
from precision_search.model.bundle import Bundle
from precision_search.model.graph import BASE_VARIANT, Family, Graph, GraphName, NodeKind, compute_keys_by_op_type
from precision_search.precision.blocklist import match_keys
from precision_search.precision.convert import overflowing_weights
from precision_search.precision.kernels import why_fp32
from precision_search.precision.low import LowDtype
from precision_search.precision.patterns import time_limit
from precision_search.precision.plan import FAMILIES, all_compute_keys, pinned_keys
from precision_search.precision.wiring import sources
from precision_search.runtime.head import LOGITS
from precision_search.strategies.base import SearchSpace

OUTPUT_PROJECTION = "output projection"
"""A choice of its own beside the op types: rounding the logits makes ties and flips by itself, whatever else is low
and costs one node to avoid."""


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """A search space and the reasons behind it.

    Attributes:
        space: what strategies search.
        fixed: why each node key stays in fp32 in every plan.
        hard: the largest magnitude of each node that exceeds the low dtype's range with the safety factor.
    """

    space: SearchSpace
    fixed: Mapping[str, str]
    hard: Mapping[str, float]


def make_space(
    graphs: Mapping[GraphName, Graph],
    dtype: LowDtype,
    ranges: Mapping[str, NodeRange],
    *,
    variant: str = BASE_VARIANT,
    range_safety: float,
    keep_fp32: Sequence[str] = (),
    force_low: Sequence[str] = (),
) -> SpaceReport:
    """The space at op-type level.

    Args:
        graphs: the graphs of the variant.
        dtype: the low dtype.
        ranges: range of each compute node.
        variant: its name. A pin that names nothing in another variant than `base` is left out there.
        range_safety: a node whose largest magnitude times this exceeds the range is hard.
        keep_fp32: op types, `output projection` or key patterns that stay in fp32.
        force_low: the same, low in every plan.

    Raises:
        ConfigError: a pin that names nothing, or wants low what can never be low.
    """
    fixed, derived = _never_low(graphs, dtype), variant != BASE_VARIANT
    forced = _resolve(force_low, [graphs], "search.force_low", missing_ok=derived)
    kept = _resolve(keep_fp32, [graphs], "search.keep_fp32", missing_ok=derived)
    _check_pins(fixed, kept, forced)
    for key in kept:
        fixed.setdefault(key, "search.keep_fp32")
    hard = hard_set(ranges, dtype, range_safety)
    keys_of = {family: _choices(graphs, family, fixed.keys() | forced) for family in FAMILIES}
    hard_types = {
        family: frozenset(op for op, keys in of_family.items() if keys & hard.keys())
        for family, of_family in keys_of.items()
    }
    space = SearchSpace(
        dtype=dtype,
        variant=variant,
        op_types={family: tuple(sorted(keys_of[family])) for family in FAMILIES},
        keys_of=keys_of,
        hard=hard_types,
        fixed=frozenset(fixed),
        forced_low=forced,
    )
    return SpaceReport(space, fixed, {key: value for key, value in hard.items() if key not in fixed})


def _never_low(graphs: Mapping[GraphName, Graph], dtype: LowDtype) -> dict[str, str]:
    """Why nodes cannot be low, whatever anybody wants, by key."""
    fixed = {
        node.key: reason
        for graph in graphs.values()
        for node in graph.compute
        if (reason := node.pinned or why_fp32(node.op_type, dtype)) is not None
    }
    for key, largest in overflowing_weights(graphs, dtype).items():
        fixed.setdefault(key, f"a weight of {largest:.4g} does not fit into {dtype}")
    return fixed


def _check_pins(fixed: Mapping[str, str], kept: Set[str], forced: Set[str]) -> None:
    if impossible := sorted(forced & fixed.keys()):
        raise ConfigError(
            f"search.force_low wants {impossible[0]} low",
            why=fixed[impossible[0]],
            fix="leave it out of search.force_low; `precision-search inspect` shows what is searchable",
        )
    if both := sorted(forced & kept):
        raise ConfigError(
            f"search.keep_fp32 and search.force_low both name {both[0]}", fix="narrow one of the two patterns"
        )


def _choices(graphs: Mapping[GraphName, Graph], family: Family, decided: Set[str]) -> dict[str, frozenset[str]]:
    """The keys of a family that are free to choose, by op type; the output projection is a choice of its own."""
    projection = output_projection(graphs)
    free = {op: keys - decided - projection for op, keys in compute_keys_by_op_type(graphs, family).items()}
    if family == "decoder":
        free[OUTPUT_PROJECTION] = projection - decided
    return {op: keys for op, keys in free.items() if keys}


def check_pins(bundle: Bundle, keep_fp32: Sequence[str], force_low: Sequence[str]) -> None:
    """Raises ConfigError for a pin that names nothing in any variant; needs no ranges, so it can be asked early."""
    variants = [bundle.graphs_of(name) for name in bundle.variant_names]
    _resolve(keep_fp32, variants, "search.keep_fp32")
    _resolve(force_low, variants, "search.force_low")


def output_projection(graphs: Mapping[GraphName, Graph]) -> frozenset[str]:
    """The compute nodes whose results are the logits, behind data movement."""
    return frozenset(
        str(producer.name)
        for graph in graphs.values()
        for value in graph.model.graph.outputs
        if value.name == LOGITS
        for source in sources(value, graph)
        if (producer := source.producer()) is not None and graph.nodes[str(producer.name)].kind is NodeKind.COMPUTE
    )


def _resolve(
    items: Sequence[str], variants: Sequence[Mapping[GraphName, Graph]], where: str, *, missing_ok: bool = False
) -> frozenset[str]:
    """Node keys that op types, the output projection or patterns stand for, in whichever variant holds them.

    Raises:
        ConfigError: an item names nothing in any of them, unless that may be.
    """
    found: set[str] = set()
    end = time_limit()
    for item in items:
        first: ConfigError | None = None
        named: set[str] = set()
        for graphs in variants:
            try:
                named |= _named(item, graphs, where, end)
            except ConfigError as error:
                first = first or error
        if first is not None and not named and not missing_ok:
            raise first
        found |= named
    return frozenset(found)


def _named(item: str, graphs: Mapping[GraphName, Graph], where: str, end: float) -> frozenset[str]:
    """What one item names; an op type leaves out its index arithmetic, which is nobody's choice, unless there is
    nothing else of that type."""
    keys, pinned = all_compute_keys(graphs), pinned_keys(graphs)
    by_name = {OUTPUT_PROJECTION: output_projection(graphs)}
    for family in FAMILIES:
        for op_type, of_type in compute_keys_by_op_type(graphs, family).items():
            by_name[op_type] = by_name.get(op_type, frozenset()) | of_type
    try:
        named = by_name.get(item) or match_keys(item, keys, where, end)
    except InputError as error:
        fix = did_you_mean(item, sorted(by_name), also=error.fix)
        raise ConfigError(error.what, why=error.why, fix=fix) from error
    return (named - pinned or named) if item in by_name else named
