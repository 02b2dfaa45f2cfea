"""What a run says of itself while it goes on and at its end: from the search's dataclasses to the run directory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from precision_search.config import Config, load_config, to_toml
from precision_search.errors import EnvironmentProblemError, OutputExistsError, UsageError
from precision_search.output import run_files
from precision_search.output.run_info import (
    SCHEMA_VERSION,
    Best,
    Counts,
    Device,
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
from precision_search.precision.plan import blocklist_of_plan, pinned_keys
from precision_search.runtime.doctor import cuda_device_name
from precision_search.search.judge import ScreenStatistics
from precision_search.search.pareto import Choice
from precision_search.search.prepare import LoadedSet, Prepared, SetName, near_ties
from precision_search.search.study import Stopped
from precision_search.search.trials import Trial


class RunRecorder:
    """Keeps `run.json` and the files beside it up to date."""

    def __init__(self, out: Path, config: Config, prepared: Prepared, *, strategy: str) -> None:
        self._out = out
        self._config = config
        self._prepared = prepared
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._info = self._initial(strategy)

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._out

    @property
    def info(self) -> RunInfo:
        """The record as it stands."""
        return self._info

    def resume(self) -> None:
        """Takes over what an earlier session of the same run recorded.

        Raises:
            UsageError: model or samples are not those the run was started with.
        """
        if not (self._out / run_files.RUN_FILE).is_file():
            return
        earlier = run_files.read_run(self._out).info
        now = self._info
        changed = [
            name
            for name, before, after in (
                ("the model", earlier.model.content_hash, now.model.content_hash),
                ("the calibration file", earlier.samples.calibration.hash, now.samples.calibration.hash),
                ("the validation file", _hash(earlier.samples.validation), _hash(now.samples.validation)),
                ("the strategy", earlier.strategy, now.strategy),
            )
            if before != after
        ]
        if changed:
            raise UsageError(
                f"the run in {self._out} cannot go on",
                why=f"{' and '.join(changed)} changed since it began, so its verdicts hold for something else",
                fix="start a new run",
            )
        self._seconds_before = earlier.seconds
        self._info = dataclasses.replace(now, started=earlier.started)
        run_files.write_text_atomically(self._out / run_files.CONFIG_FILE, to_toml(self._config))

    def write(self, trials: Sequence[Trial]) -> None:
        """Writes `run.json` and `pareto.csv` for the plans judged so far."""
        self._info = dataclasses.replace(
            self._info,
            seconds=self._seconds_before + time.monotonic() - self._started,
            counts=Counts.of(trials),
            peak_rss_bytes=peak_rss_bytes(),
        )
        run_files.write_run_info(self._out, self._info)
        share = 0.0 if self._config.validation is None else self._config.validation.min_exact_match
        run_files.write_pareto_csv(self._out / run_files.PARETO_FILE, trials, share, self._info.model.pinned)

    def decide(self, choice: Choice, test: tuple[LoadedSet, int] | None) -> None:
        """Takes in the winner and writes `blocklist.json`.

        Args:
            choice: the winner.
            test: the test set and how many of its samples the winner kept; None where it was not run.
        """
        if choice.trial is None:
            return
        trial = choice.trial
        validation = self._prepared.sets.get("validation")
        best = Best(
            id=trial.id,
            reason=choice.reason,
            faster=choice.faster,
            test_match=None if test is None else Match.of(test[1], len(test[0].data.rows)),
            validation_match=None
            if validation is None or trial.validation_match is None
            else Match.of(round(trial.validation_match * len(validation.data.rows)), len(validation.data.rows)),
        )
        self._info = dataclasses.replace(self._info, best=best)
        if test is not None:
            self._info = dataclasses.replace(
                self._info,
                near_ties=(*self._info.near_ties, *near_ties("test", test[0].data.reference)),
                samples=dataclasses.replace(self._info.samples, test=_sample_file(test[0])),
            )
        blocklist = blocklist_of_plan(trial.plan.plan, self._prepared.bundle.graphs)
        run_files.write_blocklist(self._out / run_files.BLOCKLIST_FILE, blocklist)

    def finish(self, trials: Sequence[Trial], statistics: ScreenStatistics, stopped: Stopped) -> None:
        """Writes how the run ended; the last thing a run does, so that `complete` means that everything is there.

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
        self.write(trials)

    def _initial(self, strategy: str) -> RunInfo:
        config, prepared = self._config, self._prepared
        bundle, settings = prepared.bundle, prepared.settings
        on_cuda = settings.device == "cuda"
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
                name=cuda_device_name(settings.device_id) if on_cuda else None,
                profile=None if on_cuda else prepared.profile.name,
                optimization_level=settings.optimization_level,
                use_tf32=settings.use_tf32,
                gemm_options=os.environ.get("ORT_CUDA_GEMM_OPTIONS"),
            ),
            model=Model(
                name=Path(config.model.path).name,
                content_hash=bundle.content_hash,
                has_checkpoint=bundle.checkpoint is not None,
                pinned=tuple(sorted(pinned_keys(bundle.graphs))),
            ),
            parity=prepared.parity,
            samples=Samples(
                calibration=_sample_file(prepared.sets["calibration"]),
                validation=_optional_file(prepared, "validation"),
                test=None,
            ),
            batch_size=config.calibration.batch_size,
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
        )


