"""The table of low kernels against the kernels that ONNX Runtime launches, one node at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from precision_search.cost.launches import node_work
from precision_search.cost.shapes import Point, infer_shapes
from precision_search.model.bundle import Bundle
from precision_search.model.rewrites.sizes_on_device import place
from precision_search.precision.kernels import KERNELS, Internals
from precision_search.precision.low import LOW_DTYPES
from tests.dry_cuda.host import DryCuda
from tests.dry_cuda.probes import model_of, run_each
from tests.dry_cuda.trace import Section

pytestmark = pytest.mark.slow

UNARY = ("Sqrt", "Relu", "Tanh", "Erf", "Exp", "Neg", "Abs", "Reciprocal", "Log", "Sigmoid", "Gelu")
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow")
REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
LAST = "<int64[1] last = {-1}>"

GRAPHS: Mapping[str, str] = {
    **{op: f"(T[4, 8] x) => (T[4, 8] y) {{ y = {op} (x) }}" for op in UNARY},
    "Gelu, tanh": '(T[4, 8] x) => (T[4, 8] y) { y = Gelu <approximate = "tanh"> (x) }',
    **{op: f"(T[4, 8] x, T[4, 8] z) => (T[4, 8] y) {{ y = {op} (x, z) }}" for op in BINARY},
    **{f"{op}, a row": f"(T[4, 8] x, T[8] z) => (T[4, 8] y) {{ y = {op} (x, z) }}" for op in BINARY},
    **{f"{op}, a column": f"(T[4, 8] x, T[4, 1] z) => (T[4, 8] y) {{ y = {op} (x, z) }}" for op in BINARY},
    **{f"{op}, a number": f"(T[4, 8] x, T z) => (T[4, 8] y) {{ y = {op} (x, z) }}" for op in BINARY},
    **{op: f"(T[4, 8] x) => (T[4, 1] y) {LAST} {{ y = {op} (x, last) }}" for op in REDUCTIONS},
    **{f"{op}, one token": f"(T[1, 1, 8] x) => (T[1, 1, 1] y) {LAST} {{ y = {op} (x, last) }}" for op in REDUCTIONS},
    "Clip": "(T[4, 8] x, T low, T high) => (T[4, 8] y) { y = Clip (x, low, high) }",
    "MatMul": "(T[4, 8] x, T[8, 5] w) => (T[4, 5] y) { y = MatMul (x, w) }",
    "MatMul, heads": "(T[2, 3, 4, 8] x, T[2, 3, 8, 5] w) => (T[2, 3, 4, 5] y) { y = MatMul (x, w) }",
    "MatMul, broadcast": "(T[2, 3, 4, 8] x, T[1, 3, 8, 5] w) => (T[2, 3, 4, 5] y) { y = MatMul (x, w) }",
    "Gemm": "(T[4, 8] x, T[8, 5] w, T[5] b) => (T[4, 5] y) { y = Gemm (x, w, b) }",
    **{
        f"{op}, {size}": f"(T[4, {size}] x) => (T[4, {size}] y) {{ y = {op} <axis = -1> (x) }}"
        for op in ("Softmax", "LogSoftmax")
        for size in (8, 1024, 1025)
    },
    "LayerNormalization": "(T[4, 8] x, T[8] s) => (T[4, 8] y) { y = LayerNormalization (x, s) }",
    "RMSNormalization": "(T[4, 8] x, T[8] s) => (T[4, 8] y) { y = RMSNormalization (x, s) }",
    "SimplifiedLayerNormalization": "(T[4, 8] x, T[8] s) => (T[4, 8] y) { y = SimplifiedLayerNormalization (x, s) }",
    "Gather": "(T[9, 8] x, int64[4] i) => (T[4, 8] y) { y = Gather (x, i) }",
}
"""Graphs of one node by op type; T stands for the element type."""

ELEMENTS = {"float32": "float", "float16": "__half", "bfloat16": "BFloat16"}
PARSED = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}

Traces = Mapping[tuple[str, str], Section | None]


def text_of(name: str, dtype: str) -> str:
    return re.sub(r"\bT\b", PARSED[dtype], GRAPHS[name])


def op_type(name: str) -> str:
    return name.split(",", maxsplit=1)[0]


@pytest.fixture(scope="module")
def traces(dry_cuda: DryCuda) -> Traces:
    """What each graph launches, by its name and element type; None where there is no kernel."""
    keys = [(name, dtype) for name in GRAPHS for dtype in ELEMENTS]
    texts = {f"{name} {dtype}": text_of(name, dtype) for name, dtype in keys}
    found = dry_cuda.call(run_each, texts=texts)
    return {(name, dtype): found[f"{name} {dtype}"] for name, dtype in keys}


def test_every_op_type_of_the_table_is_probed() -> None:
    assert {op_type(name) for name in GRAPHS} == set(KERNELS)


def test_the_table_has_every_compute_op_type_of_the_demo(demo_bundle: Bundle) -> None:
    found = {node.op_type for graph in demo_bundle.graphs.values() for node in graph.compute}
    assert len(found) >= 10
    assert found <= KERNELS.keys()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_low_kernel_is_there_exactly_where_the_table_says(traces: Traces, name: str) -> None:
    assert traces[name, "float32"] is not None
    present = {dtype for dtype in LOW_DTYPES if traces[name, dtype] is not None}
    assert present == KERNELS[op_type(name)].low_dtypes


@pytest.mark.parametrize("name", GRAPHS)
def test_the_kernels_are_those_that_the_table_names(traces: Traces, name: str) -> None:
    kernel = KERNELS[op_type(name)]
    for dtype in sorted(kernel.low_dtypes):
        section = section_of(traces, name, dtype)
        assert section.kernels or section.gemms or section.calls
        named = named_kernels(kernel.source, ELEMENTS[dtype])
        assert [each for each in section.kernels if not any(same_kernel(each, one) for one in named)] == []
        for function in (*(gemm.function for gemm in section.gemms), *section.calls):
            assert function in kernel.source


@pytest.mark.parametrize("name", GRAPHS)
def test_fp32_takes_the_same_kernels(traces: Traces, name: str) -> None:
    """Library functions and the kernels of a Gather and of Gelu's approximation differ: those depend on the width."""
    fp32 = section_of(traces, name, "float32")
    for dtype in sorted(KERNELS[op_type(name)].low_dtypes):
        low = section_of(traces, name, dtype)
        assert [base(each) for each in low.kernels] == [base(each) for each in fp32.kernels]
        assert (len(low.gemms), low.calls, low.launches) == (len(fp32.gemms), fp32.calls, fp32.launches)


