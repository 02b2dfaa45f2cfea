"""A whole run: from a config to a run directory with trials, table, blocklist and model.

In: the resolved config and a reporter. Out: a `RunResult`, and the directory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from precision_search.config import Config, DataSection
from precision_search.cost.estimate import Workload
from precision_search.display.html import write_report
from precision_search.errors import ConfigError, PrecisionSearchError
from precision_search.judging.ceiling import find_ceiling
from precision_search.judging.judge import JudgeSettings, LatencySource, PlanJudge
from precision_search.judging.landmarks import rejected_landmarks, show_landmark
from precision_search.judging.latency import EstimatedLatency, MeasuredLatency
from precision_search.judging.noise import is_damaged
from precision_search.judging.sample_sets import LoadedSet, SetName, load_set
from precision_search.judging.trial import Judge, Proposal, SearchReporter, SearchState, Trial
from precision_search.model.bundle import Bundle
from precision_search.model.graph import BASE_VARIANT
from precision_search.model.samples import SampleSet, load_samples
from precision_search.model.tokenizer import load_tokenizer
from precision_search.precision.blocklist import Blocklist, plan_of_blocklist, read_blocklist
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.precision.weights import WeightCache
from precision_search.published.publish import publish, publish_facts
from precision_search.records import run_files
from precision_search.records.landmarks_json import are_there, write_landmarks
from precision_search.records.optuna_journal import StudyFile
from precision_search.records.pareto_table import ParetoTable, pareto_table, rejection
from precision_search.records.run_directory import FRESH_MODEL, check_run_directory, replace_model
from precision_search.records.timings import TIMINGS_FILE, TimingLog, with_timings
from precision_search.records.trials import TrialLog
from precision_search.records.wording import ceiling_line
from precision_search.reporting import Reporter
from precision_search.run.loop import Budget, SearchOutcome, guarded, run_search, tell_of_older_verdicts
from precision_search.run.prepare import Prepared, measure_inputs, open_inputs
from precision_search.run.recorder import RunRecorder
from precision_search.runtime.backends import backend_of
from precision_search.runtime.progress import Remaining
from precision_search.strategies import make_strategy
from precision_search.strategies.base import NodeSpace, SearchSpace, Strategy, StrategyContext
from precision_search.strategies.given import GivenPlan
from precision_search.strategies.in_turn import InTurn, shares
from precision_search.strategies.node_space import make_node_space
from precision_search.strategies.pareto import Choice, choose_winner, fastest_to_choose

Written = TypeVar("Written")


@dataclass(frozen=True, slots=True)
class RunResult:
    """What `search` left.

    Attributes:
        directory: the run directory.
        trials: every judged plan.
        choice: the winner and why.
        table: the Pareto table.
        interrupted: whether Ctrl-C ended the search; everything judged until then is in the directory.
        report: the report for a browser, None where it could not be written.
    """

    directory: Path
    trials: tuple[Trial, ...]
    choice: Choice
    table: ParetoTable
    interrupted: bool
    report: Path | None = None

    @property
    def exit_code(self) -> int:
        """0; 1 where fp32 is published; 130 where interrupted."""
        if self.interrupted:
            return 130
        return 0 if self.choice.faster else 1


def search(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    blocklist: Path | None = None,
    samples: Mapping[SetName, SampleSet] = MappingProxyType({}),
    reporter: SearchReporter,
) -> RunResult:
    """Searches, or judges one given blocklist, and writes the run directory.

    Args:
        config: the resolved config.
        out: the run directory; must not exist unless `resume`.
        resume: go on with the run in `out`; nothing it judged is judged again.
        blocklist: a `blocklist.json` to judge instead of searching.
        samples: sets that the config has files in `out` for, which this run writes.
        reporter: receives progress.

    Raises:
        OutputExistsError: `out` exists and `resume` is not set.
        UsageError: nothing to resume, or model, config or samples changed since.
        PrecisionSearchError: see `run.prepare.prepare` and `published.publish.publish`.
    """
    given = None if blocklist is None else _given_blocklist(config, blocklist)
    check_run_directory(config, out, resume=resume)
    opened = open_inputs(config, reporter, samples)
    wanted = None
    if given is not None:
        wanted = plan_of_blocklist(given, opened.bundle.graphs_of(given.variant), str(blocklist))
    prepared = measure_inputs(config, opened, reporter)
    plan = None if wanted is None else _given_plan(wanted, str(blocklist), prepared, reporter)
    estimate = prepared.estimate(config)
    measured = _measured(config, prepared, estimate.workload)
    judge = _judge(config, prepared, measured or estimate)
    strategy = _strategy(config, prepared, judge, estimate, reporter) if plan is None else GivenPlan(plan)
    name = config.search.strategy if plan is None else GivenPlan.name
    recorder = RunRecorder(out, config, prepared, strategy=name, given=plan, samples=samples)
    # Nothing is written before all that can be wrong with the input has been asked.
    with recorder.opened(resume=resume):
        return _search(_Run(config, prepared, judge, estimate, measured, strategy, recorder, reporter))


@dataclass(frozen=True, slots=True)
class _Run:
    """What works together in a run, in a run directory that is this process's own."""

    config: Config
    prepared: Prepared
    judge: PlanJudge
    estimate: EstimatedLatency
    measured: MeasuredLatency | None
    strategy: Strategy
    recorder: RunRecorder
    reporter: SearchReporter

    @property
    def directory(self) -> Path:
        return self.recorder.directory

    @property
    def spaces(self) -> tuple[SearchSpace, ...]:
        return tuple(each.space.space for each in self.prepared.variants.values())


