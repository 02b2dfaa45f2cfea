"""What ONNX Runtime computes on the host, and that graphs whose sizes are computed on the device copy none."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from precision_search.model.rewrites.sizes_on_device import HOST_INPUTS, compute_sizes_on_device, place
from tests.dry_cuda.host import DryCuda
from tests.dry_cuda.probes import bind_and_run
from tests.dry_cuda.recorder import Recorder

pytestmark = pytest.mark.slow

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
CONSTANTS = (
    "int64 zero = {0}, int64 one = {1}, int64 three = {3}, int64[1] first = {0}, int64[1] second = {1}, "
    "int64[1] last = {-1}, int64[2] values = {0, 1}, int64[4] pads = {0, 0, 0, 1}, int64[1] minus = {-1}, "
    f"int64[1, 101] large = {{{', '.join(['1'] * 101)}}}, int64[100] small = {{{', '.join(['1'] * 100)}}}"
)
IDS = "int64[2, n] ids) => (int64[2, n] y"
NUMBER = "s = Shape <start = 1, end = 2> (ids) n = Squeeze (s) "
ROW = "float[1, 3, n] x) => (float[1, k, l] y"

READ = {
    "a scalar": (IDS, NUMBER + "y = Add (ids, n)"),
    "one in a row": (IDS, "s = Shape <start = 1, end = 2> (ids) y = Sub (s, ids)"),
    "arithmetic": (IDS, NUMBER + "m = Mul (n, three) k = Min (m, three) y = Mod (ids, k)"),
    "an index": ("float[9, 2] x, int64[2, n] ids) => (float[2] y", NUMBER + "m = Min (n, three) y = Gather (x, m)"),
    "beside a large constant": (IDS, NUMBER + "b = Add (large, n) r = ReduceMax <keepdims = 0> (b) y = Add (ids, r)"),
    "a condition": ("int64[2, n] ids) => (bool[2, n] y", NUMBER + "y = GreaterOrEqual (ids, n)"),
    "a choice": (IDS, NUMBER + "c = Less (ids, three) y = Where (c, ids, n)"),
}
"""Signature and body of graphs in which a device kernel reads a length as a number."""

LEFT = {
    "several": (
        "int64[2, n] ids) => (int64[2, 2] y",
        "s = Shape (ids) t = Neg (s) r = ReduceSum (ids, last) y = Add (r, t)",
    ),
    "how many to pad with": (
        "int64[2, n] ids) => (int64[k, l] y",
        NUMBER + "a = Abs (ids) y = Pad (a, pads, n)",
    ),
    "how many of the best": (
        "float[2, n] x) => (float[2, k] y",
        "s = Shape <start = 1, end = 2> (x) a = Abs (x) y, i = TopK (a, s)",
    ),
    "a bound": ("int64[2, n] ids) => (int64[k] y", NUMBER + "y = Range (zero, n, one)"),
    "nothing but the host": ("int64[2, n] ids) => (int64 y", NUMBER + "y = Add (n, one)"),
}
"""The same where a length is not read as a number, or is more than one."""

SIZES = "s = Shape (x) f = Shape <start = 0, end = 1> (x) n = Squeeze (f) a = Abs (x) "
READS_ON_HOST = {
    "ConstantOfShape": "z = ConstantOfShape (s) y = Add (z, a)",
    "CumSum": "y = CumSum (a, n)",
    "Expand": "y = Expand (a, s)",
    "OneHot": "i = Cast <to = 7> (a) d = Add (n, three) h = Concat <axis = 0> (f, f) o = OneHot (i, d, h) "
    "c = Cast <to = 1> (o) y = ReduceSum <keepdims = 0> (c, last)",
    "Pad": "p = Concat <axis = 0> (f, f, f, f, f, f) v = Cast <to = 1> (n) w = Squeeze (v) y = Pad (a, p, w)",
    "Range": "r = Range (zero, n, one) c = Cast <to = 1> (r) y = Add (a, c)",
    **{
        f"Reduce{what}": f"y = Reduce{what} (a, f)"
        for what in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
    "Reshape": "y = Reshape (a, s)",
    "Resize": 'y = Resize <mode = "nearest"> (a, , , s)',
    "Slice": "y = Slice (a, first, f, f, f)",
    "Split": "h = Concat <axis = 0> (f, f, f) y, z, w = Split <axis = 1> (a, h)",
    "Squeeze": "q = Sub (f, f) b = Squeeze (a, q) y = Unsqueeze (b, first)",
    "Tile": "y = Tile (a, s)",
    "TopK": "y, i = TopK (a, f)",
    "Trilu": "y = Trilu (a, n)",
    "Unsqueeze": "q = Sub (f, f) b = Unsqueeze (a, q) y = Squeeze (b, first)",
}
"""For each op type of `HOST_INPUTS` a body that has it read what the host computed."""


@dataclass(frozen=True, slots=True)
class Placed:
    """What ONNX Runtime made of a graph: by node where it ran, and the bytes copied to and from the host in the run."""

    providers: Mapping[str, str]
    crossing: tuple[int, ...]


def model_of(signature: str, body: str) -> ir.Model:
    proto = onnx.parser.parse_model(f"{HEADER} g ({signature}) <{CONSTANTS}> {{ {body} }}")
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))
    for node in model.graph:
        node.name = f"{node.op_type}/{node.outputs[0].name}"
    return model


def run_placed(graphs: Mapping[str, tuple[str, str]], *, change: bool) -> dict[str, Placed]:
    """Runs each graph, changed or not, with its inputs on the device; in the child."""
    found = {}
    for name, (signature, body) in graphs.items():
        model = model_of(signature, body)
        if change:
            compute_sizes_on_device(model)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 4
        with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder)) as recorder:
            session = onnxruntime.InferenceSession(
                ir.to_proto(model).SerializeToString(), options, providers=["CUDAExecutionProvider"]
            )
            bind_and_run(session, model)
        (section,) = (section for section in recorder.sections if section.phase == "run")
        (nodes,) = recorder.nodes.values()
        providers = {node: provider for node, op_type, provider in nodes if not op_type.startswith("Memcpy")}
        found[name] = Placed(providers, (*section.moved("h2d"), *section.moved("d2h")))
    return found


@pytest.fixture(scope="module")
def as_given(dry_cuda: DryCuda) -> dict[str, Placed]:
    return dry_cuda.call(run_placed, graphs=READ | LEFT, change=False)


@pytest.fixture(scope="module")
def changed(dry_cuda: DryCuda) -> dict[str, Placed]:
    return dry_cuda.call(run_placed, graphs=READ | LEFT, change=True)


@pytest.fixture(scope="module")
def reading(dry_cuda: DryCuda) -> dict[str, Placed]:
    return dry_cuda.call(
        run_placed, graphs={op: (ROW, SIZES + body) for op, body in READS_ON_HOST.items()}, change=False
    )


@pytest.mark.parametrize("name", READ)
def test_a_length_read_as_a_number_is_made_on_the_device(
    as_given: dict[str, Placed], changed: dict[str, Placed], name: str
) -> None:
    assert as_given[name].crossing or CPU in last_provider(as_given[name])
    assert changed[name].crossing == ()
    assert last_provider(changed[name]) == CUDA


@pytest.mark.parametrize("name", LEFT)
def test_anything_else_runs_as_it_did(as_given: dict[str, Placed], changed: dict[str, Placed], name: str) -> None:
    assert changed[name] == as_given[name]
    assert compute_sizes_on_device(model_of(*LEFT[name])) == 0


def test_every_input_read_on_the_host_is_tested() -> None:
    assert READS_ON_HOST.keys() == HOST_INPUTS.keys()


@pytest.mark.parametrize("op_type", READS_ON_HOST)
def test_these_kernels_read_on_the_host(reading: dict[str, Placed], op_type: str) -> None:
    """Nothing crosses to the device, though what they read was computed on the host."""
    model = model_of(ROW, SIZES + READS_ON_HOST[op_type])
    node = [node for node in model.graph if node.op_type == op_type][-1]
    host = place(model).host
    read = [index for index, value in enumerate(node.inputs) if value is not None and value.name in host]
    assert read
    assert set(read) <= set(HOST_INPUTS[op_type])
    assert reading[op_type].providers[str(node.name)] == CUDA
    assert reading[op_type].crossing == ()


@pytest.mark.parametrize("op_type", READS_ON_HOST)
def test_the_host_computes_what_it_is_said_to(reading: dict[str, Placed], op_type: str) -> None:
    model = model_of(ROW, SIZES + READS_ON_HOST[op_type])
    placement = place(model)
    for node in model.graph:
        if str(node.name) in reading[op_type].providers and node.op_type != "Shape":
            on_host = all(value.name in placement.host for value in node.outputs)
            assert reading[op_type].providers[str(node.name)] == (CPU if on_host else CUDA), node.name


def last_provider(placed: Placed) -> str:
    return list(placed.providers.values())[-1]
