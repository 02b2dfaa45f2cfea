"""Rounded weights are made once, rounded to nearest, and known by the tensor they come from."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from precision_search.precision.convert import convert
from precision_search.precision.dtypes import assign
from precision_search.precision.emulate import emulate, widen
from precision_search.precision.low import IR_DTYPES, LOW_DTYPES, LowDtype, low_max
from precision_search.precision.plan import Plan, pinned_keys
from precision_search.precision.weights import WeightCache
from tests.graphs import tiny_t5


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_low_weights_are_rounded_and_finite_ones_stay_finite(dtype: LowDtype) -> None:
    numbers = np.array([0.1, -3.0, 1e9, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, 6e-8], np.float32)
    low = WeightCache().low(ir.Tensor(numbers), dtype)
    assert low.dtype == IR_DTYPES[dtype]
    largest = low_max(dtype)
    with np.errstate(over="ignore"):
        plain = numbers.astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16).astype(np.float32)
    expected = np.where(np.isinf(plain) & ~np.isinf(numbers), np.copysign(largest, numbers), plain)
    assert np.array_equal(low.numpy().astype(np.float32), expected.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_widening_a_low_weight_is_exact(dtype: LowDtype) -> None:
    cache = WeightCache()
    low = cache.low(ir.Tensor(np.array([0.1, 1e9, -7.0], np.float32)), dtype)
    wide = cache.wide(low)
    assert wide.dtype == ir.DataType.FLOAT
    assert np.array_equal(wide.numpy(), low.numpy().astype(np.float32))


def test_a_tensor_is_rounded_once_for_each_dtype() -> None:
    cache, tensor = WeightCache(), ir.Tensor(np.ones(3, np.float32))
    assert cache.low(tensor, "float16") is cache.low(tensor, "float16")
    assert cache.low(tensor, "float16") is not cache.low(tensor, "bfloat16")
    assert np.array_equal(cache.wide(cache.low(tensor, "float16")).numpy(), tensor.numpy())
    assert cache.low(ir.Tensor(np.ones(3, np.float32)), "float16") is not cache.low(tensor, "float16")


def test_tensors_that_went_away_are_not_taken_for_new_ones() -> None:
    cache = WeightCache()
    for number in range(50):
        # Each tensor may get the address of one that was collected.
        assert cache.low(ir.Tensor(np.full(2, number, np.float32)), "float16").numpy().tolist() == [number, number]


@pytest.mark.parametrize(
    ("numbers", "largest"),
    [([1.0, -5.0, 2.0], 5.0), ([np.inf, 3.0, -np.inf], 3.0), ([np.nan, -1.0], 1.0), ([np.inf], 0.0), ([], 0.0)],
)
def test_the_largest_finite_magnitude(numbers: list[float], largest: float) -> None:
    tensor = ir.Tensor(np.array(numbers, np.float32))
    cache = WeightCache()
    assert cache.largest(tensor) == largest
    assert cache.largest(tensor) == largest


def test_all_conversions_of_a_search_share_their_weights() -> None:
    graphs = tiny_t5()
    pinned = pinned_keys(graphs)
    plans = [Plan("float16", "base", pinned), Plan("float16", "base", pinned | {"lm_head/MatMul"})]
    cache = WeightCache()
    arrays: dict[str, set[int]] = {}
    for plan in plans:
        models = [*convert(graphs, plan, cache).models.values()]
        models += [widen(model, cache) for model in models]
        models += [emulate(graphs[name], plan, assignment, cache) for name, assignment in assign(graphs, plan).items()]
        for model in models:
            for name, value in model.graph.initializers.items():
                if name.startswith("encoder.block.0.layer.1.DenseReluDense.wo.weight"):
                    arrays.setdefault(str(value.dtype), set()).add(id(value.const_value))
    assert len(arrays["FLOAT16"]) == 1
