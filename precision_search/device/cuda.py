"""What starting CUDA takes, and what is said when it does not start.

ONNX Runtime falls back to the CPU without an error where CUDA's libraries or its driver are missing, and gives a code
where the driver refuses. So the libraries are asked for, one node is run, and every failure becomes an error that names
its cause. What belongs to a process and not to a session (GEMM options, shared device memory) is set here too.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from precision_search.device import driver as cuda_driver
from precision_search.errors import (
    DeviceError,
    DeviceMemoryError,
    EnvironmentProblemError,
    MissingPackageError,
    UsageError,
    first_line,
)

if TYPE_CHECKING:
    import onnxruntime

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
GEMM_VARIABLE = "ORT_CUDA_GEMM_OPTIONS"
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"
USE_SHARED_MEMORY = "session.use_env_allocators"
"""The session config entry of ONNX Runtime that makes a session take the memory that `share_memory` registered."""

LOG_ERROR, LOG_FATAL = 3, 4
"""What ONNX Runtime logs. Sessions have the latter: what fails is raised with the same words, and the log would bring
the names of nodes to a terminal as they are."""
_INSTALL = "pip install 'precision-search[cuda]'"
_ON_CPU = "run on the CPU"
_FAILURE = re.compile(r"(?:CUDA|CUDNN|CUBLAS)\w* failure (\d+): [^;]*[^; ]", re.IGNORECASE)
_NO_SUCH_DEVICE = re.compile(r"Invalid device ID: \d+, must be between 0 \(inclusive\) and (\d+) \(exclusive\)")
_NOT_LOADED = re.compile(r"Failed to load (\S+): (.*)")

# CUDA Runtime API, cudaError_t.
_OUT_OF_MEMORY, _OLD_DRIVER, _NO_DEVICE, _WRONG_DEVICE, _NO_KERNELS = 2, 35, 100, 101, 209
_MISMATCH = frozenset({803, 804})

_OUT_OF_MEMORY_SIGNS = (
    "allocate memory",  # the arena asked the device
    "out of memory",  # CUDA failure 2
    "is smaller than requested bytes",  # the arena is at its limit
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "bad_alloc",  # the host
)

_PROBED = (2, 3, 2)

_shared_memory: dict[int, int] = {}
"""Bytes by device id: what `share_memory` registered. ONNX Runtime takes one registration a process and device."""


def require(device_id: int) -> None:
    """Runs one node, which needs cuDNN too, on a CUDA device, or says why that does not work.

    Raises:
        MissingPackageError: the installed ONNX Runtime has no CUDA provider, or CUDA libraries are missing.
        DeviceMemoryError: the device has no memory left, even for that.
        DeviceError: no usable driver, or no such device.
    """
    import onnxruntime

    check_provider_offered()
    unloaded = load_libraries()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_FATAL
    providers = [(CUDA_PROVIDER, {"device_id": str(device_id)}), CPU_PROVIDER]
    try:
        with quiet():
            session = onnxruntime.InferenceSession(_probe(), options, providers=providers, enable_fallback=0)
            started = session.get_providers()[0] == CUDA_PROVIDER
            if started:
                session.run(None, {"x": np.zeros(_PROBED, np.float32)})
    except Exception as error:  # ONNX Runtime raises classes of its own
        raise _refused(device_id, str(error)) from error
    if not started:
        raise _not_loaded(unloaded)


def check_provider_offered() -> None:
    """Raises MissingPackageError where the installed ONNX Runtime is built without CUDA."""
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    if CUDA_PROVIDER not in offered:
        raise MissingPackageError(
            "CUDA was asked for, but the installed ONNX Runtime has no CUDA provider",
            why=f"onnxruntime {onnxruntime.__version__} offers {', '.join(offered)}",
            fix=f"pip uninstall onnxruntime onnxruntime-gpu, then {_INSTALL} (or {_ON_CPU})",
        )


def load_libraries() -> tuple[tuple[str, str], ...]:
    """Loads the CUDA and cuDNN libraries that come as Python packages.

    Returns:
        File name and reason of each that ONNX Runtime wants and that does not load. cuDNN is not among them: ONNX
        Runtime starts without it, and fails at the first node that needs it.
    """
    import onnxruntime

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        onnxruntime.preload_dlls()
    # A library that a package holds and that does not load is tried again by its bare name: the first reason counts.
    reasons: dict[str, str] = {}
    for line in printed.getvalue().splitlines():
        if found := _NOT_LOADED.match(line):
            reasons.setdefault(Path(found[1]).name, found[2])
    return tuple(reasons.items())


def apply_process_settings(gemm_options: int, *, use_tf32: bool) -> None:
    """Sets what ONNX Runtime and NVIDIA's libraries read from the environment, once in a process.

    ONNX Runtime reads `ORT_CUDA_GEMM_OPTIONS` when it makes its first fp16 product. A variable that is there already
    is never changed. `NVIDIA_TF32_OVERRIDE=0` turns TF32 off whatever a session says.

    Raises:
        UsageError: the process has another value.
    """
    current = os.environ.setdefault(GEMM_VARIABLE, str(gemm_options))
    if current.strip() != str(gemm_options):
        raise UsageError(
            f"the GEMM options are to be {gemm_options}, but {GEMM_VARIABLE} is {current} in this process",
            why="ONNX Runtime reads that variable once in a process, and the two round fp16 products differently "
            "(a config asks by device.gemm_options, a published model for what it was judged with)",
            fix=f"start a process with {GEMM_VARIABLE}={gemm_options}, or without it",
        )
    override = os.environ.get(TF32_VARIABLE, "")
    if override and (override == "0") == use_tf32:
        raise UsageError(
            f"device.use_tf32 is {str(use_tf32).lower()}, but {TF32_VARIABLE} is {override}",
            why="NVIDIA's libraries follow the variable, whatever a session asks for",
            fix=f"unset {TF32_VARIABLE}",
        )


def process_gemm_options(default: int) -> int:
    """What `ORT_CUDA_GEMM_OPTIONS` is in this process; the default where it is not set, or no number."""
    current = os.environ.get(GEMM_VARIABLE, "").strip()
    return int(current) if current.isdecimal() else default


def share_memory(device_id: int, limit: int) -> None:
    """Makes one arena of at most `limit` bytes for all sessions of this process that ask for it, and for all buffers.

    A `limit` of 0 is none.

    What sessions and buffers free stays in the arena for the next of them. Only after a run with `release` do the parts
    of it that nothing uses go back to the device. It is for sessions that run one after another: they run on
    different CUDA streams, and memory that one session has freed is another's at once.

    Raises:
        UsageError: there is one with another limit already: ONNX Runtime takes no second one.
    """
    import onnxruntime

    known = _shared_memory.get(device_id)
    if known is None:
        place = onnxruntime.OrtMemoryInfo(
            "Cuda", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, device_id, onnxruntime.OrtMemType.DEFAULT
        )
        arena = onnxruntime.OrtArenaCfg({"max_mem": limit})
        onnxruntime.create_and_register_allocator_v2(CUDA_PROVIDER, place, {"device_id": str(device_id)}, arena)
        _shared_memory[device_id] = limit
    elif known != limit:
        raise UsageError(
            f"the memory that sessions share on CUDA device {device_id} has {_size(known)} already",
            why=f"{_size(limit)} was asked for; the first limit in a process holds until it ends",
            fix="keep to one device.memory_limit, or start another process",
        )


def process_memory_limit(device_id: int, default: int) -> int:
    """The limit that `share_memory` registered for a device in this process; the default where it did not."""
    return _shared_memory.get(device_id, default)


def _size(limit: int) -> str:
    return f"a limit of {limit / 2**30:g} GiB" if limit else "no limit"


def arenas(session: onnxruntime.InferenceSession) -> tuple[str, ...]:
    """The device memory that a session keeps for later runs, as ONNX Runtime names it in run options."""
    if CUDA_PROVIDER not in session.get_providers():
        return ()
    return (f"gpu:{session.get_provider_options()[CUDA_PROVIDER]['device_id']}",)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what ONNX Runtime says while CUDA fails to start off stderr: the error we raise says it.

    It goes to the process-wide default logger, whatever the severity of the session's own.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(LOG_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(LOG_ERROR)


def says_out_of_memory(text: str) -> bool:
    """Whether an ONNX Runtime message says that an allocation failed; there is no status code for that."""
    return any(sign in text.lower() for sign in _OUT_OF_MEMORY_SIGNS)


def failure_in(text: str) -> str | None:
    """What an ONNX Runtime message quotes of CUDA, cuBLAS or cuDNN, such as `CUDA failure 700: ...`; None if none."""
    found = _FAILURE.search(text)
    return found.group() if found else None


def lacks_cudnn(text: str) -> bool:
    """Whether an ONNX Runtime message says that a node needs cuDNN and cuDNN does not load."""
    return "cuDNN is unavailable" in text


def cudnn_missing() -> MissingPackageError:
    """What to raise where a node needs cuDNN and cuDNN does not load."""
    return MissingPackageError(
        "CUDA was asked for, but cuDNN (libcudnn.so.9) does not load",
        why="ONNX Runtime needs it for some nodes",
        fix=f"{_INSTALL} (or {_ON_CPU})",
    )


def _refused(device_id: int, text: str) -> EnvironmentProblemError:
    """Why a CUDA provider whose libraries are there does not start."""
    if lacks_cudnn(text):
        return cudnn_missing()
    failure, absent = _FAILURE.search(text), _NO_SUCH_DEVICE.search(text)
    code = int(failure[1]) if failure else None
    why = failure.group() if failure else first_line(text)
    if code == _OUT_OF_MEMORY or (code is None and says_out_of_memory(text)):
        return DeviceMemoryError(
            f"CUDA device {device_id} has no memory left to start with", why=why, fix="free memory on it"
        )
    if absent is not None or code == _WRONG_DEVICE:
        there = "" if absent is None else f"ONNX Runtime sees {absent[1]}, numbered from 0; "
        return DeviceError(
            f"there is no CUDA device {device_id}",
            why=f"{there}CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}",
            fix="name one of those that `nvidia-smi -L` lists and CUDA_VISIBLE_DEVICES leaves, by device.id in a "
            "config or by --device-id where a command has it",
        )
    what, fix = {
        _OLD_DRIVER: (
            "the NVIDIA driver is too old",
            "update the driver; `nvidia-smi` shows up to which CUDA it goes",
        ),
        _NO_DEVICE: (
            "the NVIDIA driver finds no device",
            "check `nvidia-smi` and CUDA_VISIBLE_DEVICES; a container must be started with access to the GPU",
        ),
        _NO_KERNELS: ("the installed ONNX Runtime has no kernels for that GPU", f"take another GPU, or {_ON_CPU}"),
    }.get(code or 0, (f"CUDA device {device_id} does not start", f"check the driver with nvidia-smi, or {_ON_CPU}"))
    if code in _MISMATCH:
        what, fix = "the NVIDIA driver's parts do not fit together", "restart the machine: its driver was updated"
    if code == _OLD_DRIVER:
        what = f"{what} for CUDA {_cuda_version()}"
    return DeviceError(what, why=why, fix=fix)


def _not_loaded(unloaded: tuple[tuple[str, str], ...]) -> EnvironmentProblemError:
    """Why ONNX Runtime gave a session on the CPU without a word."""
    driver = _loads(cuda_driver.LIBRARY)
    if unloaded:
        also = "" if driver else f"; nor is there an NVIDIA driver ({cuda_driver.LIBRARY})"
        return MissingPackageError(
            f"CUDA was asked for, but its libraries do not load: {', '.join(name for name, _ in unloaded)}",
            why=f"{'; '.join(dict.fromkeys(reason for _, reason in unloaded))}{also}",
            fix=f"{_INSTALL}{'' if driver else ', and install the driver of the GPU'} (or {_ON_CPU})",
        )
    if not driver:
        return DeviceError(
            "CUDA was asked for, but there is no NVIDIA driver",
            why=f"CUDA's libraries are there, {cuda_driver.LIBRARY} does not load",
            fix="install the driver of the GPU (no Python package brings it); a container must be started with "
            f"access to the GPU; or {_ON_CPU}",
        )
    return MissingPackageError(
        "CUDA was asked for, but ONNX Runtime cannot load its CUDA provider",
        why=f"every library that it names for CUDA {_cuda_version()} loads",
        fix=f"pip install --force-reinstall onnxruntime-gpu, then {_INSTALL} (or {_ON_CPU})",
    )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _cuda_version() -> str:
    import onnxruntime

    return str(getattr(onnxruntime, "cuda_version", "") or "?")


def _probe() -> bytes:
    """A graph whose one node CUDA runs by cuDNN: a reduction over axes that are not neighbours."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(_PROBED))
    node = ir.node("ReduceMax", [x], {"axes": [0, 2]})
    y = node.outputs[0]
    y.name, y.type = "y", x.type
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 17}, name="probe")
    return bytes(ir.to_proto(ir.Model(graph, ir_version=9)).SerializeToString())
