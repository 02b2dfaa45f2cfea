"""Sessions: weights arrive without passing through protobuf, settings are applied, and CUDA starts or says why not."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from precision_search.device import cuda
from precision_search.device.cuda import CPU_PROVIDER, CUDA_PROVIDER, GEMM_VARIABLE
from precision_search.device.driver import CudaDevice, CudaDriver
from precision_search.errors import (
    DeviceError,
    DeviceMemoryError,
    InputError,
    MissingPackageError,
    NoKernelError,
    UsageError,
)
from precision_search.runtime import backends
from precision_search.runtime import session as session_module
from precision_search.runtime.backends import create_session, resolve_device
from precision_search.runtime.session import SessionSettings, run_error

ROWS, WIDTH = 64, 32
CUDA = SessionSettings(device="cuda")


def lookup_model(table: np.ndarray) -> ir.Model:
    """`y = float32(table[ids])`, with names, types and metadata as an exporter leaves them."""
    tensor = ir.tensor(table, name="table")
    weight = ir.Value(name="table", type=ir.TensorType(tensor.dtype), shape=ir.Shape(table.shape), const_value=tensor)
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    gather = ir.node("Gather", [weight, ids], {"axis": 0}, name="look", metadata_props={"where": "here"})
    gather.outputs[0].name, gather.outputs[0].type = "rows", ir.TensorType(tensor.dtype)
    cast = ir.node("Cast", gather.outputs, {"to": int(ir.DataType.FLOAT)}, name="up")
    cast.outputs[0].name, cast.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    cast.outputs[0].shape = ir.Shape(["n", table.shape[1]])
    graph = ir.Graph(
        [ids], cast.outputs, nodes=[gather, cast], initializers=[weight], opset_imports={"": 18}, name="lookup"
    )
    return ir.Model(graph, ir_version=9)


def table_of(dtype: Any) -> np.ndarray:
    return np.arange(ROWS * WIDTH).reshape(ROWS, WIDTH).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_large_weights_of_each_float_dtype_arrive_intact(dtype: Any) -> None:
    table = table_of(dtype)
    session = create_session(lookup_model(table), SessionSettings())
    ids = np.array([0, 63, 5])
    np.testing.assert_array_equal(session.run(None, {"ids": ids})[0], table[ids].astype(np.float32))


def test_weights_do_not_pass_through_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = onnxruntime.InferenceSession

    def spy(graph: bytes, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(graph))
        return real(graph, *args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    create_session(lookup_model(np.zeros((1024, 1024), np.float32)), SessionSettings())
    assert sizes[0] < 1000


def test_the_model_is_left_as_it_was_and_may_go_away() -> None:
    table = table_of(np.float32)
    expected = table.copy()
    model = lookup_model(table)
    before = ir.to_proto(model).SerializeToString()
    session = create_session(model, SessionSettings())
    assert ir.to_proto(model).SerializeToString() == before
    del model
    table[:] = -1
    gc.collect()
    np.testing.assert_array_equal(session.run(None, {"ids": np.array([7])})[0], expected[[7]])


@pytest.mark.parametrize(
    ("level", "expected"),
    [("disabled", "ORT_DISABLE_ALL"), ("basic", "ORT_ENABLE_BASIC"), ("all", "ORT_ENABLE_ALL")],
)
def test_optimization_level_and_threads_are_pinned(level: Any, expected: str) -> None:
    settings = SessionSettings(optimization_level=level, threads=1)
    session = create_session(lookup_model(table_of(np.float32)), settings)
    options = session.get_session_options()
    assert options.graph_optimization_level == getattr(onnxruntime.GraphOptimizationLevel, expected)
    assert options.intra_op_num_threads == 1
    assert session.get_providers() == [CPU_PROVIDER]


MERGED_BY_ONNXRUNTIME = {
    "a reciprocal times": "{ s = Sqrt(v) r = Div(one, s) y = Mul(r, x) }",
    "a product plus a bias": "{ p = MatMul(x, w) y = Add(p, w0) }",
    "a product and a sum": "{ p = Gemm(x, w) y = Sum(p, v) }",
    "Gelu": "{ d = Div(x, root) e = Erf(d) f = Add(e, one) m = Mul(x, f) y = Mul(m, half) }",
    "a layer norm": "{ u = ReduceMean(x, last) d = Sub(x, u) q = Pow(d, two) m = ReduceMean(q, last) "
    "a = Add(m, little) s = Sqrt(a) n = Div(d, s) g = Mul(n, w0) y = Add(g, w0) }",
}
CONSTANTS = (
    "<float one = {1.0}, float two = {2.0}, float half = {0.5}, float root = {1.41421356}, float little = {0.00001}, "
    "float[2] w0 = {1.5, 2.5}, float[2, 2] w = {1.5, 2.5, 3.5, 4.5}, int64[1] last = {-1}>"
)


@pytest.mark.parametrize("body", MERGED_BY_ONNXRUNTIME.values(), ids=MERGED_BY_ONNXRUNTIME)
def test_the_pinned_level_merges_no_arithmetic(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = '<ir_version: 9, opset_import: ["" : 20]> g (float[N, 2] x, float[N, 2] v) => (float[N, 2] y)'
    proto = onnx.parser.parse_model(f"{head} {CONSTANTS} {body}")
    make_options = session_module._session_options

    def writing(settings: SessionSettings) -> onnxruntime.SessionOptions:
        options = make_options(settings)
        options.optimized_model_filepath = str(tmp_path / "run.onnx")
        return options

    monkeypatch.setattr(session_module, "_session_options", writing)

    def op_types_that_run(level: Any) -> list[str]:
        create_session(ir.from_proto(proto), SessionSettings(optimization_level=level))
        return [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]

    written = [node.op_type for node in proto.graph.node]
    assert op_types_that_run("basic") == written
    assert len(op_types_that_run("all")) < len(written)


def test_a_graph_that_onnxruntime_rejects_is_an_input_error(capfd: pytest.CaptureFixture[str]) -> None:
    model = lookup_model(table_of(np.float32))
    next(iter(model.graph)).op_type = "Gathre"
    with pytest.raises(InputError, match="lookup") as caught:
        create_session(model, SessionSettings())
    assert "Gathre" in caught.value.why
    assert capfd.readouterr().out == ""


def test_cuda_runs_on_cuda_or_fails_without_noise(capfd: pytest.CaptureFixture[str]) -> None:
    model = lookup_model(table_of(np.float32))
    if resolve_device("auto", warn=print) == "cuda":
        assert create_session(model, CUDA).get_providers()[0] == CUDA_PROVIDER
        return
    with pytest.raises((MissingPackageError, DeviceError)) as caught:
        create_session(model, CUDA)
    assert caught.value.exit_code == 3
    assert caught.value.why and caught.value.fix
    assert capfd.readouterr() == ("", "")


def test_a_runtime_without_cuda_provider_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU_PROVIDER])
    with pytest.raises(MissingPackageError, match="no CUDA provider") as caught:
        cuda.require(0)
    assert "precision-search[cuda]" in caught.value.fix


class FallenBack:
    """A session as ONNX Runtime gives it when CUDA does not load: on the CPU, without an error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def get_providers(self) -> list[str]:
        return [CPU_PROVIDER]


