"""Low precision that is true on a CPU: emulating a plan and widening its conversion are the same, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from precision_search.errors import InputError
from precision_search.model.bundle import Bundle
from precision_search.model.graph import Graph, GraphName, NodeKind, compute_keys_by_op_type, is_float
from precision_search.model.onnx_files import load_model
from precision_search.precision.convert import Converted, convert
from precision_search.precision.dtypes import assign
from precision_search.precision.emulate import emulate, widen
from precision_search.precision.low import LowDtype, round_to
from precision_search.precision.plan import Plan, all_compute_keys, pinned_keys
from precision_search.precision.weights import WeightCache
from tests.conftest import Rows
from tests.graphs import (
    CHOICES,
    MASK,
    RECIPES,
    Array,
    Arrays,
    Choice,
    Recipe,
    Writer,
    random_feeds,
    run,
    run_chain,
    run_t5,
    same,
    tiny_feeds,
    tiny_t5,
)

Graphs = Mapping[GraphName, Graph]
Models = dict[GraphName, ir.Model]
FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
LEVELS: tuple[Literal["disabled", "basic", "all"], ...] = ("disabled", "basic", "all")
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def tiny() -> Graphs:
    return tiny_t5()


@pytest.fixture(scope="module")
def weights() -> WeightCache:
    return WeightCache()


def all_low(graphs: Graphs, dtype: LowDtype = "float16", *kept: str) -> Plan:
    assert set(kept) <= all_compute_keys(graphs)
    return Plan(dtype, "base", pinned_keys(graphs) | set(kept))


def emulated(graphs: Graphs, plan: Plan, weights: WeightCache) -> Models:
    return {name: emulate(graphs[name], plan, found, weights) for name, found in assign(graphs, plan).items()}


def widened(converted: Converted, weights: WeightCache) -> Models:
    return {name: widen(model, weights) for name, model in converted.models.items()}


def as_stored(arrays: Arrays, converted: ir.Model, dtype: LowDtype) -> Arrays:
    """What an emulated graph gave, in the dtypes in which the converted graph hands it over."""
    lows = {value.name for value in converted.graph.outputs if value.dtype != ir.DataType.FLOAT and is_float(value)}
    return {name: round_to(array, dtype, saturate=False) if name in lows else array for name, array in arrays.items()}


def assert_agree(ours: Mapping[GraphName, Arrays], theirs: Mapping[GraphName, Arrays], c: Converted, p: Plan) -> None:
    for name, arrays in ours.items():
        stored = as_stored(arrays, c.models[name], p.dtype)
        assert same(stored, theirs[name]), (
            name,
            [key for key in stored if not same_array(stored[key], theirs[name][key])],
        )


def same_array(left: Array, right: Array) -> bool:
    return np.array_equal(left, right, equal_nan=True)


@PROPERTY
@given(recipe=RECIPES, choice=CHOICES, seed=st.integers(0, 5))
def test_both_ways_agree_on_random_graphs(recipe: Recipe, choice: Choice, seed: int) -> None:
    graphs, weights = recipe.graphs(), WeightCache()
    plan = choice.plan(graphs)
    converted = convert(graphs, plan, weights)
    ours = run_chain(emulated(graphs, plan, weights), random_feeds(seed))
    theirs = run_chain(widened(converted, weights), random_feeds(seed))
    assert_agree(ours, theirs, converted, plan)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(choice=CHOICES, seed=st.integers(0, 5))
def test_both_ways_agree_on_a_tiny_t5(tiny: Graphs, choice: Choice, seed: int) -> None:
    weights = WeightCache()
    plan = choice.plan(tiny)
    converted = convert(tiny, plan, weights)
    ours = run_t5(emulated(tiny, plan, weights), tiny_feeds(seed))
    theirs = run_t5(widened(converted, weights), tiny_feeds(seed))
    assert_agree(ours, theirs, converted, plan)


def demo_feeds(demo_ids: Rows) -> Arrays:
    rows = demo_ids[:4]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return {"ids": ids, "mask": (ids != 0).astype(np.int64), "tokens": ids[:, :7]}


def check_the_demo(demo_bundle: Bundle, demo_ids: Rows, plan: Plan, weights: WeightCache) -> dict[GraphName, Arrays]:
    converted = convert(demo_bundle.graphs, plan, weights)
    ours = run_t5(emulated(demo_bundle.graphs, plan, weights), demo_feeds(demo_ids))
    theirs = run_t5(widened(converted, weights), demo_feeds(demo_ids))
    assert_agree(ours, theirs, converted, plan)
    return ours


@settings(max_examples=2, deadline=None, derandomize=True)
@given(choice=CHOICES)
def test_both_ways_agree_on_the_demo(demo_bundle: Bundle, demo_ids: Rows, weights: WeightCache, choice: Choice) -> None:
    check_the_demo(demo_bundle, demo_ids, choice.plan(demo_bundle.graphs), weights)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True)
@given(choice=CHOICES)
def test_both_ways_agree_on_the_demo_for_many_plans(
    demo_bundle: Bundle, demo_ids: Rows, weights: WeightCache, choice: Choice
) -> None:
    check_the_demo(demo_bundle, demo_ids, choice.plan(demo_bundle.graphs), weights)


def test_the_demo_is_damaged_and_saved_by_the_lists_of_the_findings(
    demo_bundle: Bundle, demo_ids: Rows, weights: WeightCache
) -> None:
    """FINDINGS 3: all-low gives finite garbage, not NaN; with norms, Add, Mul and the encoder's MatMuls in fp32 not."""
    graphs = demo_bundle.graphs
    exact = run_t5({name: graph.model for name, graph in graphs.items()}, demo_feeds(demo_ids))
    garbage = check_the_demo(demo_bundle, demo_ids, all_low(graphs), weights)
    kept = set[str]()
    for family, op_types in (
        ("encoder", ("Pow", "ReduceMean", "Sqrt", "Reciprocal", "Add", "Mul", "MatMul")),
        ("decoder", ("Pow", "ReduceMean", "Sqrt", "Reciprocal", "Add", "Mul")),
    ):
        by_type = compute_keys_by_op_type(graphs, "encoder" if family == "encoder" else "decoder")
        kept |= set().union(*(by_type[op_type] for op_type in op_types))
    good = check_the_demo(demo_bundle, demo_ids, all_low(graphs, "float16", *kept), weights)
    logits = {label: found["decoder"]["logits"] for label, found in (("bad", garbage), ("good", good), ("fp32", exact))}
    assert np.isfinite(logits["bad"]).all()
    assert np.abs(logits["bad"] - logits["fp32"]).mean() > 1
    assert np.abs(logits["good"] - logits["fp32"]).max() < 0.2


