"""The converter: its promises hold for random plans on random graphs, on a tiny T5 and on the demo model."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper

from precision_search.errors import InputError, InternalError
from precision_search.model.bundle import Bundle
from precision_search.model.graph import Graph, GraphName, NodeKind, float_inputs, is_float, is_weight
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.onnx_files import load_model, weight_bytes, write_model
from precision_search.precision.convert import (
    Converted,
    check_boundaries,
    check_round_trips,
    check_types,
    convert,
    overflowing_weights,
)
from precision_search.precision.low import IR_DTYPES, LOW_DTYPES, LowDtype
from precision_search.precision.plan import Plan, all_compute_keys, pinned_keys
from precision_search.precision.weights import WeightCache
from precision_search.runtime.backends import create_session
from precision_search.runtime.session import SessionSettings
from tests.graphs import CHOICES, MASK, RECIPES, Choice, Recipe, Writer, tiny_t5

Graphs = Mapping[GraphName, Graph]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
FP32 = ir.DataType.FLOAT
PROPERTY = settings(max_examples=50, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def tiny() -> Graphs:
    return tiny_t5()


@pytest.fixture(scope="module")
def weights() -> WeightCache:
    """Shared by the tests on the demo, as the conversions of one search share it."""
    return WeightCache()


def all_low(graphs: Graphs, dtype: LowDtype = "float16", *kept: str) -> Plan:
    assert set(kept) <= all_compute_keys(graphs)
    return Plan(dtype, "base", pinned_keys(graphs) | set(kept))


def all_fp32(graphs: Graphs) -> Plan:
    return Plan("float16", "base", all_compute_keys(graphs))


def one_graph(write: Writer) -> dict[GraphName, Graph]:
    return {"encoder": write.graph()}


def array_of(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def added_casts(graph: Graph, model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.name not in graph.nodes]


def assert_promises(graphs: Graphs, plan: Plan, converted: Converted) -> None:
    low = IR_DTYPES[plan.dtype]
    for name, model in converted.models.items():
        graph = graphs[name]
        assert_nodes(graph, model, plan, low)
        assert_casts(graph, model)
        assert_initializers(graph, model)
        names = [str(node.name) for node in model.graph]
        assert len(set(names)) == len(names)
        values = [str(value.name) for node in model.graph for value in node.outputs]
        values += [str(value.name) for value in (*model.graph.inputs, *model.graph.initializers.values())]
        assert len(set(values)) == len(values)
        assert [v.name for v in model.graph.inputs] == [v.name for v in graph.model.graph.inputs]
        assert [v.name for v in model.graph.outputs] == [v.name for v in graph.model.graph.outputs]
    assert_boundaries(converted.models)
    originals = sum(len(graph.model.graph) for graph in graphs.values())
    assert converted.casts == sum(len(model.graph) for model in converted.models.values()) - originals
    assert converted.size_bytes == sum(map(weight_bytes, converted.models.values()))


def assert_nodes(graph: Graph, model: ir.Model, plan: Plan, low: ir.DataType) -> None:
    """Compute nodes work in the dtype that the plan says; every node has the dtypes it can have."""
    kept = [node for node in model.graph if node.name in graph.nodes]
    assert [(node.name, node.op_type) for node in kept] == [(node.name, node.op_type) for node in graph.model.graph]
    for node in kept:
        facts = graph.nodes[str(node.name)]
        inputs = {value.dtype for _, value in float_inputs(node)}
        outputs = {value.dtype for value in node.outputs if is_float(value)}
        if facts.kind is NodeKind.COMPUTE:
            wanted = FP32 if facts.key in plan.fp32 else low
            assert inputs | outputs == {wanted}, facts.key
        elif facts.kind is NodeKind.MOVEMENT:
            assert len(inputs | outputs) == 1, facts.key
        elif node.op_type not in ("Shape", "Size"):
            assert inputs | outputs <= {FP32}, facts.key


def assert_casts(graph: Graph, model: ir.Model) -> None:
    """Each added node is a cast; each value is cast at most once to a dtype; what was cast down is read low only."""
    casts = added_casts(graph, model)
    edges = Counter((node.inputs[0], node.attributes["to"].as_int()) for node in casts)
    assert set(edges.values()) <= {1}
    for node in casts:
        source, result = node.inputs[0], node.outputs[0]
        assert node.op_type == "Cast"
        assert source is not None
        assert not source.is_initializer()
        assert source.dtype != result.dtype == node.attributes["to"].as_int()
        if result.dtype != FP32:
            assert_never_cast_up(result, graph)


def assert_never_cast_up(value: ir.Value, graph: Graph) -> None:
    """No low-precision round trip: fp32, low on the way, fp32 again."""
    for reader, _ in value.uses():
        assert reader.op_type != "Cast" or reader.name in graph.nodes, value.name
        facts = graph.nodes.get(str(reader.name))
        if facts is not None and facts.kind is NodeKind.MOVEMENT:
            for output in reader.outputs:
                assert_never_cast_up(output, graph)


def assert_initializers(graph: Graph, model: ir.Model) -> None:
    """Weights are there once for each dtype somebody reads, rounded; nothing unread is stored, nothing overflowed."""
    for name, value in model.graph.initializers.items():
        assert value.uses() or value.is_graph_output(), name
        tensor = value.const_value
        assert tensor is not None
        assert tensor.dtype == value.dtype
        origin = graph.model.graph.initializers[name.removesuffix("/float16").removesuffix("/bfloat16")]
        if value.dtype in (FP32, ir.DataType.INT64):
            assert tensor is origin.const_value
            readers = list(read_as(value, graph))
            assert value.dtype != FP32 or not readers or FP32 in readers, f"only low nodes read {name}"
        else:
            assert np.array_equal(np.isfinite(tensor.numpy().astype(np.float32)), np.isfinite(array_of(origin)))


def read_as(value: ir.Value, graph: Graph) -> Iterator[ir.DataType | None]:
    """The dtypes in which a value is read in the end, behind all data movement and the converter's casts."""
    if value.is_graph_output():
        yield value.dtype
    for reader, _ in value.uses():
        facts = graph.nodes.get(str(reader.name))
        if facts is None or facts.kind is NodeKind.MOVEMENT:
            for output in reader.outputs:
                yield from read_as(output, graph)
        elif reader.op_type not in ("Shape", "Size"):
            yield value.dtype


