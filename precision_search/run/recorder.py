"""What a run says of itself while it goes on and at its end: from the search's dataclasses to the run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import MappingProxyType

from precision_search.config import Config, to_toml
from precision_search.cost.ceiling import Ceiling
from precision_search.errors import UsageError
from precision_search.judging.judge import ScreenStatistics
from precision_search.judging.sample_sets import LoadedSet, SetName, near_ties
from precision_search.judging.trial import Trial
from precision_search.model.bundle import Bundle
from precision_search.model.samples import SampleSet, write_samples
from precision_search.precision.blocklist import blocklist_of_plan
from precision_search.precision.plan import Plan, pinned_keys
from precision_search.records import run_files
from precision_search.records.nodes_json import RunNodes, describe_nodes, nodes_file
from precision_search.records.run_directory import new_run_directory, sole_writer, sweep_leftovers
from precision_search.records.run_json import (
    SCHEMA_VERSION,
    Best,
    Counts,
    CutCheck,
    Device,
    GenerationInfo,
    Match,
    Model,
    RunInfo,
    SampleFile,
    Samples,
    ScreenSpeed,
    Versions,
    WorkloadInfo,
    tool_version,
)
from precision_search.run.loop import Stopped
from precision_search.run.prepare import Prepared
from precision_search.runtime.backends import backend_of
from precision_search.strategies.given import GivenPlan
from precision_search.strategies.pareto import Choice, choose_winner, pareto_front


class RunRecorder:
    """Keeps `run.json` and the files beside it up to date."""

    def __init__(
        self,
        out: Path,
        config: Config,
        prepared: Prepared,
        *,
        strategy: str,
        given: Plan | None = None,
        samples: Mapping[SetName, SampleSet] = MappingProxyType({}),
    ) -> None:
        """`given` is the plan to judge where nothing is searched, `samples` are sets that the directory shall hold."""
        self._samples = samples
        self._out = out
        self._config = config
        self._prepared = prepared
        self._given = given
        self._requirement = config.requirement
        self._best_id: int | None = None
        self._shown: tuple[int | None, ...] = ()
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._info = self._initial(strategy)
        self._nodes = {name: _describe_nodes(config, prepared, name) for name in prepared.variants}

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._out

    @property
    def info(self) -> RunInfo:
        """The record as it stands."""
        return self._info

    def nodes_of(self, variant: str) -> RunNodes:
        """What is known of each compute node of a variant."""
        return self._nodes[variant]

    @contextlib.contextmanager
    def opened(self, *, resume: bool) -> Iterator[None]:
        """Makes the run directory, or takes over what an earlier session left in it, and keeps other writers out.

        Raises:
            OutputExistsError, EnvironmentProblemError: it cannot be made.
            UsageError: it cannot be taken over: model, samples, device or what is judged are not those of the run, or
                another process writes to it.
        """
        if not resume:
            with new_run_directory(self._out) as work:
                run_files.write_text_atomically(work / run_files.CONFIG_FILE, to_toml(self._config))
                (work / run_files.TRIALS_FILE).touch()
                run_files.write_pareto_csv(work / run_files.PARETO_FILE, (), self._requirement)
                self._write_nodes(work)
                for name, samples in self._samples.items():
                    write_samples(samples, work / run_files.DATA_DIRECTORY / f"{name}.jsonl")
                run_files.write_run_info(work, self._info)
        with sole_writer(self._out):
            if resume:
                self._take_over()
            yield

    def note_ceiling(self, ceiling: Ceiling) -> None:
        """Takes in what could be gained at most; the record is written with the next plan."""
        self._info = dataclasses.replace(self._info, ceiling=ceiling)

    def judged(self, trials: Sequence[Trial], statistics: ScreenStatistics) -> Choice:
        """Brings the directory up to date after a plan was judged: whoever looks, or a kill, finds the best so far.

        `blocklist.json` is written when the best plan changes, `pareto.csv` when the best plan or the front does: a
        plan's line costs 0.1 ms, and a front changes seldom.

        Args:
            trials: every judged plan.
            statistics: how fast plans were screened.

        Returns:
            What would be chosen if the search ended now.
        """
        choice = choose_winner(trials, self._requirement)
        self._take_best(choice, None)
        shown = (self._best_id, *(trial.id for trial in pareto_front(trials)))
        if shown != self._shown:
            self._shown = shown
            run_files.write_pareto_csv(
                self._out / run_files.PARETO_FILE, trials, self._requirement, self._info.model.pinned
            )
        self._info = dataclasses.replace(self._info, screen=_speed(statistics))
        self._write_info(trials)
        return choice

    def decide(self, choice: Choice, test: tuple[LoadedSet, int] | None) -> None:
        """Takes in the winner.

        Args:
            choice: the winner.
            test: the test set and how many of its samples the winner kept; None where it was not run.
        """
        self._take_best(choice, None if test is None else Match.of(test[1], len(test[0].data.rows)))
        if test is not None:
            self._info = dataclasses.replace(
                self._info,
                near_ties=(*self._info.near_ties, *near_ties("test", test[0].data)),
                samples=dataclasses.replace(self._info.samples, test=_sample_file(test[0])),
            )

    def finish(self, trials: Sequence[Trial], statistics: ScreenStatistics, stopped: Stopped) -> None:
        """Writes how the run ended; after the model, so that `complete` means that it is there; the report, made of
        this record, comes last.

        Args:
            trials: every judged plan.
            statistics: how fast plans were screened.
            stopped: why the search ended.
        """
        self._info = dataclasses.replace(
            self._info,
            status="interrupted" if stopped == "interrupted" else "complete",
            finished=_now(),
            stopped=stopped,
            screen=_speed(statistics),
        )
        run_files.write_pareto_csv(
            self._out / run_files.PARETO_FILE, trials, self._requirement, self._info.model.pinned
        )
        self._write_info(trials)

    def _take_over(self) -> None:
        """Checks that the earlier session judged the same, and goes on from its clock.

        Raises:
            UsageError: it did not.
        """
        earlier = run_files.read_run(self._out)
        before, now = earlier.info, self._info
        given = {trial.plan.plan for trial in earlier.trials if trial.stage == GivenPlan.name}
        noted = now.generation.content_hash  # older runs have none
        pairs: tuple[tuple[str, object, object], ...] = (
            ("the model", before.model.content_hash, now.model.content_hash),
            ("how the model chooses tokens", before.generation.content_hash or noted, noted),
            ("the calibration file", before.samples.calibration.hash, now.samples.calibration.hash),
            ("the validation file", _hash(before.samples.validation), _hash(now.samples.validation)),
            ("the device", before.device, now.device),
            ("the version of precision-search", before.tool_version, now.tool_version),
            ("the version of onnxruntime", before.versions.onnxruntime, now.versions.onnxruntime),
            ("what to judge (a search, or a given plan)", before.strategy, now.strategy),
            ("the given plan", given, given if self._given is None else given & {self._given}),
        )
        if changed := [name for name, old, new in pairs if old != new]:
            raise UsageError(
                f"the run in {self._out} cannot go on",
                why=f"{' and '.join(changed)} changed since it began, so its verdicts hold for something else",
                fix="start a new run",
            )
        sweep_leftovers(self._out)
        self._seconds_before = before.seconds
        self._info = dataclasses.replace(now, started=before.started, ceiling=before.ceiling)
        run_files.write_text_atomically(self._out / run_files.CONFIG_FILE, to_toml(self._config))
        self._write_nodes(self._out)

    def _write_nodes(self, directory: Path) -> None:
        for variant, nodes in self._nodes.items():
            run_files.write_json_atomically(directory / nodes_file(variant), nodes)

    def _take_best(self, choice: Choice, test: Match | None) -> None:
        """Notes the best plan so far, and writes `blocklist.json` where it is another than before."""
        trial = choice.trial
        if trial is None:
            return
        validation = self._prepared.sets.get("validation")
        match = None
        if validation is not None and trial.validation_match is not None:
            count = len(validation.data.rows)
            match = Match.of(round(trial.validation_match * count), count)
        self._info = dataclasses.replace(
            self._info,
            best=Best(
                id=trial.id,
                reason=choice.reason,
                faster=choice.faster,
                test_match=test,
                validation_match=match,
                requirements_met=choice.requirements_met,
                judged=trial.judged,
            ),
        )
        if trial.id != self._best_id:
            plan = trial.plan.plan
            blocklist = blocklist_of_plan(plan, self._prepared.bundle.graphs_of(plan.variant))
            run_files.write_blocklist(self._out / run_files.BLOCKLIST_FILE, blocklist)
            self._best_id = trial.id

    def _write_info(self, trials: Sequence[Trial]) -> None:
        self._info = dataclasses.replace(
            self._info,
            seconds=self._seconds_before + time.monotonic() - self._started,
            batch_size=self._prepared.limit.of(self._config.calibration.batch_size),
            counts=Counts.of(trials),
            cut=CutCheck.of(trials),
            peak_rss_bytes=peak_rss_bytes(),
        )
        run_files.write_run_info(self._out, self._info)

    def _initial(self, strategy: str) -> RunInfo:
        config, prepared = self._config, self._prepared
        bundle, settings = prepared.bundle, prepared.settings
        backend, applied = backend_of(settings), backend_of(settings).applied(settings)
        return RunInfo(
            schema_version=SCHEMA_VERSION,
            tool_version=tool_version(),
            status="running",
            started=_now(),
            finished=None,
            seconds=0.0,
            versions=Versions.installed(),
            device=Device(
                kind=settings.device,
                name=backend.device_name(settings.device_id),
                profile=None if backend.measures_latency else prepared.profile.name,
                optimization_level=settings.optimization_level,
                use_tf32=applied.use_tf32,
                gemm_options=str(applied.gemm_options),
            ),
            model=Model(
                name=Path(config.model.path).name,
                content_hash=bundle.content_hash,
                has_checkpoint=bundle.checkpoint is not None,
                pinned=_pinned(bundle),
            ),
            parity=prepared.parity,
            samples=Samples(
                calibration=_sample_file(prepared.sets["calibration"]),
                validation=_optional_file(prepared, "validation"),
                test=None,
            ),
            batch_size=prepared.limit.of(config.calibration.batch_size),
            config_hash=hashlib.sha256(to_toml(config).encode()).hexdigest(),
            workload=WorkloadInfo(config.workload.batch, config.workload.source_length, config.workload.target_length),
            strategy=strategy,
            seed=config.search.seed,
            counts=Counts.of(()),
            stopped=None,
            screen=None,
            peak_rss_bytes=None,
            near_ties=prepared.near_ties,
            best=None,
            generation=GenerationInfo(bundle.generation.overridden, bundle.generation.content_hash),
        )


def peak_rss_bytes() -> int | None:
    """The largest resident memory this process had, in bytes; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    # macOS counts it in bytes, everybody else in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _pinned(bundle: Bundle) -> tuple[str, ...]:
    return tuple(sorted({key for name in bundle.variant_names for key in pinned_keys(bundle.graphs_of(name))}))


