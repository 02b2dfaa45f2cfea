"""How graphs become something that runs: one backend for each place, named in one table.

In: graphs in any mixture of precisions and `SessionSettings`, whose `device` names the backend. Out: sessions, and what
others must know of the place: whose verdicts they are, where buffers live, whether times mean anything. Nobody else
compares a device with a name (a test holds that); they ask `backend_of(settings)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

import onnx_ir as ir

from precision_search.device import cuda
from precision_search.device.cuda import CPU_PROVIDER, CUDA_PROVIDER
from precision_search.device.driver import cuda_device_name, read_driver
from precision_search.device.float_nodes import RECORD_ASSIGNMENT, check_float_nodes, name_float_nodes
from precision_search.errors import DeviceError, MissingPackageError, UsageError
from precision_search.model.graph import GraphName
from precision_search.precision.emulate import widen
from precision_search.precision.weights import WeightCache
from precision_search.runtime.session import (
    DEFAULT_GEMM_OPTIONS,
    Device,
    OptimizationLevel,
    SessionSettings,
    explained,
    prepare_session,
)

if TYPE_CHECKING:
    import onnxruntime

Graphs = Mapping[GraphName, ir.Model]


class Backend(Protocol):
    """One way of running graphs. It holds no state: what varies from session to session is in `SessionSettings`.

    Attributes:
        memory: where its buffers and results live, as ONNX Runtime names it.
        source: what verdicts of graphs that ran here rest on (`judging.trial.VerdictSource`).
        evidence: the same in a sentence or two, for model cards.
        measures_latency: whether times taken here are what users will see; if not, latency is estimated.
        check_every: steps between looks at the flags of finished rows.
        may_idle: whether sessions that will be needed again may wait beside others; on a device they would take the
            memory that others are measured in.
        plans_steps: whether decoder steps, each of another shape, should plan their memory from the step before.
        fp32_level: the optimization level of fp32 graphs that no verdict pins.
    """

    memory: Literal["cpu", "cuda"]
    source: Literal["emulated", "cuda"]
    evidence: str
    measures_latency: bool
    check_every: int
    may_idle: bool
    plans_steps: bool
    fp32_level: OptimizationLevel

    def require(self, device_id: int) -> None:
        """Raises MissingPackageError or DeviceError where it does not start on this machine."""

    def device_name(self, device_id: int) -> str | None:
        """The product that times and verdicts belong to; None where they belong to none."""

    def applied(self, settings: SessionSettings) -> SessionSettings:
        """The settings as they take effect here."""

    def check_process(self, settings: SessionSettings, warn: Callable[[str], object]) -> None:
        """Whether this process can run as the settings ask: before anything slow starts.

        Raises:
            UsageError: it runs with other settings that hold for a whole process.
        """

    def prepare(self, models: Graphs, weights: WeightCache) -> Graphs:
        """Converted graphs as they are to run here, which gives what they give on the device they are made for."""

    def create_session(
        self, model: ir.Model, settings: SessionSettings, *, changing_shapes: bool
    ) -> onnxruntime.InferenceSession:
        """A session that provably runs here, or an error (see `create_session` below); `model` is used up."""


class EmulationOnCpu:
    """fp32 graphs run as they are; low ones widened, so that they round where CUDA kernels would."""

    memory: Literal["cpu", "cuda"] = "cpu"
    source: Literal["emulated", "cuda"] = "emulated"
    evidence = (
        "The graphs ran on a CPU with the rounding of the CUDA kernels emulated (ONNX Runtime's own CPU kernels "
        "compute these graphs in fp32 instead, and hide overflow)."
    )
    measures_latency = False
    check_every = 1  # looking costs nothing
    may_idle = True
    plans_steps = False  # a plan for every new shape is a quarter of a step's time
    fp32_level: OptimizationLevel = "all"

    def require(self, device_id: int) -> None:
        """A CPU is always there."""

    def device_name(self, device_id: int) -> str | None:
        """None: a verdict is the same on every CPU."""
        return None

    def applied(self, settings: SessionSettings) -> SessionSettings:
        """What was emulated, not what a config asks of a device that is not here."""
        return replace(settings, use_tf32=False, gemm_options=DEFAULT_GEMM_OPTIONS)

    def check_process(self, settings: SessionSettings, warn: Callable[[str], object]) -> None:
        """Warns of what emulation does not know."""
        if settings != self.applied(settings):
            warn(
                "emulation on a CPU knows neither TF32 nor other GEMM options than "
                f"{DEFAULT_GEMM_OPTIONS}: verdicts hold for a device without them"
            )

    def prepare(self, models: Graphs, weights: WeightCache) -> Graphs:
        """Widened: as they are, the CPU provider would compute them in fp32 and drop the rounding."""
        return {name: widen(model, weights) for name, model in models.items()}

    def create_session(
        self, model: ir.Model, settings: SessionSettings, *, changing_shapes: bool
    ) -> onnxruntime.InferenceSession:
        """A session on ONNX Runtime's CPU provider."""
        unstarted = prepare_session(model, settings, changing_shapes=changing_shapes)
        with explained(unstarted.name, settings.device):
            return unstarted.start([CPU_PROVIDER])