def assert_boundaries(models: Mapping[GraphName, ir.Model]) -> None:
    dtypes: dict[str, set[ir.DataType | None]] = {}
    for model in models.values():
        for value in (*model.graph.inputs, *model.graph.outputs):
            crossing = SEQ2SEQ.crossing(str(value.name))
            if crossing is not None:
                dtypes.setdefault(crossing, set()).add(value.dtype)
    assert all(len(found) == 1 for found in dtypes.values())


def assert_valid(models: Mapping[GraphName, ir.Model], dtype: LowDtype) -> None:
    """onnx's checker with full type checks, and ONNX Runtime (whose CPU provider has no bfloat16 kernels) take them."""
    for model in models.values():
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        if dtype == "float16":
            create_session(model, SessionSettings(threads=1))


@PROPERTY
@given(recipe=RECIPES, choice=CHOICES)
def test_promises_hold_for_random_plans_on_random_graphs(recipe: Recipe, choice: Choice) -> None:
    graphs = recipe.graphs()
    before = snapshot(graphs)
    plan = choice.plan(graphs)
    converted = convert(graphs, plan)
    assert_promises(graphs, plan, converted)
    assert_valid(converted.models, plan.dtype)
    assert snapshot(graphs) == before


@settings(max_examples=20, deadline=None, derandomize=True)
@given(choice=CHOICES)
def test_promises_hold_for_random_plans_on_a_tiny_t5(tiny: Graphs, choice: Choice) -> None:
    plan = choice.plan(tiny)
    converted = convert(tiny, plan)
    assert_promises(tiny, plan, converted)
    assert_valid(converted.models, plan.dtype)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(choice=CHOICES)
