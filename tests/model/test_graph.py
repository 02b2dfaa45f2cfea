"""Node keys, kinds, roles and index arithmetic: on the demo, on a graph as tracing exporters write it, on oddities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from precision_search.model.bundle import Bundle
from precision_search.model.graph import (
    KEYED,
    Graph,
    GraphName,
    NodeKind,
    compute_keys_by_op_type,
    describe,
    family_of,
    float_inputs,
    is_weight,
    retype,
    role_of,
)
from precision_search.precision.wiring import sources
from tests.graphs import LAYERS, Writer, tiny_t5, tiny_t5_protos

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture(scope="module")
def tiny() -> dict[GraphName, Graph]:
    return tiny_t5()


def parsed(
    nodes: list[onnx.NodeProto], weights: Mapping[str, Any] | None = None, *, name: GraphName = "encoder"
) -> Graph:
    """A graph from float [2] `x` to `y` over these nodes, described."""
    weights = weights or {}
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    ends = [helper.make_tensor_value_info(each, FLOAT, [2]) for each in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return describe(name, ir.from_proto(onnx.shape_inference.infer_shapes(model)))


def node_of(graph: Graph, key: str) -> ir.Node:
    return next(node for node in graph.model.graph if node.name == key)


def weights_read(graph: Graph, key: str) -> list[np.ndarray]:
    """The weights that a node reads, directly or behind data movement (a tied projection is transposed)."""
    values = [source for _, value in float_inputs(node_of(graph, key)) for source in sources(value, graph)]
    return [value.const_value.numpy() for value in values if is_weight(value) and value.const_value is not None]


def test_keys_of_the_demo_are_unique_names_in_topological_order(demo_bundle: Bundle) -> None:
    for graph in demo_bundle.graphs.values():
        names = [str(node.name) for node in graph.model.graph]
        assert len(set(names)) == len(names)
        assert list(graph.nodes) == names
        made: set[ir.Value] = set()
        for node in graph.model.graph:
            made_inside = {value for value in node.inputs if value is not None and value.producer() is not None}
            assert made_inside <= made
            made.update(node.outputs)


def test_compute_nodes_of_both_decoder_graphs_line_up_on_the_demo(demo_bundle: Bundle) -> None:
    decoder, with_past = demo_bundle.graphs["decoder"], demo_bundle.graphs["decoder_with_past"]
    shared = {node.key for node in with_past.compute}
    assert shared < {node.key for node in decoder.compute}
    with_weights = 0
    for key in shared:
        assert decoder.nodes[key].op_type == with_past.nodes[key].op_type
        ours, theirs = weights_read(decoder, key), weights_read(with_past, key)
        assert [array.tobytes() for array in ours] == [array.tobytes() for array in theirs]
        with_weights += bool(ours)
    # Two embeddings, q k v o and two of cross attention and two of the FFN a layer, thirteen norms, the projection.
    assert with_weights == 2 + 4 * (4 + 2 + 2) + 13 + 1
    missing = {node.key for node in decoder.compute} - shared
    assert missing == {
        f"decoder.block.{layer}.layer.1.EncDecAttention.{part}/MatMul" for layer in range(4) for part in "kv"
    }


def test_no_key_belongs_to_both_families_on_the_demo(demo_bundle: Bundle) -> None:
    encoder, decoder = demo_bundle.graphs["encoder"], demo_bundle.graphs["decoder"]
    assert not set(encoder.nodes) & set(decoder.nodes)
    assert all(key.startswith("encoder") for key in encoder.nodes)
    assert all(key.startswith(("decoder", "lm_head")) for key in decoder.nodes)


def test_keys_of_the_demo_name_the_modules(demo_bundle: Bundle) -> None:
    for key, graph, op_type in (
        ("encoder.block.1.layer.1.DenseReluDense.wo/MatMul", "encoder", "MatMul"),
        ("decoder.block.0.layer.0.SelfAttention/MatMul.1", "decoder", "MatMul"),
        ("decoder.block.3.layer.2.layer_norm/Mul.1", "decoder_with_past", "Mul"),
        ("decoder.final_layer_norm/ReduceMean", "decoder_with_past", "ReduceMean"),
        ("lm_head/MatMul", "decoder", "MatMul"),
        ("lm_head/Mul", "decoder", "Mul"),
    ):
        node = demo_bundle.graphs[graph].nodes[key]  # type: ignore[index]
        assert (node.kind, node.op_type) == (NodeKind.COMPUTE, op_type)


def test_index_arithmetic_is_found_and_nothing_else_on_the_demo(demo_bundle: Bundle) -> None:
    for name, graph in demo_bundle.graphs.items():
        path = f"{family_of(name)}.block.0.layer.0.SelfAttention"
        pinned = [node.key for node in graph.nodes.values() if node.pinned]
        assert pinned == [f"{path}/Div", f"{path}/Log", f"{path}/Div.1", f"{path}/Mul"]
        assert {node.pinned for node in graph.nodes.values()} == {None, "index arithmetic"}


def test_roles_of_the_demo_gather_the_layers(demo_bundle: Bundle) -> None:
    encoder = demo_bundle.graphs["encoder"]
    roles = Counter(node.role for node in encoder.compute)
    assert roles["encoder.block.*.layer.1.DenseReluDense.wo/MatMul"] == 4
    assert roles["encoder.block.*.layer.0.SelfAttention/MatMul.1"] == 4
    assert roles["encoder.final_layer_norm/Pow"] == 1


def test_the_exported_files_hold_no_machine_path_and_no_stack_trace(demo_bundle: Bundle) -> None:
    for path in demo_bundle.path.glob("*.onnx"):
        proto = onnx.load(path)
        for initializer in proto.graph.initializer:
            initializer.ClearField("raw_data")
        for value in proto.graph.initializer:
            assert value.ByteSize() < 1000
        text = proto.SerializeToString()
        for word in (b"/home", b"/work", b"/root", b"/tmp", b"/usr", b"site-packages", b".py", b"stack_trace", b"pkg."):
            assert word not in text, (path.name, word)


@pytest.mark.parametrize(
    ("key", "role"),
    [
        ("encoder.block.1.layer.0.SelfAttention/MatMul.1", "encoder.block.*.layer.0.SelfAttention/MatMul.1"),
        ("decoder.block.11.layer.2.DenseReluDense.wo/MatMul", "decoder.block.*.layer.2.DenseReluDense.wo/MatMul"),
        ("decoder.block.0/Add.2", "decoder.block.*/Add.2"),
        ("encoder/Add.3", "encoder/Add.3"),
        ("lm_head/MatMul", "lm_head/MatMul"),
        ("encoder.block2.layer.7/Add", "encoder.block2.layer.*/Add"),
    ],
)
def test_a_role_is_a_key_without_its_layer_number(key: str, role: str) -> None:
    assert role_of(key) == role


def test_names_of_a_tracing_exporter_give_keys(tiny: Mapping[GraphName, Graph]) -> None:
    assert tiny["encoder"].nodes["encoder.block.1.layer.1.DenseReluDense.wo/MatMul"].kind is NodeKind.COMPUTE
    keys = {name: {node.key for node in graph.compute} for name, graph in tiny.items()}
    cross = {f"decoder.block.{layer}.layer.1.EncDecAttention.{part}/MatMul" for layer in range(LAYERS) for part in "kv"}
    assert keys["decoder"] - keys["decoder_with_past"] == cross
    assert keys["decoder_with_past"] < keys["decoder"]
    for key in keys["decoder_with_past"]:
        ours, theirs = (weights_read(tiny[name], key) for name in ("decoder", "decoder_with_past"))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)), key


def test_index_arithmetic_of_a_tracing_exporter_is_found(tiny: Mapping[GraphName, Graph]) -> None:
    for name, graph in tiny.items():
        path = f"{family_of(name)}.block.0.layer.0.SelfAttention"
        assert {node.key for node in graph.compute if node.pinned} == {f"{path}/Div", f"{path}/Log", f"{path}/Mul"}


def test_stacks_traced_as_roots_of_their_own_still_get_keys_of_their_family() -> None:
    add = helper.make_node("Add", ["x", "x"], ["y"], "/block.0/layer.0/Add")
    keys = [set(parsed([add], name=name).nodes) for name in ("encoder", "decoder")]
    assert keys == [{"encoder.block.0.layer.0/Add"}, {"decoder.block.0.layer.0/Add"}]


def test_without_node_names_a_weight_names_the_module() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "block.0.layer_norm.weight"], ["a"]),
        helper.make_node("Mul", ["a", "block.0.layer_norm.weight"], ["b"], "Mul_17"),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    graph = parsed(nodes, {"block.0.layer_norm.weight": np.ones(2, np.float32)})
    assert list(graph.nodes) == ["encoder.block.0.layer_norm/Mul", "encoder.block.0.layer_norm/Mul.1", "encoder/Neg"]


@pytest.mark.parametrize(
    "scopes",
    [
        "",
        "nonsense",
        "5",
        "[1, 2]",
        "{}",
        "['only']",
        "['', '_hidden', 'add']",
        "(" * 20_000,
        "[" * 9_000,
        "-" * 9_000 + "1",
        "['a\\', 'b']",
        "None",
    ],
)
def test_scopes_that_are_no_scopes_are_passed_over(scopes: str) -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert list(parsed([node]).nodes) == ["encoder/Add"]


def test_scopes_name_the_innermost_module() -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"], "node_add_3")
    scopes = "['', 'encoder', 'encoder.block.0', 'add_3']"
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert list(parsed([node]).nodes) == ["encoder.block.0/Add"]


def test_keys_are_kept_when_a_described_graph_is_described_again(demo_bundle: Bundle) -> None:
    graph = demo_bundle.graphs["encoder"]
    again = describe("encoder", graph.model.clone())
    assert dict(again.nodes) == dict(graph.nodes)
    assert again.model.metadata_props[KEYED] == "1"


@pytest.mark.parametrize("names", [("same", "same"), ("one", "")])
def test_a_file_that_claims_keys_but_has_none_is_named_anew(names: tuple[str, str]) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["a"], names[0]), helper.make_node("Neg", ["a"], ["y"], names[1])]
    graph = parsed(nodes)
    for node, name in zip(graph.model.graph, names, strict=True):
        node.name = name
    assert list(describe("encoder", graph.model).nodes) == ["encoder/Neg", "encoder/Neg.1"]


def test_kinds_follow_from_op_types_and_dtypes() -> None:
    write = Writer("encoder")
    x, ids = write.input("x", FLOAT, (4, 4)), write.input("ids", INT64, (4,))
    table, one = write.weight("table", np.ones((3, 4), np.float32)), write.weight("one", 1.0)
    less = write.op("", "Less", x, one)
    looked_up = write.op("", "Gather", table, ids)
    moved = write.op("", "Gather", x, ids)
    chosen = write.op("", "Where", less, looked_up, moved)
    sizes = write.op("", "Shape", x)
    zeros = write.op("", "ConstantOfShape", sizes)
    more = write.op("", "Add", ids, ids)
    floating = write.op("", "Cast", more, to=FLOAT)
    write.op("", "Add", write.op("", "Add", chosen, zeros), floating, output="y")
    write.output("y", FLOAT, (4, 4))
    graph = write.graph()
    kinds = {key: node.kind for key, node in graph.nodes.items()}
    assert kinds == {
        "encoder/aux/Less": NodeKind.OTHER,
        "encoder/Gather": NodeKind.COMPUTE,
        "encoder/aux/Gather": NodeKind.MOVEMENT,
        "encoder/aux/Where": NodeKind.MOVEMENT,
        "encoder/aux/Shape": NodeKind.OTHER,
        "encoder/aux/ConstantOfShape": NodeKind.OTHER,
        "encoder/aux/Add": NodeKind.OTHER,
        "encoder/aux/Cast": NodeKind.OTHER,
        "encoder/Add": NodeKind.COMPUTE,
        "encoder/Add.1": NodeKind.COMPUTE,
    }
    assert [node.key for node in graph.compute] == ["encoder/Gather", "encoder/Add", "encoder/Add.1"]


def test_float_that_becomes_an_index_is_pinned_only_where_it_comes_from_integers() -> None:
    write = Writer("encoder")
    x, ids = write.input("x", FLOAT, (4,)), write.input("ids", INT64, (4,))
    halves = write.op("", "Mul", write.op("", "Cast", ids, to=FLOAT), write.weight("half", 0.5))
    shifted = write.op("", "Sub", write.op("", "Squeeze", write.op("", "Unsqueeze", halves, write.integers(0))), "half")
    write.op("", "Cast", shifted, output="places", to=INT64)
    # Read from activations: an index that arithmetic on activations gives is no index arithmetic.
    write.op("", "Cast", write.op("", "Div", x, "half"), output="bins", to=INT64)
    # From integers, but read as a number, not as an index.
    write.op("", "Add", write.op("", "Neg", write.op("", "Cast", ids, to=FLOAT)), x, output="y")
    for name, dtype in (("places", INT64), ("bins", INT64), ("y", FLOAT)):
        write.output(name, dtype, (4,))
    graph = write.graph()
    assert {node.key for node in graph.compute if node.pinned} == {"encoder/Mul", "encoder/Sub"}
    assert all(node.pinned is None for node in graph.nodes.values() if node.kind is not NodeKind.COMPUTE)


def test_keys_by_op_type_join_the_graphs_of_a_family(tiny: Mapping[GraphName, Graph]) -> None:
    decoder = compute_keys_by_op_type(tiny, "decoder")
    assert list(decoder) == sorted(decoder)
    assert frozenset().union(*decoder.values()) == {node.key for node in tiny["decoder"].compute}
    assert "encoder.final_layer_norm/Pow" in compute_keys_by_op_type(tiny, "encoder")["Pow"]
    assert all(key.startswith("encoder") for keys in compute_keys_by_op_type(tiny, "encoder").values() for key in keys)


def test_retyping_a_clone_leaves_the_original_alone() -> None:
    model = ir.from_proto(tiny_t5_protos()["encoder"])
    clone = model.clone()
    for value in (*clone.graph.inputs, *(value for node in clone.graph for value in node.outputs)):
        if value.dtype == ir.DataType.FLOAT:
            retype(value, ir.DataType.FLOAT16)
    dtypes = {value.dtype for node in model.graph for value in node.outputs}
    assert ir.DataType.FLOAT16 not in dtypes
    assert ir.DataType.FLOAT in dtypes
