"""The public functions: what the command line does, as typed calls, all of them names of `precision_search` too.

`search` runs everything and leaves a run directory; `pareto`, `report`, `publish` and `verify` work on it, and
`Seq2SeqGenerator` runs it. `export_bundle` gives the fp32 graphs alone. `calibrate` measures a device for the estimates
of machines that do not have it. A `reporter` receives progress and is closed at the end; without one, warnings go to
stderr.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from precision_search.config import (
    GPUS,
    GREEDY,
    Config,
    WorkloadSection,
    default_cache,
    load_config,
)
from precision_search.cost.ceiling import Ceiling
from precision_search.cost.estimate import Workload
from precision_search.device.profile import DeviceProfile, load_profile
from precision_search.display.html import write_report
from precision_search.display.reporters import make_reporter
from precision_search.errors import UsageError
from precision_search.files import refuse_existing
from precision_search.judging.ceiling import Pins, find_ceiling
from precision_search.judging.inspect import InspectReport, inspect_bundle, measure
from precision_search.judging.latency import EstimatedLatency
from precision_search.judging.sample_sets import SetName
from precision_search.judging.trial import SearchReporter
from precision_search.machine.calibrate import write_profile
from precision_search.machine.doctor import DoctorReport, examine
from precision_search.model.bundle import Bundle, open_bundle, write_bundle
from precision_search.model.samples import SampleSet, encode, load_samples
from precision_search.model.snapshot import unchanged
from precision_search.model.tokenizer import load_tokenizer
from precision_search.model.variants import with_variants
from precision_search.precision.low import LowDtype
from precision_search.published.seq2seq import Generated, Seq2SeqGenerator, Step
from precision_search.published.verify import VerifyReport, compare, open_published
from precision_search.records import run_files
from precision_search.records.pareto_table import ParetoTable, pareto_table
from precision_search.reporting import Reporter
from precision_search.run.dry_run import dry_run as dry_run_of
from precision_search.run.optimize import optimize
from precision_search.run.publish import publish_from_run
from precision_search.run.search import RunResult
from precision_search.run.search import search as run_search
from precision_search.runtime.backends import resolve_device
from precision_search.runtime.session import SessionSettings
from precision_search.strategies.space import never_low

__all__ = [
    "Config",
    "DeviceProfile",
    "DoctorReport",
    "Generated",
    "InspectReport",
    "ParetoTable",
    "Reporter",
    "RunResult",
    "SearchReporter",
    "Seq2SeqGenerator",
    "Step",
    "VerifyReport",
    "calibrate",
    "doctor",
    "dry_run",
    "export_bundle",
    "inspect",
    "load_config",
    "make_reporter",
    "optimize",
    "pareto",
    "publish",
    "report",
    "search",
    "verify",
]

AnyPath = str | os.PathLike[str]

BATCH_SIZE = 32
"""Samples at once where no config says."""

NO_SAMPLES: Mapping[SetName, SampleSet] = MappingProxyType({})
"""All sets are read from the files that a config names."""

WORKLOAD = WorkloadSection()
"""What a ceiling is for where no config says."""


def export_bundle(
    source: AnyPath,
    out: AnyPath,
    *,
    cache: AnyPath | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Writes a model as its three fp32 ONNX graphs, nodes named by their keys, and gives the directory.

    They compute what `search` works on, and what a `blocklist.json` names is found in them. The exporter's notes are
    left out, so their hash is another than that of the cached export.

    Args:
        source: checkpoint directory, directory of ONNX graphs, or hub id.
        out: the directory to write; it must not exist.
        cache: directory for exports, None for the user's.
        reporter: receives progress.

    Raises:
        OutputExistsError: `out` exists.
        InputError: there is no such model, or it is none that can be exported.
        EnvironmentProblemError: `out` cannot be written.
    """
    target = Path(out)
    with contextlib.closing(_warnings() if reporter is None else reporter) as told:
        refuse_existing(target)
        return write_bundle(_open(source, cache, told), target)


