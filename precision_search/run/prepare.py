"""Everything before the first plan: bundle, samples, reference, parity with the checkpoint, ranges, space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from precision_search.config import Config, DataSection, DeviceSection
from precision_search.cost.estimate import Workload
from precision_search.device.profile import DeviceProfile, load_profile
from precision_search.errors import counted
from precision_search.judging.batches import FIRST_BATCH
from precision_search.judging.ceiling import Pins
from precision_search.judging.latency import EstimatedLatency
from precision_search.judging.ranges import NodeRange, measure_ranges
from precision_search.judging.sample_sets import (
    Fp32Model,
    LoadedSet,
    NearTie,
    Parity,
    SampleRows,
    SetName,
    check_parity,
    check_ties,
    load_set,
    near_ties,
    open_fp32,
)
from precision_search.judging.set_sizes import set_warnings
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.graph import BASE_VARIANT, Graph, GraphName
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.prefixes import prefix_hint
from precision_search.model.samples import SampleSet, load_samples
from precision_search.model.variants import with_variants
from precision_search.precision.kernels import why_fp32
from precision_search.reporting import Reporter
from precision_search.runtime.backends import backend_of, resolve_device
from precision_search.runtime.batch_limit import BatchLimit
from precision_search.runtime.session import NO_LIMIT, Device, SessionSettings
from precision_search.runtime.teacher_forcing import by_target_length, forced_batches
from precision_search.strategies.space import SpaceReport, check_pins, make_space


@dataclass(frozen=True, slots=True)
class PreparedVariant:
    """What is known of the graphs of a variant before the first plan.

    Attributes:
        ranges: of every compute node.
        space: what may be decided.
    """

    ranges: Mapping[str, NodeRange]
    space: SpaceReport


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a search starts from.

    Attributes:
        bundle: the fp32 bundle.
        settings: session settings of everything that runs.
        sets: calibration, and validation where configured, with references (test comes last, in `load_set`).
        parity: of the fp32 bundle with its checkpoint.
        variants: what is known of the graphs of each variant, by name, the base graphs' first.
        profile: the device profile of estimates; where a CUDA device measures, it only orders proposals.
        fp32: what generated the references; on a CPU its sessions are still there.
        limit: of samples at once, for all that runs.
    """

    bundle: Bundle
    settings: SessionSettings
    sets: Mapping[SetName, LoadedSet]
    parity: Parity
    variants: Mapping[str, PreparedVariant]
    profile: DeviceProfile
    fp32: Fp32Model
    limit: BatchLimit = field(default_factory=BatchLimit)

    @property
    def ranges(self) -> Mapping[str, NodeRange]:
        """The range of every compute node of the base graphs."""
        return self.variants[BASE_VARIANT].ranges

    @property
    def space(self) -> SpaceReport:
        """What may be decided about the base graphs."""
        return self.variants[BASE_VARIANT].space

    @property
    def pins(self) -> Mapping[str, Pins]:
        """What is decided about each variant before a search."""
        spaces = {name: found.space.space for name, found in self.variants.items()}
        return {name: Pins(space.fixed, space.forced_low) for name, space in spaces.items()}

    def estimate(self, config: Config) -> EstimatedLatency:
        """Estimates for the workload of the config."""
        section = config.workload
        workload = Workload(section.batch, section.source_length, section.target_length)
        return EstimatedLatency(self.bundle, workload, self.profile)

    @property
    def near_ties(self) -> tuple[NearTie, ...]:
        """Reference tokens with margins below `NEAR_TIE`, in all sets."""
        return tuple(tie for name, loaded in self.sets.items() for tie in near_ties(name, loaded.data))


@dataclass(frozen=True, slots=True)
class Opened:
    """What the config names, read and checked; nothing has run yet.

    Attributes:
        bundle: the fp32 bundle.
        settings: session settings of everything that will run.
        profile: the device profile of estimates.
        texts: the sample sets as read.
    """

    bundle: Bundle
    settings: SessionSettings
    profile: DeviceProfile
    texts: Mapping[SetName, SampleSet]


def prepare(
    config: Config, reporter: Reporter, samples: Mapping[SetName, SampleSet] = MappingProxyType({})
) -> Prepared:
    """Does everything that comes before the first plan: `open_inputs`, then `measure_inputs`."""
    return measure_inputs(config, open_inputs(config, reporter, samples), reporter)