def _describe_nodes(config: Config, prepared: Prepared, variant: str) -> RunNodes:
    found = prepared.variants[variant]
    return describe_nodes(
        prepared.bundle.graphs_of(variant),
        found.ranges,
        config.search.dtype,
        range_safety=config.search.range_safety,
        samples=len(prepared.sets["calibration"].data.rows),
        fixed=found.space.fixed,
        forced_low=found.space.space.forced_low,
    )


def _speed(statistics: ScreenStatistics) -> ScreenSpeed:
    return ScreenSpeed(
        full_ms=median(statistics.full) * 1e3 if statistics.full else None,
        fp32_ms=median(statistics.fp32) * 1e3 if statistics.fp32 else None,
        screens_per_second=statistics.per_second,
    )


def _sample_file(loaded: LoadedSet) -> SampleFile:
    samples, section = loaded.samples, loaded.section
    return SampleFile(
        name=samples.path.name,
        count=len(samples.samples),
        hash=samples.content_hash,
        truncated=loaded.truncated,
        prefix=section.prefix,
        max_length=section.max_length,
    )


def _optional_file(prepared: Prepared, name: SetName) -> SampleFile | None:
    loaded = prepared.sets.get(name)
    return None if loaded is None else _sample_file(loaded)


def _hash(file: SampleFile | None) -> str | None:
    return None if file is None else file.hash


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
