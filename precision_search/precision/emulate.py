"""Low precision that is true on a CPU: fp32 graphs that round where the CUDA kernels of a mixed graph would.

Two ways lead here and must agree. `emulate` takes a plan and the fp32 graph; `widen` takes a mixed graph, ours or
anybody's. Rounding is a pair of casts to the low dtype and back, which ONNX Runtime's CPU provider keeps at every
optimization level, whereas it drops the rounding between neighbouring low nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.model.graph import Graph, NodeKind, float_inputs, is_float, node_kind, retype
from precision_search.precision.dtypes import Assignment, movement_inputs
from precision_search.precision.kernels import Internals, Kernel, kernel_for, round_to
from precision_search.precision.plan import LOW_DTYPES, LowDtype, Plan
from precision_search.precision.weights import IR_DTYPES, WeightCache

DTYPE_NAMES: Mapping[ir.DataType, LowDtype] = {IR_DTYPES[name]: name for name in LOW_DTYPES}


def emulate(graph: Graph, plan: Plan, assignment: Assignment, weights: WeightCache) -> ir.Model:
    """The fp32 graph in which every low node of the plan behaves as its CUDA kernel.

    Each low node reads rounded inputs and constants and rounds as `kernels` says; fp32 nodes are untouched. Of the
    assignment only the masks made of constants are taken: stored low, they saturate.

    Args:
        graph: the fp32 graph.
        plan: which compute nodes are low.
        assignment: the plan's assignment for this graph.
        weights: shared rounded weights.

    Returns:
        A model with the same inputs, outputs and value names, all in fp32.
    """
    model = graph.model.clone()
    rounding = _Rounding(model, plan.dtype)
    rounded: set[ir.Value] = set()
    for node in list(model.graph):
        facts = graph.nodes[str(node.name)]
        if facts.kind is NodeKind.MOVEMENT:
            data = [value for value in movement_inputs(node) if not value.is_initializer()]
            if facts.key in assignment.low_nodes and not data:
                _round_constants(model, node, plan.dtype, weights)
            if all(value in rounded for value in data):
                rounded.update(node.outputs)
        elif facts.kind is NodeKind.COMPUTE and facts.key not in plan.fp32:
            _round_constants(model, node, plan.dtype, weights)
            for index, value in list(float_inputs(node)):
                if not value.is_initializer() and value not in rounded:
                    node.replace_input_with(index, rounding.of(value))
            rounded.update(lower(model, node, _kernel(node, plan.dtype), plan.dtype))
    return model


def widen(model: ir.Model, weights: WeightCache) -> ir.Model:
    """A mixed graph as the fp32 graph that computes on any provider what the mixed one computes on CUDA.

    Inputs and outputs become fp32 too; what crosses between graphs was rounded where it was made.

    Raises:
        InputError: a low node whose kernel the table does not know.
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
        if node.op_type == "Cast":
            _append_cast_to_float(model, node, dtype)
        elif kinds[node] is NodeKind.COMPUTE:
            lower(model, node, _kernel(node, dtype), dtype)
    return model


def lower(model: ir.Model, node: ir.Node, kernel: Kernel, dtype: LowDtype) -> list[ir.Value]:
    """Makes one fp32 node round as its low kernel does; its inputs are rounded already.

    Returns:
        The values that hold the node's rounded results, under the names that the results had.
    """
    if kernel.internals is Internals.COPY:
        return list(node.outputs)
    if kernel.internals is Internals.SUM_STORED_LOW:
        node = _split_mean(model, node, dtype)
    return [_round_output(model, node, output, dtype) for output in node.outputs if is_float(output)]


class _Rounding:
    """Rounded versions of values, one a value."""

    def __init__(self, model: ir.Model, dtype: LowDtype) -> None:
        self.model = model
        self.dtype = dtype
        self.made: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value) -> ir.Value:
        if value not in self.made:
            first, second = _round_pair(value, f"{value.name}/rounded", self.dtype)
            producer = value.producer()
            if producer is None:
                self.model.graph.insert_before(self.model.graph[0], [first, second])
            else:
                self.model.graph.insert_after(producer, [first, second])
            self.made[value] = second.outputs[0]
        return self.made[value]


