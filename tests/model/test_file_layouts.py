"""Which files are a model, told from their names: those that are read, and those that are refused for what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from precision_search.errors import InputError
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.file_layouts import (
    FILE_LAYOUTS,
    REFUSED_LAYOUTS,
    FileLayout,
    file_names,
    find_graphs,
    refuse_layout,
)
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.layout import graph_file
from precision_search.model.onnx_files import NEWEST_OPSET, OLDEST_OPSET
from tests.graphs import LAYERS, run_t5, same, tiny_feeds, tiny_t5_protos
from tests.other_layouts import Protos, merged_files, plain_files, rename, write_configs, write_graphs

PLAIN = tuple(map(graph_file, GRAPH_NAMES))


def opened(folder: Path) -> Bundle:
    return open_bundle(str(folder), folder.parent / "cache")


@pytest.mark.parametrize("layout", FILE_LAYOUTS, ids=lambda layout: layout.title)
def test_every_layout_is_found_among_other_files(layout: FileLayout) -> None:
    files = {name: file.replace("*", "my-t5") for name, file in layout.files.items()}
    others = ["config.json", "onnx/encoder_model_quantized.onnx", "decoder_model_fp16.onnx", "notes-decoder.txt"]
    found = find_graphs([*others, *files.values()])
    assert found is not None
    assert (found.layout, dict(found.names)) == (layout, files)
    assert find_graphs(others) is None


def test_separate_decoders_are_preferred_and_a_lone_encoder_is_a_model_that_lacks_something() -> None:
    found = find_graphs([*PLAIN, "decoder_model_merged.onnx", *(f"onnx/{name}" for name in PLAIN)])
    assert found is not None
    assert tuple(found.names.values()) == PLAIN
    lone = find_graphs([PLAIN[0], "x-encoder.onnx"])
    assert lone is not None
    assert tuple(lone.names.values()) == PLAIN
    inside = find_graphs([f"onnx/{PLAIN[0]}", "onnx/decoder_model_merged_quantized.onnx"])
    assert inside is not None
    assert tuple(inside.names.values()) == tuple(f"onnx/{name}" for name in PLAIN)


def test_a_checkpoint_is_preferred_to_copies_in_a_folder(tmp_path: Path) -> None:
    folder = write_configs(tmp_path / "model")
    write_graphs(folder / "onnx", plain_files(tiny_t5_protos()))
    assert opened(folder).checkpoint is None
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError) as caught:
        opened(folder)
    assert "onnx" not in caught.value.what


@pytest.mark.parametrize("name", ["onnx/decoder_model_merged.onnx", "onnx/decoder_model_merged.onnx_data"])
def test_a_model_that_changes_is_noticed_in_every_layout(tmp_path: Path, name: str) -> None:
    folder = write_configs(tmp_path / "model")
    write_graphs(folder / "onnx", merged_files(), "_data")
    bundle = opened(folder)
    with (folder / name).open("ab") as stream:
        stream.write(b"\0")
    for files in (bundle.files, bundle.source):
        with pytest.raises(InputError, match="changed while it was read"):
            files.check()


def test_two_models_in_one_directory_are_refused(tmp_path: Path) -> None:
    folder = write_configs(tmp_path / "two")
    for name in ("a-encoder", "a-init-decoder", "a-decoder", "b-encoder", "b-init-decoder", "b-decoder"):
        (folder / f"{name}.onnx").touch()
    with pytest.raises(InputError, match="2 models in one directory") as caught:
        opened(folder)
    assert "a-encoder.onnx and b-encoder.onnx" in str(caught.value.why)


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (("t5_encoder_decoder_init.onnx", "t5_decoder.onnx"), "onnxruntime.transformers"),
        (("t5_encoder.onnx", "t5_decoder.onnx"), "onnxruntime.transformers"),
        (("t5-encoder-quantized.onnx", "t5-decoder-quantized.onnx"), "fastT5"),
        (("encoder_model_quantized.onnx", "decoder_model_merged_quantized.onnx"), "transformers.js"),
        (("decoder_model.onnx",), "a decoder without its encoder"),
        (("model.onnx",), "one graph in a file"),
        (("model.ort",), "ONNX Runtime's own format"),
    ],
)
@pytest.mark.parametrize("folder", ["", "onnx"])
def test_other_layouts_are_told_apart(tmp_path: Path, names: tuple[str, ...], title: str, folder: str) -> None:
    model = write_configs(tmp_path / "model")
    (model / folder).mkdir(exist_ok=True)
    for name in names:
        (model / folder / name).touch()
    with pytest.raises(InputError) as caught:
        opened(model)
    assert title in caught.value.what
    assert names[0] in str(caught.value.why)
    assert "checkpoint" in str(caught.value.fix)


def test_every_refusal_is_reached_and_other_files_are_none(tmp_path: Path) -> None:
    assert len({(layout.title, layout.patterns) for layout in REFUSED_LAYOUTS}) == 7
    (tmp_path / "notes.txt").touch()
    refuse_layout(tmp_path, file_names(tmp_path))


def older(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in an opset before 13, where axes are attributes."""
    weights = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Unsqueeze":
            node.attribute.append(helper.make_attribute("axes", weights[node.input.pop()].tolist()))
    proto.opset_import[0].version = opset
    return proto


def in_opset(opset: int) -> Protos:
    if opset >= 13:
        return tiny_t5_protos(opset=opset)
    return {name: older(proto, opset) for name, proto in tiny_t5_protos(opset=13).items()}