def test_everything_in_fp32_changes_no_bit(demo_bundle: Bundle, demo_ids: Rows, weights: WeightCache) -> None:
    plan = Plan("float16", "base", all_compute_keys(demo_bundle.graphs))
    feeds = demo_feeds(demo_ids)
    exact = run_t5({name: graph.model for name, graph in demo_bundle.graphs.items()}, feeds)
    models = emulated(demo_bundle.graphs, plan, weights)
    assert [len(model.graph) for model in models.values()] == [len(g.model.graph) for g in demo_bundle.graphs.values()]
    found = run_t5(models, feeds)
    assert all(same(found[name], exact[name]) for name in exact)


def shape_of(model: ir.Model) -> list[object]:
    """Nodes, edges, attributes, dtypes and constants of a graph."""
    nodes: list[object] = [
        (
            node.name,
            node.op_type,
            [value and value.name for value in node.inputs],
            [(value.name, value.dtype) for value in node.outputs],
            sorted(str(attribute) for attribute in node.attributes.values()),
        )
        for node in model.graph
    ]
    ends = [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]
    return [*nodes, ends, [(name, id(value.const_value)) for name, value in model.graph.initializers.items()]]


def test_widening_an_fp32_graph_changes_nothing(demo_bundle: Bundle, weights: WeightCache) -> None:
    for graph in demo_bundle.graphs.values():
        assert shape_of(widen(graph.model, weights)) == shape_of(graph.model)


def test_widening_leaves_the_mixed_graph_as_it_is(tiny: Graphs, weights: WeightCache) -> None:
    for model in convert(tiny, Choice("float16", 0.5, 1).plan(tiny)).models.values():
        before = shape_of(model)
        widen(model, weights)
        assert shape_of(model) == before


def test_emulating_leaves_the_fp32_graph_as_it_is(tiny: Graphs, weights: WeightCache) -> None:
    before = {name: shape_of(graph.model) for name, graph in tiny.items()}
    emulated(tiny, Choice("float16", 0.5, 1).plan(tiny), weights)
    assert {name: shape_of(graph.model) for name, graph in tiny.items()} == before


