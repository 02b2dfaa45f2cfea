"""Low precision that is true on a CPU: fp32 graphs that round where the CUDA kernels of a mixed graph would.

Two ways lead here and must agree. `emulate` takes a plan and the fp32 graph; `widen` takes a mixed graph, ours or
anybody's. Rounding is a pair of casts to the low dtype and back, which ONNX Runtime's CPU provider keeps at every
optimization level, whereas it drops the rounding between neighbouring low nodes.
"""

from __future__ import annotations

import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.model.graph import Graph, NodeKind, drop_unused_initializers, float_inputs, node_kind, retype
from precision_search.precision.dtypes import Assignment
from precision_search.precision.low import DTYPE_NAMES, IR_DTYPES, LowDtype
from precision_search.precision.lowering import Rounding, describe_value, kernel_of, lower, round_constants, take_over
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache


def emulate(graph: Graph, plan: Plan, assignment: Assignment, weights: WeightCache) -> ir.Model:
    """The fp32 graph in which every low node of the plan behaves as its CUDA kernel.

    Each low node reads rounded inputs and constants and rounds as `kernels` says; fp32 nodes are untouched. Of the
    assignment only the data movement is taken: constants that it stores low are rounded, and masks saturate.

    Args:
        graph: the fp32 graph.
        plan: which compute nodes are low.
        assignment: the plan's assignment for this graph.
        weights: shared rounded weights.

    Returns:
        A model with the same inputs, outputs and value names, all in fp32.
    """
    model = graph.model.clone()
    rounding = Rounding(model.graph, plan.dtype)
    rounded: set[ir.Value] = set()
    for node in list(model.graph):
        facts = graph.nodes[str(node.name)]
        if facts.kind is NodeKind.MOVEMENT and facts.key in assignment.low_nodes:
            round_constants(model.graph, node, plan.dtype, weights)
            if all(value in rounded for _, value in float_inputs(node) if not value.is_initializer()):
                rounded.update(node.outputs)
        elif facts.kind is NodeKind.COMPUTE and facts.key not in plan.fp32:
            round_constants(model.graph, node, plan.dtype, weights)
            rounding.round_inputs(node, rounded)
            rounded.update(lower(model.graph, node, kernel_of(node, plan.dtype), plan.dtype))
    drop_unused_initializers(model)
    return model


def widen(model: ir.Model, weights: WeightCache) -> ir.Model:
    """A mixed graph as the fp32 graph that computes on any provider what the mixed one computes on CUDA.

    Inputs and outputs become fp32 too; what crosses between graphs was rounded where it was made.

    Raises:
        InputError: a low node whose kernel the table does not know, or that makes low numbers in a way we do not know.
    """
    model = model.clone()
    nodes = list(model.graph)
    kinds = {node: node_kind(node) for node in nodes}
    lows = {node: _low_dtype(node) for node in nodes}
    for initializer in list(model.graph.initializers.values()):
        if initializer.dtype in DTYPE_NAMES and initializer.const_value is not None:
            initializer.const_value = weights.wide(initializer.const_value)
            retype(initializer, ir.DataType.FLOAT)
    for value in (*model.graph.inputs, *(output for node in nodes for output in node.outputs)):
        if value.dtype in DTYPE_NAMES:
            retype(value, ir.DataType.FLOAT)
    for node in nodes:
        dtype = lows[node]
        if dtype is None:
            continue
        if kinds[node] is NodeKind.COMPUTE:
            lower(model.graph, node, kernel_of(node, dtype), dtype)
        elif kinds[node] is NodeKind.OTHER:
            _widen_source(model, node, dtype, weights)
    drop_unused_initializers(model)
    return model


def is_mixed(model: ir.Model) -> bool:
    """Whether a graph computes or keeps anything in a low dtype."""
    return any(_low_dtype(node) is not None for node in model.graph) or any(
        value.dtype in DTYPE_NAMES for value in (*model.graph.inputs, *model.graph.initializers.values())
    )


def _widen_source(model: ir.Model, node: ir.Node, dtype: LowDtype, weights: WeightCache) -> None:
    """A node that makes low numbers out of something else: a cast keeps rounding, a constant becomes fp32."""
    match node.op_type:
        case "CastLike":
            node.op_type = "Cast"
            node.resize_inputs(1)
            node.attributes.add(ir.AttrInt64("to", int(IR_DTYPES[dtype])))
            _append_cast_to_float(model, node, dtype)
        case "Cast":
            _append_cast_to_float(model, node, dtype)
        case "ConstantOfShape":
            node.attributes.add(ir.AttrTensor("value", weights.wide(node.attributes["value"].as_tensor())))
        case _:
            raise InputError(
                f"the low node {node.name} cannot be emulated",
                why=f"what {node.op_type} makes is {dtype}, and only Cast and constants may be",
                fix=f"let {node.op_type} make fp32 numbers and cast them",
            )


def _append_cast_to_float(model: ir.Model, node: ir.Node, dtype: LowDtype) -> None:
    """A cast to low stays, and a cast back follows it under the old name."""
    output = node.outputs[0]
    name = str(output.name)
    readers = list(output.uses())
    describe_value(output, f"{name}/low", IR_DTYPES[dtype], output.shape)
    back = ir.node("Cast", [output], {"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/up")
    describe_value(back.outputs[0], name, ir.DataType.FLOAT, output.shape)
    model.graph.insert_after(node, back)
    take_over(model.graph, output, back.outputs[0], readers)


def _low_dtype(node: ir.Node) -> LowDtype | None:
    return next((name for dtype, name in DTYPE_NAMES.items() for value in node.outputs if value.dtype == dtype), None)