def runs_like_our_layout(bundle: Bundle, opset: int = 20) -> None:
    plain = {name: ir.from_proto(proto) for name, proto in in_opset(opset).items()}
    expected, found = run_t5(plain, tiny_feeds()), run_t5(bundle.models, tiny_feeds())
    assert all(same(found[name], expected[name]) for name in expected)


def fast_t5(opset: int) -> dict[str, onnx.ModelProto]:
    """The tiny T5 as fastT5 writes it: caches by position, those of cross-attention handed on by every step."""
    protos = in_opset(opset)
    order = [
        f"{layer}.{part}.{kind}"
        for layer in range(LAYERS)
        for part in ("decoder", "encoder")
        for kind in ("key", "value")
    ]
    later = protos["decoder_with_past"].graph
    for name in (each for each in order if ".encoder." in each):
        later.node.append(helper.make_node("Identity", [f"past_key_values.{name}"], [f"present.{name}"], f"/on/{name}"))
        later.output.append(helper.make_tensor_value_info(f"present.{name}", TensorProto.FLOAT, None))
    for name in GRAPH_NAMES[1:]:
        outputs = {each.name: each for each in protos[name].graph.output}
        ordered = [outputs["logits"], *(outputs[f"present.{each}"] for each in order)]
        del protos[name].graph.output[:]
        protos[name].graph.output.extend(ordered)
    names = {"last_hidden_state": "hidden_states", "present.0.decoder.key": "past_key_values"}
    names |= {f"present.{each}": str(700 + index) for index, each in enumerate(order) if index}
    names |= {f"past_key_values.{each}": f"pkv_{index}" for index, each in enumerate(order)}
    files = zip(("my-encoder.onnx", "my-init-decoder.onnx", "my-decoder.onnx"), GRAPH_NAMES, strict=True)
    return {file: rename(protos[name], lambda each: names.get(each, each)) for file, name in files}


@pytest.mark.parametrize("opset", [12, 20])
def test_a_model_of_fast_t5_is_read_by_position(tmp_path: Path, opset: int) -> None:
    folder = write_configs(tmp_path / "fast")
    write_graphs(folder, fast_t5(opset))
    bundle = opened(folder)
    runs_like_our_layout(bundle, opset)
    assert not any(".encoder." in str(value.name) for value in bundle.models["decoder_with_past"].graph.outputs)


@pytest.mark.parametrize("surplus", [1, 4])
def test_a_cache_of_another_size_is_told(tmp_path: Path, surplus: int) -> None:
    folder, files = write_configs(tmp_path / "fast"), fast_t5(20)
    for index in range(surplus):
        files["my-init-decoder.onnx"].graph.output.append(
            helper.make_tensor_value_info(f"more.{index}", TensorProto.FLOAT, [1])
        )
        node = helper.make_node("Neg", ["minimum"], [f"more.{index}"], f"/more/{index}")
        files["my-init-decoder.onnx"].graph.node.append(node)
    if surplus == 4:
        del files["my-decoder.onnx"].graph.output[1:]
    write_graphs(folder, files)
    with pytest.raises(InputError, match="is not the decoder"):
        opened(folder)


def to_int32(proto: onnx.ModelProto) -> None:
    for value in proto.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            value.type.tensor_type.elem_type = TensorProto.INT32
    del proto.graph.value_info[:]


def list_weights_as_inputs(proto: onnx.ModelProto) -> None:
    for weight in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))


def to_int32_where_the_name_is_taken(proto: onnx.ModelProto) -> None:
    taken = f"{proto.graph.input[0].name}/int32"
    rename(proto, lambda name: taken if name == "two" else name)
    to_int32(proto)


@pytest.mark.parametrize("change", [to_int32, to_int32_where_the_name_is_taken, list_weights_as_inputs])
def test_what_differs_in_declarations_only_runs_like_our_layout(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    folder, protos = write_configs(tmp_path / "model"), tiny_t5_protos()
    for proto in protos.values():
        change(proto)
    write_graphs(folder, plain_files(protos))
    bundle = opened(folder)
    runs_like_our_layout(bundle)
    for model in bundle.models.values():
        assert {value.dtype for value in model.graph.inputs} <= {ir.DataType.INT64, ir.DataType.FLOAT}
        assert not any(value.is_initializer() for value in model.graph.inputs)


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 13, 17, NEWEST_OPSET])
def test_opsets_are_read(tmp_path: Path, opset: int) -> None:
    folder = write_configs(tmp_path / "model")
    write_graphs(folder, plain_files(in_opset(opset)))
    runs_like_our_layout(opened(folder), opset)


@pytest.mark.parametrize("opset", [0, OLDEST_OPSET - 1, NEWEST_OPSET + 1])
def test_other_opsets_are_refused_by_number(tmp_path: Path, opset: int) -> None:
    folder, protos = write_configs(tmp_path / "model"), tiny_t5_protos()
    protos["encoder"].opset_import[0].version = opset
    write_graphs(folder, plain_files(protos))
    with pytest.raises(InputError, match=f"uses ONNX opset {opset}") as caught:
        opened(folder)
    assert f"{OLDEST_OPSET} to {NEWEST_OPSET}" in str(caught.value.why)


def test_a_decoder_for_one_token_is_refused(tmp_path: Path) -> None:
    """Whole prefixes go through the decoder; onnxruntime.transformers fixes its length."""
    folder, protos = write_configs(tmp_path / "model"), tiny_t5_protos()
    protos["decoder"].graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    write_graphs(folder, plain_files(protos))
    with pytest.raises(InputError) as caught:
        opened(folder)
    assert "input_ids has the fixed target length 1" in str(caught.value.why)
