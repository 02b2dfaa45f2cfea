"""The proof after writing: every kind of damage to a published directory is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from precision_search.errors import InternalError, PrecisionSearchError
from precision_search.model.bundle import Bundle
from precision_search.precision.blocklist import Blocklist, plan_of_blocklist
from precision_search.precision.convert import convert
from precision_search.precision.plan import Plan
from precision_search.published.check import check_plan, check_published, check_weights
from precision_search.published.publish import publish
from tests.output_models import publish_facts_of_a_run, tiny_bundle

Step = tuple[str, dict[str, int | list[int]]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "source")


@pytest.fixture(scope="module")
def plan(bundle: Bundle) -> Plan:
    pow_and_mean = {"encoder": ("Pow", "ReduceMean"), "decoder": ("Pow", "ReduceMean")}
    return plan_of_blocklist(Blocklist("float16", "base", pow_and_mean, (), {}), bundle.graphs)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def published(bundle: Bundle, plan: Plan) -> Path:
    return publish(bundle, plan, publish_facts_of_a_run(), bundle.path.parent / "model")


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def test_what_publish_wrote_passes(bundle: Bundle, plan: Plan, copy: Path) -> None:
    check_published(copy, bundle.graphs, plan)


def test_another_plan_is_noticed(bundle: Bundle, plan: Plan, copy: Path) -> None:
    key = bundle.graphs["decoder_with_past"].compute[-1].key
    with pytest.raises(InternalError, match="was not written as planned") as caught:
        check_published(copy, bundle.graphs, Plan(plan.dtype, plan.variant, plan.fp32 | {key}))
    assert key in caught.value.what


def test_a_missing_node_is_noticed(bundle: Bundle, plan: Plan) -> None:
    model = convert(bundle.graphs, plan).models["encoder"]
    next(node for node in model.graph if node.op_type == "Softmax").name = "other"
    with pytest.raises(InternalError, match="it gives nothing"):
        check_plan(model, bundle.graphs["encoder"], plan)


def stale_cast(proto: onnx.ModelProto) -> None:
    cast = next(node for node in proto.graph.node if node.op_type == "Cast" and node.attribute[0].i == 10)
    cast.attribute[0].i = 1


def stale_type(proto: onnx.ModelProto) -> None:
    made = {node.output[0] for node in proto.graph.node if node.op_type == "MatMul"}
    next(info for info in proto.graph.value_info if info.name in made).type.tensor_type.elem_type = 1


def unknown_operator(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    next(node for node in proto.graph.node if node.op_type == "Softmax").domain = "nobody.knows"


def useless_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "useless"))


def no_node(proto: onnx.ModelProto) -> None:
    del proto.graph.node[:]


@pytest.mark.parametrize("damage", [stale_cast, stale_type, unknown_operator, useless_weight, no_node])
@pytest.mark.parametrize("name", ["encoder", "decoder_with_past"])
def test_a_damaged_graph_is_noticed(
    bundle: Bundle, plan: Plan, copy: Path, damage: Callable[[onnx.ModelProto], None], name: str
) -> None:
    path = copy / f"{name}_model.onnx"
    proto = onnx.load(path)
    damage(proto)
    onnx.save(proto, path)
    with pytest.raises(InternalError) as caught:
        check_published(copy, bundle.graphs, plan)
    assert name in caught.value.what


def test_a_file_cut_short_is_noticed(bundle: Bundle, plan: Plan, copy: Path) -> None:
    path = copy / "decoder_model.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PrecisionSearchError, match=r"decoder_model\.onnx"):
        check_published(copy, bundle.graphs, plan)


def test_graphs_that_disagree_are_noticed(bundle: Bundle, plan: Plan, copy: Path) -> None:
    path = copy / "encoder_model.onnx"
    proto = onnx.load(path)
    output = proto.graph.output[0]
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    maker = next(node for node in proto.graph.node if output.name in node.output)
    maker.output[0] = "states"
    proto.graph.node.append(
        onnx.helper.make_node("Cast", ["states"], [output.name], "extra", to=onnx.TensorProto.FLOAT)
    )
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("states", onnx.TensorProto.FLOAT16, None))
    onnx.save(proto, path)
    with pytest.raises(InternalError, match="encoder_hidden_states is"):
        check_published(copy, bundle.graphs, plan)


def weight_graph(*steps: Step, dtype: ir.DataType) -> ir.Model:
    """A fp32 weight, then the steps, then a MatMul with an input of `dtype`."""
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape([2, 2]))
    weight = ir.Value(name="weight", const_value=ir.Tensor(np.ones((2, 2), np.float32)))
    weight.type, weight.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 2])
    nodes: list[ir.Node] = []
    value, current = weight, ir.DataType.FLOAT
    for number, (op_type, attributes) in enumerate(steps):
        nodes.append(ir.node(op_type, [value], attributes, name=f"step{number}"))
        value = nodes[-1].outputs[0]
        current = dtype if op_type == "Cast" else current
        value.name, value.type = f"v{number}", ir.TensorType(current)
    nodes.append(ir.node("MatMul", [x, value], name="product"))
    nodes[-1].outputs[0].name, nodes[-1].outputs[0].type = "y", ir.TensorType(dtype)
    graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, initializers=[weight], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


CAST: Step = ("Cast", {"to": int(ir.DataType.FLOAT16)})
TURN: Step = ("Transpose", {"perm": [1, 0]})


def test_an_fp32_weight_must_have_an_fp32_reader() -> None:
    check_weights(weight_graph(dtype=ir.DataType.FLOAT), "encoder")
    check_weights(weight_graph(TURN, dtype=ir.DataType.FLOAT), "encoder")
    for steps in ([CAST], [TURN, CAST], [CAST, TURN]):
        with pytest.raises(InternalError, match="weight is stored in fp32"):
            check_weights(weight_graph(*steps, dtype=ir.DataType.FLOAT16), "encoder")


def test_a_weight_that_both_read_may_stay_in_fp32() -> None:
    model = weight_graph(CAST, dtype=ir.DataType.FLOAT16)
    reader = ir.node("Neg", [model.graph.initializers["weight"]], name="reader")
    reader.outputs[0].name, reader.outputs[0].type = "z", ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(reader)
    check_weights(model, "encoder")
