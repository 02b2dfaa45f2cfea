"""Sessions: weights arrive without passing through protobuf, settings are applied, and CUDA starts or says why not."""

from __future__ import annotations

import gc
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from precision_search.errors import DeviceError, InputError, MissingPackageError
from precision_search.runtime.session import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    SessionSettings,
    create_session,
    require_cuda,
    resolve_device,
)

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


def test_a_graph_that_onnxruntime_rejects_is_an_input_error(capfd: pytest.CaptureFixture[str]) -> None:
    model = lookup_model(table_of(np.float32))
    next(iter(model.graph)).op_type = "Gathre"
    with pytest.raises(InputError, match="lookup") as caught:
        create_session(model, SessionSettings())
    assert "Gathre" in caught.value.why
    assert capfd.readouterr().out == ""


def test_cuda_runs_on_cuda_or_fails_without_noise(capfd: pytest.CaptureFixture[str]) -> None:
    model = lookup_model(table_of(np.float32))
    if resolve_device("auto") == "cuda":
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
        require_cuda(CUDA)
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


@pytest.mark.usefixtures("cuda_offered")
def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas.so.13: no such file"))
    with pytest.raises(MissingPackageError, match="libraries do not load") as caught:
        require_cuda(CUDA)
    assert "libcublas.so.13" in caught.value.why
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("cuda_offered")
def test_a_silent_fallback_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    with pytest.raises(MissingPackageError):
        create_session(lookup_model(table_of(np.float32)), CUDA)


@pytest.mark.usefixtures("cuda_offered")
def test_a_driver_problem_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("x.cc:63 [ONNXRuntimeError] CUDA failure 35: driver too old ; GPU=-1 ; file=x.cc")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(DeviceError, match="device 0 does not start") as caught:
        create_session(lookup_model(table_of(np.float32)), CUDA)
    assert caught.value.why == "CUDA failure 35: driver too old"


@pytest.mark.usefixtures("cuda_offered")
def test_no_memory_for_the_weights_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("bfc_arena.cc Failed to allocate memory for requested buffer of size 8589934592")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(DeviceError, match="No memory for the graph 'lookup' on cuda"):
        create_session(lookup_model(table_of(np.float32)), CUDA)


def test_device_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU_PROVIDER])
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == "cpu"
    with pytest.raises(MissingPackageError):
        resolve_device("cuda")


def test_cuda_options_reach_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Started(FallenBack):
        def __init__(self, graph: bytes, options: Any, *, providers: Any, enable_fallback: int) -> None:
            seen.append((providers, enable_fallback))

        def get_providers(self) -> list[str]:
            return [CUDA_PROVIDER, CPU_PROVIDER]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Started)
    for settings in (SessionSettings(device="cuda", device_id=2, use_tf32=True), CUDA):
        create_session(lookup_model(table_of(np.float32)), settings)
    options = [{"device_id": "2", "use_tf32": "1"}, {"device_id": "0", "use_tf32": "0"}]
    assert seen == [([(CUDA_PROVIDER, chosen), CPU_PROVIDER], 0) for chosen in options]