@pytest.mark.parametrize("name", [name for name in GRAPHS if KERNELS[op_type(name)].internals is Internals.ELEMENTWISE])
def test_an_element_wise_kernel_is_one_launch_that_knows_no_other_type(traces: Traces, name: str) -> None:
    for dtype in sorted(KERNELS[op_type(name)].low_dtypes):
        section = section_of(traces, name, dtype)
        assert len(section.kernels) + len(section.calls) == 1
        assert not any("float" in types(each) for each in section.kernels)


@pytest.mark.parametrize(
    "name", [name for name in GRAPHS if KERNELS[op_type(name)].internals is Internals.ACCUMULATE_FP32]
)
def test_what_is_said_to_sum_in_fp32_does(traces: Traces, name: str) -> None:
    for dtype in sorted(KERNELS[op_type(name)].low_dtypes):
        section = section_of(traces, name, dtype)
        sums = [each for each in section.kernels if not each.startswith("BroadcastBiasKernel<")]
        assert len(sums) + len(section.gemms) == 1
        assert all("float" in types(each) for each in sums)
        assert all(gemm.compute == "float32" for gemm in section.gemms)


@pytest.mark.parametrize(
    "name", [name for name in GRAPHS if KERNELS[op_type(name)].internals is Internals.SUM_STORED_LOW]
)
def test_a_mean_stores_its_sum_and_then_divides(traces: Traces, name: str) -> None:
    for dtype in sorted(KERNELS[op_type(name)].low_dtypes):
        element = ELEMENTS[dtype]
        reduction, division = section_of(traces, name, dtype).kernels
        assert types(reduction)[:3] == [element, element, "float"]
        assert f"OP_Div<{element}>" in division


def test_a_gather_moves_elements_by_their_width(traces: Traces) -> None:
    kernels = {dtype: section_of(traces, "Gather", dtype).kernels for dtype in ELEMENTS}
    assert kernels == {
        "float32": ("_GatherKernel<int>",),
        "float16": ("_GatherKernel<short>",),
        "bfloat16": ("_GatherKernel<short>",),
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_launches_are_those_that_the_cost_model_counts(traces: Traces, name: str) -> None:
    for dtype in ("float32", *sorted(KERNELS[op_type(name)].low_dtypes)):
        model = model_of(text_of(name, dtype))
        shapes, placement = infer_shapes(model, Point(1, 1)), place(model)
        (node,) = model.graph
        expected = node_work(node, shapes, idle=node in placement.idle).launches
        assert section_of(traces, name, dtype).launches == expected


def section_of(traces: Traces, name: str, dtype: str) -> Section:
    section = traces[name, dtype]
    assert section is not None
    return section


def base(kernel: str) -> str:
    """The name of a kernel without its types, the same for kernels that do the same to other shapes or widths."""
    return re.sub(r"(Simple|RhsPerChannel\w+|2)?(<.*)?$", "", kernel)


def types(kernel: str) -> list[str]:
    """The words between a kernel's angle brackets."""
    return re.findall(r"\w+", kernel.partition("<")[2])


def named_kernels(source: str, element: str) -> list[str]:
    """The kernels that the table's text names, with `element` for T; those without types end in `<`."""
    found = []
    for match in re.finditer(r"\b[A-Za-z_]\w*", source):
        end, depth = match.end(), 0
        for at in range(match.end(), len(source)):
            depth += {"<": 1, ">": -1}.get(source[at], 0)
            if depth == 0:
                end = at
                break
        found.append(re.sub(r"\bT\b", element, source[match.start() : end]) if end > match.end() else match[0] + "<")
    return found


def same_kernel(launched: str, named: str) -> bool:
    """Whether a kernel is the one named, which may leave out trailing types and flags."""
    plain = re.sub(r"\b(true|false), ", "", launched)
    is_sibling = base(plain) == base(named) == "_BinaryElementWise"
    return plain.startswith(named) or (is_sibling and types(plain)[: len(types(named))] == types(named))
