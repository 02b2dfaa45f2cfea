"""Small graphs on the dry CUDA runtime: one node each, and a few that go wrong on purpose."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime import OrtValue

from precision_search.cost.shapes import Point, infer_shapes
from precision_search.errors import PrecisionSearchError
from precision_search.runtime.backends import create_session
from precision_search.runtime.session import SessionSettings
from tests.dry_cuda.recorder import Recorder, forgive_errors, load_libraries, set_device_memory
from tests.dry_cuda.trace import Section

HEADER = '<ir_version: 10, opset_import: ["" : 23]>'


def model_of(text: str) -> ir.Model:
    """`inputs => outputs < initializers > { nodes }` as a model with the name `probe`."""
    return ir.from_proto(onnx.parser.parse_model(f"{HEADER} probe {text}"))


def run_each(texts: Mapping[str, str]) -> dict[str, Section | None]:
    """Runs each graph once on the device; None for one that has no kernel there."""
    return {name: _run(text) for name, text in texts.items()}


def _run(text: str) -> Section | None:
    model = model_of(text)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with Recorder() as recorder:
        try:
            session = onnxruntime.InferenceSession(
                ir.to_proto(model).SerializeToString(), options, providers=["CUDAExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises classes of its own
            assert "Provider type for" in str(error), error  # … was not set: no provider has a kernel
            return None
        bind_and_run(session, model)
    (section,) = (section for section in recorder.sections if section.phase == "run")
    return section


def bind_and_run(session: onnxruntime.InferenceSession, model: ir.Model) -> None:
    """Runs once with inputs and outputs on the device: ones for every dimension without a size of its own."""
    dims = infer_shapes(model, Point(1, 1)).dims
    binding = session.io_binding()
    for value in model.graph.inputs:
        dtype = value.dtype or ir.DataType.FLOAT
        tensor = OrtValue.ortvalue_from_shape_and_type(list(dims[str(value.name)]), int(dtype), "cuda", 0)
        binding.bind_ortvalue_input(str(value.name), tensor)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    session.run_with_iobinding(binding)


def bind_host_memory(texts: Sequence[str], *, forgive: bool = True) -> list[tuple[str, ...]]:
    """Gives each graph's input `x`, float [4, 8], host memory as if it were the device's; the errors recorded."""
    found = []
    memory = np.zeros((4, 8), np.float32)
    for text in texts:
        with Recorder() as recorder:
            session = create_session(model_of(text), SessionSettings(device="cuda"))
            binding = session.io_binding()
            binding.bind_input("x", "cuda", 0, 1, [4, 8], memory.ctypes.data)
            for output in session.get_outputs():
                binding.bind_output(output.name, "cuda")
            session.run_with_iobinding(binding)
        found.append(tuple(error for section in recorder.sections for error in section.errors))
    if forgive:
        forgive_errors()
    return found


def round_trip(values: Sequence[float]) -> tuple[list[float], list[Section]]:
    """Values to the device and back."""
    with Recorder() as recorder:
        array = np.array(values, np.float32)
        back = OrtValue.ortvalue_from_numpy(array, "cuda", 0).numpy().tolist()
    return back, recorder.sections


def unplaced_outputs(text: str) -> list[tuple[str, ...]]:
    """The outputs bound without memory, section by section, where the graph is run as a probe runs it."""
    model = model_of(text)
    with Recorder() as recorder:
        bind_and_run(create_session(model, SessionSettings(device="cuda")), model)
    return [section.unplaced for section in recorder.sections if section.unplaced]


def misuse() -> dict[str, list[str]]:
    """The errors of calls that a device would not survive."""
    runtime = load_libraries()
    host, device = (ctypes.c_char * 128)(), ctypes.c_void_p()
    h2d, d2h, size, pitch = 1, 2, ctypes.c_size_t(64), ctypes.c_size_t(24)
    found = {}

    def note(name: str, *call: Any) -> None:
        call[0](*call[1:])
        found[name] = [line for line in runtime.dry_take().decode().splitlines() if line.startswith("E")]

    note("allocate", runtime.cudaMalloc, ctypes.byref(device), size)
    note("upload", runtime.cudaMemcpy, device, host, size, h2d)
    rows = (ctypes.c_size_t(16), ctypes.c_size_t(3), h2d, None)
    note("upload rows", runtime.cudaMemcpy2DAsync, device, pitch, host, pitch, *rows)
    note("rows too far apart", runtime.cudaMemcpy2DAsync, device, ctypes.c_size_t(25), host, pitch, *rows)
    note("wrong direction", runtime.cudaMemcpy, device, host, size, d2h)
    note("host as device", runtime.cudaMemcpy, host, host, size, h2d)
    note("too long", runtime.cudaMemset, ctypes.c_void_p((device.value or 0) + 32), 0, size)
    note("read too much", runtime.cudaMemcpy, host, device, ctypes.c_size_t(65), d2h)
    note("free", runtime.cudaFree, device)
    note("free again", runtime.cudaFree, device)
    forgive_errors()
    return found


def math_modes(text: str) -> dict[bool, list[int]]:
    """The math modes of a graph's matrix products without and with TF32."""
    found = {}
    for use_tf32 in (False, True):
        model = model_of(text)
        with Recorder() as recorder:
            bind_and_run(create_session(model, SessionSettings(device="cuda", use_tf32=use_tf32)), model)
        found[use_tf32] = [gemm.math for section in recorder.sections for gemm in section.gemms]
    return found


def with_little_memory(text: str, size: int) -> tuple[str, str]:
    """What class of error, and why, a graph gives on a device of `size` bytes."""
    set_device_memory(size)
    with pytest.raises(PrecisionSearchError) as caught:
        create_session(model_of(text), SessionSettings(device="cuda"))
    return type(caught.value).__name__, str(caught.value)