def test_promises_hold_for_random_plans_on_the_demo(demo_bundle: Bundle, weights: WeightCache, choice: Choice) -> None:
    graphs = demo_bundle.graphs
    before = snapshot(graphs)
    plan = choice.plan(graphs)
    converted = convert(graphs, plan, weights)
    assert_promises(graphs, plan, converted)
    assert snapshot(graphs) == before


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True)
@given(choice=CHOICES)
def test_random_plans_on_the_demo_load(demo_bundle: Bundle, weights: WeightCache, choice: Choice) -> None:
    plan = choice.plan(demo_bundle.graphs)
    assert_valid(convert(demo_bundle.graphs, plan, weights).models, plan.dtype)


def snapshot(graphs: Graphs) -> list[object]:
    """Everything about graphs that a careless conversion of a clone would change: types, edges, constants."""
    found: list[object] = []
    for graph in graphs.values():
        model = graph.model
        for node in model.graph:
            edges = [None if value is None else (value.name, value.dtype, str(value.shape)) for value in node.inputs]
            found.append((node.name, node.op_type, edges, [(value.name, value.dtype) for value in node.outputs]))
        found.append([(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)])
        found.append([(name, value.dtype, id(value.const_value)) for name, value in model.graph.initializers.items()])
    return found


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_everything_in_fp32_gives_the_graphs_back(demo_bundle: Bundle, dtype: LowDtype) -> None:
    graphs = demo_bundle.graphs
    converted = convert(graphs, Plan(dtype, "base", all_compute_keys(graphs)))
    assert converted.casts == 0
    described = {name: Graph(name, model, graphs[name].nodes) for name, model in converted.models.items()}
    assert snapshot(described) == snapshot(graphs)


def test_all_low_keeps_no_fp32_number_but_for_index_arithmetic(demo_bundle: Bundle, weights: WeightCache) -> None:
    graphs = demo_bundle.graphs
    converted = convert(graphs, all_low(graphs), weights)
    for name, model in converted.models.items():
        pinned = {node.key for node in graphs[name].compute if node.pinned}
        for value in model.graph.initializers.values():
            if value.dtype == FP32:
                assert {str(reader.name) for reader, _ in value.uses()} <= pinned, value.name
    ints = sum(
        array_of(value).nbytes
        for graph in graphs.values()
        for value in graph.model.graph.initializers.values()
        if not is_float(value)
    )
    floats = sum(weight_bytes(graph.model) for graph in graphs.values()) - ints
    assert converted.size_bytes - ints <= floats / 2 + 100


def test_all_low_casts_only_around_index_arithmetic_and_integers(demo_bundle: Bundle, weights: WeightCache) -> None:
    # No float crosses between a low node and an fp32 one: index arithmetic starts and ends in integers.
    assert convert(demo_bundle.graphs, all_low(demo_bundle.graphs), weights).casts == 0


def test_the_same_plan_converts_to_the_same_bytes(tiny: Graphs, tmp_path: Path) -> None:
    plan = Choice("float16", 0.5, 3).plan(tiny)
    for run in ("a", "b"):
        for name, model in convert(tiny, plan).models.items():
            write_model(model, tmp_path / f"{run}_{name}.onnx")
    for name in tiny:
        assert (tmp_path / f"a_{name}.onnx").read_bytes() == (tmp_path / f"b_{name}.onnx").read_bytes()


def test_masks_saturate_and_stay_finite(demo_bundle: Bundle, weights: WeightCache) -> None:
    for name, model in convert(demo_bundle.graphs, all_low(demo_bundle.graphs), weights).models.items():
        lows = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.FLOAT16]
        smallest = min(float(array_of(value).min()) for value in lows)
        assert smallest == -65504.0, name
        assert all(np.isfinite(array_of(value)).all() for value in lows)


