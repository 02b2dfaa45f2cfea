"""A second graph variant for tests: another graph that computes the same, bit for bit, in fp32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from precision_search.model import variants
from precision_search.model.graph import GraphName
from precision_search.model.variants import VARIANTS, Variant

TOY = "toy"
HALVED = "wo/MatMul"
"""What the keys of the products end with whose weights are doubled and whose results are halved."""
NEW = "wo/Mul"
"""What the keys of the nodes that halve them end with."""


def halve_products(_: GraphName, model: ir.Model) -> None:
    """Doubles the weight of each `wo` and halves the product: powers of two, so that no bit of the result changes."""
    half = constant(model, "toy/half", np.array(0.5, np.float32))
    for node in list(model.graph):
        if not str(node.name).endswith(HALVED):
            continue
        weight = node.inputs[1]
        assert weight is not None and weight.const_value is not None
        node.replace_input_with(1, constant(model, f"{weight.name}/doubled", 2 * weight.const_value.numpy()))
        product = node.outputs[0]
        readers, name = list(product.uses()), str(product.name)
        halved = ir.node("Mul", [product, half], name=str(node.name).replace(HALVED, NEW))
        result = halved.outputs[0]
        product.name, result.name = f"{name}/doubled", name
        result.type, result.shape = product.type, product.shape
        model.graph.insert_after(node, halved)
        for reader, index in readers:
            reader.replace_input_with(index, result)


def constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape))
    value.const_value = ir.Tensor(array)
    model.graph.register_initializer(value)
    return value


def register_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What adding a variant takes: one line of the table."""
    monkeypatch.setattr(variants, "VARIANTS", (*VARIANTS, Variant(TOY, (halve_products,))))
