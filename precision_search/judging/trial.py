"""A judged plan: what was proposed, what was found, and who is told.

The field names of `Trial` are the keys of a line in `trials.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from precision_search.model.graph import BASE_VARIANT, Family
from precision_search.precision.low import LowDtype
from precision_search.precision.plan import NodeCounts, Plan
from precision_search.reporting import Reporter

if TYPE_CHECKING:
    from precision_search.runtime.progress import Remaining


Verdict = Literal["nonfinite", "mismatch", "stable", "error"]
VerdictSource = Literal["emulated", "cuda"]
BatchKind = Literal["padded", "alone"]
"""Batches beside a sample set's own: of sources padded to twice their length, and of one sample."""
KeptFor = Literal["culprit", "projection", "noise"]
"""Why a search keeps a node in fp32 that fits into the low dtype's range: low, it would damage the model by itself or
together with others; logits tie when they are low; or its rounding weighs more than the time that it saves."""
LANDMARKS = frozenset({"fp32", "all-low", "classic", "ranges", "forced-low", "given"})
"""Stages whose plans people compare with: screened to the end, and shown when they were rejected, too."""


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A plan as the log keeps it.

    Attributes:
        dtype: the low dtype.
        variant: the graph variant.
        op_types: the op types that stay in fp32 as a whole, by family; for people to read.
        nodes: every compute-node key that stays in fp32, sorted; this alone decides which plan it is.
    """

    dtype: LowDtype
    variant: str
    op_types: Mapping[Family, tuple[str, ...]]
    nodes: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, op_types: Mapping[Family, Sequence[str]]) -> PlanRecord:
        """The record of `plan`; `op_types` as `blocklist_of_plan` gives them."""
        by_family = {family: tuple(op_types.get(family, ())) for family in get_args(Family)}
        return cls(plan.dtype, plan.variant, by_family, tuple(sorted(plan.fp32)))

    @property
    def plan(self) -> Plan:
        """The plan itself."""
        return Plan(self.dtype, self.variant, frozenset(self.nodes))


@dataclass(frozen=True, slots=True)
class FlipRisk:
    """Expected flips in 1,000 unseen tokens.

    Attributes:
        value: the estimate.
        low: lower end of its 90% interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a plan first left the reference.

    Attributes:
        sample: index in the calibration set.
        position: token position within that sample's target.
        node: key of the first damaged node in topological order, None where no node stands out.
        relative_error: that node's, None without a node or where it is not finite.
        batch: which batch it was, None for one of the set's own.
    """

    sample: int
    position: int
    node: str | None
    relative_error: float | None
    batch: BatchKind | None = None


@dataclass(frozen=True, slots=True)
class Lengths:
    """The shortest and the longest, in tokens, end token included.

    Attributes:
        min: of the shortest.
        max: of the longest.
    """

    min: int
    max: int


@dataclass(frozen=True, slots=True)
class Judged:
    """The batches that a verdict of `stable` rests on; a plan that was rejected early met fewer.

    Attributes:
        batch_sizes: sentences at once, ascending. At 1 it is the most fragile ones where other sizes are named.
        padded: whether the most fragile sentences were judged with padding, too, as beside one twice as long.
        source_lengths: of the sentences, prefix included.
        target_lengths: of what fp32 makes of them.
    """

    batch_sizes: tuple[int, ...]
    padded: bool
    source_lengths: Lengths
    target_lengths: Lengths

    def __post_init__(self) -> None:
        if not self.batch_sizes:  # others name the largest
            raise ValueError("it was judged in batches of no size")


@dataclass(frozen=True, slots=True)
class TrialLatency:
    """Latency of the whole workload under a plan.

    Attributes:
        p50_ms: median (measured) or the model's value (estimated), milliseconds.
        low_ms: lower end of its interval.
        high_ms: upper end.
        speedup: fp32's time divided by this one's: of estimates, or the median over rounds that timed both.
        source: whether a device was measured or the cost model asked.
        profile: the device profile of an estimate, None if measured.
        speedup_low, speedup_high: ends of the 95% interval of a measured speedup, None for an estimate.
    """

    p50_ms: float
    low_ms: float
    high_ms: float
    speedup: float
    source: Literal["measured", "estimated"]
    profile: str | None
    speedup_low: float | None = None
    speedup_high: float | None = None

    def __post_init__(self) -> None:
        if self.speedup <= 0:  # others divide by it
            raise ValueError(f"a speedup is {self.speedup}")


@dataclass(frozen=True, slots=True)
class Trial:
    """One judged plan.

    Attributes:
        id: number in the log, from 0.
        parent: id of the plan it was derived from.
        stage: the step of the strategy that proposed it.
        plan: the plan.
        verdict: `stable` only after the confirm run.
        verdict_source: emulated on a CPU, or by the real kernels.
        exact_match: share of the calibration samples looked at with the reference's tokens in every batch, 0 to 1.
        validation_match: the same on the validation samples, None where not run.
        min_margin: smallest signed margin (logits) on the calibration samples; None where unknown or not finite.
        flip_risk: None where not estimated.
        first_divergence: None for a stable plan.
        latency: None where not known.
        size_bytes: of the three converted graphs with their weights, None where the plan was not converted.
        fp32_nodes: compute nodes in fp32 over the three graphs.
        low_nodes: compute nodes in the low dtype over the three graphs.
        casts: Cast nodes that the plan adds over the three graphs, None where the plan was not converted.
        seconds: time it took to judge the plan.
        message: what went wrong, for the verdict `error`; for `stable`, what is wrong with its latency.
        screened: how many calibration samples `exact_match` is a share of; a screen stops when its verdict is certain.
        noise: by how much margins moved, in rounding units (see `judging.noise`); None where not known or not finite.
        expected_ms: the latency that the minimum cut had in mind; `latency` is that of the graphs as converted.
        batch_size: samples at once when its verdict was found; None where there is none.
        fp32_decisions: compute-node keys in fp32, pinned ones included; what both decoder graphs hold counts once.
        decisions: all compute-node keys; None, as the one before, where the log does not tell.
        kept_for: the nodes that a search at node level keeps for a reason of its own, by reason. Of the others in fp32
            those beyond the range are kept for it, and the rest because the casts around them would cost more.
        judged: in which batches it was judged; None for the verdict `error`, and where an older version judged it, in
            the sample sets' own batches alone.
    """

    id: int
    parent: int | None
    stage: str
    plan: PlanRecord
    verdict: Verdict
    verdict_source: VerdictSource
    exact_match: float
    validation_match: float | None
    min_margin: float | None
    flip_risk: FlipRisk | None
    first_divergence: Divergence | None
    latency: TrialLatency | None
    size_bytes: int | None
    fp32_nodes: int
    low_nodes: int
    casts: int | None
    seconds: float
    message: str | None = None
    screened: int | None = None
    noise: float | None = None
    expected_ms: float | None = None
    batch_size: int | None = None
    kept_for: Mapping[KeptFor, tuple[str, ...]] = field(default_factory=dict)
    fp32_decisions: int | None = None
    decisions: int | None = None
    judged: Judged | None = None

    def __post_init__(self) -> None:
        for share in (self.exact_match, self.validation_match):
            if share is not None and not 0 <= share <= 1:  # others count samples by it
                raise ValueError(f"a share of samples is {share:g}")

    @property
    def is_fp32(self) -> bool:
        """Whether this is the fp32 model itself, its graphs as they are."""
        return self.low_nodes == 0 and self.plan.variant == BASE_VARIANT


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan to judge.

    Attributes:
        plan: the plan.
        stage: the strategy's step, as the log and the table show it.
        parent: id of the trial that it was derived from.
        expected_ms: the latency that the strategy expects by its own model, None where it has none.
        kept_for: node keys kept in fp32 for a reason that the plan alone does not tell, by reason.
    """

    plan: Plan
    stage: str
    parent: int | None = None
    expected_ms: float | None = None
    kept_for: Mapping[KeptFor, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Findings:
    """What judging a plan gave: the fields of `Trial` that no proposal tells. The defaults are those of a failure."""

    verdict: Verdict
    verdict_source: VerdictSource
    exact_match: float = 0.0
    validation_match: float | None = None
    min_margin: float | None = None
    flip_risk: FlipRisk | None = None
    first_divergence: Divergence | None = None
    latency: TrialLatency | None = None
    size_bytes: int | None = None
    casts: int | None = None
    message: str | None = None
    screened: int | None = None
    noise: float | None = None
    batch_size: int | None = None
    judged: Judged | None = None


def make_trial(
    proposal: Proposal, trial_id: int, found: Findings, *, plan: PlanRecord, nodes: NodeCounts, seconds: float
) -> Trial:
    """The trial of a proposal.

    Args:
        proposal: what was proposed.
        trial_id: its number in the log.
        found: what judging it gave.
        plan: the plan as the log keeps it.
        nodes: how much the plan keeps in fp32.
        seconds: what judging took.
    """
    failed = found.verdict == "error"
    return Trial(
        id=trial_id,
        parent=proposal.parent,
        stage=proposal.stage,
        plan=plan,
        fp32_nodes=nodes.fp32_nodes,
        low_nodes=nodes.low_nodes,
        fp32_decisions=nodes.fp32_decisions,
        decisions=nodes.decisions,
        seconds=seconds,
        # There is no latency that it could be compared with.
        expected_ms=None if failed else proposal.expected_ms,
        kept_for=proposal.kept_for,
        **{each.name: getattr(found, each.name) for each in fields(found)},
    )


@dataclass(frozen=True, slots=True)
class SearchState:
    """Where a search stands after a judged plan.

    Attributes:
        screens_per_second: screens in a second of screening; None before the first.
        best: the plan that would be chosen if the search ended now; None where nothing is faster than fp32, or keeps
            what is required.
        remaining: how much may still come.
        fastest: the fastest plan that could be chosen: `best`, or one that is up to 2% faster and has more flip risk.
    """

    screens_per_second: float | None = None
    best: Trial | None = None
    remaining: Remaining | None = None
    fastest: Trial | None = None


NOTHING_KNOWN = SearchState()


class Judge(Protocol):
    """Judges a proposed plan for real: screen, convert, confirm, time."""

    def __call__(self, proposal: Proposal, trial_id: int) -> Trial:
        """The trial with the given id, its stage and parent from the proposal."""


class SearchReporter(Reporter, Protocol):
    """Receives judged plans, too."""

    def trial(self, trial: Trial, state: SearchState = NOTHING_KNOWN) -> None:
        """A plan was judged, and this is where the search stands."""