def search(
    config: Config,
    out: AnyPath,
    *,
    resume: bool = False,
    blocklist: AnyPath | None = None,
    samples: Mapping[SetName, SampleSet] = NO_SAMPLES,
    reporter: SearchReporter | None = None,
) -> RunResult:
    """Searches for the fastest stable plan, or judges one given blocklist, and writes the run directory.

    Args:
        config: from `load_config`.
        out: the run directory; must not exist unless `resume`.
        resume: go on with the run in `out`; nothing it judged is judged again.
        blocklist: a `blocklist.json` to judge instead of searching.
        samples: sets that the config has files in `out` for, which the run writes; others are read from their files.
        reporter: receives progress.

    Raises:
        OutputExistsError: `out` exists and `resume` is not set.
        UsageError: nothing to resume, or model, config or samples changed since.
        PrecisionSearchError: the model, the data or this machine cannot be used; the message says why.
    """
    given = None if blocklist is None else Path(blocklist)
    with contextlib.closing(_warnings() if reporter is None else reporter) as told:
        return run_search(config, Path(out), resume=resume, blocklist=given, samples=samples, reporter=told)


def dry_run(
    config: Config, *, samples: Mapping[SetName, SampleSet] = NO_SAMPLES, reporter: Reporter | None = None
) -> str:
    """The resolved config as TOML, then the search space as comments; judges nothing and writes no run.

    `samples` are as for `search`.
    """
    with contextlib.closing(_warnings() if reporter is None else reporter) as told:
        return dry_run_of(config, told, samples)


def pareto(run: AnyPath) -> ParetoTable:
    """The Pareto table of a run, finished or not, from its files alone.

    Raises:
        UsageError: `run` is no run directory, or a file in it is broken.
    """
    found = run_files.read_run(Path(run))
    requirement = load_config(found.directory / run_files.CONFIG_FILE).requirement
    choice = run_files.choice_of(found, requirement)
    pinned, greedy = found.info.model.pinned, found.info.generation.text
    return pareto_table(found.trials, requirement, choice=choice, pinned=pinned, generation=greedy)


def report(run: AnyPath, out: AnyPath | None = None) -> Path:
    """Writes the report of a run for a browser, from the run's files alone, and gives its path.

    Args:
        run: the run directory; the run may be unfinished.
        out: the file to write, which must not exist; None replaces `report.html` in the run directory.

    Raises:
        UsageError: `run` is no run directory, or a file in it is broken.
        OutputExistsError: `out` exists.
        MissingPackageError: plotly is not installed.
        EnvironmentProblemError: the file cannot be written.
    """
    return write_report(Path(run), None if out is None else Path(out))


