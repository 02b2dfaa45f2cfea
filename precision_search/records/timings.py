"""The raw times behind measured latencies: `timings.jsonl`, one line for each plan that was timed.

In: what `MeasuredLatency` took for a plan. Out: a line on the disk before the plan's own line in `trials.jsonl`. So
every trial with a measured latency has its times; a line whose trial a kill kept from being written is dropped when
the run goes on, because the plan is then judged, and timed, again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from precision_search.device.state import DeviceState
from precision_search.errors import InputError
from precision_search.files import append, parse_json, read_file, reason, write_atomically
from precision_search.judging.latency import PlanTiming
from precision_search.judging.trial import Judge, Proposal, Trial
from precision_search.records.codec import from_json, to_json
from precision_search.reporting import Reporter
from precision_search.runtime.timing import Comparison

TIMINGS_FILE = "timings.jsonl"


@dataclass(frozen=True, slots=True)
class TimingRecord:
    """One line of the file.

    Attributes:
        trial: the plan's id.
        comparison: fp32 first, the plan second, with all times in order; None where the workload did not fit.
        before, after: the device's condition around the measurement.
        problem: what the user was told of it.
    """

    trial: int
    comparison: Comparison | None
    before: DeviceState
    after: DeviceState
    problem: str | None


class TimingLog:
    """The file, opened for appending."""

    def __init__(self, path: Path, trials: int) -> None:
        """Opens `path`; lines of trials from number `trials` on, and half a line at the end, are dropped.

        Raises:
            InputError: it cannot be read, or a line before the last is broken.
        """
        self._path = path
        data = _content(path) if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        good = b"".join(
            line
            for number, line in enumerate(whole.splitlines(keepends=True), 1)
            if _trial(line, number, path) < trials
        )
        if good != data:
            write_atomically(path, good)

    def append(self, record: TimingRecord) -> None:
        """Writes a line through to the disk; EnvironmentProblemError where that cannot be done."""
        line = json.dumps(to_json(record), allow_nan=False, separators=(",", ":"))
        append(self._path, line.encode() + b"\n")


def read_timings(path: Path) -> tuple[TimingRecord, ...]:
    """Reads the file; half a line at its end is not counted.

    Raises:
        InputError: it cannot be read, or a line before the last is broken.
    """
    data = _content(path)
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return tuple(_record(line, number, path) for number, line in enumerate(lines, 1))


def with_timings(judge: Judge, take: Callable[[], PlanTiming | None], log: TimingLog, reporter: Reporter) -> Judge:
    """A judge that keeps the times of each plan that was measured; what is wrong with them becomes its message.

    Args:
        judge: judges and measures.
        take: gives what was measured since the last call (`MeasuredLatency.take`).
        log: where times go.
        reporter: warned of each plan without latency; of other problems, such as times that did not settle, once each.
    """
    told: set[str] = set()

    def judge_and_keep(proposal: Proposal, trial_id: int) -> Trial:
        take()  # what a plan left that was never judged to its end
        trial = judge(proposal, trial_id)
        taken = take()
        if taken is None:
            return trial
        log.append(TimingRecord(trial_id, taken.comparison, taken.before, taken.after, taken.problem))
        if taken.problem is None:
            return trial
        if taken.comparison is None:
            reporter.warn(f"plan {trial_id}: {taken.problem}")
        elif taken.problem not in told:
            told.add(taken.problem)
            reporter.warn(
                f"plan {trial_id}: {taken.problem}; {TIMINGS_FILE} has all times, and says of which plans it holds"
            )
        return dataclasses.replace(trial, message=taken.problem)

    return judge_and_keep


def _content(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(
            f"cannot read {path}",
            why=reason(error),
            fix="check its permissions, or remove it: latencies are in trials.jsonl too",
        ) from error


def _trial(line: bytes, number: int, path: Path) -> int:
    return _record(line, number, path).trial


def _record(line: bytes, number: int, path: Path) -> TimingRecord:
    try:
        return from_json(TimingRecord, parse_json(line), "timing")
    except ValueError as error:
        raise InputError(
            f"line {number} of {path} does not hold the times of a plan",
            why=str(error),
            fix="restore the file from a copy, or remove it: latencies are in trials.jsonl too",
        ) from error