def masked(table: np.ndarray | None = None) -> dict[GraphName, Graph]:
    """A constant mask that two Adds read, one element or a table that is moved about."""
    write = Writer("encoder")
    x = write.input("x", FLOAT, (4, 4))
    if table is None:
        mask = write.op("", "Expand", write.weight("minimum", MASK), write.integers(4, 4))
    else:
        mask = write.op("", "Transpose", write.weight("table", table))
    for number in range(2):
        write.op("", "Add", x, mask, output=f"y{number}")
        write.output(f"y{number}", FLOAT, (4, 4))
    return one_graph(write)


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_a_mask_that_both_dtypes_read_is_stored_low_and_saturates(dtype: LowDtype) -> None:
    graphs = masked()
    model = convert(graphs, all_low(graphs, dtype, "encoder/Add.1")).models["encoder"]
    constants = {name: array_of(value) for name, value in model.graph.initializers.items() if is_float(value)}
    assert list(constants) == [f"minimum/{dtype}"]
    assert np.isfinite(constants[f"minimum/{dtype}"].astype(np.float32))


def test_a_table_of_masks_saturates_where_it_is_moved() -> None:
    table = np.where(np.tri(4) > 0, 0, MASK).astype(np.float32)
    graphs = masked(table)
    assert overflowing_weights(graphs, "float16") == {}
    model = convert(graphs, all_low(graphs)).models["encoder"]
    stored = array_of(model.graph.initializers["table/float16"])
    assert np.array_equal(stored, np.where(np.tri(4) > 0, 0, -65504))


BIG = np.array([[0.1, 7e4], [-8e4, 0.3]], np.float32)


def big_weight(turned: bool) -> dict[GraphName, Graph]:
    write = Writer("encoder")
    x = write.input("x", FLOAT, (2, 2))
    weight = write.weight("big", BIG)
    write.op("", "MatMul", x, write.op("", "Transpose", weight) if turned else weight, output="a")
    write.op("", "MatMul", "a", write.weight("small", np.eye(2, dtype=np.float32)), output="y")
    write.output("y", FLOAT, (2, 2))
    return one_graph(write)


@pytest.mark.parametrize("turned", [False, True])
def test_a_weight_out_of_range_is_named_and_refused(turned: bool) -> None:
    graphs = big_weight(turned)
    assert overflowing_weights(graphs, "float16") == {"encoder/MatMul": pytest.approx(8e4)}
    assert overflowing_weights(graphs, "bfloat16") == {}
    with pytest.raises(InputError, match="whose weight big does not fit into float16") as caught:
        convert(graphs, all_low(graphs))
    assert caught.value.why
    assert caught.value.fix
    kept = convert(graphs, all_low(graphs, "float16", "encoder/MatMul")).models["encoder"]
    assert np.array_equal(array_of(kept.graph.initializers["big"]), BIG)
    assert "small/float16" in kept.graph.initializers
    convert(graphs, all_low(graphs, "bfloat16"))


def test_an_infinite_weight_is_exact_in_every_dtype() -> None:
    write = Writer("encoder")
    x = write.input("x", FLOAT, (2, 2))
    write.op("", "Add", x, write.weight("mask", np.array([[0, -np.inf]] * 2, np.float32)), output="y")
    write.output("y", FLOAT, (2, 2))
    graphs = one_graph(write)
    assert overflowing_weights(graphs, "float16") == {}
    stored = array_of(convert(graphs, all_low(graphs)).models["encoder"].graph.initializers["mask/float16"])
    assert np.array_equal(stored, [[0, -np.inf]] * 2)


def test_the_demo_has_no_weight_out_of_range(demo_bundle: Bundle) -> None:
    assert overflowing_weights(demo_bundle.graphs, "float16") == {}


