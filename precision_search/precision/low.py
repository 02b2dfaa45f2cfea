"""Facts about the low dtypes: names, ranges, rounding. What else depends on one asks here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

LowDtype = Literal["float16", "bfloat16"]
LOW_DTYPES: tuple[LowDtype, ...] = get_args(LowDtype)
IR_DTYPES: Mapping[LowDtype, ir.DataType] = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
DTYPE_NAMES: Mapping[ir.DataType, LowDtype] = {IR_DTYPES[name]: name for name in LOW_DTYPES}
SHORT_NAMES: Mapping[LowDtype, str] = {"float16": "fp16", "bfloat16": "bf16"}
"""As people write them beside fp32."""
UNIT_ROUNDOFF: Mapping[LowDtype, float] = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place of 1: 10 and 7 bits of mantissa."""
BFLOAT16_OPSET = 16
"""From here on the operators of a T5 take bfloat16: Add and Relu since 14, Pow since 15, Where since 16."""
_NUMPY_DTYPES: Mapping[LowDtype, np.dtype[Any]] = MappingProxyType(
    {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
)


def low_max(dtype: LowDtype) -> float:
    """The largest finite number of a low dtype: 65504 for float16, about 3.39e38 for bfloat16."""
    return 65504.0 if dtype == "float16" else (2 - 2.0**-7) * 2.0**127


def smallest_normal(dtype: LowDtype) -> float:
    """The smallest positive number of a low dtype with full precision; below it, bits get lost."""
    return 2.0**-14 if dtype == "float16" else 2.0**-126


def to_low(array: npt.NDArray[Any], dtype: LowDtype, *, saturate: bool = True) -> npt.NDArray[Any]:
    """Rounds fp32 numbers to the nearest of a low dtype, ties to even: an array of that dtype, of the same shape.

    Args:
        array: fp32.
        dtype: the low dtype.
        saturate: finite numbers outside the range become its largest finite number (initializers: a mask must not
            become infinite); False: they become infinite as in a Cast. Infinities and NaN stay what they are.
    """
    numbers = np.asarray(array, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        low = numbers.astype(_NUMPY_DTYPES[dtype])
    if saturate:
        overflowed = np.isinf(low) & ~np.isinf(numbers)
        if overflowed.any():
            low[overflowed] = np.copysign(np.float32(low_max(dtype)), numbers[overflowed]).astype(low.dtype)
    return low


def round_to(array: npt.NDArray[Any], dtype: LowDtype, *, saturate: bool) -> npt.NDArray[np.float32]:
    """Rounds fp32 numbers through a low dtype and back (see `to_low`): fp32, of the same shape."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return to_low(array, dtype, saturate=saturate).astype(np.float32)


def is_exact_or_mask(array: npt.NDArray[Any], dtype: LowDtype) -> bool:
    """Whether each number is exact in the low dtype or so large that it can only be a mask, which saturates."""
    exact = round_to(array, dtype, saturate=True) == array
    return bool(np.all(exact | (np.abs(array) > low_max(dtype))))
