"""ONNX Runtime sessions: from an `onnx_ir.Model` in memory to a session that provably runs where it was asked to.

In: a model, never modified, and `SessionSettings`. Out: an `onnxruntime.InferenceSession`. Weights do not pass through
protobuf: the serialized graph holds placeholders and the arrays are handed over beside it, so that neither the 2 GB
limit of protobuf nor the time to copy weights into a message matters.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.errors import (
    DeviceError,
    DeviceMemoryError,
    InputError,
    MissingPackageError,
    PrecisionSearchError,
)

if TYPE_CHECKING:
    import onnxruntime

Device = Literal["cpu", "cuda"]
OptimizationLevel = Literal["disabled", "basic", "extended", "all"]

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
INLINE_BYTES = 1024
"""Weights up to this size stay in the serialized graph: ONNX Runtime reads shapes and axes from it while it loads."""

_LEVELS: dict[OptimizationLevel, str] = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_LOG_ERROR, _LOG_FATAL = 3, 4
_CUDA_FAILURE = re.compile(r"(CUDA|CUDNN|CUBLAS)\w* failure \d+: [^;]*[^; ]", re.IGNORECASE)
_INSTALL_CUDA = "pip install 'precision-search[cuda]'"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a session runs: what a verdict depends on and the ONNX file does not hold.

    Attributes:
        device: where the nodes run.
        device_id: which CUDA device.
        optimization_level: what ONNX Runtime may rewrite; pinned, because fusions change rounding.
        threads: threads within an operator on the CPU; None leaves it to ONNX Runtime.
        use_tf32: lets fp32 matrix products on CUDA round their inputs to TF32 (10 mantissa bits, as fp16).
    """

    device: Device = "cpu"
    device_id: int = 0
    optimization_level: OptimizationLevel = "basic"
    threads: int | None = None
    use_tf32: bool = False


def create_session(
    model: ir.Model, settings: SessionSettings, *, consume: bool = False, changing_shapes: bool = False
) -> onnxruntime.InferenceSession:
    """Makes a session for `model`.

    The session holds its own copy of the weights (measured with onnxruntime 1.31): the model may go away afterwards.
    With `consume` it must: it is taken apart instead of cloned, which is a fifth of the time. With `changing_shapes` a
    session on the CPU plans no memory from the shapes of a run for the next run of the same shapes: where every run
    has others, as decoder steps do, that takes a quarter of the time.

    Raises:
        InputError: ONNX Runtime does not accept the graph.
        DeviceMemoryError: the device has no memory left.
        DeviceError: CUDA was asked for and does not start.
        MissingPackageError: CUDA was asked for and its libraries are missing (see `require_cuda`).
    """
    import onnxruntime

    graph, weights = _split_weights(model if consume else model.clone())
    options = _session_options(settings)
    options.enable_mem_pattern = not (changing_shapes and settings.device == "cpu")
    options.add_external_initializers(list(weights), list(weights.values()))
    if settings.device == "cuda":
        _check_provider_offered()
        load_cuda_libraries()
    try:
        with _quiet(settings):
            session = onnxruntime.InferenceSession(graph, options, providers=_providers(settings), enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises classes of its own, one for each status code
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                f"No memory for the graph {model.graph.name or '(unnamed)'!r} on {settings.device}.",
                why=first_line(error),
                fix="Free memory there, or run on another device.",
            ) from error
        if settings.device == "cuda":
            require_cuda(settings)
        raise InputError(
            f"ONNX Runtime does not accept the graph {model.graph.name or '(unnamed)'!r}.",
            why=first_line(error),
            fix="Check the ONNX files with onnx.checker, or export them again.",
        ) from error
    if settings.device == "cuda" and session.get_providers()[0] != CUDA_PROVIDER:
        require_cuda(settings)
        raise DeviceError("The session fell back to the CPU.", why="CUDA started in a probe but not for this graph.")
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
        return [np.asarray(array) for array in session.run(list(outputs), dict(feed), _run_options(release))]
    except Exception as error:  # ONNX Runtime raises classes of its own
        raise run_error(error) from error


def _run_options(release: bool) -> onnxruntime.RunOptions | None:
    import onnxruntime

    if not release:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def run_error(error: Exception) -> PrecisionSearchError:
    """What to raise for an ONNX Runtime error while a graph runs: DeviceMemoryError without memory, else InputError."""
    if is_out_of_memory(error):
        return DeviceMemoryError("A graph ran out of memory.", why=first_line(error), fix="Use a smaller batch.")
    return InputError("A graph failed to run.", why=first_line(error), fix="Check the token ids and the graph.")


