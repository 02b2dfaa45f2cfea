"""One node at a time: what it computes when lowered, on the CPU, is what the numpy model of its CUDA kernel computes.

Each case goes both ways: emulated from the fp32 graph, and converted and widened again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from precision_search.model.graph import Graph, GraphName, describe
from precision_search.precision.convert import convert
from precision_search.precision.dtypes import assign
from precision_search.precision.emulate import emulate, widen
from precision_search.precision.kernels import KERNELS, kernel_for
from precision_search.precision.low import LOW_DTYPES, LowDtype, low_max, smallest_normal
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache
from tests.graphs import run
from tests.kernel_models import KERNEL_MODELS, low

Array = npt.NDArray[Any]

EDGES = (
    *(0.0, -0.0, 1.0, -1.0, 0.1, 3.14159, 255.9, 1000.0, 2049.0, 1e-3, 6e-5, 6e-8, -3e-8, 1e-40),
    *(65504.0, -65504.0, 65519.0, 65520.0, 1e30, -1e30, np.inf, -np.inf, np.nan),
)
NUMBERS = np.concatenate([np.asarray(EDGES), np.random.default_rng(7).normal(scale=8, size=400)]).astype(np.float32)
LEFT, RIGHT = (grid.ravel() for grid in np.meshgrid(NUMBERS[:60], NUMBERS[:60]))
UNARY = ("Sqrt", "Reciprocal", "Relu", "Neg", "Abs", "Tanh", "Exp", "Log", "Erf", "Sigmoid", "Gelu")
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow")


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def whole(limit: int, *shape: int, seed: int = 0) -> Array:
    """Whole numbers up to a limit: their sums are exact in fp32 in any order."""
    return np.random.default_rng(seed).integers(-limit, limit + 1, shape).astype(np.float32)


def one_node(
    op_type: str,
    inputs: Sequence[Array],
    attributes: Mapping[str, Any],
    *,
    constants: Sequence[int] = (),
    opset: int = 20,
    dynamic: bool = False,
) -> dict[GraphName, Graph]:
    """A graph of one node; the inputs numbered in `constants` and all integers are initializers."""
    names = [f"input_{index}" for index in range(len(inputs))]
    fixed = {index for index, array in enumerate(inputs) if index in constants or array.dtype == np.int64}
    infos = [
        helper.make_tensor_value_info(
            names[index],
            onnx.TensorProto.FLOAT,
            [f"{names[index]}_{axis}" for axis in range(array.ndim)] if dynamic else array.shape,
        )
        for index, array in enumerate(inputs)
        if index not in fixed
    ]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"], **attributes)],
        op_type,
        infos,
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(inputs[index]), names[index]) for index in sorted(fixed)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return {"encoder": describe("encoder", ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True)))}


def lowered(
    op_type: str, inputs: Sequence[Array], attributes: Mapping[str, Any], dtype: LowDtype, **options: Any
) -> Array:
    """What the lowered node gives; emulated and widened alike."""
    graphs = one_node(op_type, inputs, attributes, **options)
    assert len(graphs["encoder"].compute) == 1
    plan, weights = Plan(dtype, "base", frozenset()), WeightCache()
    feeds = {f"input_{index}": array for index, array in enumerate(inputs)}
    emulated = emulate(graphs["encoder"], plan, assign(graphs, plan)["encoder"], weights)
    result = run(emulated, feeds)["y"]
    widened = widen(convert(graphs, plan, weights).models["encoder"], weights)
    assert np.array_equal(run(widened, feeds)["y"], result, equal_nan=True)
    return result


def modelled(op_type: str, inputs: Sequence[Array], attributes: Mapping[str, Any], dtype: LowDtype) -> Array:
    return KERNEL_MODELS[op_type](list(inputs), attributes, dtype)


def different(got: Array, expected: Array) -> Array:
    assert got.shape == expected.shape
    wrong: Array = ~((got == expected) | (np.isnan(got) & np.isnan(expected)))
    return wrong


def assert_equal(op_type: str, inputs: Sequence[Array], attributes: Mapping[str, Any], dtype: LowDtype) -> None:
    got = lowered(op_type, inputs, attributes, dtype)
    expected = modelled(op_type, inputs, attributes, dtype)
    wrong = different(got, expected)
    assert not wrong.any(), (got[wrong][:5], expected[wrong][:5])


def assert_within_an_ulp(got: Array, expected: Array, dtype: LowDtype, share: float) -> None:
    """At most `share` of the numbers differ, by one step of the dtype: an ulp of fp32 decides next to a tie."""
    wrong = different(got, expected)
    assert wrong.mean() <= share
    step = np.abs(expected[wrong]) * 2.0 ** (-10 if dtype == "float16" else -7)
    assert (np.abs(got[wrong] - expected[wrong]) <= np.maximum(step, smallest_normal(dtype))).all()


def has_kernel(op_type: str, dtype: LowDtype) -> bool:
    return kernel_for(op_type, dtype) is not None


CASES = [(op_type, dtype) for op_type in KERNELS for dtype in LOW_DTYPES if has_kernel(op_type, dtype)]


@pytest.mark.parametrize(("op_type", "dtype"), [case for case in CASES if case[0] in BINARY])
def test_two_inputs_on_a_grid_of_edges(op_type: str, dtype: LowDtype) -> None:
    assert_equal(op_type, [LEFT, RIGHT], {}, dtype)


@pytest.mark.parametrize(
    ("op_type", "dtype"), [case for case in CASES if case[0] in UNARY and case[0] not in ("Sigmoid", "Gelu")]
)
def test_one_input_on_edges(op_type: str, dtype: LowDtype) -> None:
    assert_equal(op_type, [NUMBERS], {}, dtype)


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_the_tanh_gelu_rounds_between_its_operations(dtype: LowDtype) -> None:
    assert_equal("Gelu", [NUMBERS], {"approximate": "tanh"}, dtype)


@pytest.mark.parametrize(("op_type", "dtype"), [case for case in CASES if case[0] in ("Sigmoid", "Gelu")])
def test_sigmoid_and_erf_gelu_differ_only_where_they_vanish(op_type: str, dtype: LowDtype) -> None:
    """ONNX Runtime's CPU kernels are right to an ulp of 1, not of results near 0, where a subtraction cancels."""
    got, expected = lowered(op_type, [NUMBERS], {}, dtype), modelled(op_type, [NUMBERS], {}, dtype)
    wrong = different(got, expected)
    x = low(NUMBERS, dtype)[wrong]
    assert ((x < -2) & np.isfinite(x)).all()
    assert (np.abs(got[wrong] - expected[wrong]) < 5e-6).all()
    assert np.count_nonzero(got[~wrong]) > 200


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_whole_numbers_multiply_without_any_rounding_but_the_last(dtype: LowDtype) -> None:
    left, right = whole(40, 4, 5, 64), whole(40, 4, 64, 7, seed=1)
    assert_equal("MatMul", [left, right], {}, dtype)
    assert_equal("Gemm", [left[0], right[0].T.copy(), right[0, 0]], {"transB": 1, "alpha": 2.0, "beta": 0.5}, dtype)
    assert_equal("MatMul", [left * 1000, right], {}, dtype)
    if dtype == "float16":
        assert np.isinf(lowered("MatMul", [left * 1000, right], {}, dtype)).any()


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_products_of_any_numbers_differ_by_the_order_of_summation_only(dtype: LowDtype) -> None:
    left, right = normal(8, 192), normal(192, 30, seed=1)
    for op_type, inputs in (("MatMul", [left, right]), ("Gemm", [left, right, right[0]])):
        got = lowered(op_type, inputs, {}, dtype, constants=[1])
        assert_within_an_ulp(got, modelled(op_type, inputs, {}, dtype), dtype, 0.02)


