"""Rounded weights, made once and shared by every conversion and emulation of a search."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from precision_search.precision.low import IR_DTYPES, LowDtype, to_low


@dataclass(slots=True)
class WeightCache:
    """Low copies of fp32 tensors, kept, and fp32 copies of those, not kept.

    Both the converter and the emulation take their constants here, so that both round them the same way. Tensors are
    known by identity; each is kept beside its copy, which keeps the identity its own.
    """

    _low: dict[tuple[int, LowDtype], tuple[ir.TensorProtocol, ir.TensorProtocol]] = field(default_factory=dict)
    _largest: dict[int, tuple[ir.TensorProtocol, float]] = field(default_factory=dict)

    def low(self, tensor: ir.TensorProtocol, dtype: LowDtype) -> ir.TensorProtocol:
        """The tensor rounded to the low dtype; finite values outside its range saturate."""
        key = (id(tensor), dtype)
        if key not in self._low:
            array = to_low(tensor.numpy(), dtype, saturate=True)
            self._low[key] = (tensor, ir.Tensor(array, dtype=IR_DTYPES[dtype]))
        return self._low[key][1]

    def largest(self, tensor: ir.TensorProtocol) -> float:
        """The largest finite magnitude in the tensor; an infinity is exact in every dtype."""
        key = id(tensor)
        if key not in self._largest:
            sizes = np.abs(tensor.numpy())
            self._largest[key] = (tensor, float(np.max(sizes, where=np.isfinite(sizes), initial=0.0)))
        return self._largest[key][1]

    def wide(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """A low tensor as fp32, exactly; made anew each time, since kept copies would hold every weight once more."""
        return ir.Tensor(tensor.numpy().astype(np.float32))