@pytest.fixture
def cuda_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setenv(GEMM_VARIABLE, "2")  # so that what a session sets is undone


@pytest.mark.usefixtures("cuda_offered")
def test_a_silent_fallback_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    with pytest.raises((MissingPackageError, DeviceError)) as caught:
        create_session(lookup_model(table_of(np.float32)), CUDA)
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("cuda_offered")
def test_a_fallback_of_one_graph_alone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    monkeypatch.setattr(cuda, "require", lambda device_id: None)
    with pytest.raises(DeviceError, match="fell back to the CPU"):
        create_session(lookup_model(table_of(np.float32)), CUDA)


def failing(text: str) -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(text)

    return fail


@pytest.mark.usefixtures("cuda_offered")
def test_a_driver_that_refuses_is_told_and_not_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "x.cc:63 [ONNXRuntimeError] CUDA failure 999: unknown error ; GPU=-1 ; hostname=here ; file=x.cc"
    monkeypatch.setattr(onnxruntime, "InferenceSession", failing(text))
    with pytest.raises(DeviceError, match="device 0 does not start") as caught:
        create_session(lookup_model(table_of(np.float32)), CUDA)
    assert caught.value.why == "CUDA failure 999: unknown error"


MEMORY = [
    "bfc_arena.cc Failed to allocate memory for requested buffer of size 8589934592",
    "bfc_arena.cc Available memory of 0 is smaller than requested bytes of 1048576",
    "CUDA failure 2: out of memory ; GPU=0 ; file=x.cc",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc",
]


