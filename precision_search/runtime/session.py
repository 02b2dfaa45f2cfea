"""ONNX Runtime sessions: from an `onnx_ir.Model` in memory to a session that provably runs where it was asked to.

In: a model, never modified, and `SessionSettings`. Out: an `onnxruntime.InferenceSession`. Weights do not pass through
protobuf: the serialized graph holds placeholders and the arrays are handed over beside it, so that neither the 2 GB
limit of protobuf nor the time to copy weights into a message matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.device import cuda
from precision_search.device.cuda import CPU_PROVIDER, CUDA_PROVIDER
from precision_search.device.driver import read_driver
from precision_search.errors import (
    DeviceError,
    DeviceMemoryError,
    InputError,
    MissingPackageError,
    NoKernelError,
    PrecisionSearchError,
    first_line,
)

if TYPE_CHECKING:
    import onnxruntime

Device = Literal["cpu", "cuda"]
OptimizationLevel = Literal["disabled", "basic", "extended", "all"]

INLINE_BYTES = 1024
"""Weights up to this size stay in the serialized graph: ONNX Runtime reads shapes and axes from it while it loads."""

_LEVELS: dict[OptimizationLevel, str] = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_MERGES = ("DivMulFusion", "GeluFusionL1", "GemmSumFusion", "LayerNormFusionL1", "MatMulAddFusion")
"""What ONNX Runtime merges even at `basic` though it changes where floats are rounded (found with 1.31): 1 / x * y into
a Div, Erf and what is around it into a Gelu, a layer norm's nodes into one, MatMul and Add (or Gemm and Sum) into a
Gemm. Graphs that we export hold none of these; others do."""
_SPIN_MICROSECONDS = 20
"""How long a thread waits busily for work before it sleeps (docs/decisions/0023-threads-spin-briefly.md)."""
DEFAULT_GEMM_OPTIONS = 2
"""fp16 products keep their sums in fp32 to the end, which is what emulation assumes (see `SessionSettings`)."""
NO_LIMIT = 0
"""A `memory_limit` that shares memory and does not limit it."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session runs: what a verdict depends on and the ONNX file does not hold.

    Attributes:
        device: where the nodes run.
        device_id: which CUDA device.
        optimization_level: what ONNX Runtime may rewrite; pinned, because fusions change rounding.
        threads: threads within an operator on the CPU; None leaves it to ONNX Runtime.
        use_tf32: lets fp32 matrix products on CUDA round their inputs to TF32 (10 mantissa bits, as fp16).
        gemm_options: how fp16 matrix products on CUDA sum, as ONNX Runtime's `ORT_CUDA_GEMM_OPTIONS` counts: 1 sums in
            fp16, 2 forbids that partial sums of fp32 are joined in fp16, 4 is pedantic. One value holds for a process.
            bfloat16 products take none of it: cuBLAS may join their partial sums in bfloat16.
        memory_limit: bytes of device memory that all CUDA sessions and buffers of this process take together, or
            `NO_LIMIT` for as many as there are: what one gives back the next may take, and they must run one after
            another. None gives every session memory of its own, which it keeps.
    """

    device: Device = "cpu"
    device_id: int = 0
    optimization_level: OptimizationLevel = "basic"
    threads: int | None = None
    use_tf32: bool = False
    gemm_options: int = DEFAULT_GEMM_OPTIONS
    memory_limit: int | None = None


def create_session(
    model: ir.Model, settings: SessionSettings, *, consume: bool = False, changing_shapes: bool = False
) -> onnxruntime.InferenceSession:
    """Makes a session for `model`.

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
        MissingPackageError: CUDA was asked for and its libraries are missing (see `require_cuda`).
        UsageError: the process runs with other GEMM options or another memory limit.
    """
    import onnxruntime

    on_cuda = settings.device == "cuda"
    name = model.graph.name or "(unnamed)"
    own = model if consume else model.clone()
    if on_cuda:
        _name_nodes(own)
    floats = _float_nodes(own) if on_cuda else frozenset()
    graph, weights = _split_weights(own)
    options = _session_options(settings)
    options.enable_mem_pattern = not changing_shapes
    options.add_external_initializers(list(weights), list(weights.values()))
    if on_cuda:
        cuda.check_provider_offered()
        cuda.load_libraries()
        cuda.apply_process_settings(settings.gemm_options, use_tf32=settings.use_tf32)
    try:
        with cuda.quiet() if on_cuda else nullcontext():
            if on_cuda and settings.memory_limit is not None:
                cuda.share_memory(settings.device_id, settings.memory_limit)
            session = onnxruntime.InferenceSession(
                graph,
                options,
                providers=_providers(settings),
                enable_fallback=0,
                disabled_optimizers=_MERGES if settings.optimization_level == "basic" else None,
            )
    except PrecisionSearchError:
        raise
    except Exception as error:  # ONNX Runtime raises classes of its own, one for each status code
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                f"No memory for the graph {name!r} on {settings.device}.",
                why=first_line(error),
                fix="Free memory there, or run on another device.",
            ) from error
        if on_cuda:
            require_cuda(settings)
        raise InputError(
            f"ONNX Runtime does not accept the graph {name!r}.",
            why=first_line(error),
            fix="Check the ONNX files with onnx.checker, or export them again.",
        ) from error
    if on_cuda:
        _check_placement(session, name, floats, settings)
    return session


def run_session(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[str],
    feed: Mapping[str, npt.NDArray[Any]],
    *,
    release: bool = False,
) -> list[npt.NDArray[Any]]:
    """Runs a session once, arrays in and arrays out.

    A session keeps the host memory of its runs for later ones; with `release` it gives back what this one leaves free.

    Raises:
        DeviceMemoryError: the memory is used up.
        InputError: the graph does not run on these inputs.
    """
    try:
        return [np.asarray(array) for array in session.run(list(outputs), dict(feed), _run_options(session, release))]
    except Exception as error:  # ONNX Runtime raises classes of its own
        raise run_error(error) from error


def _run_options(session: onnxruntime.InferenceSession, release: bool) -> onnxruntime.RunOptions | None:
    import onnxruntime

    if not release:
        return None
    options = onnxruntime.RunOptions()
    arenas = ["cpu:0"]
    if CUDA_PROVIDER in session.get_providers():
        arenas.append(f"gpu:{session.get_provider_options()[CUDA_PROVIDER]['device_id']}")
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", ";".join(arenas))
    return options


def run_error(error: Exception) -> PrecisionSearchError:
    """What to raise for an ONNX Runtime error while a graph runs.

    DeviceMemoryError without memory, MissingPackageError where cuDNN does not load, DeviceError where CUDA itself
    failed, else InputError.
    """
    if is_out_of_memory(error):
        return DeviceMemoryError("A graph ran out of memory.", why=first_line(error), fix="Use a smaller batch.")
    if cuda.lacks_cudnn(str(error)):
        return cuda.cudnn_missing()
    if failure := cuda.failure_in(str(error)):
        return DeviceError(
            "The CUDA device failed while a graph ran.",
            why=failure,
            fix="Check the device with nvidia-smi; start again, since a process whose device failed cannot go on.",
        )
    return InputError("A graph failed to run.", why=first_line(error), fix="Check the token ids and the graph.")


def resolve_device(
    kind: Literal["auto", "cpu", "cuda"], device_id: int = 0, *, warn: Callable[[str], object]
) -> Device:
    """The device that `kind` means here: `auto` is CUDA if a one-node session runs on that CUDA device, else the CPU.

    `warn` receives a line where `auto` means the CPU though the NVIDIA driver knows a device.

    Raises:
        MissingPackageError, DeviceError: `kind` is `cuda` and CUDA does not start.
    """
    if kind == "cpu":
        return "cpu"
    try:
        require_cuda(SessionSettings(device="cuda", device_id=device_id))
    except (MissingPackageError, DeviceError) as error:
        if kind == "cuda":
            raise
        driver = read_driver()
        if driver is not None and driver.devices:
            warn(f"there is a CUDA device, and this runs on the CPU: {error.what} {error.why}")
        return "cpu"
    return "cuda"


def require_cuda(settings: SessionSettings) -> None:
    """Runs one node on the CUDA device of `settings`, or says why that does not work.

    Raises:
        MissingPackageError: the installed ONNX Runtime has no CUDA provider, or CUDA libraries are missing.
        DeviceError: no usable driver, no such device, or no memory on it.
    """
    cuda.require(settings.device_id)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an ONNX Runtime error says that an allocation failed; it has no status code for that."""
    return isinstance(error, MemoryError) or cuda.is_out_of_memory(str(error))