def create_run_directory(config: Config, out: Path) -> None:
    """Creates the run directory with the resolved config in it.

    Raises:
        EnvironmentProblemError: it cannot be written.
    """
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise EnvironmentProblemError(
            f"cannot create {out}", why=str(error.strerror), fix="check the path, free space and permissions"
        ) from error
    run_files.write_text_atomically(out / run_files.CONFIG_FILE, to_toml(config))


def check_run_directory(config: Config, out: Path, *, resume: bool) -> None:
    """Checks that a run may be written to `out`, or that the run there may go on under this config.

    Raises:
        OutputExistsError: it exists and `resume` is not set.
        EnvironmentProblemError: it cannot be created there.
        UsageError: nothing there to resume, or the config changed.
    """
    stored = out / run_files.CONFIG_FILE
    if not resume:
        if out.exists():
            raise OutputExistsError(
                f"{out} exists already",
                why="a run never overwrites another",
                fix="give another --out, or go on with that run with --resume",
            )
        # Asked before the work that the directory is for, which takes minutes.
        parent = next(folder for folder in out.absolute().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise EnvironmentProblemError(
                f"{out} cannot be used as a run directory",
                why=f"{parent} is {'not writable' if parent.is_dir() else 'not a directory'}",
                fix="give another --out",
            )
        return
    if not stored.is_file():
        raise UsageError(
            f"there is no run to resume in {out}",
            why=f"it has no {run_files.CONFIG_FILE}",
            fix="leave out --resume to start a run",
        )
    if _judging_part(load_config(stored)) != _judging_part(config):
        raise UsageError(
            f"the run in {out} cannot go on",
            why="the config changed since it began, so its verdicts hold for something else",
            fix=f"start a new run, or resume with the config in {stored}",
        )


def _judging_part(config: Config) -> Config:
    """The config without what no verdict depends on: how long to search, where to cache, with how many threads."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, cache=Path()),
        device=dataclasses.replace(config.device, threads=None),
        search=dataclasses.replace(config.search, max_trials=1, timeout=None),
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


def _speed(statistics: ScreenStatistics) -> ScreenSpeed:
    seconds = [*statistics.full, *statistics.rejected, *statistics.fp32]
    total = sum(seconds) + sum(statistics.build)
    return ScreenSpeed(
        full_ms=median(statistics.full) * 1e3 if statistics.full else None,
        fp32_ms=median(statistics.fp32) * 1e3 if statistics.fp32 else None,
        screens_per_second=len(seconds) / total if total else None,
    )


def _sample_file(loaded: LoadedSet) -> SampleFile:
    samples = loaded.samples
    return SampleFile(samples.path.name, len(samples.samples), samples.content_hash, loaded.truncated)


def _optional_file(prepared: Prepared, name: SetName) -> SampleFile | None:
    loaded = prepared.sets.get(name)
    return None if loaded is None else _sample_file(loaded)


def _hash(file: SampleFile | None) -> str | None:
    return None if file is None else file.hash


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
