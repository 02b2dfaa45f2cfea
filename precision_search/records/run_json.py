"""What a run records of itself: the dataclasses behind `run.json`, parts of which a published model carries too.

The field names are the keys. Names in it are bare names: the files of a run say nothing about the machine it was made
on beside its device.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from precision_search.cost.ceiling import Ceiling
from precision_search.errors import InputError, InternalError
from precision_search.files import read_json, reason
from precision_search.judging.intervals import binomial_interval
from precision_search.judging.sample_sets import NearTie, Parity
from precision_search.judging.trial import Judged, Trial
from precision_search.model.greedy import greedy_by_choice
from precision_search.records.codec import from_json

SCHEMA_VERSION = 1

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of Python and of the packages that a verdict may depend on.

    Attributes:
        python: of the interpreter.
        onnx: of the package.
        onnxruntime: of `onnxruntime-gpu` or `onnxruntime`, whichever is there.
        onnx_ir: of the package.
        torch: None where it is not installed.
        transformers: None where it is not installed.
        numpy: of the package.
    """

    python: str
    onnx: str
    onnxruntime: str
    onnx_ir: str
    torch: str | None
    transformers: str | None
    numpy: str

    @classmethod
    def installed(cls) -> Versions:
        """The versions installed here, without importing anything."""
        return cls(
            python=platform.python_version(),
            onnx=importlib.metadata.version("onnx"),
            onnxruntime=_installed("onnxruntime-gpu", "onnxruntime") or "unknown",
            onnx_ir=importlib.metadata.version("onnx-ir"),
            torch=_installed("torch"),
            transformers=_installed("transformers"),
            numpy=importlib.metadata.version("numpy"),
        )


@dataclass(frozen=True, slots=True)
class Device:
    """Where the run judged and the workload that latency refers to.

    Attributes:
        kind: where sessions ran.
        name: the device's product name, None on a CPU.
        profile: the device profile of estimates, None where latency was measured.
        optimization_level: of every session.
        use_tf32: whether fp32 matrix products might round their inputs to TF32.
        gemm_options: the runtime's `ORT_CUDA_GEMM_OPTIONS`; on a CPU what the config asks of a device.
    """

    kind: Literal["cpu", "cuda"]
    name: str | None
    profile: str | None
    optimization_level: str
    use_tf32: bool
    gemm_options: str | None


@dataclass(frozen=True, slots=True)
class Model:
    """The fp32 bundle.

    Attributes:
        name: of its directory or hub id, without the path before it.
        content_hash: SHA-256 of the three fp32 ONNX files, hexadecimal.
        has_checkpoint: whether there was a torch checkpoint to compare it with.
        pinned: compute nodes that no plan can make low (index arithmetic).
    """

    name: str
    content_hash: str
    has_checkpoint: bool
    pinned: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_bare(self.name)


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A sample set and how it was read.

    Attributes:
        name: bare file name.
        count: samples in it.
        hash: SHA-256 of its content, hexadecimal.
        truncated: how many were cut to fit.
        prefix: what was put before each sentence.
        max_length: longest source in tokens, None for the model's own limit.
    """

    name: str
    count: int
    hash: str
    truncated: int
    prefix: str = ""
    max_length: int | None = None

    def __post_init__(self) -> None:
        _check_bare(self.name)


@dataclass(frozen=True, slots=True)
class Samples:
    """The sample sets of a run.

    Attributes:
        calibration: where a stable plan keeps every sample.
        validation: None where the config names none.
        test: None where the config names none, or the run has not come to it.
    """

    calibration: SampleFile
    validation: SampleFile | None
    test: SampleFile | None


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """The workload that latency refers to.

    Attributes:
        batch: sentences in a batch.
        source_length: tokens of each source.
        target_length: tokens of each target.
    """

    batch: int
    source_length: int
    target_length: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Judged plans by verdict.

    Attributes:
        judged: all of them.
        stable: with every token of the reference.
        mismatch: with another token.
        nonfinite: with NaN or infinity.
        error: that could not be judged.
    """

    judged: int
    stable: int
    mismatch: int
    nonfinite: int
    error: int

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Counts:
        """Counts `trials`."""
        verdicts = [trial.verdict for trial in trials]
        count = verdicts.count
        return cls(len(verdicts), count("stable"), count("mismatch"), count("nonfinite"), count("error"))


@dataclass(frozen=True, slots=True)
class ScreenSpeed:
    """How fast plans were screened.

    Attributes:
        full_ms: median time of a screen of all calibration samples, in milliseconds.
        fp32_ms: median time of the same with fp32, in milliseconds.
        screens_per_second: screens that were finished in a second.
    """

    full_ms: float | None
    fp32_ms: float | None
    screens_per_second: float | None


@dataclass(frozen=True, slots=True)
class CutCheck:
    """How well the minimum cut knows what its plans cost.

    Attributes:
        plans: plans that a cut chose and whose converted graphs were estimated.
        largest_difference: the largest difference of the cut's own cost to that estimate, as a share of it.
    """

    plans: int
    largest_difference: float

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> CutCheck | None:
        """Of the judged plans; None where no cut chose any, or where latency is measured, which is another thing."""
        differences = [
            abs(trial.expected_ms / trial.latency.p50_ms - 1.0)
            for trial in trials
            if trial.expected_ms is not None and trial.latency is not None and trial.latency.source == "estimated"
        ]
        return cls(len(differences), max(differences)) if differences else None


