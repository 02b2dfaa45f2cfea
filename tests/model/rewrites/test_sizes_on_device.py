"""What the host computes of a graph, and graphs whose device kernels read none of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.model.bundle import Bundle
from precision_search.model.graph import describe
from precision_search.model.layout import graph_file
from precision_search.model.onnx_files import read_model
from precision_search.model.rewrites.sizes_on_device import compute_sizes_on_device, place
from precision_search.runtime.backends import create_session
from precision_search.runtime.session import SessionSettings

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
CONSTANTS = (
    "int64 zero = {0}, int64[1] zeros = {0}, int64 one = {1}, int64 three = {3}, int64[1] first = {0}, "
    "int64[1] single = {1}"
)

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
        "s = Shape <start = 1, end = 2> (ids) t, y = TopK (ids, s)",  # the kernel reads it on the host
        "s = Size (ids) y = PRelu (ids, s)",  # nobody knows here where the kernel reads it
    ],
)
def test_anything_else_stays_as_it_is(body: str) -> None:
    model = model_of(body, "int64[2, 2] ids) => (int64[2, 2] y")
    before = ops(model)
    assert compute_sizes_on_device(model) == 0
    assert ops(model) == before


def test_a_graph_older_than_range_stays_as_it_is() -> None:
    model = model_of(POSITION)
    before = ops(model)
    model.graph.opset_imports[""] = 10
    assert compute_sizes_on_device(model) == 0
    assert ops(model) == before


def test_a_reader_of_another_domain_stays_as_it_is() -> None:
    model = model_of(POSITION)
    for node in model.graph:
        if node.op_type == "Sub":
            node.domain = "vendor"
    assert compute_sizes_on_device(model) == 1


@pytest.mark.parametrize(("size", "on_host"), [(100, True), (101, False)])
def test_a_large_constant_keeps_a_node_on_the_device(size: int, on_host: bool) -> None:
    table = f"int64[{size}] table = {{{', '.join(['7'] * size)}}}"
    proto = onnx.parser.parse_model(
        f"{HEADER} g (int64[2, n] ids) => (int64[1] y) <{table}> {{ s = Shape <start = 0, end = 1> (ids) "
        "y = Gather (table, s) }"
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))
    assert ("y" in place(model).host) is on_host
    before = run(model, 4)
    assert compute_sizes_on_device(model) == (0 if on_host else 1)
    np.testing.assert_array_equal(run(model, 4)[0], before[0])


def test_half_floats_are_not_computed_on_the_host() -> None:
    body = "s = Shape <start = 1, end = 2> (ids) c = Cast <to = 10> (s) q = Sqrt (c) y = Cast <to = 7> (q)"
    host = place(model_of(body, "int64[2, n] ids) => (int64[1] y")).host
    assert "c" in host
    assert not {"q", "y"} & host


@st.composite
def arithmetic(draw: st.DrawFn) -> str:
    """A graph of lengths: numbers in all shapes, arithmetic on them, and readers on either side."""
    scalars, ones = ["zero", "three"], ["first"]
    lines: list[str] = []

    def add(op: str, kind: list[str], *inputs: str, attributes: str = "") -> None:
        name = f"v{len(lines)}"
        lines.append(f"{name} = {op} {attributes} ({', '.join(inputs)})")
        kind.append(name)

    for axis in (0, 1):
        add("Shape", ones, "ids", attributes=f"<start = {axis}, end = {axis + 1}>")
    for _ in range(draw(st.integers(1, 10))):
        kind = draw(st.sampled_from([scalars, ones]))
        match draw(
            st.sampled_from(["Squeeze", "Unsqueeze", "Reshape", "Add", "Mul", "Sub", "Max", "Neg", "plus zero"])
        ):
            case "Squeeze":
                add("Squeeze", scalars, draw(st.sampled_from(ones)))
            case "Unsqueeze":
                add("Unsqueeze", ones, draw(st.sampled_from(scalars)), "first")
            case "Reshape":
                add("Reshape", ones, draw(st.sampled_from(scalars + ones)), "single")
            case "Neg":
                add("Neg", kind, draw(st.sampled_from(kind)))
            case "plus zero":
                add("Add", kind, draw(st.sampled_from(kind)), kind[0])
            case op:
                add(op, kind, draw(st.sampled_from(kind)), draw(st.sampled_from(kind)))
    total = "ids"
    for number, value in enumerate(draw(st.lists(st.sampled_from(scalars + ones), min_size=1, max_size=4))):
        op = draw(st.sampled_from(["Add", "Sub", "Mul", "Min", "Max"]))
        left, right = draw(st.permutations([total, value]))
        total = f"t{number}"
        lines.append(f"{total} = {op} ({left}, {right})")
    lines.append(f"y = Identity ({total})")
    lines.append(f"z = Less ({draw(st.sampled_from(scalars + ones))}, {total})")
    lines.append(f"k = Identity ({draw(st.sampled_from(ones))})")
    return "\n".join(lines)


@settings(max_examples=60, deadline=None)
@given(body=arithmetic(), length=st.integers(0, 5))
def test_any_arithmetic_gives_the_same_bits(body: str, length: int) -> None:
    model = model_of(body, "int64[2, n] ids) => (int64[2, n] y, bool[2, n] z, int64[1] k")
    before = run(model, length)
    compute_sizes_on_device(model)
    onnx.checker.check_model(ir.to_proto(model))
    assert compute_sizes_on_device(model) == 0
    for ours, theirs in zip(run(model, length), before, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


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


@pytest.fixture(scope="module")
def steps(demo_bundle: Bundle) -> list[Any]:
    """Sessions of the decode step as it was exported, and as it is when the bundle is opened."""
    given = read_model(demo_bundle.path / graph_file("decoder_with_past"))
    changed = given.clone()
    assert compute_sizes_on_device(changed) == 2
    return [create_session(model, SessionSettings(threads=1)) for model in (given, changed)]


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 9), source=st.integers(1, 9), past=st.integers(1, 40))
def test_a_decode_step_of_the_demo_gives_the_same_bits(steps: list[Any], batch: int, source: int, past: int) -> None:
    rng, feed = np.random.default_rng(past), {}
    for value in steps[0].get_inputs():
        if value.name.startswith("past_key_values."):
            shape = (batch, value.shape[1], past if ".decoder." in value.name else source, value.shape[3])
            feed[value.name] = rng.standard_normal(shape, np.float32)
        else:
            feed[value.name] = np.ones((batch, 1 if value.name == "input_ids" else source), np.int64)
    given, changed = (session.run(None, feed) for session in steps)
    for ours, theirs in zip(changed, given, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


def test_a_decode_step_of_the_demo_reads_no_size_from_the_host(demo_bundle: Bundle) -> None:
    for graph in demo_bundle.graphs.values():
        assert compute_sizes_on_device(graph.model.clone()) == 0
    assert "decoder/aux/Range.3" in demo_bundle.graphs["decoder_with_past"].nodes
