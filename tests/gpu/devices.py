"""Running things on one device or the other; everything here also runs on the dry CUDA runtime."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from precision_search.device.driver import CudaDevice, read_driver
from precision_search.model.graph import GraphName
from precision_search.precision.emulate import widen
from precision_search.precision.low import IR_DTYPES, LowDtype
from precision_search.precision.weights import WeightCache
from precision_search.runtime.backends import backend_of, create_session
from precision_search.runtime.session import Device, SessionSettings, run_session

Array = npt.NDArray[Any]

DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]
OPSET = 23


def settings_on(device: Device) -> SessionSettings:
    return SessionSettings(device=device, threads=1)


def runnable(models: Mapping[GraphName, ir.Model], settings: SessionSettings) -> Mapping[GraphName, ir.Model]:
    """Converted graphs as the product runs them: as they are on CUDA, widened on a CPU."""
    return backend_of(settings).prepare(models, WeightCache())


def cuda_device() -> CudaDevice:
    """The first CUDA device."""
    driver = read_driver()
    assert driver is not None
    return driver.devices[0]


def need_dtype(dtype: LowDtype, settings: SessionSettings) -> None:
    """Skips what the device has no units for: there ONNX Runtime takes other ways than those that the table names."""
    if settings.device == "cuda" and dtype == "bfloat16" and not cuda_device().bfloat16:
        pytest.skip(f"{cuda_device().name} has no bfloat16 units")


def used_bytes(device: Device) -> int:
    """Memory in use: the device's, whoever uses it; on a CPU this process's resident pages."""
    if device == "cuda":
        found = cuda_device()
        assert found.free_bytes is not None
        return found.memory_bytes - found.free_bytes
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def one_node(op_type: str, inputs: Sequence[Array], attributes: Mapping[str, Any], dtype: LowDtype) -> ir.Model:
    """One low node between casts, so that fp32 goes in and comes out; whole numbers are constants of the graph."""
    low = IR_DTYPES[dtype]
    values, casts, constants, given = [], [], [], []
    for index, array in enumerate(inputs):
        name = f"x{index}"
        if array.dtype == np.int64:
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            constants.append(value)
        else:
            source = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape))
            casts.append(_node("Cast", [source], {"to": int(low)}, f"{name}/low", low))
            given.append(source)
            value = casts[-1].outputs[0]
        values.append(value)
    node = _node(op_type, values, attributes, "y/low", low)
    back = _node("Cast", [node.outputs[0]], {"to": int(ir.DataType.FLOAT)}, "y", ir.DataType.FLOAT)
    graph = ir.Graph(
        given,
        [back.outputs[0]],
        nodes=[*casts, node, back],
        initializers=constants,
        opset_imports={"": OPSET},
        name=op_type,
    )
    return ir.Model(graph, ir_version=10)


def run_low(
    op_type: str, inputs: Sequence[Array], attributes: Mapping[str, Any], dtype: LowDtype, settings: SessionSettings
) -> Array:
    """What one low node gives: its kernel on CUDA, the emulation of it on a CPU."""
    model = one_node(op_type, inputs, attributes, dtype)
    model = model if settings.device == "cuda" else widen(model, WeightCache())
    feed = {f"x{index}": array for index, array in enumerate(inputs) if array.dtype != np.int64}
    return run_session(create_session(model, settings), ["y"], feed)[0]


def product(left: Array, right: Array, settings: SessionSettings) -> Array:
    """The fp32 matrix product of two arrays."""
    sources = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape))
        for name, array in (("left", left), ("right", right))
    ]
    node = _node("MatMul", sources, {}, "y", ir.DataType.FLOAT)
    graph = ir.Graph(sources, node.outputs, nodes=[node], opset_imports={"": OPSET}, name="product")
    session = create_session(ir.Model(graph, ir_version=10), settings)
    return run_session(session, ["y"], {"left": left, "right": right})[0]


def _node(
    op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any], name: str, dtype: ir.DataType
) -> ir.Node:
    output = ir.Value(name=name, type=ir.TensorType(dtype))
    return ir.node(op_type, inputs, attributes, outputs=[output], name=f"node of {name}")


@functools.cache
def every_number(dtype: LowDtype) -> Array:
    """All numbers of a dtype as fp32, NaN and infinities among them, but for bfloat16's subnormal ones.

    Those are subnormal in fp32 too, where the approximations that kernels take give zero.
    """
    patterns: Array = np.arange(65536, dtype=np.uint16)
    if dtype == "float16":
        halves: Array = patterns.view(np.float16).astype(np.float32)
        return halves
    numbers: Array = (patterns.astype(np.uint32) << np.uint32(16)).view(np.float32)
    kept: Array = numbers[~((np.abs(numbers) < 2.0**-126) & (numbers != 0))]
    return kept