@dataclass(frozen=True, slots=True)
class Match:
    """A share of samples with exactly the reference's tokens.

    Attributes:
        value: the share, 0 to 1.
        low: lower end of its 95% interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise ValueError(f"a share of samples is {self.value}")

    @classmethod
    def of(cls, exact: int, count: int) -> Match:
        """The share `exact` of `count` samples, `count` at least 1, with the Wilson interval."""
        return cls(exact / count, *binomial_interval(exact, count))


@dataclass(frozen=True, slots=True)
class Best:
    """The chosen plan.

    Attributes:
        id: its id.
        reason: why it, in words.
        faster: whether it is faster than fp32; if not, `model/` holds fp32.
        test_match: share of the test samples, None where not run.
        validation_match: share of the validation samples, None where not run.
        requirements_met: whether a plan other than fp32 keeps `validation.min_exact_match` of the validation samples;
            true where nothing is required, None in runs of versions that did not say.
        judged: in which batches it was judged, None where an older version judged it in the sets' own batches alone.
    """

    id: int
    reason: str
    faster: bool
    test_match: Match | None
    validation_match: Match | None
    requirements_met: bool | None = None
    judged: Judged | None = None


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """Greedy decoding by choice.

    Attributes:
        overridden: what the checkpoint asks for instead and `[generation]` of the config overrides, by name, values as
            JSON; empty where greedy decoding is what it asks for.
        content_hash: SHA-256 of how tokens are chosen (start, end, rules), hexadecimal; None where it was not noted.
    """

    overridden: Mapping[str, str] = field(default_factory=dict)
    content_hash: str | None = None

    @property
    def text(self) -> str | None:
        """In words; None where nothing is overridden."""
        return greedy_by_choice(self.overridden) if self.overridden else None


NOTHING_OVERRIDDEN = GenerationInfo()


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The content of `run.json`; what is not known yet while the run goes on is None.

    Attributes:
        schema_version: of this form.
        tool_version: of precision-search.
        status: `running` is also what a killed run leaves.
        started: UTC, ISO 8601.
        finished: the same, None while it runs.
        seconds: of all sessions of the run together.
        versions: of the packages.
        device: where it ran.
        model: the fp32 bundle.
        parity: of the bundle with its checkpoint.
        samples: the sample sets.
        batch_size: samples judged at once, since the memory last ran out; rounding depends on the shapes that it
            leads to. Each plan says what it was judged at.
        config_hash: SHA-256 of the resolved config, hexadecimal.
        workload: the workload that latency refers to.
        strategy: the name of the search strategy.
        seed: of everything random.
        counts: judged plans.
        stopped: why the search ended.
        screen: how fast plans were screened.
        peak_rss_bytes: largest resident memory of the process.
        near_ties: tokens of the reference where no plan is reliable.
        best: the chosen plan.
        cut: how well the minimum cut knew what plans cost, None where none was made.
        ceiling: what lower precision could gain at most, None in runs of versions that did not ask.
        generation: what of the model's generation config gave way to greedy decoding.
    """

    schema_version: int
    tool_version: str
    status: Literal["running", "complete", "interrupted"]
    started: str
    finished: str | None
    seconds: float
    versions: Versions
    device: Device
    model: Model
    parity: Parity | None
    samples: Samples
    batch_size: int
    config_hash: str
    workload: WorkloadInfo
    strategy: str
    seed: int
    counts: Counts
    stopped: Literal["done", "max_trials", "timeout", "interrupted"] | None
    screen: ScreenSpeed | None
    peak_rss_bytes: int | None
    near_ties: tuple[NearTie, ...]
    best: Best | None
    cut: CutCheck | None = None
    ceiling: Ceiling | None = None
    generation: GenerationInfo = NOTHING_OVERRIDDEN


def read_record(kind: type[Record], path: Path, *, root: str, what: str, fix: str) -> Record:
    """Reads a JSON file that carries a `schema_version` as the dataclass `kind`.

    Args:
        kind: the dataclass.
        path: the file.
        root: what the messages call the top of the file.
        what: what a broken file is not, as the end of a sentence: "is not the record of a run".
        fix: what to do about a broken one.

    Raises:
        InputError: it is missing, broken or of a later version.
    """
    try:
        content = read_json(path)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            fix = "read it with the version of precision-search that wrote it, or a later one"
            raise ValueError(f"its schema_version is {version}, this version reads up to {SCHEMA_VERSION}")
        return from_json(kind, content, root)
    except OSError as error:
        raise InputError(f"{path} cannot be read", why=reason(error), fix=fix) from error
    except (ValueError, InternalError) as error:  # internal: a record that we would not have written
        why = error.what if isinstance(error, InternalError) else str(error)
        raise InputError(f"{path} {what}", why=why, fix=fix) from error


def tool_version() -> str:
    """The version of precision-search as installed."""
    return importlib.metadata.version("precision-search")


def _installed(*names: str) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _check_bare(name: str) -> None:
    if name != Path(name).name:
        raise InternalError(f"a run records bare names, not {name!r}", why="paths say whose machine it was")
