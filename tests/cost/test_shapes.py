"""Shapes at a workload: equal to those of the arrays that the graph computes, and never guessed in silence."""

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.cost.shapes import Point, evaluate_dim, infer_shapes
from precision_search.errors import InputError

# A decode step as exporters write it: a cache, a mask of computed length, reshapes to computed sizes, and no shape of
# anything between inputs and outputs. The text format has no dots in names: `__` stands for one.
STEP = """
<ir_version: 10, opset_import: ["" : 20]>
step (int64[batch_size, 1] input_ids, int64[batch_size, encoder_sequence_length] encoder_attention_mask,
      float[batch_size, 2, past_sequence_length, 3] past_key_values__0__decoder__key,
      float[batch_size, 2, encoder_sequence_length, 3] past_key_values__0__encoder__key)
  => (float[batch_size, 1, 6] logits, float[batch_size, 2, total, 3] present__0__decoder__key)
<float[2, 6] weight = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, int64 zero = {0}, int64 one = {1}, int64[1] minus = {-1},
 int64[1] ones = {1}, int64[3] flat = {0, 1, -1}, int64[1] heads = {2}, int64[1] width = {3}, int64[2] axes = {0, 1}>
{
  embedded = Gather (weight, input_ids)
  batch = Shape <start = 0, end = 1> (input_ids)
  split = Concat <axis = 0> (batch, minus, heads, width)
  query4 = Reshape (embedded, split)
  query = Transpose <perm = [0, 2, 1, 3]> (query4)
  present__0__decoder__key = Concat <axis = -2> (past_key_values__0__decoder__key, query)
  past1 = Shape <start = 2, end = 3> (past_key_values__0__decoder__key)
  past = Squeeze (past1)
  length = Add (past, one)
  positions = Range (zero, length, one)
  row = Unsqueeze (positions, axes)
  length1 = Reshape (length, minus)
  whole = Concat <axis = 0> (batch, ones, ones, length1)
  visible = LessOrEqual (row, past1)
  mask = Expand (visible, whole)
  floating = Cast <to = 1> (mask)
  keys = Transpose <perm = [0, 1, 3, 2]> (present__0__decoder__key)
  scores = MatMul (query, keys)
  masked = Mul (scores, floating)
  attention = Softmax <axis = -1> (masked)
  mixed = MatMul (attention, present__0__decoder__key)
  cross_keys = Transpose <perm = [0, 1, 3, 2]> (past_key_values__0__encoder__key)
  cross_scores = MatMul (mixed, cross_keys)
  cross = MatMul (cross_scores, past_key_values__0__encoder__key)
  back = Transpose <perm = [0, 2, 1, 3]> (cross)
  logits = Reshape (back, flat)
  variance = ReduceMean (logits, minus)
}
"""

POINTS = st.builds(Point, st.integers(1, 4), st.integers(1, 5), st.just(1), st.integers(1, 12))


def parse(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def step() -> ir.Model:
    model = parse(STEP)
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        value.name = str(value.name).replace("__", ".")
    return model


def computed(model: ir.Model, point: Point) -> dict[str, np.ndarray]:
    """Every array that the decode step computes at `point`, by onnx's reference implementation."""
    proto = ir.to_proto(model)
    names = sorted(str(value.name) for node in model.graph for value in node.outputs)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feeds = {
        "input_ids": np.ones((point.batch, 1), np.int64),
        "encoder_attention_mask": np.ones((point.batch, point.source), np.int64),
        "past_key_values.0.decoder.key": np.ones((point.batch, 2, point.past, 3), np.float32),
        "past_key_values.0.encoder.key": np.ones((point.batch, 2, point.source, 3), np.float32),
    }
    arrays = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)
    return {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}


@settings(max_examples=15, deadline=None)
@given(point=POINTS)
def test_shapes_and_dtypes_are_those_of_the_arrays_computed(point: Point) -> None:
    model = step()
    shapes = infer_shapes(model, point)
    arrays = computed(model, point)
    assert {name: shapes.dims[name] for name in arrays} == {name: array.shape for name, array in arrays.items()}
    assert {name: shapes.dtypes[name].numpy() for name in arrays} == {
        name: array.dtype for name, array in arrays.items()
    }
    assert shapes.assumed == ()


def test_initializers_and_inputs_are_among_the_shapes() -> None:
    shapes = infer_shapes(step(), Point(3, 5, past=4))
    assert shapes.dims["weight"] == (2, 6)
    assert shapes.dims["past_key_values.0.encoder.key"] == (3, 2, 5, 3)
    assert shapes.dims["past_key_values.0.decoder.key"] == (3, 2, 4, 3)


