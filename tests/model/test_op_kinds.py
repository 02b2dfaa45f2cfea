"""Graphs that another tool worked on are refused by the operators that it left, with what to do."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from precision_search.errors import InputError
from precision_search.model.onnx_files import read_model
from precision_search.model.op_kinds import REFUSED_KINDS
from tests.graphs import Writer, tiny_t5_protos
from tests.model.test_onnx_files import info, saved


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_model(path)
    assert "checkpoint" in str(caught.value.fix)
    return caught.value


def test_what_onnx_runtime_quantizes_is_refused_as_quantized(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    source, target = saved(tmp_path, tiny_t5_protos()["encoder"]), tmp_path / "quantized.onnx"
    quantize_dynamic(source, target)
    assert read_model(source)
    assert (
        "quantized.onnx is quantized: it has DequantizeLinear, DynamicQuantizeLinear, MatMulInteger"
        in refused(target).what
    )


def test_what_onnx_runtime_optimizes_is_refused_as_fused(tmp_path: Path) -> None:
    write = Writer("encoder")
    x = write.input("x", 1, (2, 8))
    product = write.op("", "MatMul", x, write.op("", "Transpose", x, perm=[1, 0]))
    write.op("", "Mul", product, write.weight("half", 0.5), output="y")
    write.output("y", 1, (2, 2))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(write.proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
    error = refused(tmp_path / "fused.onnx")
    assert "fused.onnx is fused by an optimizer: it has FusedMatMul" in error.what
    assert "without optimization" in str(error.fix)


@pytest.mark.parametrize(
    ("op_type", "domain", "title"),
    [
        ("SimplifiedLayerNormalization", "", "fused by an optimizer"),
        ("SkipLayerNormalization", "com.microsoft", "fused by an optimizer"),
        ("Conv", "com.microsoft.nchwc", "fused by an optimizer"),
        ("QLinearMatMul", "", "quantized"),
        ("QAttention", "com.microsoft", "quantized"),
        ("MatMulNBits", "com.microsoft", "quantized"),
        ("DynamicQuantizeMatMul", "com.microsoft", "quantized"),
    ],
)
def test_operators_are_named(tmp_path: Path, op_type: str, domain: str, title: str) -> None:
    node = helper.make_node(op_type, ["x"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", [info("x")], [info("y")])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    opsets.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    error = refused(saved(tmp_path, helper.make_model(graph, opset_imports=opsets, ir_version=10)))
    assert f"is {title}: it has {op_type}" in error.what


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    nodes = [helper.make_node(f"Fused{letter}", ["x"], [letter], domain="com.microsoft") for letter in "abcdey"]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    error = refused(saved(tmp_path, helper.make_model(graph, opset_imports=opsets, ir_version=10)))
    assert error.what.endswith("it has Fuseda, Fusedb, Fusedc, Fusedd and others")


def test_operators_of_the_standard_are_of_no_kind() -> None:
    op_types = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    quantizing = {each for each in op_types if any(k.holds(ir.Node("", each, [])) for k in REFUSED_KINDS)}
    assert quantizing == {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
    }
