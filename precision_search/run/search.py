"""A whole run: from a config to a run directory with trials, table, blocklist and model.

In: the resolved config and a reporter. Out: a `RunResult`, and the directory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from precision_search.config import Config, DataSection, to_toml
from precision_search.cost.estimate import Workload
from precision_search.display.html import write_report
from precision_search.errors import ConfigError, PrecisionSearchError
from precision_search.judging.judge import JudgeSettings, LatencySource, PlanJudge
from precision_search.judging.landmarks import rejected_landmarks, show_landmark
from precision_search.judging.latency import EstimatedLatency, MeasuredLatency
from precision_search.judging.noise import is_damaged
from precision_search.judging.sample_sets import LoadedSet, load_set, open_fp32
from precision_search.judging.trial import Judge, Proposal, Reporter, SearchState, Trial
from precision_search.model.bundle import Bundle
from precision_search.model.samples import load_samples
from precision_search.model.tokenizer import load_tokenizer
from precision_search.precision.blocklist import Blocklist, plan_of_blocklist, read_blocklist
from precision_search.precision.convert import convert
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
from precision_search.run.loop import Budget, guarded, run_search
from precision_search.run.prepare import Prepared, prepare
from precision_search.run.recorder import RunRecorder
from precision_search.runtime.backends import backend_of
from precision_search.runtime.progress import Remaining
from precision_search.strategies import make_strategy
from precision_search.strategies.base import NodeSpace, Strategy, StrategyContext
from precision_search.strategies.given import GivenPlan
from precision_search.strategies.node_space import make_node_space
from precision_search.strategies.pareto import Choice, choose_winner

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
        """0; 1 where no stable plan is faster than fp32; 130 where interrupted."""
        if self.interrupted:
            return 130
        return 0 if self.choice.faster else 1


def search(
    config: Config, out: Path, *, resume: bool = False, blocklist: Path | None = None, reporter: Reporter
) -> RunResult:
    """Searches, or judges one given blocklist, and writes the run directory.

    Args:
        config: the resolved config.
        out: the run directory; must not exist unless `resume`.
        resume: go on with the run in `out`; nothing it judged is judged again.
        blocklist: a `blocklist.json` to judge instead of searching.
        reporter: receives progress.

    Raises:
        OutputExistsError: `out` exists and `resume` is not set.
        UsageError: nothing to resume, or model, config or samples changed since.
        PrecisionSearchError: see `run.prepare.prepare` and `published.publish.publish`.
    """
    given = None if blocklist is None else _given_blocklist(config, blocklist)
    check_run_directory(config, out, resume=resume)
    prepared = prepare(
        config,
        reporter.stage,
        reporter.warn,
        lambda bundle: given and plan_of_blocklist(given, bundle.graphs, str(blocklist)),
        reporter.progress,
    )
    plan = None if given is None else _given_plan(given, str(blocklist), prepared, reporter)
    workload = Workload(config.workload.batch, config.workload.source_length, config.workload.target_length)
    estimate = EstimatedLatency(prepared.bundle, workload, prepared.profile)
    measured = _measured(config, prepared, workload)
    judge = _judge(config, prepared, measured or estimate)
    strategy = _strategy(config, prepared, judge, estimate, reporter) if plan is None else GivenPlan(plan)
    recorder = RunRecorder(out, config, prepared, strategy=strategy.name, given=plan)
    # Nothing is written before all that can be wrong with the input has been asked.
    with recorder.opened(resume=resume):
        return _search(
            config, prepared, judge, estimate, measured, strategy=strategy, recorder=recorder, reporter=reporter
        )


def _search(
    config: Config,
    prepared: Prepared,
    judge: PlanJudge,
    estimate: EstimatedLatency,
    measured: MeasuredLatency | None,
    *,
    strategy: Strategy,
    recorder: RunRecorder,
    reporter: Reporter,
) -> RunResult:
    """Judges, chooses and publishes in a run directory that is this process's own."""
    out = recorder.directory
    log = TrialLog(out / run_files.TRIALS_FILE)
    study = StudyFile(out, prepared.space.space, estimate.plan_ms)
    for trial in log.trials:
        study.add(trial)
    recorder.judged(log.trials, judge.statistics)
    judging: Judge = judge
    if measured is not None:
        timings = TimingLog(out / TIMINGS_FILE, log.next_id)
        judging = with_timings(judge, measured.take, timings, reporter.warn)
    judging = _while_unchanged(guarded(judging, judge.record, judge.node_counts, judge.source), prepared.bundle)

    def on_trial(trial: Trial, remaining: Remaining) -> None:
        best = recorder.judged(log.trials, judge.statistics).trial
        study.add(trial)
        if trial.stage == "forced-low" and is_damaged(trial):
            reporter.warn(f"search.force_low alone breaks the model, whatever else is kept: {rejection(trial)}")
        reporter.trial(trial, SearchState(judge.statistics.per_second, best, remaining))

    given = isinstance(strategy, GivenPlan)
    reporter.stage("judging the given plan" if given else f"searching, strategy {strategy.name}")
    outcome = run_search(
        strategy,
        judging,
        log,
        Budget(config.search.max_trials, config.search.timeout),
        baseline=Proposal(_fp32_plan(config, prepared), "fp32"),
        on_trial=on_trial,
    )
    choice = choose_winner(outcome.trials, config.min_exact_match)
    interrupted = outcome.stopped == "interrupted"
    try:
        if interrupted:
            recorder.decide(choice, None)
        elif choice.trial is not None:
            test = _test(config, prepared, judge, choice.trial, reporter)
            recorder.decide(choice, test)
            _publish_choice(recorder, prepared.bundle, outcome.trials, choice, reporter)
    except KeyboardInterrupt:
        interrupted = True
    if not interrupted:
        _unless_it_fails(
            "what rejected landmarks make of sentences",
            lambda: _show_landmarks(prepared, judge, outcome.trials, out, reporter),
            reporter,
        )
    recorder.finish(outcome.trials, judge.statistics, "interrupted" if interrupted else outcome.stopped)
    report = _unless_it_fails("the report", lambda: write_report(out), reporter)
    reporter.close()
    table = pareto_table(outcome.trials, config.min_exact_match, pinned=recorder.info.model.pinned)
    return RunResult(out, outcome.trials, choice, table, interrupted, report)


