"""The cost model: sums done by hand, properties of any roofline, and agreement with brute force over all steps."""

from collections.abc import Mapping

import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.cost.estimate import CostModel, Workload, placement_costs
from precision_search.cost.launches import node_work
from precision_search.cost.shapes import Point, infer_shapes
from precision_search.device.profile import Assumptions, Datasheet, DeviceProfile, load_profile
from precision_search.errors import ConfigError, InternalError
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GraphName, is_weight
from precision_search.model.rewrites.sizes_on_device import place

Models = Mapping[GraphName, ir.Model]


def device(*, launch_us: float = 1.0, scale: float = 1.0, bandwidth: float = 1.0) -> DeviceProfile:
    """A device of round numbers: it reaches 1 TFLOP/s in fp32, 4 in fp16, 0.5 in bf16, 1 GB/s; times the scales."""
    sheet = Datasheet("Round", "made up", 2.0 * scale, 8.0 * scale, 2.0 * scale * bandwidth, 8.0, 1.0 * scale)
    return DeviceProfile("round", sheet, Assumptions("made up", launch_us, 0.5, 0.5, 0.5, 0.3, 0.2))


def parse(body: str) -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {body}'))
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}.{index}"
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        value.name = str(value.name).replace("__", ".")
    return model


def weight(name: str, rows: int, columns: int) -> str:
    return f"float[{rows}, {columns}] {name} = {{{', '.join(['1'] * rows * columns)}}}"


ENCODER = f"""
encoder (int64[b, s] input_ids) => (float[b, s, 8] y)
<{weight("table", 5, 8)}, {weight("w", 8, 8)}, float two = {{2}}, float tiny = {{0.001}}, int64[1] last = {{-1}}>
{{
  x = Gather (table, input_ids)
  p = Pow (x, two)
  m = ReduceMean (p, last)
  a = Add (m, tiny)
  r = Sqrt (a)
  i = Reciprocal (r)
  h = Mul (x, i)
  l = MatMul (h, w)
  y = Add (x, l)
}}
"""

FIRST = f"""
decoder (int64[b, t] input_ids, float[b, s, 8] encoder_hidden_states) => (float[b, t, 5] y)
<{weight("table", 5, 8)}, {weight("head", 8, 5)}>
{{
  x = Gather (table, input_ids)
  k = Transpose <perm = [0, 2, 1]> (encoder_hidden_states)
  q = MatMul (x, k)
  a = Softmax <axis = -1> (q)
  c = MatMul (a, encoder_hidden_states)
  y = MatMul (c, head)
}}
"""

# The position bias is computed for all pairs of positions: its size is quadratic in the length of the past.
NEXT = f"""
next (int64[b, 1] input_ids, float[b, 2, p, 4] past_key_values__0__decoder__key) => (float[b, 1, 5] y)
<{weight("table", 5, 8)}, {weight("head", 8, 5)}, int64[4] split = {{0, -1, 2, 4}}, int64[3] join = {{0, 1, -1}},
 int64 zero = {{0}}, int64 one = {{1}}, int64[2] rows = {{0, 1}}, int64[3] columns = {{0, 1, 3}}>
{{
  x = Gather (table, input_ids)
  x4 = Reshape (x, split)
  q = Transpose <perm = [0, 2, 1, 3]> (x4)
  k = Concat <axis = 2> (past_key_values__0__decoder__key, q)
  kt = Transpose <perm = [0, 1, 3, 2]> (k)
  n1 = Shape <start = 2, end = 3> (k)
  n = Squeeze (n1)
  r = Range (zero, n, one)
  f = Cast <to = 1> (r)
  f4 = Unsqueeze (f, columns)
  f5 = Transpose <perm = [0, 1, 3, 2]> (f4)
  bias = Sub (f4, f5)
  last = ReduceMax <keepdims = 1> (bias, rows)
  s = MatMul (q, kt)
  b = Add (s, last)
  a = Softmax <axis = -1> (b)
  c = MatMul (a, k)
  t = Transpose <perm = [0, 2, 1, 3]> (c)
  j = Reshape (t, join)
  y = MatMul (j, head)
}}
"""