def resolve_device(kind: Literal["auto", "cpu", "cuda"], device_id: int = 0) -> Device:
    """The device that `kind` means here: `auto` is CUDA if a one-node session runs on that CUDA device, else the CPU.

    Raises:
        MissingPackageError, DeviceError: `kind` is `cuda` and CUDA does not start.
    """
    if kind == "cpu":
        return "cpu"
    try:
        require_cuda(SessionSettings(device="cuda", device_id=device_id))
    except (MissingPackageError, DeviceError):
        if kind == "cuda":
            raise
        return "cpu"
    return "cuda"


def require_cuda(settings: SessionSettings) -> None:
    """Runs one node on CUDA, or says why that does not work.

    Raises:
        MissingPackageError: the installed ONNX Runtime has no CUDA provider, or CUDA libraries are missing.
        DeviceError: no usable driver or device.
    """
    import onnxruntime

    _check_provider_offered()
    problems = load_cuda_libraries()
    options = _session_options(settings)
    try:
        with _quiet(settings):
            session = onnxruntime.InferenceSession(
                _probe_graph(), options, providers=_providers(settings), enable_fallback=0
            )
            started = session.get_providers()[0] == CUDA_PROVIDER
            if started:
                session.run(None, {"x": np.zeros((1, 4), np.float32)})
    except Exception as error:
        failure = _CUDA_FAILURE.search(str(error))
        raise DeviceError(
            f"CUDA device {settings.device_id} does not start.",
            why=failure.group() if failure else first_line(error),
            fix="Check the driver and the device with nvidia-smi, or set device.kind to cpu.",
        ) from error
    if not started:
        raise MissingPackageError(
            "CUDA was asked for, but its libraries do not load.",
            why="; ".join(problems) or "ONNX Runtime cannot load its CUDA provider.",
            fix=f"{_INSTALL_CUDA} (or set device.kind to cpu)",
        )


def load_cuda_libraries() -> tuple[str, ...]:
    """Loads the CUDA and cuDNN libraries that come as Python packages; returns one line for each that does not load."""
    import onnxruntime

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        onnxruntime.preload_dlls()
    return tuple(line for line in printed.getvalue().splitlines() if line.startswith("Failed to load"))


def first_line(error: Exception) -> str:
    """The first line of an ONNX Runtime message: what follows is a stack trace without symbols."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Whether an ONNX Runtime error says that an allocation failed; it has no status code for that."""
    text = str(error).lower()
    return "allocate memory" in text or "out of memory" in text


@contextlib.contextmanager
def _quiet(settings: SessionSettings) -> Iterator[None]:
    """Keeps what ONNX Runtime says while CUDA fails to start off stderr: the error we raise says it.

    It goes to the process-wide default logger, whatever the severity of the session's own.
    """
    import onnxruntime

    if settings.device != "cuda":
        yield
        return
    onnxruntime.set_default_logger_severity(_LOG_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_LOG_ERROR)


def _check_provider_offered() -> None:
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    if CUDA_PROVIDER not in offered:
        raise MissingPackageError(
            "CUDA was asked for, but the installed ONNX Runtime has no CUDA provider.",
            why=f"onnxruntime {onnxruntime.__version__} offers {', '.join(offered)}.",
            fix=f"pip uninstall onnxruntime onnxruntime-gpu, then {_INSTALL_CUDA} (or set device.kind to cpu)",
        )


def _session_options(settings: SessionSettings) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[settings.optimization_level])
    options.log_severity_level = _LOG_ERROR
    # Every session has a thread pool of its own. Threads that spin while they wait for work take cores from the other
    # sessions: with three sessions on two busy cores, generation took 1.5 to 2.7 times as long.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    return options


def _providers(settings: SessionSettings) -> list[str | tuple[str, dict[str, str]]]:
    if settings.device == "cpu":
        return [CPU_PROVIDER]
    cuda = {"device_id": str(settings.device_id), "use_tf32": str(int(settings.use_tf32))}
    return [(CUDA_PROVIDER, cuda), CPU_PROVIDER]


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


def _probe_graph() -> bytes:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 4]))
    node = ir.node("ArgMax", [x], {"axis": 1})
    y = node.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.INT64)
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 17}, name="probe")
    return bytes(ir.to_proto(ir.Model(graph, ir_version=9)).SerializeToString())