def test_a_weight_that_both_dtypes_read_is_stored_twice_and_shared() -> None:
    write = Writer("encoder")
    x = write.input("x", FLOAT, (4, 4))
    weight = write.weight("w", np.full((4, 4), 0.1, np.float32))
    for number in range(4):
        write.op("", "MatMul", x, weight, output=f"y{number}")
        write.output(f"y{number}", FLOAT, (4, 4))
    graphs = one_graph(write)
    plan = all_low(graphs, "float16", "encoder/MatMul", "encoder/MatMul.2")
    converted = convert(graphs, plan)
    stored = converted.models["encoder"].graph.initializers
    assert {name: len(value.uses()) for name, value in stored.items()} == {"w": 2, "w/float16": 2}
    assert converted.size_bytes == 16 * 4 + 16 * 2
    assert converted.casts == 1  # the input, once for its two readers


def test_a_graph_output_in_another_dtype_keeps_its_name_and_shares_its_cast() -> None:
    write = Writer("encoder")
    x = write.input("x", FLOAT, (4, 4))
    hidden = write.op("", "Relu", x, output="last_hidden_state")
    write.op("", "Neg", hidden, output="y")
    write.output("last_hidden_state", FLOAT, (4, 4))
    write.output("y", FLOAT, (4, 4))
    encoder = write.graph()
    reader = Writer("decoder")
    reader.op("", "Abs", reader.input("encoder_hidden_states", FLOAT, (4, 4)), output="logits")
    reader.output("logits", FLOAT, (4, 4))
    graphs: dict[GraphName, Graph] = {"encoder": encoder, "decoder": reader.graph()}
    converted = convert(graphs, all_low(graphs, "float16", "encoder/Relu"))
    outputs = {str(value.name): value.dtype for value in converted.models["encoder"].graph.outputs}
    # All readers of the encoder's output are low, so it crosses low; the Neg reads the same cast.
    assert outputs == {"last_hidden_state": ir.DataType.FLOAT16, "y": ir.DataType.FLOAT16}
    assert len(added_casts(encoder, converted.models["encoder"])) == 1
    assert converted.models["decoder"].graph.inputs[0].dtype == ir.DataType.FLOAT16


def test_comparisons_and_casts_of_the_original_still_read_fp32() -> None:
    write = Writer("encoder")
    x = write.input("x", FLOAT, (4, 4))
    negative = write.op("", "Neg", x)
    write.op("", "Cast", write.op("", "Less", negative, write.weight("zero", 0.0)), output="bits", to=INT64)
    write.op("", "Cast", negative, output="whole", to=INT64)
    for name in ("bits", "whole"):
        write.output(name, INT64, (4, 4))
    graphs = one_graph(write)
    model = convert(graphs, Plan("float16", "base", frozenset())).models["encoder"]
    for node in model.graph:
        if node.op_type in ("Less",) or node.outputs[0].name == "whole":
            assert {value.dtype for _, value in float_inputs(node)} == {FP32}


def test_a_node_with_several_float_outputs_is_cast_output_by_output() -> None:
    write = Writer("encoder")
    x = write.input("x", FLOAT, (4, 4))
    half = write.op("", "Split", write.op("", "Neg", x), axis=1, outputs=2, num_outputs=2)
    write.op("", "Abs", half, output="y0")
    write.op("", "Abs", f"{half}:1", output="y1")
    for number in range(2):
        write.output(f"y{number}", FLOAT, (4, 2))
    graphs = one_graph(write)
    converted = convert(graphs, all_low(graphs, "float16", "encoder/Abs", "encoder/Abs.1"))
    assert_promises(graphs, all_low(graphs, "float16", "encoder/Abs", "encoder/Abs.1"), converted)
    assert converted.casts == 1 + 2