def typed(models: dict[GraphName, ir.Model]) -> dict[GraphName, ir.Model]:
    """The same graphs with the dtype of every value written down, as a bundle has them."""
    for model in models.values():
        dtypes = infer_shapes(model, Point(2, 3, past=4)).dtypes
        for value in (value for node in model.graph for value in node.outputs):
            value.type = ir.TensorType(dtypes[str(value.name)])
    return models


def graphs() -> dict[GraphName, ir.Model]:
    return typed({"encoder": parse(ENCODER), "decoder": parse(FIRST), "decoder_with_past": parse(NEXT)})


def all_low(models: Models, dtype: ir.DataType = ir.DataType.FLOAT16) -> Models:
    """Every float value low, with no regard for where the numbers go."""
    converted = {}
    for name, original in models.items():
        converted[name] = model = original.clone()
        outputs = [value for node in model.graph for value in node.outputs]
        for value in [*model.graph.inputs, *model.graph.initializers.values(), *outputs]:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(dtype)
    return converted


def insert_cast(model: ir.Model, value_name: str, dtype: ir.DataType, *, is_typed: bool = True) -> ir.Value:
    """Puts a cast behind the value and gives it to all readers."""
    value = next(value for node in model.graph for value in node.outputs if value.name == value_name)
    producer = value.producer()
    assert producer is not None
    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"cast/{value_name}")
    cast.outputs[0].name = f"{value_name}/{dtype.name}"
    if is_typed:
        cast.outputs[0].type = ir.TensorType(dtype)
    for node, index in value.uses():
        if node is not cast:
            node.replace_input_with(index, cast.outputs[0])
    model.graph.insert_after(producer, cast)
    return cast.outputs[0]


def low_product(*, is_typed: bool = True) -> Models:
    """The three graphs with only the encoder's matrix product in fp16, between two casts."""
    models = {name: model.clone() for name, model in graphs().items()}
    encoder = models["encoder"]
    encoder.graph.initializers["w"].type = ir.TensorType(ir.DataType.FLOAT16)
    product = next(node for node in encoder.graph if node.op_type == "MatMul")
    insert_cast(encoder, "h", ir.DataType.FLOAT16, is_typed=is_typed)
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16) if is_typed else None
    insert_cast(encoder, "l", ir.DataType.FLOAT, is_typed=is_typed)
    return models


def milliseconds(models: Models, workload: Workload, profile: DeviceProfile) -> float:
    return CostModel(models, workload, profile).estimate(models).p50_ms


def test_a_small_product_costs_its_launch_and_its_bytes() -> None:
    models: Models = {
        "encoder": parse(f"g (float[batch, 4] a) => (float[b, 3] z) <{weight('w', 4, 3)}> {{z = MatMul (a, w)}}")
    }
    moved = (2 * 4 + 4 * 3 + 2 * 3) * 4
    assert milliseconds(models, Workload(2, 5, 1), device()) == pytest.approx((1e-6 + moved / 1e9) * 1e3)


LARGE: Models = {
    "encoder": parse("g (float[8, batch, 4096] a, float[8, 4096, batch] b) => (float[x] z) {z = MatMul (a, b)}")
}
LARGE_FLOPS = 2 * 8 * 4096**3


def test_a_large_product_costs_its_launch_and_its_flops_at_the_rate_of_its_dtype() -> None:
    cost = CostModel(LARGE, Workload(4096, 1, 1), device(bandwidth=10))
    fp32, fp16 = cost.node_costs("encoder")["MatMul.0"]
    _, bf16 = cost.node_costs("encoder", "bfloat16")["MatMul.0"]
    assert fp32 == pytest.approx(1e-6 + LARGE_FLOPS / 1e12)
    assert fp16 == pytest.approx(1e-6 + LARGE_FLOPS / 4e12)
    assert bf16 == pytest.approx(1e-6 + LARGE_FLOPS / 0.5e12)