def test_misleading_symbols_do_not_matter_where_the_name_says_more() -> None:
    model = step()
    for value in model.graph.inputs:
        value.shape = ir.Shape(
            [dim if isinstance(dim, int) else f"s{axis}" for axis, dim in enumerate(value.shape or ())]
        )
    assert infer_shapes(model, Point(3, 5, past=4)).dims == infer_shapes(step(), Point(3, 5, past=4)).dims


def test_an_encoder_reads_source_tokens_where_a_decoder_reads_target_tokens() -> None:
    encoder = parse("""
    <ir_version: 10, opset_import: ["" : 20]>
    e (int64[b, s] input_ids, int64[b, s] attention_mask) => (int64[b, s] y) { y = Add (input_ids, attention_mask) }
    """)
    decoder = parse("""
    <ir_version: 10, opset_import: ["" : 20]>
    d (int64[b, t] input_ids, float[b, s, 6] encoder_hidden_states) => (int64[b, t] y) { y = Neg (input_ids) }
    """)
    point = Point(2, 7, target=3)
    assert infer_shapes(encoder, point).dims["y"] == (2, 7)
    assert infer_shapes(decoder, point).dims["y"] == (2, 3)


def test_other_inputs_are_bound_by_the_names_of_their_dimensions() -> None:
    model = parse("""
    <ir_version: 10, opset_import: ["" : 20]>
    d (float[batch, past_decoder_sequence_length] a, float[decoder_sequence_length, encoder_sequence_length_out] b)
      => (float[x, y] c, float[x, y] d) { c = Neg (a) d = Neg (b) }
    """)
    shapes = infer_shapes(model, Point(2, 7, target=3, past=4))
    assert shapes.dims["c"] == (2, 4)
    assert shapes.dims["d"] == (3, 7)
    assert shapes.assumed == ()


def test_an_input_that_nothing_explains_is_reported() -> None:
    model = parse("""
    <ir_version: 10, opset_import: ["" : 20]>
    d (float[mystery, 4] a) => (float[x, y] c) { c = Neg (a) }
    """)
    shapes = infer_shapes(model, Point(2, 7))
    assert shapes.dims["c"] == (1, 4)
    assert shapes.assumed == ("a",)


def test_a_fixed_size_that_the_workload_does_not_have_is_an_error() -> None:
    model = parse("""
    <ir_version: 10, opset_import: ["" : 20]>
    e (int64[1, s] input_ids) => (int64[1, s] y) { y = Neg (input_ids) }
    """)
    with pytest.raises(InputError) as caught:
        infer_shapes(model, Point(8, 7))
    assert "input_ids" in caught.value.what
    assert "8" in caught.value.why
    assert infer_shapes(model, Point(1, 7)).dims["y"] == (1, 7)


def custom(declared: list[int | str] | None) -> ir.Model:
    model = parse("""
    <ir_version: 10, opset_import: ["" : 20, "vendor" : 1]>
    d (float[batch_size, 2, past_sequence_length, 3] past_key_values) => (float[x] z)
    { y = vendor.Fused (past_key_values) z = Neg (y) }
    """)
    value = next(iter(model.graph)).outputs[0]
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = None if declared is None else ir.Shape(declared)
    return model


def test_an_unknown_op_has_the_shape_that_the_file_declares() -> None:
    shapes = infer_shapes(custom(["batch_size", "past_sequence_length + 1"]), Point(2, 7, past=4))
    assert shapes.dims["z"] == (2, 5)
    assert shapes.assumed == ()


@pytest.mark.parametrize("declared", [None, ["batch_size", "nobody_knows"]])
def test_an_unknown_op_without_a_usable_shape_is_reported_and_as_large_as_its_input(
    declared: list[int | str] | None,
) -> None:
    shapes = infer_shapes(custom(declared), Point(2, 7, past=4))
    assert shapes.dims["y"] == (2, 2, 4, 3)
    assert shapes.assumed == ("y",)


def test_an_inserted_cast_has_its_inputs_shape() -> None:
    model = step()
    logits = next(node for node in model.graph if node.outputs[0].name == "logits")
    cast = ir.node("Cast", [logits.outputs[0]], {"to": int(ir.DataType.FLOAT16)})
    cast.outputs[0].name = "logits_low"
    model.graph.insert_after(logits, cast)
    shapes = infer_shapes(model, Point(2, 7, past=4))
    assert shapes.dims["logits_low"] == shapes.dims["logits"]
    assert shapes.dtypes["logits_low"] == ir.DataType.FLOAT16


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("p", 4),
        ("p + 1", 5),
        ("2*p - s//3", 6),
        ("batch.1", 9),
        ("unknown + 1", None),
        ("p ** 2", None),
        ("__import__('os')", None),
        ("p //", None),
        ("p // 0", None),
        (None, None),
    ],
)
def test_symbolic_dimensions_are_evaluated(expression: str | None, value: int | None) -> None:
    assert evaluate_dim(expression, {"p": 4, "s": 7, "batch.1": 9}) == value