@settings(max_examples=4, deadline=None, derandomize=True)
@given(choice=CHOICES)
def test_what_comes_out_is_fp32_with_the_same_ends(tiny: Graphs, choice: Choice) -> None:
    weights = WeightCache()
    plan = choice.plan(tiny)
    for models in (emulated(tiny, plan, weights), widened(convert(tiny, plan, weights), weights)):
        for name, model in models.items():
            original = tiny[name].model.graph
            for ours, theirs in ((model.graph.inputs, original.inputs), (model.graph.outputs, original.outputs)):
                assert [(v.name, v.dtype) for v in ours] == [(v.name, v.dtype) for v in theirs]
            for node in model.graph:
                low = {value.dtype for value in node.outputs} & {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
                assert not low or node.op_type == "Cast"
            names = [str(node.name) for node in model.graph]
            assert len(set(names)) == len(names)
            onnx.checker.check_model(ir.to_proto(model), full_check=True)


def chain() -> dict[GraphName, Graph]:
    """FINDINGS 1: x → 1000 x → 0.001 · 1000 x."""
    write = Writer("encoder")
    x = write.input("x", FLOAT, (3,))
    large = write.op("", "Mul", x, write.weight("thousand", 1000.0))
    write.op("", "Mul", large, write.weight("thousandth", 0.001), output="y")
    write.output("y", FLOAT, (3,))
    return {"encoder": write.graph()}


@pytest.mark.parametrize("level", LEVELS)
def test_overflow_between_low_neighbours_survives_every_optimization_level(
    weights: WeightCache, level: Literal["disabled", "basic", "all"]
) -> None:
    graphs = chain()
    plan = all_low(graphs)
    converted = convert(graphs, plan, weights)
    x = np.array([1.0, 65.5, 100.0], np.float32)
    for model in (emulated(graphs, plan, weights)["encoder"], widened(converted, weights)["encoder"]):
        y = run(model, {"x": x}, level)["y"]
        assert np.isinf(y[2])
        assert np.array_equal(y[:2], low_chain(x[:2]))
    # The trap itself: on the CPU the converted graph keeps what a GPU would lose.
    plain = run(converted.models["encoder"], {"x": x}, level)["y"]
    assert np.isfinite(plain.astype(np.float32)).all()


def low_chain(x: Array) -> Array:
    large = (x.astype(np.float16) * np.float16(1000)).astype(np.float16)
    return (large * np.float16(0.001)).astype(np.float32)


@pytest.mark.parametrize("level", LEVELS)
def test_roundings_stay_in_the_optimized_graph(
    tmp_path: Path, level: Literal["disabled", "basic", "all"], weights: WeightCache
) -> None:
    import onnxruntime

    graphs = chain()
    model = emulated(graphs, all_low(graphs), weights)["encoder"]
    options = onnxruntime.SessionOptions()
    names = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, names[level])
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    op_types = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert op_types.count("Cast") == 2 * 3  # the input, and the result of each node
    assert op_types.count("Mul") == 2


def test_a_value_is_rounded_once_for_all_its_low_readers() -> None:
    write = Writer("encoder")
    x = write.input("x", FLOAT, (3,))
    for number, op_type in enumerate(("Neg", "Abs", "Relu")):
        write.op("", op_type, x, output=f"y{number}")
        write.output(f"y{number}", FLOAT, (3,))
    graphs: dict[GraphName, Graph] = {"encoder": write.graph()}
    model = emulated(graphs, all_low(graphs, "float16", "encoder/Relu"), WeightCache())["encoder"]
    assert sum(node.op_type == "Cast" for node in model.graph) == 2 + 2 + 2
    found = run(model, {"x": np.array([0.1, -0.1, 1e6], np.float32)})
    tenth = float(np.float16(0.1))
    assert found["y0"].tolist() == [-tenth, tenth, -np.inf]
    assert found["y1"].tolist() == [tenth, tenth, np.inf]
    assert found["y2"].tolist() == [np.float32(0.1), 0.0, 1e6]


def test_what_a_low_node_made_is_not_rounded_again_behind_data_movement() -> None:
    write = Writer("encoder")
    turned = write.op("", "Transpose", write.op("", "Neg", write.input("x", FLOAT, (2, 2))))
    write.op("", "Abs", turned, output="y")
    write.output("y", FLOAT, (2, 2))
    graphs: dict[GraphName, Graph] = {"encoder": write.graph()}
    model = emulated(graphs, all_low(graphs), WeightCache())["encoder"]
    assert [node.op_type for node in model.graph if node.op_type != "Cast"] == ["Neg", "Transpose", "Abs"]
    assert sum(node.op_type == "Cast" for node in model.graph) == 2 * 3


