"""What the host computes of a graph, and graphs whose device kernels read none of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.model.bundle import Bundle
from precision_search.model.graph import describe
from precision_search.model.host_side import compute_sizes_on_device, place
from precision_search.runtime.session import SessionSettings, create_session

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
CONSTANTS = "int64 zero = {0}, int64[1] zeros = {0}, int64 one = {1}, int64 three = {3}, int64[1] first = {0}"

POSITION = """
  s = Shape <start = 1, end = 2> (ids)
  n = Squeeze (s)
  m = Add (n, one)
  r = Range (zero, m, one)
  p = Add (zeros, n)
  q = Unsqueeze (p, first)
  y = Sub (r, p)
  z = Less (r, q)
"""
"""As torch exports the position of the next token: a length that device kernels compare with and subtract."""

TYPES = "int64[2, n] ids) => (int64[k] y, bool[1, k] z"


def model_of(body: str, signature: str = TYPES) -> ir.Model:
    proto = onnx.parser.parse_model(f"{HEADER} g ({signature}) <{CONSTANTS}> {{{body}}}")
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    return ir.from_proto(inferred)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, length: int) -> list[np.ndarray]:
    session = create_session(model, SessionSettings(threads=1))
    return [np.asarray(each) for each in session.run(None, {"ids": np.zeros((2, length), np.int64)})]


@settings(max_examples=10, deadline=None)
@given(length=st.integers(0, 40))
def test_the_results_stay_the_same(length: int) -> None:
    model = model_of(POSITION)
    before = run(model, length)
    assert compute_sizes_on_device(model) == 2
    for ours, theirs in zip(run(model, length), before, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)


def test_one_range_serves_all_who_read_the_same_number() -> None:
    model = model_of(POSITION)
    compute_sizes_on_device(model)
    assert ops(model).count("Range") == 2
    host = place(model).host
    for node in model.graph:
        if node.op_type in {"Sub", "Less"}:
            assert not {str(value.name) for value in node.inputs if value is not None} & host


def test_what_nobody_reads_any_more_is_gone() -> None:
    model = model_of(POSITION)
    compute_sizes_on_device(model)
    assert ops(model).count("Unsqueeze") == 0
    assert "zeros" not in model.graph.initializers
    onnx.checker.check_model(ir.to_proto(model))


def test_a_second_time_changes_nothing() -> None:
    model = model_of(POSITION)
    compute_sizes_on_device(model)
    before = ops(model)
    assert compute_sizes_on_device(model) == 0
    assert ops(model) == before


def test_numbers_that_differ_get_a_range_each() -> None:
    body = """
      s = Shape <start = 1, end = 2> (ids)
      n = Squeeze (s)
      m = Mul (n, three)
      a = Add (ids, n)
      y = Sub (a, m)
    """
    model = model_of(body, "int64[2, n] ids) => (int64[2, n] y")
    before = run(model, 5)
    assert compute_sizes_on_device(model) == 2
    assert ops(model).count("Range") == 2
    np.testing.assert_array_equal(run(model, 5)[0], before[0])


@pytest.mark.parametrize(
    "body",
    [
        "s = Shape (ids) y = Expand (one, s)",  # the kernel reads it on the host
        "s = Shape (ids) t = Neg (s) y = Add (ids, t)",  # more than one number
        "s = Size (ids) f = Cast <to = 1> (s) g = Cast <to = 7> (f) h = Cast <to = 6> (g) i = Cast <to = 6> (ids) "
        "j = Add (i, h) y = Cast <to = 7> (j)",  # not int64
    ],
)
def test_anything_else_stays_as_it_is(body: str) -> None:
    model = model_of(body, "int64[2, 2] ids) => (int64[2, 2] y")
    before = ops(model)
    assert compute_sizes_on_device(model) == 0
    assert ops(model) == before


def test_new_nodes_take_names_that_are_free() -> None:
    model = model_of(POSITION)
    for node, name in zip(
        model.graph, ("Shape", "Squeeze", "Add", "Range", "Add.1", "Unsqueeze", "Sub", "Less"), strict=True
    ):
        node.name = f"decoder/aux/{name}"
    model.metadata_props["precision_search.keyed"] = "1"
    compute_sizes_on_device(model)
    found = [str(node.name) for node in model.graph]
    assert len(set(found)) == len(found)
    assert "decoder/aux/Range.1" in found
    assert list(describe("decoder", model).nodes) == found


def test_a_decode_step_of_the_demo_reads_no_size_from_the_host(demo_bundle: Bundle) -> None:
    for graph in demo_bundle.graphs.values():
        assert compute_sizes_on_device(graph.model.clone()) == 0
    assert "decoder/aux/Range.3" in demo_bundle.graphs["decoder_with_past"].nodes
