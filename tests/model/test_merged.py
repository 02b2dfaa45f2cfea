"""A merged decoder is taken apart into the decoders that it was merged from; what is none is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from precision_search.errors import InputError
from precision_search.model.bundle import Bundle, open_bundle, write_bundle
from precision_search.model.file_layouts import MERGED
from precision_search.model.merged import SWITCH, split
from tests.graphs import run_t5, same, tiny_feeds, tiny_t5_protos
from tests.other_layouts import merge, merged_files, plain_files, write_configs, write_graphs


def opened(folder: Path) -> Bundle:
    return open_bundle(str(folder), folder.parent / "cache")


@pytest.fixture
def plain(tmp_path: Path) -> Bundle:
    folder = write_configs(tmp_path / "plain")
    write_graphs(folder, plain_files(tiny_t5_protos()))
    return opened(folder)


def is_like(bundle: Bundle, plain: Bundle) -> None:
    """Has the same keys and computes the same, bit for bit."""
    for name, graph in plain.graphs.items():
        assert [node.key for node in bundle.graphs[name].compute] == [node.key for node in graph.compute]
        ends = [{str(v.name) for v in each} for each in (graph.model.graph.inputs, graph.model.graph.outputs)]
        ours = bundle.models[name].graph
        assert [{str(v.name) for v in each} for each in (ours.inputs, ours.outputs)] == ends
    found, expected = run_t5(bundle.models, tiny_feeds()), run_t5(plain.models, tiny_feeds())
    assert all(same(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("folder", "external"), [("", ""), ("onnx", "_data")])
def test_a_merged_decoder_is_the_two_that_it_was_made_of(
    tmp_path: Path, plain: Bundle, folder: str, external: str
) -> None:
    where = write_configs(tmp_path / "merged")
    write_graphs(where / folder, merged_files(), external)
    bundle = opened(where)
    is_like(bundle, plain)
    assert opened(write_bundle(bundle, tmp_path / "written")).checkpoint is None
    # The branches share what is outside them.
    first, later = (bundle.models[name].graph.initializers["lm_head.weight"] for name in bundle.graphs if "dec" in name)
    assert external or first.const_value is later.const_value


def with_other_names(proto: onnx.ModelProto) -> None:
    decoders = tiny_t5_protos()
    proto.CopyFrom(merge(decoders["decoder"], decoders["decoder_with_past"], suffix="_1"))


def with_a_cache_handed_on(proto: onnx.ModelProto) -> None:
    """Where cross-attention's keys come out again as they went in."""
    branch = next(attr.g for attr in proto.graph.node[0].attribute if attr.name == "then_branch")
    dummy = next(node for node in branch.node if node.output[0] == "present.0.encoder.key")
    dummy.CopyFrom(helper.make_node("Identity", ["past_key_values.0.encoder.key"], list(dummy.output), dummy.name))


def with_nodes_outside(proto: onnx.ModelProto) -> None:
    """The condition through a Squeeze and a Cast, and a constant of both branches outside."""
    graph = proto.graph
    two = next(each for each in graph.initializer if each.name == "two")
    constant = helper.make_node("Constant", [], ["two"], "two", value=two)
    axes = helper.make_node("Constant", [], ["axes"], "axes", value=numpy_helper.from_array(np.array([0])))
    squeeze = helper.make_node("Squeeze", [SWITCH, "axes"], ["squeezed"], "squeeze")
    cast = helper.make_node("Cast", ["squeezed"], ["condition"], "cast", to=TensorProto.BOOL)
    graph.initializer.remove(two)
    graph.node[0].input[0] = "condition"
    nodes = [constant, axes, squeeze, cast, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def with_names_from_outside(proto: onnx.ModelProto) -> None:
    """Small weights both outside and in the branches, as optimum keeps them, and results called like a weight."""
    small = [each for each in proto.graph.initializer if not each.dims]
    outside = numpy_helper.from_array(np.zeros(1, np.float32), "v5")
    for attr in proto.graph.node[0].attribute:
        attr.g.initializer.extend(small)
        assert any("v5" in node.output for node in attr.g.node)
    proto.graph.initializer.append(outside)


def with_weights_inside(proto: onnx.ModelProto) -> None:
    weights = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    for attr in proto.graph.node[0].attribute:
        attr.g.initializer.extend(weights)


CHANGES = (
    *(with_other_names, with_a_cache_handed_on, with_nodes_outside, with_weights_inside, with_names_from_outside),
)


@pytest.mark.parametrize("change", CHANGES)
def test_however_it_is_merged(tmp_path: Path, plain: Bundle, change: Callable[[onnx.ModelProto], None]) -> None:
    where, files = write_configs(tmp_path / "merged"), merged_files()
    change(files[MERGED])
    write_graphs(where, files)
    is_like(opened(where), plain)


def test_a_value_that_both_outputs_are_gets_both_names() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    ends = [helper.make_tensor_value_info("y", 1, [2])] * 2
    branch = helper.make_graph(nodes, "branch", [], ends)
    choice = helper.make_node("If", [SWITCH], ["a", "y"], then_branch=branch, else_branch=branch)
    inputs = [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info(SWITCH, 9, [1])]
    outputs = [helper.make_tensor_value_info(name, 1, [2]) for name in ("a", "y")]
    proto = helper.make_model(helper.make_graph([choice], "g", inputs, outputs), ir_version=10)
    for part in split(ir.from_proto(proto), Path("merged.onnx")).values():
        assert [value.name for value in part.graph.outputs] == ["a", "y"]
        assert [node.op_type for node in part.graph] == ["Neg", "Identity"]
        onnx.checker.check_model(ir.to_proto(part))


def without_choice(proto: onnx.ModelProto) -> None:
    proto.CopyFrom(tiny_t5_protos()["decoder"])


def with_two(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(proto.graph.node[0])
    proto.graph.node[1].output[:] = [f"{each}.2" for each in proto.graph.node[1].output]


def with_another_switch(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = proto.graph.input[-1].name = "is_first"


def test_a_branch_that_hands_on_what_is_outside_is_refused(tmp_path: Path) -> None:
    """ONNX wants an Identity there, and so does ONNX Runtime."""
    where, files = write_configs(tmp_path / "merged"), merged_files()
    branch = next(attr.g for attr in files[MERGED].graph.node[0].attribute if attr.name == "then_branch")
    names = [each.name for each in branch.output]
    branch.output[names.index("present.0.encoder.key")].name = "past_key_values.0.encoder.key"
    write_graphs(where, files)
    with pytest.raises(InputError, match="is not a readable ONNX file"):
        opened(where)


def without_a_branch(proto: onnx.ModelProto) -> None:
    del proto.graph.node[0].attribute[0]


@pytest.mark.parametrize("change", [without_choice, with_two, with_another_switch, without_a_branch])
def test_what_is_no_merged_decoder_is_refused(tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    where, files = write_configs(tmp_path / "merged"), merged_files()
    change(files[MERGED])
    write_graphs(where, files)
    with pytest.raises(InputError, match="is no merged decoder") as caught:
        opened(where)
    assert SWITCH in str(caught.value.why)
    assert "decoder_with_past_model.onnx" in str(caught.value.fix)
