"""What each low CUDA kernel computes, written a second time in numpy: the models that the emulation is held against.

A model takes the node's inputs and attributes and the low dtype. Float inputs are fp32 arrays that are rounded to the
dtype first, as a Cast does; the result is an fp32 array that holds numbers of the dtype. Nothing here uses the package:
fp16 is numpy's, bf16 is rounded by its bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Dtype = Literal["float16", "bfloat16"]
Array = npt.NDArray[Any]
Model = Callable[[list[Array], Mapping[str, Any], Dtype], Array]


def low(values: Array, dtype: Dtype) -> Array:
    """Nearest number of the dtype, ties to even, overflow to infinity. fp16 rounds from double, bf16 from fp32."""
    with np.errstate(all="ignore"):
        if dtype == "float16":
            return np.asarray(values).astype(np.float16).astype(np.float32)
        single = np.asarray(values).astype(np.float32)
        bits = single.view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        nearest = ((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)).view(np.float32)
        return np.where(np.isnan(single), np.float32(np.nan), nearest)


def _elementwise(function: Callable[..., Array]) -> Model:
    """The function to within half an ulp of fp32, then the dtype. For + - * / and the square root of fp16 or bf16
    numbers that equals rounding once (24 bits are enough twice over); the others have fp32 inside on the device too.
    """

    def model(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
        with np.errstate(all="ignore"):
            rounded = [low(value, dtype).astype(np.float64) for value in inputs]
            return low(np.asarray(function(*rounded)).astype(np.float32), dtype)

    return model


_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _fold(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def fold(first: Array, *others: Array) -> Array:
        for other in others:
            first = function(first, other)
        return first

    return fold


def _clip(value: Array, smallest: Array, largest: Array) -> Array:
    return np.where(value < smallest, smallest, np.where(value > largest, largest, value))


def _matmul(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
    left, right = (low(value, dtype) for value in inputs)
    with np.errstate(all="ignore"):
        return low(left @ right, dtype)


def _gemm(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
    left, right, *bias = (low(value, dtype) for value in inputs)
    left = left.T if attributes.get("transA") else left
    right = right.T if attributes.get("transB") else right
    with np.errstate(all="ignore"):
        product: Array = np.float32(attributes.get("alpha", 1.0)) * (left @ right)
        if bias:
            product = product + np.float32(attributes.get("beta", 1.0)) * bias[0]
        return low(product, dtype)


def _shifted_exp(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> tuple[Array, Array]:
    values, axis = low(inputs[0], dtype), int(attributes.get("axis", -1))
    shifted = values - values.max(axis=axis, keepdims=True)
    return shifted, np.exp(shifted).sum(axis=axis, keepdims=True, dtype=np.float32)


def _softmax(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
    with np.errstate(all="ignore"):
        shifted, total = _shifted_exp(inputs, attributes, dtype)
        return low(np.exp(shifted) / total, dtype)


def _log_softmax(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
    with np.errstate(all="ignore"):
        shifted, total = _shifted_exp(inputs, attributes, dtype)
        return low(shifted - np.log(total), dtype)


def _axes(inputs: list[Array], attributes: Mapping[str, Any]) -> tuple[int, ...]:
    axes = inputs[1].tolist() if len(inputs) > 1 else attributes.get("axes") or range(inputs[0].ndim)
    return tuple(int(axis) for axis in axes)


def _low_sum(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
    values = low(inputs[0], dtype)
    with np.errstate(all="ignore"):
        total = values.sum(
            axis=_axes(inputs, attributes), keepdims=bool(attributes.get("keepdims", 1)), dtype=np.float32
        )
    return low(total, dtype)


def _reduce_mean(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
    count = math.prod(inputs[0].shape[axis] for axis in _axes(inputs, attributes))
    total = _low_sum(inputs, attributes, dtype).astype(np.float64)
    with np.errstate(all="ignore"):
        return low(total / low(np.asarray(count, dtype=np.float32), dtype), dtype)


def _select(function: Callable[..., Array]) -> Model:
    def model(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
        keepdims = bool(attributes.get("keepdims", 1))
        return function(low(inputs[0], dtype), axis=_axes(inputs, attributes), keepdims=keepdims)

    return model


def _normalization(center: bool) -> Model:
    """Layer normalization over the trailing axes; without centring it is a root-mean-square normalization."""

    def model(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
        values, scale, *bias = (low(value, dtype) for value in inputs)
        axes = tuple(range(int(attributes.get("axis", -1)) % values.ndim, values.ndim))
        epsilon = np.float32(attributes.get("epsilon", 1e-5))
        with np.errstate(all="ignore"):
            values = values - values.mean(axis=axes, keepdims=True) if center else values
            result = values / np.sqrt((values * values).mean(axis=axes, keepdims=True) + epsilon) * scale
            return low(result + bias[0] if bias else result, dtype)

    return model


def _gather(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
    return np.take(low(inputs[0], dtype), inputs[1], axis=int(attributes.get("axis", 0)))


def _gelu(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
    with np.errstate(all="ignore"):
        x = low(inputs[0], dtype).astype(np.float64)
        if attributes.get("approximate", "none") == "tanh":
            return _tanh_gelu(x, dtype)
        cdf = (0.5 * _erfc(-x * math.sqrt(0.5))).astype(np.float32)
        return low((x * (cdf if dtype == "float16" else low(cdf, dtype))).astype(np.float32), dtype)


def _tanh_gelu(x: Array, dtype: Dtype) -> Array:
    cubic_weight, linear_weight = (
        float(low(np.asarray(value), dtype)) for value in (0.044715 * math.sqrt(2 / math.pi), math.sqrt(2 / math.pi))
    )
    cubic = low(cubic_weight * x, dtype).astype(np.float64)
    if dtype == "float16":
        slope = low(cubic * x + linear_weight, dtype)
        cdf = low(0.5 * low(np.tanh(low(slope * x, dtype).astype(np.float64)), dtype).astype(np.float64) + 0.5, dtype)
    else:
        slope = low(low(cubic * x, dtype) + np.float32(linear_weight), dtype)
        tanh = low(np.tanh(low(slope * x, dtype).astype(np.float64)), dtype)
        cdf = low(low(tanh * np.float32(0.5), dtype) + np.float32(0.5), dtype)
    return low(cdf * x, dtype)


def _sigmoid(inputs: list[Array], attributes: Mapping[str, Any], dtype: Dtype) -> Array:
    x = low(inputs[0], dtype)
    with np.errstate(all="ignore"):
        if dtype == "float16":
            return low((1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32), dtype)
        grown = low(1 + low(np.exp(-np.abs(x)), dtype), dtype)
        upper = low(1 / grown, dtype)
        return np.where(x > 0, upper, low(1 - upper, dtype))


KERNEL_MODELS: Mapping[str, Model] = {
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(np.divide),
    "Pow": _elementwise(np.power),
    "Max": _elementwise(_fold(np.maximum)),
    "Min": _elementwise(_fold(np.minimum)),
    "Sqrt": _elementwise(np.sqrt),
    "Reciprocal": _elementwise(np.reciprocal),
    "Relu": _elementwise(lambda x: np.maximum(x, 0)),
    "Tanh": _elementwise(np.tanh),
    "Erf": _elementwise(_erf),
    "Exp": _elementwise(np.exp),
    "Log": _elementwise(np.log),
    "Neg": _elementwise(np.negative),
    "Abs": _elementwise(np.abs),
    "Clip": _elementwise(_clip),
    "Sigmoid": _sigmoid,
    "Gelu": _gelu,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "ReduceSum": _low_sum,
    "ReduceMean": _reduce_mean,
    "ReduceMax": _select(np.max),
    "ReduceMin": _select(np.min),
    "LayerNormalization": _normalization(center=True),
    "RMSNormalization": _normalization(center=False),
    "SimplifiedLayerNormalization": _normalization(center=False),
    "Gather": _gather,
}
"""By op type; one for every entry of the kernel table."""
