"""The tiny T5 as other tools would have written it: merged decoders, other folders, names, types and links."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from precision_search.model.file_layouts import MERGED
from precision_search.model.graph import GraphName
from precision_search.model.layout import graph_file
from precision_search.model.merged import SWITCH
from tests.graphs import HEAD_WIDTH, HEADS, tiny_t5_protos
from tests.tiny_model import SIZES

Protos = dict[GraphName, onnx.ModelProto]
SETTINGS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 6}


def write_configs(folder: Path) -> Path:
    """The configs of the tiny T5, in a directory that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.json", SIZES), ("generation_config.json", SETTINGS)):
        (folder / name).write_text(json.dumps(content))
    return folder


def write_graphs(folder: Path, models: Mapping[str, onnx.ModelProto], external: str = "", least: int = 0) -> None:
    """The models by file name; with `external` weights of `least` bytes are in files whose names end in it."""
    for name, proto in models.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if external:
            location = f"{path.name}{external}"
            onnx.save_model(proto, path, save_as_external_data=True, location=location, size_threshold=least)
        else:
            onnx.save(proto, path)


def plain_files(protos: Protos) -> dict[str, onnx.ModelProto]:
    """The three models under the names of our layout."""
    return {graph_file(name): proto for name, proto in protos.items()}


def merged_files(protos: Protos | None = None) -> dict[str, onnx.ModelProto]:
    """The encoder, and both decoders in one."""
    protos = protos or tiny_t5_protos()
    return {graph_file("encoder"): protos["encoder"], MERGED: merge(protos["decoder"], protos["decoder_with_past"])}


def merge(decoder: onnx.ModelProto, with_past: onnx.ModelProto, *, suffix: str = "") -> onnx.ModelProto:
    """Both as branches of one If, as optimum merges them: weights of both outside, dummies for caches that one lacks.

    What branches give is called like the model's outputs with `suffix`.
    """
    outputs = list(decoder.graph.output)
    shared = {each.name: each for each in decoder.graph.initializer}
    branches = {}
    for name, proto in (("else_branch", decoder), ("then_branch", with_past)):
        graph = onnx.GraphProto()
        graph.CopyFrom(proto.graph)
        own = {each.name for each in graph.output}
        for value in outputs:
            if value.name not in own:
                dummy = helper.make_tensor(
                    value.name, TensorProto.FLOAT, [1, HEADS, 1, HEAD_WIDTH], bytes(32), raw=True
                )
                graph.node.append(helper.make_node("Constant", [], [value.name], f"/dummy/{value.name}", value=dummy))
        for node in graph.node:
            node.output[:] = [f"{each}{suffix}" if each in own else each for each in node.output]
            node.input[:] = [f"{each}{suffix}" if each in own else each for each in node.input]
        local = [each for each in graph.initializer if each.name not in shared]
        ends = [helper.make_tensor_value_info(f"{v.name}{suffix * (v.name in own)}", 1, None) for v in outputs]
        branches[name] = helper.make_graph(graph.node, name, [], ends, local, value_info=graph.value_info)
    inputs = {each.name: each for proto in (with_past, decoder) for each in proto.graph.input}
    switch = helper.make_tensor_value_info(SWITCH, TensorProto.BOOL, [1])
    choice = helper.make_node("If", [SWITCH], [each.name for each in outputs], "optimum::if", **branches)
    graph = helper.make_graph([choice], "merged", [*inputs.values(), switch], outputs, list(shared.values()))
    return helper.make_model(graph, opset_imports=decoder.opset_import, ir_version=10)


def rename(proto: onnx.ModelProto, name_of: Callable[[str], str]) -> onnx.ModelProto:
    """The model with other names of values."""
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = name_of(value.name)
    for node in graph.node:
        node.input[:] = map(name_of, node.input)
        node.output[:] = map(name_of, node.output)
    return proto


def as_in_hub_cache(folder: Path, cache: Path) -> Path:
    """The directory as the Hub's cache has it: each file is a link to a blob that is named by its hash."""
    blobs, snapshot = cache / "models--some--model/blobs", cache / "models--some--model/snapshots/0123abcd"
    blobs.mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            blob = blobs / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(*[".."] * (len(link.relative_to(cache).parts) - 2), "blobs", blob.name))
    return snapshot
