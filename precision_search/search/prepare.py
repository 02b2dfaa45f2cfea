"""Everything before the first plan: bundle, samples, reference, parity with the checkpoint, ranges, space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from precision_search.config import Config, DataSection, DeviceSection
from precision_search.errors import InputError, VerificationError
from precision_search.model.bundle import Bundle, open_bundle, oracle_tokens
from precision_search.model.calibration import SampleSet, encode, load_samples
from precision_search.model.tokenizer import Tokenizer, load_tokenizer
from precision_search.precision.kernels import why_fp32
from precision_search.precision.ranges import NodeRange, measure_ranges
from precision_search.runtime.batch_limit import BatchLimit, after_release
from precision_search.runtime.cuda import apply_process_settings
from precision_search.runtime.device_profile import DeviceProfile, load_profile
from precision_search.runtime.forced import by_target_length, forced_batches
from precision_search.runtime.generator import Generator
from precision_search.runtime.progress import Progress, no_progress
from precision_search.runtime.reference import (
    NEAR_TIE,
    ParityDifference,
    Reference,
    compare_with_oracle,
    make_reference,
)
from precision_search.runtime.session import DEFAULT_GEMM_OPTIONS, NO_LIMIT, Device, SessionSettings, resolve_device
from precision_search.search.screen import SampleRows
from precision_search.search.space import SpaceReport, check_pins, make_space

SetName = Literal["calibration", "validation", "test"]
Say = Callable[[str], None]
MOST_TIES = 5
"""Near-ties that are told one by one; a model that was never trained has one at nearly every token."""

ParityStatus = Literal["equal", "near-ties", "skipped"]


@dataclass(frozen=True, slots=True)
class LoadedSet:
    """A sample set, tokenized, with its fp32 reference.

    Attributes:
        samples: texts and content hash.
        data: input ids and reference.
        truncated: how many samples were cut to fit.
        section: how the config says that they are read.
    """

    samples: SampleSet
    data: SampleRows
    truncated: int
    section: DataSection


@dataclass(frozen=True, slots=True)
class Fp32Model:
    """The fp32 bundle with what turns texts into its tokens; `limit` is of samples at once."""

    bundle: Bundle
    tokenizer: Tokenizer
    generator: Generator
    settings: SessionSettings
    limit: BatchLimit


@dataclass(frozen=True, slots=True)
class NearTie:
    """A token of the fp32 reference that won by so little that no plan can be trusted there.

    Attributes:
        set: the sample set.
        sample: index in it, from 0.
        position: token position within its target, from 0.
        margin: by how much it won, in logits.
    """

    set: SetName
    sample: int
    position: int
    margin: float


@dataclass(frozen=True, slots=True)
class Parity:
    """Whether the fp32 bundle generates what its checkpoint does.

    Attributes:
        status: `near-ties` if all differences are at near-ties of fp32; `skipped` without a checkpoint.
        samples: how many samples were compared.
        differences: where they differ.
    """

    status: ParityStatus
    samples: int
    differences: tuple[ParityDifference, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a search starts from.

    Attributes:
        bundle: the fp32 bundle.
        settings: session settings of everything that runs.
        sets: calibration, and validation where configured, with references (test comes last, in `load_set`).
        parity: of the fp32 bundle with its checkpoint.
        ranges: of every compute node.
        space: what may be decided.
        profile: the device profile of estimates; where a CUDA device measures, it only orders proposals.
        limit: of samples at once, for all that runs.
    """

    bundle: Bundle
    settings: SessionSettings
    sets: Mapping[SetName, LoadedSet]
    parity: Parity
    ranges: Mapping[str, NodeRange]
    space: SpaceReport
    profile: DeviceProfile
    limit: BatchLimit = field(default_factory=BatchLimit)

    @property
    def near_ties(self) -> tuple[NearTie, ...]:
        """Reference tokens with margins below `NEAR_TIE`, in all sets."""
        return tuple(tie for name, loaded in self.sets.items() for tie in near_ties(name, loaded.data.reference))