def dry_run(config: Config, reporter: Reporter) -> str:
    """The resolved config as TOML, then the search space as comments; judges nothing and writes no run."""
    prepared = prepare(config, reporter.stage, reporter.warn, progress=reporter.progress)
    reporter.close()
    space = prepared.space
    lines = [to_toml(config).rstrip(), "", f"# The search space of strategy {config.search.strategy}"]
    for family, op_types in space.space.op_types.items():
        hard = space.space.hard[family]
        lines.append(f"# {family}: {', '.join(op_types) or 'nothing'}")
        lines.append(f"#   of these beyond the range of {config.search.dtype}: {', '.join(sorted(hard)) or 'none'}")
    lines.append(f"# compute nodes that stay in fp32 in every plan: {len(space.fixed)}")
    lines.extend(f"#   {key}: {reason}" for key, reason in sorted(space.fixed.items()))
    lines.append(f"# nodes beyond the range with the safety factor {config.search.range_safety:g}: {len(space.hard)}")
    lines.extend(f"#   {key}: {largest:.4g}" for key, largest in sorted(space.hard.items(), key=lambda item: -item[1]))
    return "\n".join(lines) + "\n"


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


def _given_plan(given: Blocklist, source: str, prepared: Prepared, reporter: Reporter) -> Plan:
    """The plan that the blocklist stands for, with what can never be low and the user's pins kept in fp32."""
    plan = plan_of_blocklist(given, prepared.bundle.graphs, source)
    added = prepared.space.fixed.keys() - plan.fp32
    for reason in sorted({prepared.space.fixed[key] for key in added}):
        keys = sorted(key for key in added if prepared.space.fixed[key] == reason)
        reporter.warn(f"{len(keys)} nodes stay in fp32 though {source} does not say so ({reason}), first {keys[0]}")
    return Plan(plan.dtype, plan.variant, plan.fp32 | frozenset(prepared.space.fixed))


