"""The raw times of a run: a line for each timed plan, before its trial has one, in step with trials after a kill."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from precision_search import api
from precision_search.config import Config, load_config
from precision_search.cost.estimate import Workload
from precision_search.device.state import DeviceState
from precision_search.display.reporters import make_reporter
from precision_search.errors import InputError
from precision_search.judging import latency as latency_module
from precision_search.judging.latency import MeasuredLatency, PlanTiming
from precision_search.judging.trial import Proposal, Trial
from precision_search.records import run_files
from precision_search.records.timings import TIMINGS_FILE, TimingLog, TimingRecord, read_timings, with_timings
from precision_search.records.trials import read_trials
from precision_search.run import search as run_module
from precision_search.run.prepare import Prepared
from precision_search.runtime.timing import Comparison, Interval, Timing, TimingRules, compare_times
from tests.search_models import trial
from tests.tiny_model import write_tiny_config

FIRST, SECOND = Timing(2.0, 1.5, 2.5, (2.0, 9.5), (30.0,)), Timing(1.0, 0.5, 1.5, (1.0, 1.0), (40.0,))
COMPARISON = Comparison(FIRST, SECOND, Interval(2.0, 1.9, 2.1), stable=True, narrow=False)
BEFORE, AFTER = DeviceState(sm_clock_mhz=1590.0), DeviceState(sm_clock_mhz=585.0, slowed_by=("power cap",))
TIMING = PlanTiming(COMPARISON, BEFORE, AFTER, None)


def record(number: int) -> TimingRecord:
    return TimingRecord(number, COMPARISON, BEFORE, AFTER, None)


def test_every_time_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    log = TimingLog(path, 0)
    log.append(record(0))
    log.append(TimingRecord(4, None, DeviceState(), DeviceState(), "did not fit"))

    assert read_timings(path) == (record(0), TimingRecord(4, None, DeviceState(), DeviceState(), "did not fit"))


def test_times_of_trials_that_were_never_written_are_dropped(tmp_path: Path) -> None:
    """A kill between both lines: the plan will be judged and timed again under the same number."""
    path = tmp_path / "timings.jsonl"
    log = TimingLog(path, 0)
    for number in (0, 1, 3):
        log.append(record(number))

    again = TimingLog(path, 3)
    again.append(record(3))

    assert [line.trial for line in read_timings(path)] == [0, 1, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["timings.jsonl"]


def test_half_a_line_at_the_end_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    log = TimingLog(path, 0)
    log.append(record(0))
    whole = path.read_bytes()
    log.append(record(1))
    path.write_bytes(path.read_bytes()[: len(whole) + 40])
    assert read_timings(path) == (record(0),)

    TimingLog(path, 5)

    assert path.read_bytes() == whole


def test_a_file_in_step_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    TimingLog(path, 0).append(record(0))
    before = path.stat().st_ino

    TimingLog(path, 1)

    assert path.stat().st_ino == before


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    log = TimingLog(path, 0)
    log.append(record(0))
    path.write_bytes(path.read_bytes() + b'{"trial": 1}\n')

    with pytest.raises(InputError, match="line 2"):
        TimingLog(path, 2)


class Judging:
    """A judge that measures: each plan leaves what is next in the list."""

    def __init__(self, *measured: PlanTiming | None) -> None:
        self.left: PlanTiming | None = None
        self._measured = list(measured)

    def __call__(self, proposal: Proposal, trial_id: int) -> Trial:
        measured = self._measured.pop(0)
        if measured is not None:
            self.left = measured
        return trial(trial_id)

    def take(self) -> PlanTiming | None:
        left, self.left = self.left, None
        return left


def judged(tmp_path: Path, judge: Judging, count: int) -> tuple[list[Trial], list[str], tuple[TimingRecord, ...]]:
    path, warnings = tmp_path / "timings.jsonl", list[str]()
    wrapped = with_timings(judge, judge.take, TimingLog(path, 0), warnings.append)
    trials = [wrapped(Proposal(trial(number).plan.plan, "some stage"), number) for number in range(count)]
    return trials, warnings, read_timings(path) if path.exists() else ()


def test_each_timed_plan_leaves_a_line_and_its_trial_as_it_is(tmp_path: Path) -> None:
    trials, warnings, lines = judged(tmp_path, Judging(TIMING, None, TIMING), 3)

    assert trials == [trial(number) for number in range(3)]
    assert lines == (record(0), record(2))
    assert warnings == []


def test_what_an_interrupted_plan_left_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    judge = Judging(None)
    judge.left = TIMING

    assert judged(tmp_path, judge, 1)[2] == ()


def test_times_that_did_not_settle_are_told_once(tmp_path: Path) -> None:
    unstable = replace(TIMING, problem="times still moved")

    trials, warnings, lines = judged(tmp_path, Judging(TIMING, unstable, unstable), 3)

    assert len(warnings) == 1
    assert "plan 1: times still moved" in warnings[0]
    assert "timings.jsonl" in warnings[0]
    assert [line.problem for line in lines] == [None, "times still moved", "times still moved"]
    assert [each.message for each in trials] == [None, "times still moved", "times still moved"]


def test_a_plan_that_does_not_fit_is_told_each_time_and_says_so_itself(tmp_path: Path) -> None:
    full = PlanTiming(None, BEFORE, AFTER, "no latency: it does not fit")

    trials, warnings, lines = judged(tmp_path, Judging(full, full), 2)

    assert warnings == ["plan 0: no latency: it does not fit", "plan 1: no latency: it does not fit"]
    assert [each.message for each in trials] == ["no latency: it does not fit"] * 2
    assert [each.verdict for each in trials] == [trial(0).verdict, trial(1).verdict]
    assert [line.comparison for line in lines] == [None, None]


@pytest.fixture
def measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a run measure on the CPU, briefly, as it would on a device; the clock counts how often it is looked at.

    Real times would steer the search, and a resumed one elsewhere.
    """
    rules, ticks = TimingRules(warm_up_rounds=4, least_rounds=1, most_rounds=1), itertools.count()
    compare = functools.partial(compare_times, rules=rules, clock=lambda: float(next(ticks)))
    monkeypatch.setattr(latency_module, "compare_times", compare)

    def measured(config: Config, prepared: Prepared, workload: Workload) -> MeasuredLatency:
        return MeasuredLatency(prepared.bundle, Workload(2, 4, 4), prepared.settings, config.search.seed)

    monkeypatch.setattr(run_module, "_measured", measured)


