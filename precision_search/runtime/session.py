"""What every ONNX Runtime session has in common, wherever it runs: its settings, its graph, its errors.

In: an `onnx_ir.Model` in memory and `SessionSettings`. Out: an `UnstartedSession`, which a backend starts; everybody
else calls `backends.create_session`. Weights do not pass through protobuf: the serialized graph holds placeholders and
the arrays are handed over beside it, so that neither the 2 GB limit of protobuf nor the time to copy weights into a
message matters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.device import cuda
from precision_search.errors import DeviceError, DeviceMemoryError, InputError, PrecisionSearchError, first_line

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


Provider = str | tuple[str, dict[str, str]]
"""An execution provider as ONNX Runtime takes it: its name, with or without options."""


@dataclass(frozen=True, slots=True)
class UnstartedSession:
    """All that a session needs but a provider to run on.

    Attributes:
        name: the graph's name, for errors.
        graph: the serialized graph, with placeholders for the large weights.
        weights: those weights by name, which `options` refers to.
        options: to which a backend adds entries of its own.
        disabled: what ONNX Runtime must not rewrite.
    """

    name: str
    graph: bytes
    weights: Mapping[str, onnxruntime.OrtValue]
    options: onnxruntime.SessionOptions
    disabled: tuple[str, ...]

    def start(self, providers: Sequence[Provider]) -> onnxruntime.InferenceSession:
        """The session on the first of `providers` that ONNX Runtime gets to work; see `explained`."""
        import onnxruntime

        return onnxruntime.InferenceSession(
            self.graph,
            self.options,
            providers=list(providers),
            enable_fallback=0,
            disabled_optimizers=self.disabled or None,
        )


def prepare_session(model: ir.Model, settings: SessionSettings, *, changing_shapes: bool) -> UnstartedSession:
    """Serializes a graph, which is taken apart for it, and sets what does not depend on where it runs."""
    name = model.graph.name or "(unnamed)"
    graph, weights = _split_weights(model)
    options = _session_options(settings)
    options.enable_mem_pattern = not changing_shapes
    options.add_external_initializers(list(weights), list(weights.values()))
    return UnstartedSession(name, graph, weights, options, _MERGES if settings.optimization_level == "basic" else ())


@contextlib.contextmanager
def explained(name: str, device: str, require: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Turns what ONNX Runtime raises while the session of the graph `name` starts into an error of ours.

    `require` raises where the device itself does not start: then the graph is not to blame.

    Raises:
        DeviceMemoryError: the device has no memory left.
        InputError: ONNX Runtime does not accept the graph.
    """
    try:
        yield
    except PrecisionSearchError:
        raise
    except Exception as error:  # ONNX Runtime raises classes of its own, one for each status code
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                f"no memory for the graph {name!r} on {device}",
                why=first_line(error),
                fix="free memory there, or run on another device",
            ) from error
        require()
        raise InputError(
            f"ONNX Runtime does not accept the graph {name!r}",
            why=first_line(error),
            fix="check the ONNX files with onnx.checker, or export them again",
        ) from error


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
    arenas = ("cpu:0", *cuda.arenas(session))
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", ";".join(arenas))
    return options


def run_error(error: Exception) -> PrecisionSearchError:
    """What to raise for an ONNX Runtime error while a graph runs.

    DeviceMemoryError without memory, MissingPackageError where cuDNN does not load, DeviceError where CUDA itself
    failed, else InputError.
    """
    if is_out_of_memory(error):
        return DeviceMemoryError("a graph ran out of memory", why=first_line(error), fix="use a smaller batch")
    if cuda.lacks_cudnn(str(error)):
        return cuda.cudnn_missing()
    if failure := cuda.failure_in(str(error)):
        return DeviceError(
            "the CUDA device failed while a graph ran",
            why=failure,
            fix="check the device with nvidia-smi; start again, since a process whose device failed cannot go on",
        )
    return InputError("a graph failed to run", why=first_line(error), fix="check the token ids and the graph")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an ONNX Runtime error says that an allocation failed; it has no status code for that."""
    return isinstance(error, MemoryError) or cuda.says_out_of_memory(str(error))


def _session_options(settings: SessionSettings) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[settings.optimization_level])
    options.log_severity_level = cuda.LOG_FATAL
    # Every session has a thread pool of its own, and one session of several runs at a time: the others must leave the
    # cores alone.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    return options


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