def _search(run: _Run) -> RunResult:
    """Judges, chooses and publishes."""
    config, judge, recorder = run.config, run.judge, run.recorder
    _tell_ceiling(run)
    outcome = _judge_plans(run)
    choice = choose_winner(outcome.trials, config.requirement)
    interrupted = outcome.stopped == "interrupted"
    try:
        if interrupted:
            recorder.decide(choice, None)
        elif choice.trial is not None:
            if not choice.requirements_met:
                run.reporter.warn(choice.reason + ("" if choice.faster else "; fp32 is published"))
            recorder.decide(choice, _test(config, run.prepared, judge, choice.trial, run.reporter))
            _publish_choice(run, outcome.trials, choice)
    except KeyboardInterrupt:
        interrupted = True
    if not interrupted:
        _unless_it_fails(
            "what rejected landmarks make of sentences", lambda: _show_landmarks(run, outcome.trials), run.reporter
        )
    recorder.finish(outcome.trials, judge.statistics, "interrupted" if interrupted else outcome.stopped)
    report = _unless_it_fails("the report", lambda: write_report(run.directory), run.reporter)
    info = recorder.info
    table = pareto_table(
        outcome.trials, config.requirement, choice=choice, pinned=info.model.pinned, generation=info.generation.text
    )
    return RunResult(run.directory, outcome.trials, choice, table, interrupted, report)


def _tell_ceiling(run: _Run) -> None:
    """Says what could be gained at most. Whatever that is, the run goes on: a device that measures may differ."""
    if run.recorder.info.ceiling is None:
        run.reporter.stage("estimating what could be gained at most")
        run.recorder.note_ceiling(find_ceiling(run.estimate, run.config.search.dtype, run.prepared.pins))
    assert run.recorder.info.ceiling is not None
    run.reporter.note(ceiling_line(run.recorder.info.ceiling, run.estimate.workload))


def _judge_plans(run: _Run) -> SearchOutcome:
    """Runs the search loop, and keeps files, reporter and the judge's graphs up to date with each plan."""
    config, judge, recorder, reporter = run.config, run.judge, run.recorder, run.reporter
    log = TrialLog(run.directory / run_files.TRIALS_FILE)
    study = StudyFile(run.directory, run.spaces, run.estimate.plan_ms)
    for trial in log.trials:
        study.add(trial)
    recorder.judged(log.trials, judge.statistics)
    tell_of_older_verdicts(log.trials, reporter)

    def on_trial(trial: Trial, remaining: Remaining) -> None:
        choice = recorder.judged(log.trials, judge.statistics)
        best = choice.trial if choice.faster and choice.requirements_met else None
        fastest = fastest_to_choose(log.trials, config.requirement)
        # What is tested, published and shown at the end.
        wanted = (*rejected_landmarks(log.trials), *(() if choice.trial is None else (choice.trial,)))
        judge.keep(each.plan.plan for each in wanted)
        study.add(trial)
        if trial.stage == "forced-low" and is_damaged(trial):
            reporter.warn(f"search.force_low alone breaks the model, whatever else is kept: {rejection(trial)}")
        reporter.trial(trial, SearchState(judge.statistics.per_second, best, remaining, fastest))

    given = isinstance(run.strategy, GivenPlan)
    reporter.stage("judging the given plan" if given else f"searching, strategy {config.search.strategy}")
    return run_search(
        run.strategy,
        _careful(run, log),
        log,
        Budget(config.search.max_trials, config.search.timeout),
        baseline=Proposal(_fp32_plan(config, run.prepared), "fp32"),
        on_trial=on_trial,
    )