def test_a_written_conversion_reads_back(tiny: Graphs, tmp_path: Path) -> None:
    for dtype in LOW_DTYPES:
        for name, model in convert(tiny, all_low(tiny, dtype, "lm_head/MatMul")).models.items():
            write_model(model, tmp_path / "m.onnx")
            onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
            read = load_model(tmp_path / "m.onnx")
            assert [node.name for node in read.graph] == [node.name for node in model.graph], name
            for key, value in model.graph.initializers.items():
                assert array_of(read.graph.initializers[key]).tobytes() == array_of(value).tobytes()


def nodes_between(*nodes: onnx.NodeProto, dtypes: Mapping[str, int]) -> ir.Model:
    """A model from fp32 `x` to `y` over these nodes, whose values have the dtypes given."""
    infos = {name: helper.make_tensor_value_info(name, dtype, [2]) for name, dtype in {"x": FLOAT, **dtypes}.items()}
    graph = helper.make_graph(nodes, "g", [infos["x"]], [infos["y"]], value_info=list(infos.values()))
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{source}-{target}", to=to)


HALF = TensorProto.FLOAT16


def test_the_check_of_types_finds_what_is_wrong() -> None:
    add = helper.make_node("Add", ["x", "a"], ["y"], "adds")
    good = nodes_between(cast("x", "a", HALF), cast("a", "b", FLOAT), dtypes={"a": HALF, "b": FLOAT, "y": FLOAT})
    check_types(good, "encoder")
    for model, word in (
        (nodes_between(cast("x", "a", HALF), add, dtypes={"a": HALF, "y": FLOAT}), "adds reads"),
        (nodes_between(helper.make_node("Neg", ["x"], ["y"], "negates"), dtypes={"y": HALF}), "negates reads"),
        (nodes_between(cast("x", "y", HALF), dtypes={"y": FLOAT}), "x-y casts to"),
    ):
        with pytest.raises(InternalError, match=word):
            check_types(model, "encoder")


def test_the_check_of_round_trips_finds_them() -> None:
    there_and_back = nodes_between(cast("x", "a", HALF), cast("a", "y", FLOAT), dtypes={"a": HALF, "y": FLOAT})
    with pytest.raises(InternalError, match="a-y casts what x-a has just cast"):
        check_round_trips(there_and_back, "encoder")
    twice = nodes_between(cast("x", "a", HALF), cast("x", "y", HALF), dtypes={"a": HALF, "y": HALF})
    with pytest.raises(InternalError, match="x is cast twice"):
        check_round_trips(twice, "encoder")


def test_the_check_of_boundaries_finds_disagreement(tiny: Graphs) -> None:
    models = dict(convert(tiny, all_low(tiny)).models)
    check_boundaries(models)
    models["decoder_with_past"] = convert(tiny, all_fp32(tiny)).models["decoder_with_past"]
    with pytest.raises(InternalError, match=r"0\.decoder\.key is FLOAT16 in decoder and FLOAT in decoder_with_past"):
        check_boundaries(models)


@pytest.mark.slow
def test_onnxconverter_common_gives_a_graph_that_does_not_load(demo_bundle: Bundle) -> None:
    """The comparison that FINDINGS.md records (4): why the converter is our own. Ours loads under the same plan."""
    from onnxconverter_common import float16

    classic = ["Pow", "ReduceMean", "Sqrt", "Softmax", "Relu"]
    proto = ir.to_proto(demo_bundle.graphs["decoder"].model)
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *classic]
    for block_list in (None, blocked):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one for each number that it moves, such as our mask's
            theirs = float16.convert_float_to_float16(proto, op_block_list=block_list)
        with pytest.raises(Exception, match="Type Error"):
            create_session_of(theirs)
    keys = {node.key for graph in demo_bundle.graphs.values() for node in graph.compute if node.op_type in classic}
    ours = convert(demo_bundle.graphs, all_low(demo_bundle.graphs, "float16", *keys))
    assert_valid(ours.models, "float16")
    assert any(is_weight(v) and v.dtype != FP32 for v in ours.models["decoder"].graph.initializers.values())


def create_session_of(proto: onnx.ModelProto) -> object:
    import onnxruntime

    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
