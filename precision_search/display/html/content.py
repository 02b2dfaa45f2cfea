"""From the records of a run to what its report shows. Pure: nothing is read or written here."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from precision_search.display.html.page import Limits, Page, PageNode, PagePlan, PageRole
from precision_search.judging.trial import LANDMARKS, Trial
from precision_search.model.graph import layer_of
from precision_search.records.nodes_json import NodeRecord, RunNodes
from precision_search.records.pareto_table import Row
from precision_search.records.run_json import RunInfo
from precision_search.records.wording import part_of
from precision_search.strategies.nodes import NodeSearch
from precision_search.strategies.pareto import is_faster

TITLES: Mapping[str | None, str] = {
    "measured": "latency, ms, measured",
    "estimated": "latency, ms, estimated",
    None: "latency, not known",
}

_INSIDE = re.compile(r"[^*]*\*[./]((?P<part>\w+\.\d+)[./])?(?P<rest>.*)")
"""A role within a block: `encoder.block.*.layer.0.SelfAttention.q/MatMul`."""


def make_page(info: RunInfo, rows: Sequence[Row], nodes: RunNodes | None) -> Page:
    """What the page's scripts read.

    Args:
        info: the record of the run.
        rows: every judged plan, in the order they were judged.
        nodes: the record of the nodes, None where the run has none.
    """
    records = () if nodes is None else nodes.nodes
    roles = _roles(records)
    axis = _Axis.of([row.trial for row in rows])
    bit = {record.key: number for number, record in enumerate(records)}
    return Page(
        latency_source=axis.source,
        latency_title=axis.title,
        validated=info.samples.validation is not None,
        plans=tuple(_plan(row, axis, bit, explained=_is_explained(info, row.trial)) for row in rows),
        fastest=tuple(_fastest(rows, axis.source)),
        roles=tuple(roles.values()),
        nodes=_nodes(records, list(roles)),
        limits=None if nodes is None else _limits(nodes),
        samples=None if nodes is None else nodes.samples,
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """The latency axis. Measured and estimated times never share it."""

    source: str | None
    title: str

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> _Axis:
        sources = {trial.latency.source for trial in trials if trial.latency is not None}
        source = "measured" if "measured" in sources else "estimated" if sources else None
        profiles = {t.latency.profile for t in trials if t.latency is not None and t.latency.source == source}
        named = sorted(profile for profile in profiles if profile is not None)
        return cls(source, TITLES[source] + (f" for {', '.join(named)}" if named else ""))

    def place(self, trial: Trial) -> tuple[str | None, float | None, float | None, float | None]:
        """What the place of a plan is, where it is, and its interval."""
        latency = trial.latency
        if latency is not None and latency.source == self.source:
            return self.source, latency.p50_ms, latency.low_ms, latency.high_ms
        if trial.expected_ms is not None and self.source != "measured":
            return "expected", trial.expected_ms, None, None
        return None, None, None, None


def _is_explained(info: RunInfo, trial: Trial) -> bool:
    return info.strategy == NodeSearch.name and trial.stage not in LANDMARKS


def _plan(row: Row, axis: _Axis, bit: Mapping[str, int], *, explained: bool) -> PagePlan:
    trial = row.trial
    latency, risk = trial.latency, trial.flip_risk
    place, x, x_low, x_high = axis.place(trial)
    return PagePlan(
        id=trial.id,
        parent=trial.parent,
        stage=trial.stage,
        verdict=trial.verdict,
        kept=row.kept,
        reason=row.reason or trial.message or "",
        place=place,
        x_ms=x,
        x_low_ms=x_low,
        x_high_ms=x_high,
        latency_ms=None if latency is None else latency.p50_ms,
        latency_low_ms=None if latency is None else latency.low_ms,
        latency_high_ms=None if latency is None else latency.high_ms,
        speedup=None if latency is None else latency.speedup,
        source=None if latency is None else latency.source,
        profile=None if latency is None else latency.profile,
        exact_match=trial.exact_match,
        screened=trial.screened,
        validation_match=trial.validation_match,
        min_margin=trial.min_margin,
        flip_risk=None if risk is None else risk.value,
        flip_risk_low=None if risk is None else risk.low,
        flip_risk_high=None if risk is None else risk.high,
        size_bytes=trial.size_bytes,
        casts=trial.casts,
        in_fp32=part_of(trial.fp32_decisions, trial.decisions),
        seconds=trial.seconds,
        on_front=row.on_front,
        chosen=row.chosen,
        is_fp32=trial.is_fp32,
        explained=explained,
        nodes=bits(trial.plan.nodes, bit),
        kept_for={reason: bits(keys, bit) for reason, keys in trial.kept_for.items()},
    )


def _fastest(rows: Sequence[Row], source: str | None) -> Iterator[float | None]:
    """After each row the largest speedup so far of a plan that could be chosen; it never falls."""
    most = None
    for row in rows:
        found = row.trial.latency
        could_be_chosen = row.acceptable and (row.trial.is_fp32 or is_faster(row.trial))
        if could_be_chosen and found is not None and found.source == source:
            most = found.speedup if most is None else max(most, found.speedup)
        yield most


def _limits(nodes: RunNodes) -> Limits:
    return Limits(
        dtype=nodes.dtype,
        largest=nodes.largest_number,
        safe=nodes.largest_number / nodes.range_safety,
        smallest_normal=nodes.smallest_normal,
        range_safety=nodes.range_safety,
    )


def bits(keys: Collection[str], bit: Mapping[str, int]) -> str:
    """The set `keys` as base64 of one bit for each node, `bit` saying which; keys that have none are left out."""
    packed = bytearray((len(bit) + 7) // 8)
    for key in keys:
        if (number := bit.get(key)) is not None:
            packed[number // 8] |= 1 << number % 8
    return base64.b64encode(packed).decode()


def _roles(records: Sequence[NodeRecord]) -> dict[tuple[str, str], PageRole]:
    """The rows of the picture: in topological order by family, what is outside the blocks where it stands."""
    return {
        (record.family, record.role): PageRole(record.family, *_names(record.role), record.role) for record in records
    }


def _names(role: str) -> tuple[str, str]:
    """The part of a block that a role belongs to, and its name in there: `layer.0`, `SelfAttention.q/MatMul`."""
    inside = _INSIDE.match(role)
    if inside is None:
        return "", role.removeprefix("encoder.").removeprefix("decoder.")
    return inside["part"] or "block", inside["rest"]


def _nodes(records: Sequence[NodeRecord], roles: Sequence[tuple[str, str]]) -> tuple[PageNode, ...]:
    row = {role: number for number, role in enumerate(roles)}
    return tuple(
        PageNode(
            key=record.key,
            op_type=record.op_type,
            role=row[record.family, record.role],
            layer=layer_of(record.key),
            fixed=record.fixed,
            beyond_range=record.beyond_range,
            input=record.largest_input,
            output=record.largest_output,
            inside=record.largest_inside,
            underflow=record.underflow,
        )
        for record in records
    )
