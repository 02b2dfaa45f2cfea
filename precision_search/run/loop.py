"""The search loop: a strategy proposes, a judge judges, the log keeps.

In: a strategy, a judge, the log, a budget. Out: all trials and why it stopped. The loop knows nothing of graphs; what
judging means is the caller's business.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from precision_search.errors import EnvironmentProblemError, NoKernelError, PrecisionSearchError
from precision_search.judging.trial import Findings, Judge, PlanRecord, Proposal, Trial, VerdictSource, make_trial
from precision_search.model.graph import BASE_VARIANT
from precision_search.precision.plan import NodeCounts, Plan
from precision_search.records.trials import TrialLog
from precision_search.reporting import Reporter
from precision_search.runtime.progress import Remaining
from precision_search.strategies.base import Strategy

Stopped = Literal["done", "max_trials", "timeout", "interrupted"]


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop.

    Attributes:
        max_trials: plans in the log, those of earlier sessions of a resumed run included.
        timeout_s: seconds of this session, None for no limit; looked at before each plan, never within one.
    """

    max_trials: int
    timeout_s: float | None = None


OnTrial = Callable[[Trial, Remaining], None]


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a search leaves: every trial of the log, how many of them this session judged, and why it stopped.

    `done` means that the strategy has nothing left to propose.
    """

    trials: tuple[Trial, ...]
    judged: int
    stopped: Stopped


def run_search(
    strategy: Strategy,
    judge: Judge,
    log: TrialLog,
    budget: Budget,
    *,
    baseline: Proposal | None = None,
    on_trial: OnTrial = lambda trial, remaining: None,
    clock: Callable[[], float] = time.monotonic,
) -> SearchOutcome:
    """Runs the strategy until it ends or the budget does.

    A plan that the log holds is answered from it: the strategy observes the old trial, nothing is judged, written or
    passed to `on_trial`, and no trial is used up. That is how a run resumes: the strategy starts anew and is led
    through the log. `on_trial` is called after the trial is on the disk and before the strategy observes it. The
    `baseline` is judged before anything that the strategy proposes, unless the log has it.

    Ctrl-C ends the search as `interrupted` with every finished trial in the log; it is not raised again, because what
    is there is a result: the caller reports it and ends with exit code 130. Any other exception of the judge passes
    through; wrap the judge with `guarded` to make errors about one plan trials.
    """
    started = clock()
    before = len(log)

    def remaining() -> Remaining:
        plans, known = budget.max_trials - len(log), strategy.remaining()
        seconds = None if budget.timeout_s is None else max(0.0, budget.timeout_s - (clock() - started))
        return Remaining(max(0, plans if known is None else min(plans, known)), seconds)

    stopped: Stopped = "interrupted"
    with contextlib.suppress(KeyboardInterrupt):
        if baseline is not None and log.find(baseline.plan) is None:
            first = judge(baseline, log.next_id)
            log.append(first)
            on_trial(first, remaining())
        stopped = _loop(strategy, judge, log, budget, on_trial=on_trial, remaining=remaining)
    return SearchOutcome(log.trials, len(log) - before, stopped)


def _loop(
    strategy: Strategy,
    judge: Judge,
    log: TrialLog,
    budget: Budget,
    *,
    on_trial: OnTrial,
    remaining: Callable[[], Remaining],
) -> Stopped:
    while (proposal := strategy.propose()) is not None:
        trial = log.find(proposal.plan)
        if trial is None:
            if len(log) >= budget.max_trials:
                return "max_trials"
            if remaining().seconds == 0.0:
                return "timeout"
            trial = judge(proposal, log.next_id)
            log.append(trial)
            on_trial(trial, remaining())
        strategy.observe(trial)
    return "done"


def guarded(
    judge: Judge,
    record: Callable[[Plan], PlanRecord],
    count: Callable[[Plan], NodeCounts],
    source: VerdictSource,
    clock: Callable[[], float] = time.monotonic,
) -> Judge:
    """Wraps a judge so that an error of ours about one plan becomes a trial with the verdict `error`.

    `count` says how much a plan keeps in fp32. An error about fp32 itself passes
    through: where the unchanged model cannot be judged, nothing can. So does what is wrong with the machine, such as
    memory that is used up: it says nothing about the plan, which a resumed run judges anew.
    """

    def judge_or_record(proposal: Proposal, trial_id: int) -> Trial:
        started = clock()
        try:
            return judge(proposal, trial_id)
        except PrecisionSearchError as error:
            nodes = count(proposal.plan)
            of_the_machine = isinstance(error, EnvironmentProblemError) and not isinstance(error, NoKernelError)
            is_fp32 = nodes.low_nodes == 0 and proposal.plan.variant == BASE_VARIANT
            if is_fp32 or of_the_machine:
                raise
            return make_trial(
                proposal,
                trial_id,
                Findings("error", source, message=str(error)),
                plan=record(proposal.plan),
                nodes=nodes,
                seconds=clock() - started,
            )

    return judge_or_record


def tell_of_older_verdicts(trials: Sequence[Trial], reporter: Reporter) -> None:
    """A resumed run judges nothing again, so what an older version did not look at stays unknown."""
    if older := sum(trial.verdict == "stable" and trial.judged is None for trial in trials):
        reporter.warn(
            f"{older} stable plan{'s' * (older != 1)} of this run had been judged by an older version, not in padded "
            "batches or at batch 1, and will not be judged again; a new run judges them so"
        )