def publish(
    run: AnyPath,
    out: AnyPath,
    *,
    plan: int | None = None,
    candidate: int | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Writes the model of a stable plan of a run, and gives its directory: what `precision-search export` does.

    The run may have been killed or still go on: then the best plan so far is what counts, and a warning says so.

    Args:
        run: the run directory.
        out: the model directory to write; it must not exist.
        plan: the id of a stable plan, None for the winner.
        candidate: the former name of `plan`.
        reporter: receives progress.

    Raises:
        UsageError: no such plan, or it is not stable; the model is no longer the one that was searched; `plan` and
            `candidate` are given.
        OutputExistsError: `out` exists.
    """
    with contextlib.closing(_warnings() if reporter is None else reporter) as told:
        if plan is not None and candidate is not None:
            raise UsageError(
                "plan and candidate are given",
                why="`candidate` is the former name of `plan`",
                fix="give `plan` alone",
            )
        return publish_from_run(Path(run), Path(out), candidate if plan is None else plan, told)


def verify(
    model: AnyPath,
    reference: AnyPath,
    data: AnyPath,
    *,
    column: str | None = None,
    prefix: str = "",
    max_length: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    device_id: int = 0,
    cache: AnyPath | None = None,
    reporter: Reporter | None = None,
) -> VerifyReport:
    """Generates with an exported model and with its fp32 reference, and compares the tokens.

    Args:
        model: the model directory to verify.
        reference: the fp32 model: checkpoint directory, ONNX directory or hub id.
        data: a file of sentences: text, or with columns (`.jsonl`, `.csv`, `.tsv`, `.parquet`).
        column: which of them holds the sentences; None for the one of `input`, `text` and `source` that is there.
        prefix: put before each sentence.
        max_length: longest source in tokens.
        batch_size: sentences at once.
        device: where to run.
        device_id: which CUDA device.
        cache: directory for exports, None for the user's.
        reporter: receives progress.

    Raises:
        InputError: the data or one of the models cannot be used, or they do not belong together.
    """
    with contextlib.closing(_warnings() if reporter is None else reporter) as told:
        samples = load_samples(Path(data), "data", column)
        settings = SessionSettings(device=resolve_device(device, device_id, warn=told.warn), device_id=device_id)
        directory = Path(model)
        bundle = _open(reference, cache, told)
        with unchanged(directory):
            found = compare(
                bundle,
                open_published(directory, bundle),
                samples,
                settings,
                prefix=prefix,
                max_length=max_length,
                batch_size=batch_size,
                reporter=told,
            )
        bundle.files.check()
        return found


def inspect(
    source: AnyPath,
    *,
    data: AnyPath | None = None,
    column: str | None = None,
    dtype: LowDtype = "float16",
    batch: int = WORKLOAD.batch,
    source_length: int = WORKLOAD.source_length,
    target_length: int = WORKLOAD.target_length,
    gpu: str | None = None,
    cache: AnyPath | None = None,
    reporter: Reporter | None = None,
) -> InspectReport:
    """What a model's graphs hold, what of it is searchable and what a search could gain at most; with data, the ranges
    of its activations too.

    Args:
        source: checkpoint directory, directory of ONNX graphs, or hub id.
        data, column: sentences, as for `verify`.
        dtype: the low dtype in question.
        batch: sentences in a batch of the workload that the ceiling is for.
        source_length: tokens of each source there.
        target_length: tokens of each target there.
        gpu: a device profile by name or file; None for `t4`, which has no bfloat16, and `a10g` for that.
        cache: directory for exports, None for the user's.
        reporter: receives progress.

    Raises:
        ConfigError: there is no such device profile, it has no arithmetic for the dtype, or a size is below 1.
        InputError: the model or the data cannot be used.
    """
    name, workload = Path(source).name, Workload(batch, source_length, target_length)
    profile = load_profile(GPUS[dtype] if gpu is None else gpu)
    profile.flops_per_second(dtype)  # refuses a dtype that the device has no arithmetic for
    with contextlib.closing(_warnings() if reporter is None else reporter) as told:
        bundle = _open(source, cache, told)
        ranges, samples = None, None
        if data is not None:
            encoded = encode(load_samples(Path(data), "data", column), load_tokenizer(bundle.path), "", None)
            for warning in encoded.warnings:
                told.warn(warning)
            told.stage("measuring activation ranges")
            ranges = measure(bundle, encoded.ids, BATCH_SIZE, dtype, SessionSettings(), reporter=told)
            samples = len(encoded.ids)
            bundle.files.check()
        told.stage("estimating what could be gained at most")
        ceiling = _ceiling(with_variants(bundle), dtype, workload, profile)
        return inspect_bundle(
            bundle, dtype, name=name, ranges=ranges, samples=samples, workload=workload, ceiling=ceiling
        )


def _ceiling(variants: Bundle, dtype: LowDtype, workload: Workload, profile: DeviceProfile) -> Ceiling:
    """Of a model without a config: in fp32 stays only what no plan makes low."""
    pins = {name: Pins(frozenset(never_low(variants.graphs_of(name), dtype))) for name in variants.variant_names}
    return find_ceiling(EstimatedLatency(variants, workload, profile), dtype, pins)


def calibrate(
    out: AnyPath, *, device_id: int = 0, force: bool = False, reporter: Reporter | None = None
) -> DeviceProfile:
    """Measures a CUDA device for the cost model and writes its profile (see `machine.calibrate`); takes minutes.

    Args:
        out: the profile to write, a .toml file; every time measured goes beside it.
        device_id: which CUDA device.
        force: whether an existing profile may be replaced.
        reporter: receives progress.

    Raises:
        UsageError: `out` is not a .toml file, or the process has other GEMM options.
        OutputExistsError: it exists, and `force` is not set.
        MissingPackageError, DeviceError: CUDA does not start, or cannot be measured.
    """
    settings = SessionSettings(device="cuda", device_id=device_id)
    with contextlib.closing(_warnings() if reporter is None else reporter) as told:
        return write_profile(Path(out), settings, force=force, reporter=told)


def doctor() -> DoctorReport:
    """What this machine can run, and how to get the rest."""
    return examine()


def _warnings() -> SearchReporter:
    """Shows warnings and nothing else."""
    return make_reporter(quiet=True)


def _open(source: AnyPath, cache: AnyPath | None, reporter: Reporter) -> Bundle:
    kept = default_cache() if cache is None else Path(cache)
    return open_bundle(os.fspath(source), kept, overrides=GREEDY.overrides, reporter=reporter)