def _careful(run: _Run, log: TrialLog) -> Judge:
    """The judge with what is around it: times are kept, errors about one plan are trials, the model must not change."""
    judge = run.judge
    judging: Judge = judge
    if run.measured is not None:
        timings = TimingLog(run.directory / TIMINGS_FILE, log.next_id)
        judging = with_timings(judging, run.measured.take, timings, run.reporter)
    return _while_unchanged(guarded(judging, judge.record, judge.node_counts, judge.source), run.prepared.bundle)


def _while_unchanged(judge: Judge, bundle: Bundle) -> Judge:
    """A judge that gives no verdict on a mixture of two models; weights in external files are read while it works."""

    def judge_and_check(proposal: Proposal, trial_id: int) -> Trial:
        trial = judge(proposal, trial_id)
        bundle.files.check()
        return trial

    return judge_and_check


def _given_blocklist(config: Config, path: Path) -> Blocklist:
    found = read_blocklist(path, config.search.dtype)
    if found.dtype != config.search.dtype:
        raise ConfigError(
            f"{path} is for {found.dtype}, the config for {config.search.dtype}",
            why="fp32 and the given plan are judged for one low dtype",
            fix=f"add --set search.dtype={found.dtype}",
        )
    return found


def _given_plan(plan: Plan, source: str, prepared: Prepared, reporter: Reporter) -> Plan:
    """The plan of a given blocklist, with what can never be low and the user's pins kept in fp32, too."""
    fixed = prepared.variants[plan.variant].space.fixed
    added = fixed.keys() - plan.fp32
    for reason in sorted({fixed[key] for key in added}):
        keys = sorted(key for key in added if fixed[key] == reason)
        reporter.warn(f"{len(keys)} nodes stay in fp32 though {source} does not say so ({reason}), first {keys[0]}")
    return Plan(plan.dtype, plan.variant, plan.fp32 | frozenset(fixed))


def _fp32_plan(config: Config, prepared: Prepared) -> Plan:
    return Plan(config.search.dtype, BASE_VARIANT, all_compute_keys(prepared.bundle.graphs))


def _measured(config: Config, prepared: Prepared, workload: Workload) -> MeasuredLatency | None:
    """What measures latency here; None where there is no device, and estimates are what is reported."""
    if not backend_of(prepared.settings).measures_latency:
        return None
    return MeasuredLatency(prepared.bundle, workload, prepared.settings, config.search.seed)


def _judge(config: Config, prepared: Prepared, latency: LatencySource) -> PlanJudge:
    validation = prepared.sets.get("validation")
    fp32 = prepared.fp32.generator if backend_of(prepared.settings).may_idle else None
    if config.test is None:
        prepared.fp32.close()  # no other reference will be generated
    return PlanJudge(
        prepared.bundle,
        prepared.sets["calibration"].data,
        None if validation is None else validation.data,
        dtype=config.search.dtype,
        latency=latency,
        fp32=fp32,
        weights=WeightCache(),
        settings=JudgeSettings(prepared.settings, config.calibration.batch_size, config.search.seed, prepared.limit),
    )


