"""Single ONNX files: what is broken or not ours is refused with a reason, and nothing is left half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from precision_search.errors import EnvironmentProblemError, InputError
from precision_search.model import onnx_files as model_files
from precision_search.model.graph import describe
from precision_search.model.onnx_files import data_files, load_model, read_model, weight_bytes, write_model
from tests.graphs import run, same, tiny_feeds, tiny_t5_protos

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
WEIGHT = np.arange(64, dtype=np.float32).reshape(8, 8)


def info(name: str, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, [2, 8])


def small_model(
    nodes: list[onnx.NodeProto] | None = None, dtype: int = FLOAT, weight: onnx.TensorProto | None = None
) -> onnx.ModelProto:
    """`y = x @ w`, or these nodes."""
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weight = weight or numpy_helper.from_array(WEIGHT, "w")
    graph = helper.make_graph(nodes, "small", [info("x", dtype)], [info("y", dtype)], [weight])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("here", 1)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "encoder_model.onnx"
    onnx.save(model, path)
    return path


def saved_external(folder: Path, location: str = "weights.bin", **entries: int) -> Path:
    """The small model with its weight in a file beside it, described by any location, offset and length."""
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=WEIGHT.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    for key, number in entries.items():
        tensor.external_data.add(key=key, value=str(number))
    (folder / "weights.bin").write_bytes(WEIGHT.tobytes())
    return saved(folder, small_model(weight=tensor))


def refusal(path: Path, read: Callable[[Path], object] = read_model) -> InputError:
    """The error that reading gives; it says what, why and how to go on."""
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.what
    assert caught.value.why
    assert caught.value.fix
    return caught.value


def test_a_model_is_read_with_all_dtypes_known(tmp_path: Path) -> None:
    model = small_model()
    del model.graph.value_info[:]
    read = read_model(saved(tmp_path, model))
    assert [value.dtype for node in read.graph for value in node.outputs] == [ir.DataType.FLOAT]
    assert np.array_equal(weight(read), WEIGHT)


def weight(model: ir.Model, name: str = "w") -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_dtypes_that_an_exporter_left_out_are_inferred(tmp_path: Path) -> None:
    proto = tiny_t5_protos()["decoder"]
    del proto.graph.value_info[:]
    read = read_model(saved(tmp_path, proto))
    assert all(value.dtype is not None for node in read.graph for value in node.outputs)


@pytest.mark.parametrize("content", [b"", b"\x00", b"no protobuf at all", b"\xff" * 100, b"\n\x00", b"PK\x03\x04"])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encoder_model.onnx"
    path.write_bytes(content)
    assert "encoder_model.onnx is not a readable ONNX file" in refusal(path).what


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder_model.onnx"
    assert "decoder_with_past_model.onnx" in refusal(path).fix
    path.mkdir()
    assert "there is no file" in refusal(path).what


@pytest.fixture(scope="module")
def broken_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broken")


TINY_ENCODER = tiny_t5_protos()["encoder"].SerializeToString()


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(kept=st.integers(0, len(TINY_ENCODER) - 1))
def test_a_truncated_file_is_refused(broken_folder: Path, kept: int) -> None:
    path = broken_folder / "encoder_model.onnx"
    path.write_bytes(TINY_ENCODER[:kept])
    refusal(path)


@pytest.mark.parametrize("lost", range(1, 20))
def test_a_file_that_lost_its_last_bytes_is_refused(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "encoder_model.onnx"
    path.write_bytes(TINY_ENCODER[:-lost])
    refusal(path)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(damage=st.lists(st.tuples(st.integers(0, len(TINY_ENCODER) - 1), st.binary(max_size=4)), min_size=1, max_size=4))
def test_damaged_bytes_are_refused_or_give_a_graph_that_can_be_described(
    broken_folder: Path, damage: list[tuple[int, bytes]]
) -> None:
    content = bytearray(TINY_ENCODER)
    for place, new in damage:
        content[place : place + max(1, len(new))] = new
    path = broken_folder / "encoder_model.onnx"
    path.write_bytes(content)
    try:
        model = read_model(path)
    except InputError as error:
        assert error.why
        assert error.fix
        return
    assert len(describe("encoder", model).nodes) == len(model.graph)


def test_a_file_cut_within_its_weights_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, small_model())
    path.write_bytes(path.read_bytes()[:-200])
    refusal(path)


def test_a_weight_with_too_few_numbers_or_none_is_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(WEIGHT, "w")
    tensor.raw_data = tensor.raw_data[:-4]
    refusal(saved(tmp_path, small_model(weight=tensor)))
    tensor.ClearField("raw_data")
    assert "has no data" in refusal(saved(tmp_path, small_model(weight=tensor))).why


def test_an_empty_graph_is_refused(tmp_path: Path) -> None:
    model = small_model()
    del model.graph.node[:]
    assert refusal(saved(tmp_path, model)).why == "its graph has no nodes"


def test_a_value_that_nothing_makes_is_named(tmp_path: Path) -> None:
    model = small_model()
    model.graph.node[0].input[0] = "nowhere"
    assert "'nowhere'" in refusal(saved(tmp_path, model)).why


def test_the_standard_domain_may_have_its_long_name(tmp_path: Path) -> None:
    model = small_model()
    model.opset_import[0].domain = "ai.onnx"
    assert read_model(saved(tmp_path, model)).graph.opset_imports[""] == 20
    del model.opset_import[:]
    assert "opset" in refusal(saved(tmp_path, model)).why


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    model = small_model()
    model.graph.node.extend(nodes)
    assert "cycle" in refusal(saved(tmp_path, model)).why


def test_nodes_are_sorted(tmp_path: Path) -> None:
    model = small_model([helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["a"], ["y"])])
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    assert [node.op_type for node in read_model(saved(tmp_path, model)).graph] == ["Neg", "Abs"]


def test_a_sorted_graph_keeps_its_order(tmp_path: Path) -> None:
    proto = tiny_t5_protos()["decoder"]
    names = [node.name for node in proto.graph.node]
    assert [node.name for node in read_model(saved(tmp_path, proto)).graph] == names


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_a_graph_in_another_dtype_is_refused(tmp_path: Path, dtype: int) -> None:
    tensor = helper.make_tensor("w", dtype, WEIGHT.shape, WEIGHT.ravel())
    error = refusal(saved(tmp_path, small_model(dtype=dtype, weight=tensor)))
    assert "is not an fp32 graph" in error.what
    assert TensorProto.DataType.Name(dtype) in error.what
    assert "checkpoint" in error.fix


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN])
def test_a_graph_that_is_low_inside_only_is_refused(tmp_path: Path, dtype: int) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["lower"], to=dtype),
        helper.make_node("Cast", ["lower"], ["again"], to=FLOAT),
        helper.make_node("MatMul", ["again", "w"], ["y"]),
    ]
    error = refusal(saved(tmp_path, small_model(nodes)))
    assert "'lower' is " + TensorProto.DataType.Name(dtype) in error.what


def test_a_low_graph_can_be_loaded(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(WEIGHT.astype(np.float16), "w")
    model = load_model(saved(tmp_path, small_model(dtype=TensorProto.FLOAT16, weight=tensor)))
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT16


def test_control_flow_is_refused(tmp_path: Path) -> None:
    branches = {
        name: helper.make_graph([helper.make_node(op, ["x"], [name])], name, [], [info(name)])
        for name, op in (("then_branch", "Neg"), ("else_branch", "Abs"))
    }
    condition = helper.make_node("Constant", [], ["yes"], value_int=1)
    cast = helper.make_node("Cast", ["yes"], ["condition"], to=TensorProto.BOOL)
    model = small_model([condition, cast, helper.make_node("If", ["condition"], ["y"], **branches)])
    for read in (read_model, load_model):
        error = refusal(saved(tmp_path, model), read)
        assert "subgraphs" in error.what
        assert "two files" in error.fix


def test_functions_are_inlined_and_their_control_flow_is_refused(tmp_path: Path) -> None:
    opset = [helper.make_opsetid("", 20)]
    double = helper.make_function("here", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opset)
    model = small_model([helper.make_node("Double", ["x"], ["y"], domain="here")])
    model.functions.append(double)
    assert [node.op_type for node in read_model(saved(tmp_path, model)).graph] == ["Add"]

    branch = helper.make_graph([helper.make_node("Neg", ["a"], ["c"])], "branch", [], [info("c")])
    body = [
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["b"], then_branch=branch, else_branch=branch),
    ]
    model.functions[0].CopyFrom(helper.make_function("here", "Double", ["a"], ["b"], body, opset))
    assert "subgraphs" in refusal(saved(tmp_path, model)).what


def test_an_operator_without_a_schema_is_refused_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Wonder", ["x"], ["a"], domain="here"), helper.make_node("MatMul", ["a", "w"], ["y"])]
    model = small_model(nodes)
    del model.graph.value_info[:]
    error = refusal(saved(tmp_path, model))
    assert "'a'" in error.what
    assert "Wonder" in error.why


def test_constants_become_initializers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Constant", [], ["table"], value=numpy_helper.from_array(WEIGHT)),
        helper.make_node("MatMul", ["x", "table"], ["a"]),
        helper.make_node("Pow", ["a", "two"], ["y"]),
    ]
    for read in (read_model, load_model):
        model = read(saved(tmp_path, small_model(nodes)))
        assert [node.op_type for node in model.graph] == ["MatMul", "Pow"]
        assert float(weight(model, "two")) == 2.0
        assert np.array_equal(weight(model, "table"), WEIGHT)


def test_nodes_that_do_nothing_are_dropped(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["w"], ["same"]),
        helper.make_node("Cast", ["x"], ["floats"], to=FLOAT),
        helper.make_node("MatMul", ["floats", "same"], ["a"]),
        helper.make_node("Cast", ["a"], ["whole"], to=INT64),
        helper.make_node("Cast", ["whole"], ["b"], to=FLOAT),
        helper.make_node("Identity", ["b"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=FLOAT),
    ]
    proto = small_model(nodes)
    model = read_model(saved(tmp_path, proto))
    assert [node.op_type for node in model.graph] == ["MatMul", "Cast", "Cast", "Identity"]
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    assert same(run(model, {"x": x}), run(ir.from_proto(proto), {"x": x}))


@pytest.mark.parametrize("location", ["../weights.bin", "sub/../../weights.bin", "/etc/hostname", "link.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    error = refusal(saved_external(folder, location))
    assert "outside its folder" in error.what
    assert location in error.why


def test_external_data_of_a_constant_node_is_checked_too(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(data_type=FLOAT, dims=WEIGHT.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    nodes = [helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("MatMul", ["x", "c"], ["y"])]
    assert "outside its folder" in refusal(saved(tmp_path, small_model(nodes))).what


def test_external_data_may_be_reached_by_a_link_within_the_folder(tmp_path: Path) -> None:
    path = saved_external(tmp_path, "link.bin")
    (tmp_path / "link.bin").symlink_to(tmp_path / "weights.bin")
    assert np.array_equal(weight(read_model(path)), WEIGHT)


def test_external_data_with_two_names_are_refused_at_once(tmp_path: Path) -> None:
    path = saved_external(tmp_path)
    (tmp_path / "other.bin").hardlink_to(tmp_path / "weights.bin")
    assert "hard links" in refusal(path).what


def test_missing_external_data_are_named(tmp_path: Path) -> None:
    path = saved_external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").unlink()
    assert "needs the file weights.bin" in refusal(path).what


@pytest.mark.parametrize(
    "entries", [{}, {"offset": 0}, {"offset": 128}, {"offset": 0, "length": 100}, {"length": 10**12}]
)
def test_external_data_that_do_not_fit_are_refused(tmp_path: Path, entries: dict[str, int]) -> None:
    path = saved_external(tmp_path, "weights.bin", **entries)
    if not entries or entries == {"offset": 0}:
        assert np.array_equal(weight(read_model(path)), WEIGHT)
        (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes()[:-1])
    assert "weights.bin" in refusal(path).what


def test_a_negative_offset_is_refused(tmp_path: Path) -> None:
    refusal(saved_external(tmp_path, offset=-4))


def test_data_files_are_those_a_file_names(tmp_path: Path) -> None:
    assert data_files(saved_external(tmp_path)) == [tmp_path / "weights.bin"]
    assert data_files(saved(tmp_path, small_model())) == []


def test_small_external_tensors_are_read_at_once(tmp_path: Path) -> None:
    model = read_model(saved_external(tmp_path))
    (tmp_path / "weights.bin").unlink()
    x = np.ones((2, 8), np.float32)
    assert np.array_equal(run(model, {"x": x})["y"], x @ WEIGHT)


def test_a_model_is_written_and_read_back_equal(tmp_path: Path) -> None:
    model = ir.from_proto(tiny_t5_protos()["encoder"])
    path = tmp_path / "encoder_model.onnx"
    write_model(model, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    feeds = {"input_ids": tiny_feeds()["ids"], "attention_mask": tiny_feeds()["mask"]}
    assert same(run(read_model(path), feeds), run(model, feeds))
    assert path.read_bytes() == written_bytes(model, tmp_path / "again.onnx")


def written_bytes(model: ir.Model, path: Path) -> bytes:
    write_model(model, path)
    return path.read_bytes()


def test_many_bytes_of_weights_go_into_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(tiny_t5_protos()["decoder"])
    inside = written_bytes(model, tmp_path / "inside.onnx")
    total = weight_bytes(model)
    monkeypatch.setattr(model_files, "EXTERNAL_DATA_THRESHOLD", total)
    write_model(model, tmp_path / "equal.onnx")
    assert (tmp_path / "equal.onnx").read_bytes() == inside
    monkeypatch.setattr(model_files, "EXTERNAL_DATA_THRESHOLD", total - 1)
    path = tmp_path / "outside.onnx"
    write_model(model, path)
    assert {entry.name for entry in tmp_path.iterdir()} == {
        *("inside.onnx", "equal.onnx", "outside.onnx", "outside.onnx_data"),
    }
    assert path.stat().st_size < len(inside) - 2000
    assert data_files(path) == [tmp_path / "outside.onnx_data"]
    read = read_model(path)
    assert weight_bytes(read) == total
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        assert np.array_equal(weight(read, name), value.const_value.numpy())


def test_weights_in_another_folder_are_written_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    monkeypatch.setattr(model_files, "SMALL_TENSOR_BYTES", 0)
    model = read_model(saved_external(source))
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    write_model(model, target / "small.onnx")
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    (source / "weights.bin").unlink()
    assert data_files(target / "small.onnx") == []
    assert np.array_equal(weight(read_model(target / "small.onnx")), WEIGHT)


@pytest.mark.parametrize("threshold", [0, 1 << 30])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_failing_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: int, earlier: bool
) -> None:
    monkeypatch.setattr(model_files, "EXTERNAL_DATA_THRESHOLD", threshold)
    path = tmp_path / "encoder_model.onnx"
    if earlier:
        path.write_bytes(b"earlier")

    def fail(model: ir.Model, target: Path, **rest: object) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(ir, "save", fail)
    with pytest.raises(EnvironmentProblemError, match="no space left"):
        write_model(ir.from_proto(small_model()), path)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == (
        {path.name: b"earlier"} if earlier else {}
    )


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblemError, match="cannot write"):
        write_model(ir.from_proto(small_model()), tmp_path / "nowhere" / "encoder_model.onnx")


def test_data_files_of_what_is_no_onnx_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder_model.onnx"
    path.write_bytes(b"no protobuf at all")
    assert refusal(path, data_files).what == f"{path} is not a readable ONNX file"
