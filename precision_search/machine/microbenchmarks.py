"""Small graphs whose work is known: what the speed of a device is measured with.

In: a `Probe`, which says how many kernels of which size. Out: a `ProbeRun`, a callable that runs it once. Sessions, I/O
binding and settings are those that models run with, so what is measured is what they get.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.device.profile import FloatName
from precision_search.precision.low import IR_DTYPES
from precision_search.runtime.backends import create_session
from precision_search.runtime.buffers import Buffer
from precision_search.runtime.decoding import upload
from precision_search.runtime.session import SessionSettings, run_error

Op = Literal["Tanh", "Neg", "MatMul"]

DTYPES: dict[FloatName, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": IR_DTYPES["float16"],
    "bfloat16": IR_DTYPES["bfloat16"],
}
_SEED = 20
_OPSET, _IR_VERSION = 17, 9


@dataclass(frozen=True, slots=True)
class Probe:
    """A chain of nodes, each of which needs what the one before gave and is one kernel or library call.

    Attributes:
        op: its op type. No rewrite merges two Tanh; a Neg comes alone. Matrix products go from `width` to `inner`
            columns and back, by turns, as in a feed-forward layer; in a low dtype there is one cast before the first.
        dtype: of every element.
        kernels: how many; an even number of matrix products.
        rows, width: the shape of input and output.
        inner: columns in between, for matrix products only.
    """

    op: Op
    dtype: FloatName
    kernels: int
    rows: int
    width: int
    inner: int = 0

    @property
    def bytes(self) -> int:
        """What an element-wise chain reads and writes."""
        return 2 * self.kernels * self.rows * self.width * int(DTYPES[self.dtype].itemsize)

    @property
    def flops(self) -> int:
        """What the matrix products compute: multiplications and additions."""
        return 2 * self.kernels * self.rows * self.width * self.inner


class ProbeRun:
    """A probe in a session, its input and output on the device."""

    def __init__(self, probe: Probe, settings: SessionSettings) -> None:
        """Makes the session.

        Raises:
            InputError, NoKernelError: the device has no kernel for the dtype.
            DeviceMemoryError, DeviceError, MissingPackageError: see `create_session`.
        """
        self._session = create_session(probe_model(probe), settings, consume=True)
        shape = (probe.rows, probe.width)
        # Kept here: a binding knows addresses only.
        self._given = upload(_values(np.random.default_rng(_SEED), shape, 1.0), settings)
        self._result = Buffer(DTYPES[probe.dtype], settings)
        self._result.reserve(probe.rows * probe.width)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input("x", self._given)
        self._result.bind_output(self._binding, "y", shape)

    def __call__(self) -> None:
        """Runs it once and returns when the device is done; copies nothing.

        ONNX Runtime waits for its stream at the end of each run, see `runtime.timing`.
        """
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime raises classes of its own
            raise run_error(error) from error


def probe_model(probe: Probe) -> ir.Model:
    """The graph: float32 [rows, width] `x` in, `y` of the probe's dtype and the same shape out."""
    dtype = DTYPES[probe.dtype]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([probe.rows, probe.width]))
    nodes, weights, value = [], list[ir.Value](), x
    if dtype != ir.DataType.FLOAT:
        nodes.append(ir.node("Cast", [x], {"to": int(dtype)}))
        value = nodes[-1].outputs[0]
    if probe.op == "MatMul":
        rng = np.random.default_rng(_SEED + 1)
        # Elements keep their size from product to product: on zeros or NaN a device draws less power, and is faster.
        shapes = (probe.width, probe.inner), (probe.inner, probe.width)
        weights = [_weight(f"w{i}", _values(rng, s, (3.0 / s[0]) ** 0.5), dtype) for i, s in enumerate(shapes)]
    for number in range(probe.kernels):
        inputs = [value, weights[number % 2]] if weights else [value]
        nodes.append(ir.node(probe.op, inputs))
        value = nodes[-1].outputs[0]
    for number, node in enumerate(nodes):
        node.name, node.outputs[0].name = f"{node.op_type}_{number}", f"v{number}"
    value.name, value.type, value.shape = "y", ir.TensorType(dtype), x.shape
    graph = ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": _OPSET}, name="probe")
    return ir.Model(graph, ir_version=_IR_VERSION)


def _values(rng: np.random.Generator, shape: tuple[int, int], largest: float) -> npt.NDArray[np.float32]:
    """Uniform from `-largest` to `largest`."""
    return (rng.random(shape, np.float32) - np.float32(0.5)) * np.float32(2 * largest)


def _weight(name: str, values: npt.NDArray[np.float32], dtype: ir.DataType) -> ir.Value:
    tensor = ir.tensor(values.astype(dtype.numpy()), name=name)
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(values.shape), const_value=tensor)