def prepare(
    config: Config,
    say: Say,
    warn: Say,
    check: Callable[[Bundle], object] = lambda _: None,
    progress: Progress = no_progress,
) -> Prepared:
    """Does everything that comes before the first plan.

    Args:
        config: the resolved config.
        say: receives a line before each step.
        warn: receives what the user should know and need not stop for.
        check: called with the bundle as soon as it is open; what it raises ends the work before the slow part.
        progress: receives how many samples of a step are done.

    Raises:
        ConfigError, InputError: something the config names cannot be used.
        DeviceError, MissingPackageError: the device does not start.
        DeviceMemoryError: its memory does not hold one sample.
        UsageError: this process has other GEMM options than the config asks for.
        VerificationError: the fp32 bundle does not generate what its checkpoint does.
    """
    device = resolve_device(config.device.kind, config.device.id, warn=warn)
    settings = _session_settings(config.device, device)
    _check_process(settings, warn)
    profile = load_profile(config.latency.profile)
    profile.flops_per_second(config.search.dtype)  # refuses a dtype that the device has no arithmetic for
    # Read before the slow export: a broken data file should not cost a minute first.
    texts = {name: load_samples(section.path, name) for name, section in _sections(config).items()}
    bundle = open_bundle(
        config.model.path, config.model.cache, max_new_tokens=config.generation.max_new_tokens, say=say
    )
    check_pins(bundle.graphs, config.search.keep_fp32, config.search.force_low)
    check(bundle)
    limit = BatchLimit(warn)
    fp32 = open_fp32(bundle, settings, limit)
    sets: dict[SetName, LoadedSet] = {}
    for name, section in _sections(config).items():
        if name != "test":
            say(f"generating the fp32 reference, {len(texts[name].samples)} {name} samples")
            sets[name] = load_set(texts[name], section, fp32, warn, progress)
    del fp32  # its sessions need not lie beside those that measure
    _check_ties(sets["calibration"], warn)
    parity = _check_parity(bundle, sets["calibration"], config, say, warn)
    say("measuring activation ranges")
    data, size = sets["calibration"].data, config.calibration.batch_size
    order = by_target_length(data.reference.tokens)

    def measure(size: int) -> Mapping[str, NodeRange]:
        batches = forced_batches(data.rows, data.reference.tokens, bundle.generation, size, order)
        graphs = bundle.graphs
        return measure_ranges(
            graphs["encoder"], graphs["decoder"], batches, config.search.dtype, settings, progress=progress
        )

    ranges = limit.fitting(size, measure)
    space = make_space(
        bundle.graphs,
        config.search.dtype,
        ranges,
        range_safety=config.search.range_safety,
        keep_fp32=config.search.keep_fp32,
        force_low=config.search.force_low,
    )
    for op_type in sorted({node.op_type for graph in bundle.graphs.values() for node in graph.compute}):
        if reason := why_fp32(op_type, config.search.dtype):
            warn(f"{op_type} stays in fp32: {reason}")
    return Prepared(bundle, settings, sets, parity, ranges, space, profile, limit)


def open_fp32(bundle: Bundle, settings: SessionSettings, limit: BatchLimit | None = None) -> Fp32Model:
    """The fp32 bundle, ready to generate; `limit` is of samples at once, shared with others."""
    generator = after_release(lambda: Generator(bundle.models, bundle.generation, settings))
    return Fp32Model(bundle, load_tokenizer(bundle.path), generator, settings, limit or BatchLimit())


def load_set(
    samples: SampleSet, section: DataSection, fp32: Fp32Model, warn: Say, progress: Progress = no_progress
) -> LoadedSet:
    """Tokenizes a sample set and generates its reference."""
    encoded = encode(samples, fp32.tokenizer, section.prefix, section.max_length)
    for warning in (*samples.warnings, *encoded.warnings):
        warn(warning)
    highest = max(max(ids) for ids in encoded.ids)
    if highest >= fp32.bundle.config.vocab_size:
        raise InputError(
            f"the tokenizer gives the id {highest}, the model knows {fp32.bundle.config.vocab_size} tokens",
            why="tokenizer and model do not belong together",
            fix="put the model's own tokenizer files into its directory",
        )
    reference = make_reference(
        fp32.bundle,
        fp32.generator,
        encoded.ids,
        section.batch_size,
        fp32.settings,
        limit=fp32.limit,
        progress=progress,
    )
    return LoadedSet(samples, SampleRows(encoded.ids, reference), len(encoded.truncated), section)


