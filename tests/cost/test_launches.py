"""What a node asks of the device: launches, elements moved, FLOPs, all counted by hand."""

import onnx
import onnx_ir as ir
import pytest

from precision_search.cost.launches import Work, node_work
from precision_search.cost.shapes import Point, infer_shapes
from precision_search.model.rewrites.sizes_on_device import place

HEADER = '<ir_version: 10, opset_import: ["" : 20, "vendor" : 1]>'


def works(signature: str, initializers: str, body: str) -> list[Work]:
    """The work of every node of a graph; all sizes are in its signature."""
    model = ir.from_proto(
        onnx.parser.parse_model(f"{HEADER} g ({signature}) => (float[n] z) <{initializers}> {{{body}}}")
    )
    shapes = infer_shapes(model, Point(1, 1))
    placement = place(model)
    return [node_work(node, shapes, idle=node in placement.idle) for node in model.graph]


def work(signature: str, initializers: str, body: str) -> Work:
    (only,) = works(signature, initializers, body)
    return only


def test_a_matrix_product_has_two_flops_for_each_multiplication() -> None:
    found = work("float[5, 2, 3, 4] a, float[5, 2, 4, 6] b", "", "z = MatMul (a, b)")
    assert found == Work(1, (120, 240, 180), 2 * 5 * 2 * 3 * 4 * 6)


def test_a_product_with_a_weight_reads_the_weight_once() -> None:
    found = work("float[5, 3, 2] a", "float[2, 3] w = {1, 2, 3, 4, 5, 6}", "z = MatMul (a, w)")
    assert found == Work(1, (30, 6, 45), 2 * 5 * 3 * 2 * 3)


def test_a_gemm_sums_over_the_axis_its_transposition_says() -> None:
    found = work("float[7, 3] a, float[7, 4] b", "", "z = Gemm <transA = 1> (a, b)")
    assert found == Work(1, (21, 28, 12), 2 * 3 * 4 * 7)


def test_a_bias_is_one_more_launch_and_one_more_pass_over_the_output() -> None:
    found = work("float[3, 7] a, float[7, 4] b, float[4] c", "", "z = Gemm (a, b, c)")
    assert found == Work(2, (21, 28, 4, 36), 2 * 3 * 4 * 7)


def test_a_broadcast_operand_is_read_once() -> None:
    assert work("float[2, 3, 4] a, float[3, 1] b", "", "z = Add (a, b)") == Work(1, (24, 3, 24), 0)


def test_a_gather_reads_the_rows_it_writes() -> None:
    assert work("float[1000, 4] a, int64[2, 3] i", "", "z = Gather (a, i)") == Work(1, (24, 6, 24), 0)


def test_a_slice_reads_what_it_writes_and_no_bounds() -> None:
    found = work("float[10, 4] a", "int64[1] start = {2}, int64[1] end = {5}", "z = Slice (a, start, end)")
    assert found == Work(1, (12, 0, 0, 12), 0)


def test_a_mean_is_a_reduction_and_a_division_of_the_sums() -> None:
    found = work("float[2, 3, 4] a", "int64[1] axes = {-1}", "z = ReduceMean (a, axes)")
    assert found == Work(2, (24, 0, 18), 0)


@pytest.mark.parametrize("shape", ["1, 1, 24", "2, 3, 4"])
def test_a_sum_of_everything_is_set_to_zero_first(shape: str) -> None:
    axes = "-1" if shape.startswith("1") else "0, 1, 2"
    count = axes.count(",") + 1
    assert work(f"float[{shape}] a", f"int64[{count}] axes = {{{axes}}}", "z = ReduceMean (a, axes)").launches == 3
    assert work(f"float[{shape}] a", f"int64[{count}] axes = {{{axes}}}", "z = ReduceSum (a, axes)").launches == 2


def test_a_sum_over_the_first_axis_is_set_to_zero_first() -> None:
    assert work("float[2, 3] a", "int64[1] axes = {0}", "z = ReduceSum (a, axes)") == Work(2, (6, 0, 6), 0)