def _strategy(
    config: Config, prepared: Prepared, judge: PlanJudge, estimate: EstimatedLatency, reporter: Reporter
) -> Strategy:
    """The strategy of the config; where there are several variants one for each, in turn."""
    parts = shares(config.search.max_trials, len(prepared.variants))
    found = [
        _strategy_of(variant, config, prepared, judge, estimate, max_trials=part, reporter=reporter)
        for variant, part in zip(prepared.variants, parts, strict=True)
    ]
    return found[0] if len(found) == 1 else InTurn(found, config.search.max_trials)


def _strategy_of(
    variant: str,
    config: Config,
    prepared: Prepared,
    judge: PlanJudge,
    estimate: EstimatedLatency,
    *,
    max_trials: int,
    reporter: Reporter,
) -> Strategy:
    report = prepared.variants[variant].space

    def nodes() -> NodeSpace:
        return make_node_space(
            prepared.bundle,
            report,
            estimate.placement_costs(config.search.dtype, variant),
            screener=judge.screener_of(variant),
            samples=prepared.sets["calibration"].data,
            reporter=reporter,
        )

    return make_strategy(
        config.search.strategy,
        StrategyContext(
            space=report.space,
            seed=config.search.seed,
            max_trials=max_trials,
            estimate=estimate.plan_ms,
            nodes=nodes,
            min_validation_match=config.min_exact_match,
            fp32_ms=estimate.plan_ms(_fp32_plan(config, prepared)),
        ),
    )


def _test(
    config: Config, prepared: Prepared, judge: PlanJudge, trial: Trial, reporter: Reporter
) -> tuple[LoadedSet, int] | None:
    """The test set, and how many of its samples the chosen plan keeps; it took no part in choosing."""
    if config.test is None or trial.is_fp32:
        return None
    loaded = _load_test(config.test, prepared, reporter)
    reporter.stage(f"testing the winner, {len(loaded.data.rows)} unseen samples")
    found = judge.confirm(trial.plan.plan, loaded.data, reporter.progress)
    return loaded, round(found.exact_match * len(loaded.data.rows))


def _load_test(section: DataSection, prepared: Prepared, reporter: Reporter) -> LoadedSet:
    """The test set with its reference; the fp32 sessions are gone before the winner runs."""
    samples = load_samples(section.path, "test", section.column)
    reporter.stage(f"generating the fp32 reference, {len(samples.samples)} test samples")
    loaded = load_set(samples, section, prepared.fp32, reporter)
    prepared.fp32.close()
    return loaded


def _publish_choice(run: _Run, trials: tuple[Trial, ...], choice: Choice) -> None:
    """Writes `model/`: the winner if it is faster than fp32, else fp32 itself."""
    trial = choice.trial if choice.faster else next(trial for trial in trials if trial.is_fp32)
    assert trial is not None  # what is faster than fp32 is a trial
    run.reporter.stage("writing the model")
    plan, recorder = trial.plan.plan, run.recorder
    facts = publish_facts(recorder.info, recorder.nodes_of(plan.variant), trial, run.config.requirement)
    publish(run.prepared.bundle, plan, facts, run.directory / FRESH_MODEL, run.judge.converted(plan))
    replace_model(run.directory)


def _show_landmarks(run: _Run, trials: tuple[Trial, ...]) -> None:
    rejected = rejected_landmarks(trials)
    if are_there(run.directory, rejected):
        return
    if rejected:
        run.reporter.stage("generating what rejected landmarks make of sentences")
    bundle, judge, calibration = run.prepared.bundle, run.judge, run.prepared.sets["calibration"]
    decode, pad, limit = load_tokenizer(bundle.path).decode, bundle.generation.pad_token_id, run.prepared.limit
    shown = [
        show_landmark(trial, judge.generator(trial.plan.plan), calibration, decode, pad=pad, limit=limit)
        for trial in rejected
    ]
    write_landmarks(run.directory, len(calibration.data.rows), judge.source, shown)


def _unless_it_fails(what: str, write: Callable[[], Written], reporter: Reporter) -> Written | None:
    """Writes what a run is complete without: the search was long, and no error here may lose it."""
    try:
        return write()
    except KeyboardInterrupt:
        reporter.warn(f"{what} was not written: interrupted; `precision-search report RUN` writes the report again")
    except Exception as error:
        reporter.warn(
            f"{what} could not be written: {error if isinstance(error, PrecisionSearchError) else repr(error)}"
        )
    return None
