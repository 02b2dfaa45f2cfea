"""What a report shows, as data: the dataclasses that the template and, as JSON, the page's scripts read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from precision_search.judging.trial import KeptFor, Verdict
from precision_search.model.graph import Family
from precision_search.precision.low import LowDtype


@dataclass(frozen=True, slots=True)
class PagePlan:
    """A judged plan, as a point, a row of the table and the picture of the blocks.

    Attributes:
        id, parent, stage, verdict: as in the trial.
        kept: what stays in fp32, in a few words.
        reason: why it was rejected, or what is wrong with its latency; empty if nothing.
        place: what `x_ms` is: latency as the axis of the run says (`measured` or `estimated`), or, of a plan that was
            rejected before its latency was asked for, what the minimum cut expected; None where there is no place.
        x_ms: where the plan is drawn, milliseconds.
        x_low_ms, x_high_ms: its interval.
        latency_ms, latency_low_ms, latency_high_ms, speedup, source, profile: its latency, None where not known.
        exact_match, screened, validation_match, min_margin: shares 0 to 1, samples, logits.
        flip_risk, flip_risk_low, flip_risk_high: expected flips in 1,000 tokens, None where not estimated.
        size_bytes, casts, seconds: as in the trial.
        in_fp32: how many of all nodes stay in fp32.
        on_front, chosen, is_fp32: its part in the choice.
        explained: whether the search says why it keeps each node (`kept_for`, and see `Trial`).
        nodes: which of the page's nodes stay in fp32: their bits, the first node's lowest, as base64.
        kept_for: the same for the nodes that the search keeps for a reason of its own.
    """

    id: int
    parent: int | None
    stage: str
    verdict: Verdict
    kept: str
    reason: str
    place: str | None
    x_ms: float | None
    x_low_ms: float | None
    x_high_ms: float | None
    latency_ms: float | None
    latency_low_ms: float | None
    latency_high_ms: float | None
    speedup: float | None
    source: str | None
    profile: str | None
    exact_match: float
    screened: int | None
    validation_match: float | None
    min_margin: float | None
    flip_risk: float | None
    flip_risk_low: float | None
    flip_risk_high: float | None
    size_bytes: int | None
    casts: int | None
    in_fp32: str
    seconds: float
    on_front: bool
    chosen: bool
    is_fp32: bool
    explained: bool
    nodes: str
    kept_for: Mapping[KeptFor, str]


@dataclass(frozen=True, slots=True)
class PageRole:
    """A row of the picture of the blocks: the same node in all layers.

    Attributes:
        family: whose it is.
        group: the part of a block that holds it, empty outside the blocks.
        label: its name within the block.
        name: its whole name, with a star for the layer.
    """

    family: Family
    group: str
    label: str
    name: str


@dataclass(frozen=True, slots=True)
class PageNode:
    """A compute node.

    Attributes:
        key, op_type: its names.
        role: number of its row.
        layer: its block, None outside the blocks.
        fixed: why it is never low, None if it may be.
        beyond_range: whether its values exceed the low dtype's range with the safety factor.
        input, output, inside: largest magnitudes; None where not measured or not finite.
        underflow: share of its result below the smallest normal number.
    """

    key: str
    op_type: str
    role: int
    layer: int | None
    fixed: str | None
    beyond_range: bool
    input: float | None
    output: float | None
    inside: float | None
    underflow: float | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the low dtype holds: its largest number, that divided by the safety factor, and its least normal one."""

    dtype: LowDtype
    largest: float
    safe: float
    smallest_normal: float
    range_safety: float


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the scripts of a report need.

    Attributes:
        latency_source: what the latency axis shows, `measured` or `estimated`; None where no plan has a latency.
        latency_title: the title of that axis.
        validated: whether flip risk could be estimated at all (there is a validation set).
        plans: every judged plan, in the order they were judged.
        fastest: after each of them, the speedup of the fastest plan so far that could be chosen: of fp32 until there is
            another; None before that. What is chosen is that plan or up to 2% slower.
        roles: rows of the picture of the blocks.
        nodes: compute nodes in topological order, the encoder's first; empty where the run did not record them.
        limits: of the low dtype, None without `nodes`.
        samples: how many the ranges were measured on, None without `nodes`.
    """

    latency_source: str | None
    latency_title: str
    validated: bool
    plans: tuple[PagePlan, ...]
    fastest: tuple[float | None, ...]
    roles: tuple[PageRole, ...]
    nodes: tuple[PageNode, ...]
    limits: Limits | None
    samples: int | None