def near_ties(name: SetName, reference: Reference) -> tuple[NearTie, ...]:
    """The reference's tokens with margins below `NEAR_TIE`."""
    return tuple(
        NearTie(name, sample, position, float(margin))
        for sample, margins in enumerate(reference.margins)
        for position, margin in enumerate(margins)
        if margin < NEAR_TIE
    )


def _session_settings(section: DeviceSection, device: Device) -> SessionSettings:
    return SessionSettings(
        device=device,
        device_id=section.id,
        threads=section.threads,
        use_tf32=section.use_tf32,
        gemm_options=section.gemm_options,
        memory_limit=NO_LIMIT if section.memory_limit is None else int(section.memory_limit * 2**30),
    )


def _check_process(settings: SessionSettings, warn: Say) -> None:
    """Before the slow part: whether the process runs as the config asks, and whether emulation knows what it asks."""
    if settings.device == "cuda":
        apply_process_settings(settings.gemm_options, use_tf32=settings.use_tf32)
    elif settings.use_tf32 or settings.gemm_options != DEFAULT_GEMM_OPTIONS:
        warn(
            "emulation on a CPU knows neither TF32 nor other GEMM options than "
            f"{DEFAULT_GEMM_OPTIONS}: verdicts hold for a device without them"
        )


def _sections(config: Config) -> dict[SetName, DataSection]:
    sections: dict[SetName, DataSection | None] = {
        "calibration": config.calibration,
        "validation": config.validation,
        "test": config.test,
    }
    return {name: section for name, section in sections.items() if section is not None}


def _check_ties(calibration: LoadedSet, warn: Say) -> None:
    """A calibration sample that fp32 itself cannot decide makes every plan a matter of luck, fp32 included."""
    samples = calibration.samples
    ties = near_ties("calibration", calibration.data.reference)
    for number, tie in enumerate(ties):
        line = samples.samples[tie.sample].line
        where = f"line {line} of {samples.path}, token {tie.position + 1}"
        if tie.margin <= 0:
            raise InputError(
                f"{where}: fp32 generates one token and prefers another when it reads the whole sentence",
                why=f"a tie that its own rounding decides (margin {tie.margin:.2g})",
                fix="remove that line: no plan can be held to it",
            )
        if number < MOST_TIES:
            warn(f"{where}: a near-tie of fp32 (margin {tie.margin:.2g}), which any rounding may flip")
    if len(ties) > MOST_TIES:
        warn(f"{len(ties) - MOST_TIES} more near-ties of fp32 in {samples.path}; run.json lists them all")


def _check_parity(bundle: Bundle, calibration: LoadedSet, config: Config, say: Say, warn: Say) -> Parity:
    rows = calibration.data.rows
    if bundle.checkpoint is None:
        warn("parity with transformers is skipped: there is no checkpoint beside the ONNX files")
        return Parity("skipped", 0, ())
    say("comparing the fp32 bundle with transformers")
    oracle = oracle_tokens(bundle, rows, config.model.cache)
    differences = compare_with_oracle(calibration.data.reference, oracle)
    real = [difference for difference in differences if not difference.near_tie]
    if real:
        lines = [
            f"sample {d.sample + 1}, token {d.position + 1}: bundle {d.bundle_token}, checkpoint {d.checkpoint_token}"
            + ("" if d.margin is None else f", margin {d.margin:.4g}")
            for d in real[:5]
        ]
        raise VerificationError(
            f"the fp32 bundle differs from its checkpoint on {len(real)} of {len(rows)} calibration samples",
            why="; ".join(lines),
            fix="export the model again; if the ONNX files are from another checkpoint, give theirs",
        )
    for difference in differences:
        warn(
            f"calibration sample {difference.sample + 1}: bundle and checkpoint part at a near-tie of fp32 "
            f"(margin {difference.margin:.2g})"
        )
    return Parity("near-ties" if differences else "equal", len(rows), differences)
