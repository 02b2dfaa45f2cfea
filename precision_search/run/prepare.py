"""Everything before the first plan: bundle, samples, reference, parity with the checkpoint, ranges, space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from precision_search.config import Config, DataSection, DeviceSection
from precision_search.device.profile import DeviceProfile, load_profile
from precision_search.judging.ranges import NodeRange, measure_ranges
from precision_search.judging.sample_sets import (
    LoadedSet,
    NearTie,
    Parity,
    SetName,
    check_parity,
    check_ties,
    load_set,
    near_ties,
    open_fp32,
)
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.samples import load_samples
from precision_search.precision.kernels import why_fp32
from precision_search.runtime.backends import backend_of, resolve_device
from precision_search.runtime.batch_limit import BatchLimit
from precision_search.runtime.progress import Progress, Say, no_progress
from precision_search.runtime.session import NO_LIMIT, Device, SessionSettings
from precision_search.runtime.teacher_forcing import by_target_length, forced_batches
from precision_search.strategies.space import SpaceReport, check_pins, make_space


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
    backend_of(settings).check_process(settings, warn)
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
    check_ties(sets["calibration"], warn)
    parity = check_parity(bundle, sets["calibration"], config, say, warn)
    say("measuring activation ranges")
    data, size = sets["calibration"].data, config.calibration.batch_size
    order = by_target_length(data.reference.tokens)

    def measure(size: int) -> Mapping[str, NodeRange]:
        batches = forced_batches(data.rows, data.reference.tokens, bundle.generation, size, order)
        encoder, decoder = bundle.graphs[SEQ2SEQ.encoder.name], bundle.graphs[SEQ2SEQ.decoder.name]
        return measure_ranges(encoder, decoder, batches, config.search.dtype, settings, progress=progress)

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


def _session_settings(section: DeviceSection, device: Device) -> SessionSettings:
    return SessionSettings(
        device=device,
        device_id=section.id,
        threads=section.threads,
        use_tf32=section.use_tf32,
        gemm_options=section.gemm_options,
        memory_limit=NO_LIMIT if section.memory_limit is None else int(section.memory_limit * 2**30),
    )


def _sections(config: Config) -> dict[SetName, DataSection]:
    sections: dict[SetName, DataSection | None] = {
        "calibration": config.calibration,
        "validation": config.validation,
        "test": config.test,
    }
    return {name: section for name, section in sections.items() if section is not None}