def scores() -> Array:
    """Attention scores: ordinary rows, a masked tail, a row all masked, a NaN, and numbers beyond fp16."""
    rows = normal(40, 50, scale=5)
    rows[0, 10:] = -np.inf
    rows[1] = -np.inf
    rows[2, 3] = np.nan
    rows[3] = 1e5
    rows[4, 1:] = -65504.0
    return rows


@pytest.mark.parametrize(("op_type", "dtype"), [case for case in CASES if case[0] in ("Softmax", "LogSoftmax")])
@pytest.mark.parametrize("axis", [-1, 0])
def test_softmax_sums_in_fp32_and_rounds_once(op_type: str, dtype: LowDtype, axis: int) -> None:
    """Its exp may be an ulp of fp32 off numpy's, which shows in the low dtype next to a tie only."""
    attributes = {"axis": axis}
    got = lowered(op_type, [scores()], attributes, dtype)
    assert_within_an_ulp(got, modelled(op_type, [scores()], attributes, dtype), dtype, 0.002)


X = normal(5, 6, 192, scale=100)


@pytest.mark.parametrize(
    ("op_type", "dtype"),
    [case for case in CASES if case[0] in ("LayerNormalization", "RMSNormalization")],
)
def test_normalizations_round_once(op_type: str, dtype: LowDtype) -> None:
    inputs = [X, np.ones(192, np.float32), np.linspace(-1, 1, 192, dtype=np.float32)]
    inputs = inputs if op_type == "LayerNormalization" else inputs[:2]
    got = lowered(op_type, inputs, {}, dtype, constants=[1, 2], opset=23)
    assert_within_an_ulp(got, modelled(op_type, inputs, {}, dtype), dtype, 0.002)