def test_a_masked_fill_stores_its_constant_low(weights: WeightCache) -> None:
    write = Writer("encoder")
    x = write.input("x", FLOAT, (3,))
    hidden = write.op("", "Less", x, write.weight("zero", 0.0))
    filled = write.op("", "Where", hidden, write.weight("minimum", MASK), write.op("", "Abs", x))
    write.op("", "Neg", filled, output="y")
    write.output("y", FLOAT, (3,))
    graphs: dict[GraphName, Graph] = {"encoder": write.graph()}
    plan = all_low(graphs)
    x_values = {"x": np.array([-1.0, 2.0, -3.0], np.float32)}
    for models in (emulated(graphs, plan, weights), widened(convert(graphs, plan, weights), weights)):
        assert run(models["encoder"], x_values)["y"].tolist() == [65504.0, -2.0, 65504.0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_constants_that_fp32_readers_share_are_rounded_for_low_readers_only(dtype: LowDtype) -> None:
    """Ten times a tenth, moved about: no mask, so that fp32 readers get it exact and low ones rounded."""
    write = Writer("encoder")
    tenths = write.op("", "Expand", write.weight("tenth", 0.1), write.integers(3))
    for number, op_type in enumerate(("Neg", "Abs")):
        write.op("", op_type, tenths, output=f"y{number}")
        write.output(f"y{number}", FLOAT, (3,))
    graphs: dict[GraphName, Graph] = {"encoder": write.graph()}
    plan, weights = all_low(graphs, dtype, "encoder/Neg"), WeightCache()
    rounded = float(round_to(np.asarray(0.1, np.float32), dtype, saturate=False))
    for models in (emulated(graphs, plan, weights), widened(convert(graphs, plan, weights), weights)):
        found = run(models["encoder"], {})
        assert found["y0"].tolist() == [-np.float32(0.1)] * 3
        assert found["y1"].tolist() == [rounded] * 3


def with_low_cumsum() -> dict[GraphName, Graph]:
    write = Writer("encoder")
    write.op("somewhere", "CumSum", write.input("x", FLOAT, (3,)), write.integer(0), output="y")
    write.output("y", FLOAT, (3,))
    return {"encoder": write.graph()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_operator_without_a_kernel_is_named(dtype: LowDtype, weights: WeightCache) -> None:
    graphs = with_low_cumsum()
    plan = all_low(graphs, dtype)
    mixed = convert(graphs, plan, weights).models["encoder"]
    for act in (lambda: emulated(graphs, plan, weights), lambda: widen(mixed, weights)):
        with pytest.raises(InputError, match=r"encoder\.somewhere/CumSum") as caught:
            act()
        assert f"no {dtype} entry for CumSum" in caught.value.why
        assert "CumSum" in caught.value.fix


def test_a_kernel_that_one_dtype_lacks_is_named_for_that_dtype(tiny: Graphs, weights: WeightCache) -> None:
    emulated(tiny, all_low(tiny), weights)
    with pytest.raises(InputError, match="layer_norm/Reciprocal") as caught:
        emulated(tiny, all_low(tiny, "bfloat16"), weights)
    assert "bfloat16" in caught.value.why


def foreign(*nodes: onnx.NodeProto, dtypes: Mapping[str, int], end: int = FLOAT) -> onnx.ModelProto:
    """A mixed graph as others write it, from fp32 `x` [3] to `y`; the initializer `half` is a low 0.1."""
    ends = [helper.make_tensor_value_info("x", FLOAT, [3]), helper.make_tensor_value_info("y", end, [3])]
    infos = [helper.make_tensor_value_info(name, dtype, None) for name, dtype in dtypes.items()]
    half = numpy_helper.from_array(np.array([0.1], np.float16), "half")
    graph = helper.make_graph(list(nodes), "foreign", ends[:1], ends[1:], [half], value_info=infos)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


X = np.array([0.1, 3.0, 1e5], np.float32)


def loaded(tmp_path: Path, model: onnx.ModelProto) -> ir.Model:
    onnx.save(model, tmp_path / "m.onnx")
    return load_model(tmp_path / "m.onnx")


def test_low_constants_of_every_kind_become_fp32(tmp_path: Path, weights: WeightCache) -> None:
    tenth = numpy_helper.from_array(np.array([0.1], np.float16))
    model = foreign(
        helper.make_node("Cast", ["x"], ["low"], "down", to=HALF),
        helper.make_node("Constant", [], ["constant"], "constant", value=tenth),
        helper.make_node("Shape", ["x"], ["size"], "size"),
        helper.make_node("ConstantOfShape", ["size"], ["filled"], "filled", value=tenth),
        helper.make_node("Add", ["constant", "half"], ["a"], "a"),
        helper.make_node("Add", ["filled", "a"], ["b"], "b"),
        helper.make_node("Add", ["low", "b"], ["y"], "y"),
        dtypes={"low": HALF, "constant": HALF, "size": INT64, "filled": HALF, "a": HALF, "b": HALF},
        end=HALF,
    )
    wide = widen(loaded(tmp_path, model), weights)
    onnx.checker.check_model(ir.to_proto(wide), full_check=True)
    tenths = np.float16(0.1)
    with np.errstate(over="ignore"):
        expected = X.astype(np.float16) + (tenths + (tenths + tenths))
    assert np.array_equal(run(wide, {"x": X})["y"], expected.astype(np.float32))


@pytest.mark.parametrize("like", [True, False])
def test_a_cast_to_low_keeps_rounding_whoever_wrote_it(tmp_path: Path, weights: WeightCache, like: bool) -> None:
    cast = (
        helper.make_node("CastLike", ["x", "half"], ["low"], "down")
        if like
        else helper.make_node("Cast", ["x"], ["low"], "down", to=HALF)
    )
    up = helper.make_node("Cast", ["low"], ["y"], "up", to=FLOAT)
    wide = widen(loaded(tmp_path, foreign(cast, up, dtypes={"low": HALF})), weights)
    onnx.checker.check_model(ir.to_proto(wide), full_check=True)
    with np.errstate(over="ignore"):
        expected = X.astype(np.float16).astype(np.float32)
    for level in LEVELS:
        assert np.array_equal(run(wide, {"x": X}, level)["y"], expected)


def test_a_cast_to_low_may_be_a_graph_output(tmp_path: Path, weights: WeightCache) -> None:
    model = foreign(helper.make_node("Cast", ["x"], ["y"], "down", to=HALF), dtypes={}, end=HALF)
    wide = widen(loaded(tmp_path, model), weights)
    assert wide.graph.outputs[0].dtype == ir.DataType.FLOAT
    with np.errstate(over="ignore"):
        assert np.array_equal(run(wide, {"x": X})["y"], X.astype(np.float16).astype(np.float32))


def test_low_numbers_made_in_an_unknown_way_are_refused(tmp_path: Path, weights: WeightCache) -> None:
    eye = helper.make_node("EyeLike", ["table"], ["eye"], "eyes", dtype=HALF)
    nodes = [
        helper.make_node(
            "Constant", [], ["table"], "table", value=numpy_helper.from_array(np.eye(3, dtype=np.float32))
        ),
        eye,
        helper.make_node("Cast", ["eye"], ["wide"], "up", to=FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"], "y"),
    ]
    with pytest.raises(InputError, match="eyes cannot be emulated") as caught:
        widen(loaded(tmp_path, foreign(*nodes, dtypes={"eye": HALF, "wide": FLOAT, "table": FLOAT})), weights)
    assert "EyeLike" in caught.value.why


def test_widening_rounds_every_low_result_of_a_graph_by_numpy(weights: WeightCache) -> None:
    """Each value of the widened tiny encoder that a low node made holds numbers of the dtype only."""
    graphs: dict[GraphName, Graph] = {"encoder": tiny_t5()["encoder"]}
    plan = all_low(graphs, "float16", "encoder.final_layer_norm/Pow")
    wide = widen(convert(graphs, plan, weights).models["encoder"], weights)
    lows = {
        str(node.outputs[0].name)
        for node in graphs["encoder"].model.graph
        if graphs["encoder"].nodes[str(node.name)].kind is NodeKind.COMPUTE and str(node.name) not in plan.fp32
    }
    known = {str(value.name): value for node in wide.graph for value in node.outputs}
    for name in lows - {"last_hidden_state"}:
        wide.graph.outputs.append(known[name])
    feeds = tiny_feeds()
    found = run(wide, {"input_ids": feeds["ids"], "attention_mask": feeds["mask"]}, "all")
    for name in lows:
        assert same_array(found[name], found[name].astype(np.float16).astype(np.float32)), name
    assert len(lows) > 50