def _name_nodes(model: ir.Model) -> None:
    """Names what has no name, in place: ONNX asks for none, and by its name ONNX Runtime says where a node runs."""
    nodes = list(model.graph.all_nodes())
    taken = {node.name for node in nodes}
    for number, node in enumerate(nodes):
        if not node.name:
            name = f"{node.op_type}.{number}"
            node.name = name if name not in taken else f"{name}.unnamed"


def _float_nodes(model: ir.Model) -> frozenset[str]:
    """The names of the nodes, those within other nodes included, that take floats and give floats.

    Where the graph does not say what a node gives, floats are taken to give floats, except for sizes.
    """
    return frozenset(
        str(node.name)
        for node in model.graph.all_nodes()
        if node.op_type not in {"Shape", "Size"}
        and any(value is not None and _is_float(value) for value in node.inputs)
        and any(value.dtype is None or _is_float(value) for value in node.outputs)
    )


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _check_placement(
    session: onnxruntime.InferenceSession, name: str, floats: frozenset[str], settings: SessionSettings
) -> None:
    """Holds a session to the device.

    Raises:
        DeviceError, MissingPackageError: it runs on the CPU.
        NoKernelError: float nodes of it do.
    """
    if session.get_providers()[0] != CUDA_PROVIDER:
        require_cuda(settings)
        raise DeviceError("The session fell back to the CPU.", why="CUDA started in a probe but not for this graph.")
    elsewhere = sorted(
        str(node.name)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != CUDA_PROVIDER
        for node in part.get_nodes()
        if node.name in floats
    )
    if elsewhere:
        raise NoKernelError(
            f"{len(elsewhere)} nodes of the graph {name!r} would run on the CPU.",
            why=f"ONNX Runtime's CUDA provider has no kernel for {', '.join(elsewhere[:3])}"
            f"{' and others' if len(elsewhere) > 3 else ''} in the types that they have.",
            fix="Keep these nodes in fp32, or run on the CPU.",
        )