def test_the_same_product_is_bound_by_its_bytes_where_bandwidth_is_short() -> None:
    cost = CostModel(LARGE, Workload(4096, 1, 1), device())
    assert cost.node_costs("encoder")["MatMul.0"] == pytest.approx(
        (1e-6 + 8 * 4096**2 * 3 * 4 / 1e9, 1e-6 + 8 * 4096**2 * 3 * 2 / 1e9)
    )


def test_an_addition_reads_the_broadcast_operand_once() -> None:
    models: Models = {"encoder": parse("g (float[batch, 4, 8] a, float[8] b) => (float[x] z) {z = Add (a, b)}")}
    cost = CostModel(models, Workload(3, 1, 1), device())
    assert cost.node_costs("encoder")["Add.0"] == pytest.approx(
        (1e-6 + (96 + 8 + 96) * 4 / 1e9, 1e-6 + (96 + 8 + 96) * 2 / 1e9)
    )


def test_views_cost_nothing() -> None:
    models: Models = {"encoder": parse("g (float[batch, 4] a) => (float[x] z) {z = Flatten (a)}")}
    assert milliseconds(models, Workload(3, 1, 1), device()) == 0.0


def test_a_cast_costs_its_launch_and_both_sides() -> None:
    cost = CostModel(graphs(), Workload(3, 7, 5), device())
    assert cost.cast_cost("encoder", "h") == pytest.approx(1e-6 + 3 * 7 * 8 * (4 + 2) / 1e9)
    lengths = [past + 1 for past in range(1, 5)]
    assert cost.cast_cost("decoder_with_past", "k") == pytest.approx(
        sum(1e-6 + 3 * 2 * length * 4 * (4 + 2) / 1e9 for length in lengths)
    )


def test_a_constant_is_stored_converted_so_that_its_cast_costs_nothing() -> None:
    assert CostModel(graphs(), Workload(3, 7, 5), device()).cast_cost("encoder", "w") == 0.0


def test_the_decoder_with_past_runs_once_for_every_token_but_the_first() -> None:
    launch_only = device(scale=1e9)
    models: Models = {name: parse("g (float[batch, 4] a) => (float[x] z) {z = Neg (a)}") for name in graphs()}
    for steps in (1, 2, 17):
        expected = (1 + 1 + steps - 1) * 1e-6 * 1e3
        assert milliseconds(models, Workload(1, 1, steps), launch_only) == pytest.approx(expected, rel=1e-4)


def brute_force(models: Models, workload: Workload, profile: DeviceProfile) -> float:
    """Milliseconds in fp32 as a plain sum over every run, each with shapes of its own."""
    runs: list[tuple[GraphName, Point]] = [
        ("encoder", Point(workload.batch, workload.source_length)),
        ("decoder", Point(workload.batch, workload.source_length)),
    ]
    for past in range(1, workload.target_length):
        runs.append(("decoder_with_past", Point(workload.batch, workload.source_length, past=past)))
    total = 0.0
    for name, point in runs:
        shapes, placement = infer_shapes(models[name], point), place(models[name])
        for node in models[name].graph:
            work = node_work(node, shapes, idle=node in placement.idle)
            sizes = [shapes.dtypes[str(value.name)].itemsize for value in (*node.inputs, *node.outputs) if value]
            moved = sum(elements * size for elements, size in zip(work.moved, sizes, strict=True))
            rate = profile.flops_per_second("float32")
            total += work.launches * profile.launch_seconds
            total += max(work.flops / rate, moved / profile.bytes_per_second)
    return total * 1e3


@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 64), source=st.integers(1, 9), target=st.integers(1, 14), fast=st.booleans())
def test_interpolating_over_the_past_is_exact(batch: int, source: int, target: int, fast: bool) -> None:
    models, workload = graphs(), Workload(batch, source, target)
    # With little compute the same products are bound by FLOPs at some lengths and by bytes at others.
    profile = device(launch_us=0.1, scale=1.0 if fast else 1e-3)
    assert milliseconds(models, workload, profile) == pytest.approx(brute_force(models, workload, profile), rel=1e-12)


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(2, 300),  # a single token takes one launch more in each sum (tests/dry_cuda)
    more=st.integers(1, 300),
    lengths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    name=st.sampled_from(["t4", "a10g", "l4", "a100", "h100"]),
)
def test_more_sentences_or_longer_ones_are_never_cheaper(
    batch: int, more: int, lengths: tuple[int, int], name: str
) -> None:
    profile, models = load_profile(name), graphs()
    base = milliseconds(models, Workload(batch, *lengths), profile)
    assert milliseconds(models, Workload(batch + more, *lengths), profile) >= base
    assert milliseconds(models, Workload(batch, lengths[0] + 1, lengths[1]), profile) >= base
    assert milliseconds(models, Workload(batch, lengths[0], lengths[1] + 1), profile) > base


