"""The public functions: what the command line does, as typed calls.

`search` runs everything and leaves a run directory; `pareto`, `report`, `export` and `verify` work on what it left.
`calibrate` measures a device for the estimates of machines that do not have it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from precision_search.config import load_config
from precision_search.errors import UsageError
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.calibration import encode, load_samples
from precision_search.model.tokenizer import load_tokenizer
from precision_search.output import run_files
from precision_search.output.calibrate import write_profile
from precision_search.output.progress import Reporter
from precision_search.output.publish import publish, publish_facts
from precision_search.output.report import write_report
from precision_search.output.table import ParetoTable, pareto_table
from precision_search.precision.inspect import InspectReport, inspect_bundle, measure
from precision_search.precision.plan import LowDtype
from precision_search.run import RunResult, dry_run, search
from precision_search.runtime.device_profile import DeviceProfile
from precision_search.runtime.doctor import DoctorReport, examine
from precision_search.runtime.session import SessionSettings, resolve_device
from precision_search.search.pareto import choose_winner
from precision_search.search.verify import VerifyReport, compare, open_candidate

__all__ = [
    "RunResult",
    "calibrate",
    "doctor",
    "dry_run",
    "export",
    "inspect",
    "open_model",
    "pareto",
    "report",
    "search",
    "verify",
]

BATCH_SIZE = 32
"""Samples at once where no config says."""


def open_model(
    source: str, cache: Path, *, max_new_tokens: int | None = None, reporter: Reporter | None = None
) -> Bundle:
    """Opens a checkpoint directory, a directory of ONNX graphs or a hub id as fp32 graphs (see `model.bundle`)."""
    say = reporter.stage if reporter is not None else lambda _: None
    return open_bundle(source, cache, max_new_tokens=max_new_tokens, say=say)


def pareto(run: Path) -> ParetoTable:
    """The Pareto table of a run, from its files alone."""
    found = run_files.read_run(run)
    share = load_config(run / run_files.CONFIG_FILE).min_exact_match
    return pareto_table(found.trials, share, pinned=found.info.model.pinned)


def report(run: Path, out: Path | None = None) -> Path:
    """Writes the report of a run for a browser, from the run's files alone, and gives its path.

    Args:
        run: the run directory; the run may be unfinished.
        out: the file to write, which must not exist; None replaces `report.html` in the run directory.

    Raises:
        InputError: `run` is no run directory, or a file in it is broken.
        OutputExistsError: `out` exists.
        MissingPackageError: plotly is not installed.
        EnvironmentProblemError: the file cannot be written.
    """
    return write_report(run, out)


def export(run: Path, candidate: int | None, out: Path, reporter: Reporter) -> Path:
    """Writes the model of a stable plan of a run, the winner's by default, and gives its directory.

    The run may have been killed or still go on: then the best plan so far is what counts, and a warning says so.

    Raises:
        UsageError: no such plan, it is not stable, or the model is no longer the one that was searched.
        OutputExistsError: `out` exists.
    """
    found, config = run_files.read_run(run), load_config(run / run_files.CONFIG_FILE)
    if candidate is None:
        trial = choose_winner(found.trials, config.min_exact_match).trial
    else:
        trial = next((trial for trial in found.trials if trial.id == candidate), None)
    if trial is None or trial.verdict != "stable":
        raise UsageError(
            f"{run} has no stable plan" + ("" if candidate is None else f" {candidate}"),
            why=f"it judged {len(found.trials)} plans" if trial is None else f"its verdict is {trial.verdict}",
            fix="`precision-search pareto RUN` lists the stable ones",
        )
    bundle = open_model(
        config.model.path, config.model.cache, max_new_tokens=config.generation.max_new_tokens, reporter=reporter
    )
    if bundle.content_hash != found.info.model.content_hash:
        raise UsageError(
            f"the model in {config.model.path} is not the one that {run} searched",
            why="its content hash is another",
            fix="restore the model, or run the search again",
        )
    if found.info.status != "complete":
        what = "the best of" if candidate is None else "one of"
        reporter.warn(f"{run} is unfinished: plan {trial.id} is {what} the {len(found.trials)} plans judged so far")
    reporter.stage(f"writing {out}")
    return publish(bundle, trial.plan.plan, publish_facts(found.info, trial), out)


def verify(
    model: Path,
    reference: str,
    data: Path,
    *,
    prefix: str = "",
    max_length: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    device_id: int = 0,
    cache: Path,
    reporter: Reporter,
) -> VerifyReport:
    """Generates with an exported model and with its fp32 reference, and compares the tokens.

    Args:
        model: the model directory to verify.
        reference: the fp32 model: checkpoint directory, ONNX directory or hub id.
        data: text or JSONL file of sentences.
        prefix: put before each sentence.
        max_length: longest source in tokens.
        batch_size: sentences at once.
        device: where to run.
        device_id: which CUDA device.
        cache: directory for exports.
        reporter: receives progress.

    Raises:
        InputError: the data or one of the models cannot be used, or they do not belong together.
    """
    samples = load_samples(data, "data")
    settings = SessionSettings(device=resolve_device(device, device_id, warn=reporter.warn), device_id=device_id)
    bundle = open_model(reference, cache, reporter=reporter)
    return compare(
        bundle,
        open_candidate(model, bundle),
        samples,
        settings,
        prefix=prefix,
        max_length=max_length,
        batch_size=batch_size,
        say=reporter.stage,
    )


def inspect(
    source: str, *, data: Path | None = None, dtype: LowDtype = "float16", cache: Path, reporter: Reporter
) -> InspectReport:
    """What a model's graphs hold and what of it is searchable; with data, the ranges of its activations too."""
    bundle = open_model(source, cache, reporter=reporter)
    name = Path(source).name
    if data is None:
        return inspect_bundle(bundle, dtype, name=name)
    encoded = encode(load_samples(data, "data"), load_tokenizer(bundle.path), "", None)
    for warning in encoded.warnings:
        reporter.warn(warning)
    reporter.stage("measuring activation ranges")
    ranges = measure(bundle, encoded.ids, BATCH_SIZE, dtype, SessionSettings())
    return inspect_bundle(bundle, dtype, name=name, ranges=ranges, samples=len(encoded.ids))


def calibrate(out: Path, *, device_id: int = 0, force: bool = False, reporter: Reporter) -> DeviceProfile:
    """Measures a CUDA device for the cost model and writes its profile (see `output.calibrate`); takes minutes.

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
    return write_profile(out, SessionSettings(device="cuda", device_id=device_id), force=force, reporter=reporter)


def doctor() -> DoctorReport:
    """What this machine can run, and how to get the rest."""
    return examine()