@pytest.mark.parametrize(("op_type", "dtype"), [case for case in CASES if case[0] in ("ReduceMax", "ReduceMin")])
def test_selections_round_their_input_only(op_type: str, dtype: LowDtype) -> None:
    assert_equal(op_type, [X, np.array([1])], {"keepdims": 0}, dtype)


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_a_lookup_gives_rounded_rows_of_its_table(dtype: LowDtype) -> None:
    table = normal(9, 4, scale=1e4)
    inputs = [table, np.array([3, 0, 8])]
    got = lowered("Gather", inputs, {}, dtype, constants=[0])
    assert np.array_equal(got, modelled("Gather", inputs, {}, dtype))


def test_clip_takes_its_bounds_rounded() -> None:
    inputs = [NUMBERS, np.asarray(-1.0004, np.float32), np.asarray(2.0007, np.float32)]
    assert_equal("Clip", inputs, {}, "float16")


def test_every_entry_of_the_table_is_lowered_by_a_test() -> None:
    elsewhere = {"MatMul", "Gemm", "Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"}
    elsewhere |= {"LayerNormalization", "RMSNormalization", "Gather", "Clip"}
    # ONNX has no operator of this name; ONNX Runtime's is lowered as RMSNormalization is.
    assert set(KERNELS) - {*UNARY, *BINARY} - elsewhere == {"SimplifiedLayerNormalization"}
    assert KERNELS["SimplifiedLayerNormalization"].internals is KERNELS["RMSNormalization"].internals


REDUCTIONS: list[tuple[Any, dict[str, Any]]] = [
    ([-1], {}),
    ([0], {}),
    ([1, 2], {"keepdims": 0}),
    ([0, -1], {"keepdims": 1}),
    (None, {}),
    (None, {"keepdims": 0}),
]


@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("opset", [20, 17, 16])
def test_reductions_with_axes_wherever_the_opset_keeps_them(
    op_type: str, dtype: LowDtype, dynamic: bool, reduction: tuple[Any, dict[str, Any]], opset: int
) -> None:
    axes, attributes = reduction
    numbers = whole(30, 4, 3, 50)
    expected = modelled(op_type, [numbers], {**attributes, **({} if axes is None else {"axes": axes})}, dtype)
    as_input = opset >= (13 if op_type == "ReduceSum" else 18)
    inputs = [numbers, np.array(axes)] if as_input and axes is not None else [numbers]
    if not as_input and axes is not None:
        attributes = {**attributes, "axes": axes}
    got = lowered(op_type, inputs, attributes, dtype, opset=opset, dynamic=dynamic)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_mean_overflows_where_its_sum_does(dynamic: bool) -> None:
    """d_model 192, FINDINGS 8: the sum is stored in half, so that a mean of 342 is infinite and one of 341 is not."""
    axes = np.array([-1])
    for mean, overflows in ((341.0, False), (342.0, True), (30000.0, True)):
        got = lowered("ReduceMean", [np.full((2, 192), mean, np.float32), axes], {}, "float16", dynamic=dynamic)
        assert np.isinf(got).all() == overflows
        assert overflows or (got == low(np.asarray(341.0), "float16")).all()
        assert np.isfinite(lowered("ReduceMean", [np.full((2, 192), mean, np.float32), axes], {}, "bfloat16")).all()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("count", "dtype"), [(1027, "bfloat16"), (2049, "float16"), (65520, "float16")])
def test_the_count_of_a_mean_is_stored_low(count: int, dtype: LowDtype, dynamic: bool) -> None:
    numbers = np.zeros((2, count), np.float32)
    numbers[:, 0] = 4096
    got = lowered("ReduceMean", [numbers, np.array([1])], {}, dtype, dynamic=dynamic)
    assert np.array_equal(got, modelled("ReduceMean", [numbers, np.array([1])], {}, dtype))


@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceSum"])
def test_opset_12_keeps_all_axes_as_attributes(op_type: str) -> None:
    numbers, attributes = whole(30, 4, 3, 50), {"axes": [0, -1], "keepdims": 0}
    got = lowered(op_type, [numbers], attributes, "float16", opset=12)
    assert np.array_equal(got, modelled(op_type, [numbers], attributes, "float16"))


def test_a_mean_without_axes_is_over_everything_or_over_nothing() -> None:
    none = np.array([], np.int64)
    over_all = modelled("ReduceMean", [X], {"axes": [0, 1, 2]}, "float16")
    assert np.array_equal(lowered("ReduceMean", [X, none], {}, "float16"), over_all)
    assert np.array_equal(lowered("ReduceMean", [X, none], {}, "float16", dynamic=True), over_all)
    cases: list[list[Array]] = [[X], [X, none]]
    for inputs in cases:
        assert np.array_equal(lowered("ReduceMean", inputs, {"noop_with_empty_axes": 1}, "float16"), low(X, "float16"))


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_constants_saturate_and_computed_numbers_do_not(dtype: LowDtype) -> None:
    numbers, huge = np.zeros(1, np.float32), np.float32(3.4e38)
    assert lowered("Add", [numbers, np.asarray(huge)], {}, dtype, constants=[1])[0] == low_max(dtype)
    assert lowered("Add", [numbers, np.asarray(huge)], {}, dtype)[0] == np.inf
