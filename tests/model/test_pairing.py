"""Nodes of the later decoder get the keys of the same computations in the first one, whatever they are called."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from precision_search.errors import InputError
from precision_search.model import pairing
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.graph import GraphName, describe
from precision_search.model.pairing import aligned
from tests.graphs import Writer, tiny_t5, tiny_t5_protos
from tests.other_layouts import Protos, plain_files, write_configs, write_graphs


def opened(folder: Path) -> Bundle:
    return open_bundle(str(folder), folder.parent / "cache")


def made_by(model: ir.Model) -> dict[str, str]:
    """Node names by the first value that each makes."""
    return {str(node.outputs[0].name): str(node.name) for node in model.graph}


def without_weight_names(proto: onnx.ModelProto) -> None:
    names = {value.name: f"w{index}" for index, value in enumerate(proto.graph.initializer)}
    for value in proto.graph.initializer:
        value.name = names[value.name]
    for node in proto.graph.node:
        node.input[:] = [names.get(each, each) for each in node.input]


def nameless(proto: onnx.ModelProto) -> None:
    without_weight_names(proto)
    for node in proto.graph.node:
        node.name = ""


def counted(proto: onnx.ModelProto) -> None:
    without_weight_names(proto)
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"


def misleading(proto: onnx.ModelProto) -> None:
    """Names that look like paths."""
    for index, node in enumerate(proto.graph.node):
        node.name = f"/block.{index % 7}/n{len(proto.graph.node) - index}/x"


def all_alike(proto: onnx.ModelProto) -> None:
    without_weight_names(proto)
    for node in proto.graph.node:
        node.name = "node"


def in_another_order(proto: onnx.ModelProto) -> None:
    """Nameless, and the nodes in a random order that still goes from inputs to outputs."""
    nameless(proto)
    rng, made = random.Random(len(proto.graph.node)), {value.name for value in proto.graph.input}
    made |= {value.name for value in proto.graph.initializer}
    left, ordered = list(proto.graph.node), []
    while left:
        node = rng.choice([each for each in left if made.issuperset(each.input)])
        left.remove(node)
        ordered.append(node)
        made.update(node.output)
    del proto.graph.node[:]
    proto.graph.node.extend(ordered)


def scrambled(change: Callable[[onnx.ModelProto], None]) -> Protos:
    protos = tiny_t5_protos()
    for name in ("decoder", "decoder_with_past"):
        change(protos[name])
    return protos


@pytest.mark.parametrize("change", [nameless, counted, misleading, all_alike, in_another_order])
def test_partners_are_found_by_structure_and_weights(tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    folder = write_configs(tmp_path / "model")
    write_graphs(folder, plain_files(scrambled(change)))
    bundle = opened(folder)
    first, later = (made_by(bundle.models[name]) for name in ("decoder", "decoder_with_past"))
    well_named = tiny_t5()
    ours = {key: value for value, key in made_by(well_named["decoder"].model).items()}
    compute = {node.key for node in well_named["decoder_with_past"].compute}
    wrong = [
        key
        for value, key in made_by(well_named["decoder_with_past"].model).items()
        if key in compute and later[value] != first[ours[key]]
    ]
    assert wrong == []
    again = opened(folder)
    for name, graph in bundle.graphs.items():
        assert list(again.graphs[name].nodes) == list(graph.nodes)
        assert len(graph.nodes) == len(graph.model.graph)


def test_good_names_stay_as_they_are() -> None:
    graphs = tiny_t5()
    assert aligned(graphs["decoder"], graphs["decoder_with_past"]) is graphs["decoder_with_past"]


def two_of_a_kind(name: GraphName, order: str, *, more: str = "") -> ir.Model:
    """`y` is made of nodes that differ in nothing but their place, and of one for each letter of `more`."""
    write = Writer(name)
    x = write.input("x", 1, (4,))
    made = [write.op("", "Neg", x) for _ in order] + [write.op("", "Abs", x) for _ in more]
    write.op("", "Relu", write.op("", "Concat", *made, axis=0), output="y")
    write.output("y", 1, (4 * len(made),))
    proto = write.proto()
    for node, letter in zip(proto.graph.node, order, strict=False):
        node.name = f"/{letter}/Neg"
    return ir.from_proto(proto)


def test_exact_twins_are_paired_in_the_order_of_the_graphs() -> None:
    first = describe("decoder", two_of_a_kind("decoder", "ab"))
    later = aligned(first, describe("decoder_with_past", two_of_a_kind("decoder_with_past", "cd")))
    assert [node.key for node in later.compute] == [node.key for node in first.compute]
    assert [node.key for node in first.compute][:2] == ["decoder.a/Neg", "decoder.b/Neg"]


@pytest.mark.parametrize(("order", "more"), [("cde", ""), ("cd", "x")])
def test_a_node_without_a_partner_is_refused(order: str, more: str) -> None:
    first = describe("decoder", two_of_a_kind("decoder", "ab"))
    with pytest.raises(InputError, match="have no partner in decoder"):
        aligned(first, describe("decoder_with_past", two_of_a_kind("decoder_with_past", order, more=more)))


def test_the_search_for_partners_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "MOST_READERS", 50)
    folder = write_configs(tmp_path / "model")
    write_graphs(folder, plain_files(scrambled(nameless)))
    with pytest.raises(InputError, match="have no partner in decoder"):
        opened(folder)


def test_constants_with_no_elements_and_without_an_end_are_compared() -> None:
    def model(name: GraphName, path: str) -> ir.Model:
        write = Writer(name)
        x = write.input("x", 1, (2,))
        empty, endless = write.weight("empty", np.zeros(0, np.float32)), write.weight("inf", float("-inf"))
        joined = write.op("", "Concat", x, empty, axis=0)
        write.op(path, "Max", write.op(path, "Mul", joined, endless), x, output="y")
        write.output("y", 1, (2,))
        return ir.from_proto(write.proto())

    first = describe("decoder", model("decoder", "a"))
    later = aligned(first, describe("decoder_with_past", model("decoder_with_past", "b")))
    assert [node.key for node in later.compute] == ["decoder.a/Mul", "decoder.a/Max"]


def test_long_ways_from_a_weight_are_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many readers sits one movement further from the weight than the one before."""
    write, count = Writer("decoder"), 200
    moved, total = write.weight("w", np.ones((4, 4), np.float32)), write.input("x", 1, (4, 4))
    for _ in range(count):
        moved = write.op("", "Transpose", moved, perm=[1, 0])
        total = write.op("", "Add", total, moved)
    write.output(total, 1, (4, 4))
    graph = write.graph()
    asked: list[str] = []
    producer = ir.Value.producer

    def counting(value: ir.Value) -> ir.Node | None:
        asked.append(str(value.name))
        return producer(value)

    monkeypatch.setattr(ir.Value, "producer", counting)
    assert len(pairing._Digester(graph, {total}).digests) == count
    assert len(asked) < 20 * count