def _round_pair(value: ir.Value, name: str, dtype: LowDtype) -> tuple[ir.Node, ir.Node]:
    first = ir.node("Cast", [value], {"to": int(IR_DTYPES[dtype])}, name=f"{name}/down")
    _name(first.outputs[0], f"{name}/low", IR_DTYPES[dtype], value.shape)
    second = ir.node("Cast", [first.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}/up")
    _name(second.outputs[0], name, ir.DataType.FLOAT, value.shape)
    return first, second


def _round_output(model: ir.Model, node: ir.Node, output: ir.Value, dtype: LowDtype) -> ir.Value:
    """Rounds a node's result; the rounded value takes over its name, its readers and its place among the outputs."""
    name = str(output.name)
    output.name = f"{name}/exact"
    readers = list(output.uses())
    first, second = _round_pair(output, name, dtype)
    rounded = second.outputs[0]
    model.graph.insert_after(node, [first, second])
    for reader, index in readers:
        reader.replace_input_with(index, rounded)
    for index, value in enumerate(model.graph.outputs):
        if value is output:
            model.graph.outputs[index] = rounded
    return rounded


def _split_mean(model: ir.Model, node: ir.Node, dtype: LowDtype) -> ir.Node:
    """Replaces a ReduceMean by a ReduceSum whose result is rounded, and a division by the count; gives the division."""
    output = node.outputs[0]
    name = str(output.name)
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    total = ir.node("ReduceSum", node.inputs, dict(node.attributes), name=f"{node.name}/sum")
    _name(total.outputs[0], f"{name}/sum", ir.DataType.FLOAT, output.shape)
    first, second = _round_pair(total.outputs[0], f"{name}/sum/rounded", dtype)
    count_nodes, count = _reduced_count(model, node, axes, name, dtype)
    division = ir.node("Div", [second.outputs[0], count], name=f"{node.name}/division")
    model.graph.insert_before(node, [*count_nodes, total, first, second, division])
    for reader, index in list(output.uses()):
        reader.replace_input_with(index, division.outputs[0])
    for index, value in enumerate(model.graph.outputs):
        if value is output:
            model.graph.outputs[index] = division.outputs[0]
    model.graph.remove(node, safe=True)
    _name(division.outputs[0], name, ir.DataType.FLOAT, output.shape)
    return division


def _reduced_count(
    model: ir.Model, node: ir.Node, axes: ir.Value | None, name: str, dtype: LowDtype
) -> tuple[list[ir.Node], ir.Value]:
    """How many elements each mean is over, rounded to the low dtype as the kernel's divisor is."""
    source = node.inputs[0]
    assert source is not None
    if axes is not None and axes.const_value is not None and source.shape is not None:
        sizes = [source.shape[int(axis)] for axis in axes.const_value.numpy().reshape(-1)]
        if sizes and all(isinstance(size, int) for size in sizes):
            product = np.prod([int(size) for size in sizes if isinstance(size, int)], dtype=np.float32)
            return [], _constant(model, f"{name}/count", product, dtype)
    nodes = [ir.node("Shape", [source], name=f"{node.name}/shape")]
    sizes_value = nodes[0].outputs[0]
    if axes is not None:
        nodes.append(ir.node("Gather", [sizes_value, axes], {"axis": 0}, name=f"{node.name}/sizes"))
        sizes_value = nodes[-1].outputs[0]
    nodes.append(ir.node("ReduceProd", [sizes_value], {"keepdims": 0}, name=f"{node.name}/product"))
    nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": int(IR_DTYPES[dtype])}, name=f"{node.name}/down"))
    nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/up"))
    for index, made in enumerate(nodes):
        made.outputs[0].name = f"{name}/count.{index}"
    return nodes, nodes[-1].outputs[0]


def _constant(model: ir.Model, name: str, number: np.float32, dtype: LowDtype) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.Tensor(round_to(np.asarray(number), dtype, saturate=True)))
    _name(value, name, ir.DataType.FLOAT, ir.Shape([]))
    model.graph.register_initializer(value)
    return value


def _round_constants(model: ir.Model, node: ir.Node, dtype: LowDtype, weights: WeightCache) -> None:
    for index, value in list(float_inputs(node)):
        if not value.is_initializer() or value.const_value is None:
            continue
        name = f"{value.name}/{dtype}"
        found = model.graph.initializers.get(name)
        if found is None:
            found = ir.Value(name=name, const_value=weights.wide(weights.low(value.const_value, dtype)))
            _name(found, name, ir.DataType.FLOAT, value.shape)
            model.graph.register_initializer(found)
        node.replace_input_with(index, found)


def _name(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name = name
    value.shape = shape
    retype(value, dtype)


def _append_cast_to_float(model: ir.Model, node: ir.Node, dtype: LowDtype) -> None:
    """A cast to low stays, and a cast back follows it under the old name."""
    output = node.outputs[0]
    name = str(output.name)
    readers = list(output.uses())
    _name(output, f"{name}/low", IR_DTYPES[dtype], output.shape)
    back = ir.node("Cast", [output], {"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/up")
    _name(back.outputs[0], name, ir.DataType.FLOAT, output.shape)
    model.graph.insert_after(node, back)
    for reader, index in readers:
        reader.replace_input_with(index, back.outputs[0])
    for index, value in enumerate(model.graph.outputs):
        if value is output:
            model.graph.outputs[index] = back.outputs[0]


def _low_dtype(node: ir.Node) -> LowDtype | None:
    for value in node.outputs:
        if value.dtype in DTYPE_NAMES:
            return DTYPE_NAMES[value.dtype]
    return None


def _kernel(node: ir.Node, dtype: LowDtype) -> Kernel:
    kernel = kernel_for(node.op_type, dtype)
    if kernel is None:
        raise InputError(
            f"the low node {node.name} cannot be emulated",
            why=f"the kernel table has no {dtype} entry for {node.op_type}",
            fix=f"keep {node.op_type} in fp32",
        )
    return kernel