def _fp32_plan(config: Config, prepared: Prepared) -> Plan:
    return Plan(config.search.dtype, "base", all_compute_keys(prepared.bundle.graphs))


def _measured(config: Config, prepared: Prepared, workload: Workload) -> MeasuredLatency | None:
    """What measures latency here; None where there is no device, and estimates are what is reported."""
    if not backend_of(prepared.settings).measures_latency:
        return None
    return MeasuredLatency(prepared.bundle, workload, prepared.settings, config.search.seed)


def _judge(config: Config, prepared: Prepared, latency: LatencySource) -> PlanJudge:
    validation = prepared.sets.get("validation")
    return PlanJudge(
        prepared.bundle,
        prepared.sets["calibration"].data,
        None if validation is None else validation.data,
        latency=latency,
        weights=WeightCache(),
        settings=JudgeSettings(prepared.settings, config.calibration.batch_size, config.search.seed, prepared.limit),
    )


def _strategy(
    config: Config, prepared: Prepared, judge: PlanJudge, estimate: EstimatedLatency, reporter: Reporter
) -> Strategy:
    def nodes() -> NodeSpace:
        return make_node_space(
            prepared.bundle,
            prepared.space,
            estimate.placement_costs(config.search.dtype),
            screener=judge.screener,
            samples=prepared.sets["calibration"].data,
            say=reporter.note,
            progress=reporter.progress,
        )

    return make_strategy(
        config.search.strategy,
        StrategyContext(
            space=prepared.space.space,
            seed=config.search.seed,
            max_trials=config.search.max_trials,
            estimate=estimate.plan_ms,
            nodes=nodes,
            min_validation_match=config.min_exact_match,
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
    found = judge.confirm(convert(prepared.bundle.graphs, trial.plan.plan), loaded.data, reporter.progress)
    return loaded, round(found.exact_match * len(loaded.data.rows))


def _load_test(section: DataSection, prepared: Prepared, reporter: Reporter) -> LoadedSet:
    """On its own, so that the fp32 sessions are gone before those of the winner are made."""
    samples = load_samples(section.path, "test")
    reporter.stage(f"generating the fp32 reference, {len(samples.samples)} test samples")
    fp32 = open_fp32(prepared.bundle, prepared.settings, prepared.limit)
    return load_set(samples, section, fp32, reporter.warn, reporter.progress)


def _publish_choice(
    recorder: RunRecorder, bundle: Bundle, trials: tuple[Trial, ...], choice: Choice, reporter: Reporter
) -> None:
    """Writes `model/`: the winner if it is faster than fp32, else fp32 itself."""
    trial = choice.trial if choice.faster else next(trial for trial in trials if trial.is_fp32)
    assert trial is not None  # what is faster than fp32 is a trial
    reporter.stage("writing the model")
    publish(
        bundle, trial.plan.plan, publish_facts(recorder.info, recorder.nodes, trial), recorder.directory / FRESH_MODEL
    )
    replace_model(recorder.directory)


def _show_landmarks(
    prepared: Prepared, judge: PlanJudge, trials: tuple[Trial, ...], out: Path, reporter: Reporter
) -> None:
    rejected = rejected_landmarks(trials)
    if are_there(out, rejected):
        return
    if rejected:
        reporter.stage("generating what rejected landmarks make of sentences")
    calibration, decode = prepared.sets["calibration"], load_tokenizer(prepared.bundle.path).decode
    shown = [show_landmark(trial, prepared.bundle, calibration, judge.settings, decode) for trial in rejected]
    write_landmarks(out, len(calibration.data.rows), judge.source, shown)


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