@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 10_000), scale=st.floats(1.0, 100.0), launch_us=st.floats(0.0, 1.0))
def test_a_faster_device_is_never_slower(batch: int, scale: float, launch_us: float) -> None:
    models, workload = graphs(), Workload(batch, 7, 5)
    slow = milliseconds(models, workload, device())
    assert milliseconds(models, workload, device(scale=scale, launch_us=launch_us)) <= slow * (1 + 1e-12)


@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 5000), name=st.sampled_from(["t4", "a10g", "l4", "a100", "h100"]))
def test_no_node_is_slower_low_than_in_fp32(batch: int, name: str) -> None:
    models = graphs()
    cost = CostModel(models, Workload(batch, 7, 5), load_profile(name))
    for graph in models:
        assert all(fp16 <= fp32 for fp32, fp16 in cost.node_costs(graph).values())


def test_an_estimate_is_the_sum_of_its_nodes() -> None:
    models = graphs()
    cost = CostModel(models, Workload(64, 7, 5), device())
    fp32 = sum(high for graph in models for high, _ in cost.node_costs(graph).values())
    fp16 = sum(low for graph in models for _, low in cost.node_costs(graph).values())
    assert cost.estimate(models).p50_ms == pytest.approx(fp32 * 1e3)
    assert cost.estimate(all_low(models)).p50_ms == pytest.approx(fp16 * 1e3)
    assert fp16 < fp32


@pytest.mark.parametrize("is_typed", [True, False])
def test_a_mixed_graph_costs_its_nodes_in_their_dtypes_and_its_casts(is_typed: bool) -> None:
    models = graphs()
    cost = CostModel(models, Workload(64, 7, 5), device())
    fp32, fp16 = cost.node_costs("encoder")["MatMul.7"]
    casts = cost.cast_cost("encoder", "h") + cost.cast_cost("encoder", "l")
    expected = cost.estimate(models).p50_ms + (fp16 - fp32 + casts) * 1e3
    assert cost.estimate(low_product(is_typed=is_typed)).p50_ms == pytest.approx(expected)


def test_a_cast_of_a_cast_still_knows_its_size() -> None:
    models = dict(graphs())
    models["encoder"] = models["encoder"].clone()
    insert_cast(models["encoder"], "l", ir.DataType.FLOAT16)
    insert_cast(models["encoder"], "l/FLOAT16", ir.DataType.FLOAT)
    cost = CostModel(graphs(), Workload(64, 7, 5), device())
    expected = cost.estimate(graphs()).p50_ms + 2e3 * cost.cast_cost("encoder", "l")
    assert cost.estimate(models).p50_ms == pytest.approx(expected)


def test_renamed_outputs_do_not_matter() -> None:
    models = dict(low_product())
    cost = CostModel(graphs(), Workload(64, 7, 5), device())
    expected = cost.estimate(models)
    for node in models["encoder"].graph:
        for value in node.outputs:
            value.name = f"renamed/{value.name}"
    assert cost.estimate(models) == expected


def test_at_batch_1_casts_cost_more_than_fp16_saves_and_at_a_large_batch_less() -> None:
    gains = []
    for batch in (1, 100_000):
        cost = CostModel(graphs(), Workload(batch, 16, 16), load_profile("t4"))
        gains.append(cost.estimate(graphs()).p50_ms / cost.estimate(low_product()).p50_ms)
        gains.append(cost.estimate(graphs()).p50_ms / cost.estimate(all_low(graphs())).p50_ms)
    assert gains[0] < 1.0
    assert gains[1] == pytest.approx(1.0, abs=0.01)
    assert gains[3] > 1.8