class Cuda:
    """All graphs run as they are, on the kernels that users will run."""

    memory: Literal["cpu", "cuda"] = "cuda"
    source: Literal["emulated", "cuda"] = "cuda"
    evidence = "The graphs ran on a CUDA device as they are."
    measures_latency = True
    check_every = 4  # each look waits for the device
    may_idle = False
    plans_steps = True  # spares each step a tenth of its host time, and takes nothing from the device
    fp32_level: OptimizationLevel = "basic"

    def require(self, device_id: int) -> None:
        """Runs one node on the device (see `device.cuda.require`)."""
        cuda.require(device_id)

    def device_name(self, device_id: int) -> str | None:
        """As the driver gives it."""
        return cuda_device_name(device_id)

    def applied(self, settings: SessionSettings) -> SessionSettings:
        """All of them."""
        return settings

    def check_process(self, settings: SessionSettings, warn: Callable[[str], object]) -> None:
        """Sets the GEMM options of the process, or says that they are others."""
        cuda.apply_process_settings(settings.gemm_options, use_tf32=settings.use_tf32)

    def prepare(self, models: Graphs, weights: WeightCache) -> Graphs:
        """As they are."""
        return models

    def create_session(
        self, model: ir.Model, settings: SessionSettings, *, changing_shapes: bool
    ) -> onnxruntime.InferenceSession:
        """A session on ONNX Runtime's CUDA provider, in shared memory where there is a limit to it."""
        floats = name_float_nodes(model)
        unstarted = prepare_session(model, settings, changing_shapes=changing_shapes)
        unstarted.options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
        if settings.memory_limit is not None:
            unstarted.options.add_session_config_entry(cuda.USE_SHARED_MEMORY, "1")
        cuda.check_provider_offered()
        cuda.load_libraries()
        cuda.apply_process_settings(settings.gemm_options, use_tf32=settings.use_tf32)
        chosen = {"device_id": str(settings.device_id), "use_tf32": str(int(settings.use_tf32))}
        with explained(unstarted.name, settings.device, lambda: cuda.require(settings.device_id)), cuda.quiet():
            if settings.memory_limit is not None:
                cuda.share_memory(settings.device_id, settings.memory_limit)
            session = unstarted.start([(CUDA_PROVIDER, chosen), CPU_PROVIDER])
        check_float_nodes(session, unstarted.name, floats, settings.device_id)
        return session


BACKENDS: Mapping[Device, Backend] = {"cpu": EmulationOnCpu(), "cuda": Cuda()}
"""By what `SessionSettings.device` calls them."""


def backend_of(settings: SessionSettings) -> Backend:
    """What runs the sessions of `settings`."""
    return BACKENDS[settings.device]


def in_host_memory(settings: SessionSettings) -> bool:
    """Whether numpy can read and write the buffers of sessions with `settings` where they are."""
    return backend_of(settings).memory == "cpu"


def evidence(source: Literal["emulated", "cuda"]) -> str:
    """What verdicts of that source rest on, in a sentence or two."""
    return next(backend.evidence for backend in BACKENDS.values() if backend.source == source)


def create_session(
    model: ir.Model, settings: SessionSettings, *, consume: bool = False, changing_shapes: bool = False
) -> onnxruntime.InferenceSession:
    """Makes a session for `model` on the backend of `settings`.

    The session holds its own copy of the weights (measured with onnxruntime 1.31): the model may go away afterwards.
    With `consume` it must: it is taken apart instead of cloned, which is a fifth of the time. With `changing_shapes` it
    plans no memory from the shapes of a run for the next run of the same shapes. On a CPU that takes a quarter of the
    time where every run has others, as decoder steps do; on CUDA a plan may take more device memory in a second run.

    On CUDA every node that takes and gives floats runs there; ONNX Runtime may keep arithmetic on shapes on the host.

    Raises:
        InputError: ONNX Runtime does not accept the graph.
        DeviceMemoryError: the device has no memory left.
        DeviceError: CUDA was asked for and does not start.
        NoKernelError: CUDA would leave float arithmetic to the CPU.
        MissingPackageError: CUDA was asked for and its libraries are missing (see `device.cuda.require`).
        UsageError: the process runs with other GEMM options or another memory limit.
    """
    own = model if consume else model.clone()
    return backend_of(settings).create_session(own, settings, changing_shapes=changing_shapes)


def check_device_kind(kind: str) -> None:
    """Raises UsageError where `kind` is neither `auto` nor in the table."""
    known = ("auto", *BACKENDS)
    if kind not in known:
        raise UsageError(
            f"there is no device {kind!r}",
            why=f"known are {', '.join(known[:-1])} and {known[-1]}",
            fix="give one of them",
        )


def resolve_device(
    kind: Literal["auto", "cpu", "cuda"], device_id: int = 0, *, warn: Callable[[str], object]
) -> Device:
    """The device that `kind` means here: `auto` is CUDA if a one-node session runs on that CUDA device, else the CPU.

    `warn` receives a line where `auto` means the CPU though the NVIDIA driver knows a device.

    Raises:
        MissingPackageError, DeviceError: another `kind` was asked for and does not start.
        UsageError: there is no such kind.
    """
    check_device_kind(kind)
    if kind != "auto":
        BACKENDS[kind].require(device_id)
        return kind
    try:
        BACKENDS["cuda"].require(device_id)
    except (MissingPackageError, DeviceError) as error:
        driver = read_driver()
        if driver is not None and driver.devices:
            warn(f"there is a CUDA device, and this runs on the CPU: {error.what} ({error.why})")
        return "cpu"
    return "cuda"
