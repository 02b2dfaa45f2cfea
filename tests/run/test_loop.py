"""The search loop: budgets, the log as memory, resuming, Ctrl-C, and errors about one plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from precision_search.errors import (
    DeviceError,
    DeviceMemoryError,
    MissingPackageError,
    NoKernelError,
    PrecisionSearchError,
)
from precision_search.judging.trial import Judged, Lengths, PlanRecord, Proposal, Trial
from precision_search.precision.plan import NodeCounts, Plan
from precision_search.records.trials import TrialLog, read_trials
from precision_search.run.loop import Budget, guarded, run_search, tell_of_older_verdicts
from precision_search.runtime.progress import Remaining
from precision_search.strategies.base import Strategy, StrategyContext
from tests.search_models import trial
from tests.told import Told


class Listed:
    """A strategy that proposes the plans of a list."""

    name: ClassVar[str] = "listed"

    def __init__(self, context: StrategyContext | Iterable[str]) -> None:
        assert not isinstance(context, StrategyContext)
        self._names: Iterator[str] = iter(context)
        self.seen: list[Trial] = []

    def propose(self) -> Proposal | None:
        name = next(self._names, None)
        return None if name is None else Proposal(Plan("float16", "base", frozenset({name})), "list", None)

    def observe(self, trial: Trial) -> None:
        self.seen.append(trial)

    def remaining(self) -> int | None:
        return None


def judge(proposal: Proposal, trial_id: int) -> Trial:
    return trial(trial_id, plan=PlanRecord.of(proposal.plan, {}), stage=proposal.stage)


def names(trials: Iterable[Trial]) -> list[str]:
    return [t.plan.nodes[0] for t in trials]


def test_every_proposal_is_judged_logged_reported_and_observed_in_that_order(tmp_path: Path) -> None:
    strategy, log = Listed("abc"), TrialLog(tmp_path / "log")
    reported: list[Trial] = []

    def on_trial(trial: Trial, remaining: Remaining) -> None:
        assert read_trials(tmp_path / "log")[-1] == trial
        assert len(strategy.seen) == len(reported)
        reported.append(trial)

    outcome = run_search(strategy, judge, log, Budget(10), on_trial=on_trial)
    assert outcome.stopped == "done"
    assert names(outcome.trials) == ["a", "b", "c"]
    assert outcome.judged == 3
    assert list(outcome.trials) == reported == strategy.seen == list(log.trials)
    assert [t.id for t in reported] == [0, 1, 2]


def test_what_the_log_holds_is_not_judged_again(tmp_path: Path) -> None:
    run_search(Listed("abc"), judge, TrialLog(tmp_path / "log"), Budget(2))
    calls: list[str] = []

    def counting(proposal: Proposal, trial_id: int) -> Trial:
        calls.extend(proposal.plan.fp32)
        return judge(proposal, trial_id)

    strategy = Listed("abcd")
    reported: list[Trial] = []
    outcome = run_search(
        strategy, counting, TrialLog(tmp_path / "log"), Budget(4), on_trial=lambda trial, _: reported.append(trial)
    )
    assert calls == names(reported) == ["c", "d"]
    assert names(strategy.seen) == ["a", "b", "c", "d"]
    assert (outcome.judged, outcome.stopped) == (2, "done")


def test_the_trial_budget_counts_what_earlier_sessions_judged(tmp_path: Path) -> None:
    first = run_search(Listed("abcd"), judge, TrialLog(tmp_path / "log"), Budget(2))
    assert (first.stopped, names(first.trials)) == ("max_trials", ["a", "b"])
    second = run_search(Listed("abcd"), judge, TrialLog(tmp_path / "log"), Budget(3))
    assert (second.stopped, names(second.trials), second.judged) == ("max_trials", ["a", "b", "c"], 1)
    third = run_search(Listed("ab"), judge, TrialLog(tmp_path / "log"), Budget(3))
    assert third.stopped == "done"


def test_the_timeout_is_looked_at_before_each_plan(tmp_path: Path) -> None:
    now = 100.0

    def slow(proposal: Proposal, trial_id: int) -> Trial:
        nonlocal now
        now += 4.0
        return judge(proposal, trial_id)

    outcome = run_search(
        Listed("abcdef"), slow, TrialLog(tmp_path / "log"), Budget(10, timeout_s=10.0), clock=lambda: now
    )
    assert (outcome.stopped, names(outcome.trials)) == ("timeout", ["a", "b", "c"])


class Counting(Listed):
    """Knows how many plans it has left."""

    def __init__(self, names: str) -> None:
        super().__init__(names)
        self._count = len(names)

    def propose(self) -> Proposal | None:
        self._count -= 1
        return super().propose()

    def remaining(self) -> int:
        return self._count


@pytest.mark.parametrize(
    ("strategy", "left"),
    [
        (Listed("abcd"), [5, 4, 3, 2]),  # the budget's end is all that is known
        (Counting("abcd"), [3, 2, 1, 0]),
        (Counting("abcdefgh"), [5, 4, 3, 2, 1, 0]),
    ],
)
def test_what_may_still_come_is_bounded_by_budget_strategy_and_time(
    tmp_path: Path, strategy: Strategy, left: list[int]
) -> None:
    now = 100.0
    told: list[Remaining] = []

    def slow(proposal: Proposal, trial_id: int) -> Trial:
        nonlocal now
        now += 4.0
        return judge(proposal, trial_id)

    run_search(
        strategy,
        slow,
        TrialLog(tmp_path / "log"),
        Budget(6, timeout_s=100.0),
        on_trial=lambda trial, remaining: told.append(remaining),
        clock=lambda: now,
    )
    assert [each.plans for each in told] == left
    assert [each.seconds for each in told] == [100.0 - 4.0 * number for number in range(1, len(left) + 1)]


def test_control_c_keeps_what_was_judged(tmp_path: Path) -> None:
    def impatient(proposal: Proposal, trial_id: int) -> Trial:
        if trial_id == 2:
            raise KeyboardInterrupt
        return judge(proposal, trial_id)

    outcome = run_search(Listed("abcd"), impatient, TrialLog(tmp_path / "log"), Budget(10))
    assert (outcome.stopped, outcome.judged) == ("interrupted", 2)
    assert names(read_trials(tmp_path / "log")) == ["a", "b"]


def count(plan: Plan) -> NodeCounts:
    return NodeCounts(10, 0, 7, 7) if "fp32" in plan.fp32 else NodeCounts(1, 9, 1, 7)


def failing(proposal: Proposal, trial_id: int) -> Trial:
    if proposal.plan.fp32 & {"bad", "fp32"}:
        raise NoKernelError("no kernel for that node", why="it is bfloat16", fix="keep it in fp32")
    return judge(proposal, trial_id)


def test_an_error_about_one_plan_is_a_trial(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "log")
    safe = guarded(failing, lambda plan: PlanRecord.of(plan, {}), count, "cuda", clock=lambda: 5.0)
    outcome = run_search(Listed(["good", "bad", "more"]), safe, log, Budget(10))
    assert [t.verdict for t in outcome.trials] == ["stable", "error", "stable"]
    error = outcome.trials[1]
    assert (error.fp32_nodes, error.low_nodes, error.verdict_source, error.seconds) == (1, 9, "cuda", 0.0)
    assert (error.fp32_decisions, error.decisions) == (1, 7)
    assert error.message == "no kernel for that node\n  why: it is bfloat16\n  fix: keep it in fp32"
    assert read_trials(tmp_path / "log")[1] == error


@pytest.mark.parametrize("kind", [DeviceMemoryError, DeviceError, MissingPackageError])
def test_what_is_wrong_with_the_machine_says_nothing_about_the_plan(
    tmp_path: Path, kind: type[PrecisionSearchError]
) -> None:
    def full(proposal: Proposal, trial_id: int) -> Trial:
        if proposal.plan.fp32 & {"bad"}:
            raise kind("the device is gone, or its memory does not hold one sample")
        return judge(proposal, trial_id)

    path = tmp_path / "log"
    safe = guarded(full, lambda plan: PlanRecord.of(plan, {}), count, "cuda")
    with pytest.raises(kind):
        run_search(Listed(["good", "bad", "more"]), safe, TrialLog(path), Budget(10))
    assert names(read_trials(path)) == ["good"]
    safe = guarded(judge, lambda plan: PlanRecord.of(plan, {}), count, "cuda")
    outcome = run_search(Listed(["good", "bad", "more"]), safe, TrialLog(path), Budget(10))
    assert (names(outcome.trials), outcome.judged) == (["good", "bad", "more"], 2)


def test_an_error_about_fp32_itself_and_any_other_exception_pass_through(tmp_path: Path) -> None:
    def buggy(proposal: Proposal, trial_id: int) -> Trial:
        raise ZeroDivisionError

    for wrong, name, kind in ((failing, "fp32", NoKernelError), (buggy, "x", ZeroDivisionError)):
        safe = guarded(wrong, lambda plan: PlanRecord.of(plan, {}), count, "emulated")
        with pytest.raises(kind):
            run_search(Listed([name]), safe, TrialLog(tmp_path / f"log-{name}"), Budget(10))


def test_stable_plans_of_an_older_version_are_counted() -> None:
    judged = Judged((1, 32), True, Lengths(2, 5), Lengths(1, 4))
    told = Told()

    tell_of_older_verdicts([trial(0, judged=judged), trial(1, verdict="mismatch")], told)
    assert told.warnings == []
    tell_of_older_verdicts([trial(0, judged=judged), trial(1)], told)
    assert told.warnings == [
        "1 stable plan of this run had been judged by an older version, not in padded batches or at batch 1, and will "
        "not be judged again; a new run judges them so"
    ]