def test_the_interval_spans_the_assumptions() -> None:
    models: Models = {"encoder": parse("g (float[batch, 4] a) => (float[x] z) {z = Neg (a)}")}
    estimate = CostModel(models, Workload(1000, 1, 1), device()).estimate(models)
    launching, working = 1e-3, 1000 * 4 * 2 * 4 / 1e9 * 1e3
    assert (estimate.low_ms, estimate.p50_ms, estimate.high_ms) == pytest.approx(
        (launching * 0.7 + working / 1.2, launching + working, launching * 1.3 + working / 0.8)
    )
    assert (estimate.source, estimate.profile) == ("estimated", "round")


def test_a_device_without_bfloat16_refuses_bfloat16() -> None:
    cost = CostModel(graphs(), Workload(1, 1, 2), load_profile("t4"))
    with pytest.raises(ConfigError, match="t4 cannot estimate bfloat16"):
        cost.node_costs("encoder", "bfloat16")
    with pytest.raises(ConfigError, match="t4 cannot estimate bfloat16"):
        cost.estimate(all_low(graphs(), ir.DataType.BFLOAT16))


def test_what_is_guessed_is_said() -> None:
    models: Models = {
        "encoder": ir.from_proto(
            onnx.parser.parse_model(
                '<ir_version: 10, opset_import: ["" : 20, "vendor" : 1]>'
                "g (float[batch, 4] a) => (float[x] z) {y = vendor.Mystery (a) z = Neg (y)}"
            )
        )
    }
    for node in models["encoder"].graph:
        node.name = f"key/{node.op_type}"
    cost = CostModel(models, Workload(2, 1, 1), device())
    assert cost.assumed_shapes == {"encoder": ("y", "z")}
    assert cost.unmodelled == {"encoder": ("key/Mystery",)}
    assert CostModel(graphs(), Workload(2, 1, 3), device()).assumed_shapes == dict.fromkeys(graphs(), ())


def test_other_graphs_are_refused() -> None:
    cost = CostModel(graphs(), Workload(2, 1, 3), device())
    with pytest.raises(InternalError, match="other graphs"):
        cost.estimate({"encoder": graphs()["encoder"]})


def test_a_new_node_that_is_no_cast_is_refused() -> None:
    cost = CostModel(graphs(), Workload(2, 1, 3), device())
    models = {name: model.clone() for name, model in graphs().items()}
    next(iter(models["encoder"].graph)).name = "new"
    with pytest.raises(InternalError, match=r"does not know node new \(Gather\)"):
        cost.estimate(models)


def test_nodes_that_share_a_name_are_refused() -> None:
    models = graphs()
    for node in models["decoder"].graph:
        node.name = "same"
    with pytest.raises(InternalError, match="nodes of the decoder share a name"):
        CostModel(models, Workload(1, 1, 1), device())


@pytest.mark.parametrize("field", ["batch", "source_length", "target_length"])
def test_a_workload_needs_something_to_do(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Workload(**{"batch": 1, "source_length": 1, "target_length": 1, field: 0})


def test_placement_costs_are_those_of_nodes_and_casts_and_storing_twice_is_nearly_free(demo_bundle: Bundle) -> None:
    model = CostModel(demo_bundle.models, Workload(64, 16, 16), load_profile("h100"))
    costs = placement_costs(model, demo_bundle.graphs, "bfloat16")
    for name, graph in demo_bundle.graphs.items():
        assert costs.nodes[name] == model.node_costs(name, "bfloat16")
        assert costs.casts[name].keys() >= {str(value.name) for value in graph.model.graph.outputs}
        assert all(seconds == model.cast_cost(name, value) for value, seconds in costs.casts[name].items())
        assert costs.duplicates[name].keys() == {
            value_name for value_name, value in graph.model.graph.initializers.items() if is_weight(value)
        }
    # The largest weight is read by one node, which takes at least as long as that.
    largest = max(costs.duplicates["decoder"].values())
    assert 0 < largest < 0.01 * costs.nodes["decoder"]["lm_head/MatMul"][1]