@pytest.mark.usefixtures("cuda_offered")
@pytest.mark.parametrize("text", MEMORY)
def test_no_memory_for_the_weights_is_its_own_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", failing(text))
    with pytest.raises(DeviceMemoryError, match="no memory for the graph 'lookup' on cuda"):
        create_session(lookup_model(table_of(np.float32)), CUDA)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((text, DeviceMemoryError) for text in MEMORY),
        ("cuDNN is unavailable for CUDA", MissingPackageError),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; file=x.cc", DeviceError),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0", DeviceError),
    ],
)
def test_what_went_wrong_in_a_run_is_told_apart(text: str, kind: type[Exception]) -> None:
    assert type(run_error(RuntimeError(text))) is kind
    assert type(run_error(RuntimeError("indices element out of data bounds"))) is InputError


@pytest.mark.usefixtures("cuda_offered")
def test_other_gemm_options_than_the_process_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a session was made")

    monkeypatch.setattr(onnxruntime, "InferenceSession", never)
    with pytest.raises(UsageError, match="GEMM options are to be 0, but ORT_CUDA_GEMM_OPTIONS is 2"):
        create_session(lookup_model(table_of(np.float32)), SessionSettings(device="cuda", gemm_options=0))


class OnTheHost(FallenBack):
    """A session on CUDA that runs one node on the CPU."""

    def get_providers(self) -> list[str]:
        return [CUDA_PROVIDER, CPU_PROVIDER]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [SimpleNamespace(name=name, op_type="?", domain="") for name in ("up", "sizes")]
        return [SimpleNamespace(ep_name=CPU_PROVIDER, get_nodes=lambda: nodes)]


@pytest.mark.usefixtures("cuda_offered")
def test_float_arithmetic_on_the_cpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnTheHost)
    with pytest.raises(NoKernelError, match="1 node of the graph 'lookup' would run on the CPU") as caught:
        create_session(lookup_model(table_of(np.float16)), CUDA)
    assert "kernel for up in" in caught.value.why


def test_device_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU_PROVIDER])
    assert resolve_device("cpu", warn=print) == "cpu"
    assert resolve_device("auto", warn=print) == "cpu"
    with pytest.raises(MissingPackageError):
        resolve_device("cuda", warn=print)


def test_a_device_that_goes_unused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU_PROVIDER])
    told: list[str] = []
    monkeypatch.setattr(backends, "read_driver", lambda: None)
    assert resolve_device("auto", warn=told.append) == "cpu"
    assert told == []
    device = CudaDevice(0, "Tesla T4", "7.5", 16 * 2**30, None, bfloat16=False)
    monkeypatch.setattr(backends, "read_driver", lambda: CudaDriver("580.1", "13.0", (device,), None))
    assert resolve_device("auto", warn=told.append) == "cpu"
    assert len(told) == 1
    assert "runs on the CPU" in told[0]
    assert "no CUDA provider" in told[0]


@pytest.mark.usefixtures("cuda_offered")
def test_cuda_options_reach_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Started(FallenBack):
        def __init__(self, graph: bytes, options: Any, *, providers: Any, enable_fallback: int, **_: Any) -> None:
            seen.append((providers, enable_fallback))

        def get_providers(self) -> list[str]:
            return [CUDA_PROVIDER, CPU_PROVIDER]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            return []

    monkeypatch.setattr(onnxruntime, "InferenceSession", Started)
    for settings in (SessionSettings(device="cuda", device_id=2, use_tf32=True), CUDA):
        create_session(lookup_model(table_of(np.float32)), settings)
    options = [{"device_id": "2", "use_tf32": "1"}, {"device_id": "0", "use_tf32": "0"}]
    assert seen == [([(CUDA_PROVIDER, chosen), CPU_PROVIDER], 0) for chosen in options]