def open_inputs(
    config: Config, reporter: Reporter, samples: Mapping[SetName, SampleSet] = MappingProxyType({})
) -> Opened:
    """Opens what the config names: all that can be wrong with it is found here, before the slow part.

    Args:
        config: the resolved config.
        reporter: told of steps, and what the user should know and need not stop for.
        samples: sets that are in memory already; others are read.

    Raises:
        ConfigError, InputError: something the config names cannot be used.
        DeviceError, MissingPackageError: the device does not start.
        UsageError: this process has other GEMM options than the config asks for.
    """
    device = resolve_device(config.device.kind, config.device.id, warn=reporter.warn)
    settings = _session_settings(config.device, device)
    backend_of(settings).check_process(settings, reporter.warn)
    profile = load_profile(config.latency.profile)
    profile.flops_per_second(config.search.dtype)  # refuses a dtype that the device has no arithmetic for
    # Read before the slow export: a broken data file should not cost a minute first.
    sections = _sections(config)
    texts = {
        name: samples[name] if name in samples else load_samples(section.path, name, section.column)
        for name, section in sections.items()
    }
    for warning in set_warnings(texts, sections, config.requirement):
        reporter.warn(warning)
    bundle = open_bundle(
        config.model.path,
        config.model.cache,
        max_new_tokens=config.generation.max_new_tokens,
        overrides=config.generation.overrides,
        texts=[sections[name].prefix + each.text for name, found in texts.items() for each in found.samples],
        reporter=reporter,
    )
    if hint := prefix_hint(bundle.path, config.calibration.prefix, texts["calibration"]):
        reporter.warn(hint)
    bundle = with_variants(bundle)
    check_pins(bundle, config.search.keep_fp32, config.search.force_low)
    return Opened(bundle, settings, profile, texts)


def measure_inputs(config: Config, opened: Opened, reporter: Reporter) -> Prepared:
    """Generates references, compares with the checkpoint, measures ranges and draws the search space.

    Args:
        config: the resolved config.
        opened: what it names.
        reporter: told of steps and how far they are, and what the user should know and need not stop for.

    Raises:
        InputError: the data do not fit the model, or fp32 itself cannot be held to them.
        DeviceMemoryError: the device's memory does not hold one sample.
        VerificationError: the fp32 bundle does not generate what its checkpoint does.
    """
    bundle, limit = opened.bundle, BatchLimit(reporter.warn)
    fp32 = open_fp32(bundle, opened.settings, limit)
    sets: dict[SetName, LoadedSet] = {}
    for name, section in _sections(config).items():
        if name != "test":
            texts = opened.texts[name]
            reporter.stage(f"generating the fp32 reference, {counted(len(texts.samples), f'{name} sample')}")
            sets[name] = load_set(texts, section, fp32, reporter)
    if not backend_of(opened.settings).may_idle:
        fp32.close()
    check_ties(sets["calibration"], reporter)
    parity = check_parity(bundle, sets["calibration"], config, reporter)
    data = sets["calibration"].data
    variants = {
        name: _variant(name, config, opened, data, limit=limit, reporter=reporter) for name in bundle.variant_names
    }
    all_graphs = [graph for name in bundle.variant_names for graph in bundle.graphs_of(name).values()]
    for op_type in sorted({node.op_type for graph in all_graphs for node in graph.compute}):
        if reason := why_fp32(op_type, config.search.dtype):
            reporter.warn(f"{op_type} stays in fp32: {reason}")
    return Prepared(bundle, opened.settings, sets, parity, variants, opened.profile, fp32, limit)


def _variant(
    name: str, config: Config, opened: Opened, data: SampleRows, *, limit: BatchLimit, reporter: Reporter
) -> PreparedVariant:
    graphs = opened.bundle.graphs_of(name)
    reporter.stage("measuring activation ranges" + ("" if name == BASE_VARIANT else f" of the variant {name}"))
    ranges = _measure_ranges(graphs, config, opened, data, limit=limit, reporter=reporter)
    space = make_space(
        graphs,
        config.search.dtype,
        ranges,
        variant=name,
        range_safety=config.search.range_safety,
        keep_fp32=config.search.keep_fp32,
        force_low=config.search.force_low,
    )
    return PreparedVariant(ranges, space)


def _measure_ranges(
    graphs: Mapping[GraphName, Graph],
    config: Config,
    opened: Opened,
    data: SampleRows,
    *,
    limit: BatchLimit,
    reporter: Reporter,
) -> Mapping[str, NodeRange]:
    generation = opened.bundle.generation
    order = by_target_length(data.reference.tokens)

    def measure(size: int) -> Mapping[str, NodeRange]:
        rows, tokens, fragile = data.rows, data.reference.tokens, data.fragile
        own = forced_batches(rows, tokens, generation, size, order)
        # Values at padding count, too: a plan that lets them overflow is rejected in the padded batches.
        padded = forced_batches(rows, tokens, generation, min(size, FIRST_BATCH), fragile.padded, width=fragile.width)
        batches = (*own, *padded)
        encoder, decoder = graphs[SEQ2SEQ.encoder.name], graphs[SEQ2SEQ.decoder.name]
        return measure_ranges(
            encoder, decoder, batches, config.search.dtype, opened.settings, progress=reporter.progress
        )

    return limit.fitting(config.calibration.batch_size, measure)


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