def timed(trials: Sequence[Trial]) -> list[int]:
    return [each.id for each in trials if each.latency is not None and each.latency.source == "measured"]


def test_a_run_that_measures_keeps_the_times_of_its_plans_through_a_kill(tmp_path: Path, measured_here: None) -> None:
    config = load_config(write_tiny_config(tmp_path / "tiny"), ["search.max_trials=6"])
    run = tmp_path / "run"
    api.search(config, run, reporter=make_reporter(quiet=True))
    trials_file = run / run_files.TRIALS_FILE
    trials = read_trials(trials_file)
    assert len(timed(trials)) >= 3
    assert [line.trial for line in read_timings(run / TIMINGS_FILE)] == timed(trials)
    # What a kill leaves between the two lines of the last timed plan.
    last = timed(trials)[-1]
    trials_file.write_bytes(b"".join(trials_file.read_bytes().splitlines(keepends=True)[:last]))

    api.search(config, run, resume=True, reporter=make_reporter(quiet=True))

    again = read_trials(trials_file)
    lines = read_timings(run / TIMINGS_FILE)
    assert [line.trial for line in lines] == timed(again) == timed(trials)
    for line in lines:
        found = again[line.trial].latency
        assert found is not None
        assert line.comparison is not None
        assert found.p50_ms == line.comparison.second.p50_ms
        assert Interval(found.speedup, found.speedup_low or 0.0, found.speedup_high or 0.0) == line.comparison.speedup


def test_a_run_that_estimates_has_no_times(tmp_path: Path) -> None:
    config = load_config(write_tiny_config(tmp_path / "tiny"), ["search.max_trials=2"])

    api.search(config, tmp_path / "run", reporter=make_reporter(quiet=True))

    assert not (tmp_path / "run" / TIMINGS_FILE).exists()


def test_times_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    path.mkdir()
    for read in (lambda: TimingLog(path, 1), lambda: read_timings(path)):
        with pytest.raises(InputError) as caught:
            read()
        assert caught.value.what == f"cannot read {path}"
        assert caught.value.why == "Is a directory"
        assert "trials.jsonl" in caught.value.fix
        assert caught.value.exit_code == 2