def _session_options(settings: SessionSettings) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[settings.optimization_level])
    options.log_severity_level = cuda.LOG_ERROR
    # Every session has a thread pool of its own, and one session of several runs at a time: the others must leave the
    # cores alone.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if settings.device == "cuda":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if settings.memory_limit is not None:
            options.add_session_config_entry(cuda.USE_SHARED_MEMORY, "1")
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    return options


def _providers(settings: SessionSettings) -> list[str | tuple[str, dict[str, str]]]:
    if settings.device == "cpu":
        return [CPU_PROVIDER]
    chosen = {"device_id": str(settings.device_id), "use_tf32": str(int(settings.use_tf32))}
    return [(CUDA_PROVIDER, chosen), CPU_PROVIDER]


def _split_weights(model: ir.Model) -> tuple[bytes, dict[str, onnxruntime.OrtValue]]:
    """The serialized graph with placeholders for the large weights, and those weights by name; `model` is used up."""
    from onnxruntime import OrtValue

    _strip(model)
    weights = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= INLINE_BYTES or tensor.dtype.itemsize < 1:
            continue
        # By element type, since numpy knows no bfloat16; shares the array's memory.
        array = np.ascontiguousarray(tensor.numpy())
        weights[str(value.name)] = OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(tensor.dtype))
        value.const_value = _placeholder(str(value.name), tensor)
    return bytes(ir.to_proto(model).SerializeToString()), weights


def _placeholder(name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor("in-memory", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)


def _strip(model: ir.Model) -> None:
    """Drops what ONNX Runtime does not read or infers itself: it makes up nine tenths of the message."""
    kept = {id(value) for graph in model.graphs() for value in (*graph.inputs, *graph.outputs)}
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()
            if id(output) not in kept:
                output.type = None
                output.shape = None