def test_an_expansion_to_the_same_size_is_copied_as_well() -> None:
    found = works("float[2, 3] a", "int64[2] same = {2, 3}, int64[2] more = {2, 6}", "z = Expand (a, same)")
    assert found == [Work(2, (12, 0, 12), 0)]
    assert work("float[2, 1] a", "int64[2] more = {2, 6}", "z = Expand (a, more)") == Work(1, (2, 0, 12), 0)


@pytest.mark.parametrize(("axis", "launches", "factor"), [(-1, 1, 1), (2, 1, 1), (1, 3, 3)])
def test_a_softmax_over_another_axis_is_transposed_there_and_back(axis: int, launches: int, factor: int) -> None:
    found = work("float[2, 3, 4] a", "", f"z = Softmax <axis = {axis}> (a)")
    assert found == Work(launches, (24 * factor, 24 * factor), 0)


@pytest.mark.parametrize("body", ["z = Transpose <perm = [1, 0]> (a)", "z = Cast <to = 10> (a)"])
def test_movement_and_casts_are_one_pass(body: str) -> None:
    assert work("float[3, 4] a", "", body) == Work(1, (12, 12), 0)


def test_a_concat_copies_everything() -> None:
    assert work("float[2, 3] a, float[2, 1] b", "", "z = Concat <axis = 1> (a, b)") == Work(1, (6, 2, 8), 0)


@pytest.mark.parametrize(
    "body",
    ["z = Reshape (a, to)", "z = Flatten (a)", "z = Identity (a)", "z = Unsqueeze (a, at)", "z = Squeeze (a, at)"],
)
def test_a_view_costs_nothing(body: str) -> None:
    found = work("float[1, 12] a", "int64[2] to = {3, 4}, int64[1] at = {0}", body)
    assert (found.launches, sum(found.moved), found.flops) == (0, 0, 0)


def test_what_depends_on_constants_only_is_folded() -> None:
    found = works("float[2, 2] a", "float[2, 2] w = {1, 2, 3, 4}", "t = Transpose (w) n = Neg (t) z = MatMul (a, n)")
    assert [each.launches for each in found] == [0, 0, 1]


def test_arithmetic_on_shapes_runs_on_the_host() -> None:
    body = """
      s = Shape <start = 0, end = 1> (a)
      u = Shape <start = 1, end = 2> (a)
      n = Squeeze (s)
      m = Add (n, one)
      both = Concat <axis = 0> (s, u)
      r = Range (zero, m, one)
      k = Neg (r)
      e = Expand (r, both)
      z = Reshape (a, both)
    """
    found = works("float[3, 4] a", "int64 one = {1}, int64 zero = {0}", body)
    # The kernel of Range reads its operands on the host, which is why it need not run there: the device gets the rest.
    assert [each.launches for each in found] == [0, 0, 0, 0, 0, 1, 1, 1, 0]


def test_an_integer_input_is_not_on_the_host() -> None:
    assert work("int64[2, 3] i, int64[2, 3] j", "", "z = Add (i, j)").launches == 1


def test_an_initializer_that_is_also_an_input_is_no_constant() -> None:
    model = ir.from_proto(
        onnx.parser.parse_model(f"{HEADER} g (float[2] a, float[2] b) => (float[2] z) {{z = Neg (b)}}")
    )
    model.graph.initializers["b"] = model.graph.inputs[1]
    assert place(model).idle == frozenset()


def test_an_unknown_op_is_one_pass_and_says_so() -> None:
    found = work("float[2, 3] a", "", "z = vendor.Mystery (a)")
    assert found == Work(1, (6, 6), 0, modelled=False)


def test_an_absent_input_moves_nothing() -> None:
    assert work("float[2, 3] a", "float low = {0}", "z = Clip (a, , low)").moved == (6, 0, 1, 6)
