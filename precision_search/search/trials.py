"""Judged plans and their log: the dataclasses behind each line of `trials.jsonl`, and the file itself.

In: a `Trial` for every plan that was judged. Out: one line of JSON each, on the disk before the next plan is judged,
and found again by plan. The field names are the file's keys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from precision_search.errors import InputError, InternalError
from precision_search.files import append, read_file, reason
from precision_search.model.graph import Family
from precision_search.precision.plan import LowDtype, Plan
from precision_search.search.json_codec import from_json, to_json

Verdict = Literal["nonfinite", "mismatch", "stable", "error"]
VerdictSource = Literal["emulated", "cuda"]
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
    """

    sample: int
    position: int
    node: str | None
    relative_error: float | None


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


@dataclass(frozen=True, slots=True)
class Trial:
    """One judged plan.

    Attributes:
        id: number in the log, from 0.
        parent: id of the trial the plan was derived from.
        stage: the step of the strategy that proposed it.
        plan: the plan.
        verdict: `stable` only after the confirm run.
        verdict_source: emulated on a CPU, or by the real kernels.
        exact_match: share of the calibration samples looked at with the reference's tokens, 0 to 1.
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
        noise: by how much margins moved, in rounding units (see `search.noise`); None where not known or not finite.
        expected_ms: the latency that the minimum cut had in mind; `latency` is that of the graphs as converted.
        batch_size: samples at once when its verdict was found; None where there is none.
        kept_for: the nodes that a search at node level keeps for a reason of its own, by reason. Of the others in fp32
            those beyond the range are kept for it, and the rest because the casts around them would cost more.
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

    @property
    def is_fp32(self) -> bool:
        """Whether this is the fp32 model itself."""
        return self.low_nodes == 0


def trial_to_line(trial: Trial) -> str:
    """The trial as one line of strict JSON (without the line end); an optional number that is not finite becomes null.

    Raises:
        InternalError: a number that must be there is NaN or infinite, or a value is of a type that JSON has not.
    """
    try:
        return json.dumps(to_json(trial), allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError) as error:
        raise InternalError(f"trial {trial.id} cannot be written to the log", why=str(error)) from error


def trial_from_line(line: str, where: str) -> Trial:
    """Reads one line of the log; a key that the trial does not have is ignored, so that newer logs stay readable.

    Raises:
        InputError: the line is not JSON or not a trial; `where` (file and line) is named in the message.
    """
    try:
        return from_json(Trial, json.loads(line), "trial")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is not a judged plan",
            why=str(error),
            fix="restore the file from a copy, or start a new run; only a half-written last line is repaired",
        ) from error


def read_trials(path: Path) -> tuple[Trial, ...]:
    """Reads a log without changing it; half a line at the end, left by a killed run, is not counted.

    Raises:
        InputError: the file cannot be read, a line before the last is broken, or a plan or id occurs twice.
    """
    return _parse(_read_bytes(path), path)[0]


class TrialLog:
    """The log of one run, opened for appending: every plan at most once."""

    def __init__(self, path: Path) -> None:
        """Opens or creates `path` and reads what it holds; half a line at its end is cut off.

        Raises:
            InputError: as `read_trials`.
        """
        self._path = path
        self._by_digest: dict[str, Trial] = {}
        self._next_id = 0
        trials: tuple[Trial, ...] = ()
        if path.exists():
            data = _read_bytes(path)
            trials, good = _parse(data, path)
            if good < len(data):
                os.truncate(path, good)
            elif data and not data.endswith(b"\n"):
                append(path, b"\n")
        else:
            append(path, b"")
        for trial in trials:
            self._remember(trial)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials in the order they were judged."""
        return tuple(self._by_digest.values())

    @property
    def next_id(self) -> int:
        """The id for the next trial."""
        return self._next_id

    def __len__(self) -> int:
        """How many plans were judged."""
        return len(self._by_digest)

    def find(self, plan: Plan) -> Trial | None:
        """The trial of `plan`, None if it was never judged."""
        return self._by_digest.get(plan.digest)

    def append(self, trial: Trial) -> None:
        """Writes the trial through to the disk.

        Raises:
            InternalError: the plan was judged before, or the id is not `next_id`.
            EnvironmentProblemError: the file cannot be written; it ends with the trial before.
        """
        if self.find(trial.plan.plan) is not None or trial.id != self._next_id:
            raise InternalError(
                f"trial {trial.id} does not fit the log",
                why=f"its plan {trial.plan.plan.digest} was judged before, or its id is not {self._next_id}",
            )
        append(self._path, trial_to_line(trial).encode() + b"\n")
        self._remember(trial)

    def _remember(self, trial: Trial) -> None:
        self._by_digest[trial.plan.plan.digest] = trial
        self._next_id = max(self._next_id, trial.id + 1)


def _read_bytes(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(
            f"cannot read the trial log {path}", why=reason(error), fix="check the path and its permissions"
        ) from error


def _parse(data: bytes, path: Path) -> tuple[tuple[Trial, ...], int]:
    """The trials and how many bytes of `data` hold them.

    A last line without its line end counts when it is whole: a JSON object cut anywhere is no JSON, so nothing judged
    is lost.
    """
    lines = data.split(b"\n")
    last = lines.pop()
    good = len(data) - len(last)
    trials: list[Trial] = []
    seen: dict[object, int] = {}
    for number, raw in enumerate([*lines, last] if _is_json(last) else lines, start=1):
        where = f"line {number} of {path}"
        trial = trial_from_line(raw.decode("utf-8", errors="replace"), where)
        for name in (trial.id, trial.plan.plan.digest):
            if (first := seen.setdefault(name, number)) != number:
                raise InputError(
                    f"{where} repeats line {first}",
                    why=f"both hold id or plan {name}",
                    fix="remove the later of the two, or restore the file from a copy",
                )
        trials.append(trial)
    return tuple(trials), len(data) if _is_json(last) else good


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True
