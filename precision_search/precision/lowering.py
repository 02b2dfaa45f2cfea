"""One node at a time: an fp32 node rewritten so that it rounds where its low CUDA kernel does (see `kernels`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.model.graph import float_inputs, is_float, retype
from precision_search.precision.kernels import Internals, Kernel, Step, kernel_for, steps_of
from precision_search.precision.low import IR_DTYPES, LowDtype, round_to
from precision_search.precision.weights import WeightCache

SUM_AXES_AS_INPUT = 13
"""Opset from which ReduceSum takes its axes as an input (ReduceMean does from 18 on)."""


def lower(graph: ir.Graph, node: ir.Node, kernel: Kernel, dtype: LowDtype) -> list[ir.Value]:
    """Makes one fp32 node of `graph` round as its low kernel does; its inputs are rounded already.

    Returns:
        The values that hold the node's rounded results, under the names that the results had.
    """
    match kernel.internals:
        case Internals.COPY:
            return list(node.outputs)
        case Internals.SUM_STORED_LOW:
            node = _split_mean(graph, node, dtype)
        case Internals.STEPS:
            approximate = node.attributes.get_string("approximate", "none")
            return [_replace_by_steps(graph, node, steps_of(node.op_type, dtype, str(approximate)), dtype)]
        case Internals.ELEMENTWISE | Internals.ACCUMULATE_FP32:
            pass
    return [_round_output(graph, node, output, dtype) for output in node.outputs if is_float(output)]


class Rounding:
    """Rounds what low nodes of one graph (a model's or a branch's) read, each value once."""

    def __init__(self, graph: ir.Graph, dtype: LowDtype) -> None:
        self._graph = graph
        self._dtype = dtype
        self._made: dict[ir.Value, ir.Value] = {}

    def round_inputs(self, node: ir.Node, rounded: Collection[ir.Value] = ()) -> None:
        """Lets `node` read its float inputs rounded, except constants and those that are `rounded` already."""
        for index, value in list(float_inputs(node)):
            if not value.is_initializer() and value not in rounded:
                node.replace_input_with(index, self._of(value))

    def _of(self, value: ir.Value) -> ir.Value:
        if value not in self._made:
            first, second = round_pair(value, f"{value.name}/rounded", self._dtype)
            producer = value.producer()
            if producer is None or producer.graph is not self._graph:
                self._graph.insert_before(self._graph[0], [first, second])
            else:
                self._graph.insert_after(producer, [first, second])
            self._made[value] = second.outputs[0]
        return self._made[value]


def round_constants(graph: ir.Graph, node: ir.Node, dtype: LowDtype, weights: WeightCache) -> None:
    """Lets `node` read rounded copies of its float constants; `graph`, its own or an outer one, holds them."""
    for index, value in list(float_inputs(node)):
        if not value.is_initializer() or value.const_value is None:
            continue
        name = f"{value.name}/{dtype}"
        found = graph.initializers.get(name)
        if found is None:
            found = ir.Value(name=name, const_value=weights.wide(weights.low(value.const_value, dtype)))
            describe_value(found, name, ir.DataType.FLOAT, value.shape)
            graph.register_initializer(found)
        node.replace_input_with(index, found)


def kernel_of(node: ir.Node, dtype: LowDtype) -> Kernel:
    """The kernel of a low node.

    Raises:
        InputError: the table has none.
    """
    kernel = kernel_for(node.op_type, dtype)
    if kernel is None:
        raise InputError(
            f"the low node {node.name} cannot be emulated",
            why=f"the kernel table has no {dtype} entry for {node.op_type}",
            fix=f"keep {node.op_type} in fp32",
        )
    return kernel


def round_pair(value: ir.Value, name: str, dtype: LowDtype) -> tuple[ir.Node, ir.Node]:
    """A cast to the low dtype and one back: `value` rounded, under `name`. Not yet part of a graph."""
    first = ir.node("Cast", [value], {"to": int(IR_DTYPES[dtype])}, name=f"{name}/down")
    describe_value(first.outputs[0], f"{name}/low", IR_DTYPES[dtype], value.shape)
    second = ir.node("Cast", [first.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}/up")
    describe_value(second.outputs[0], name, ir.DataType.FLOAT, value.shape)
    return first, second


def take_over(graph: ir.Graph, old: ir.Value, new: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> None:
    """Gives `new` the readers of `old` (as listed) and its place among the graph's outputs."""
    for reader, index in readers:
        reader.replace_input_with(index, new)
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new


def describe_value(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    """Sets name, element type and shape of a new value."""
    value.name = name
    value.shape = shape
    retype(value, dtype)


def register_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Adds an initializer, or gives the one of that name."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, const_value=ir.Tensor(array))
    describe_value(value, name, ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape))
    graph.register_initializer(value)
    return value


def _round_output(graph: ir.Graph, node: ir.Node, output: ir.Value, dtype: LowDtype) -> ir.Value:
    """Rounds a node's result; the rounded value takes over its name, its readers and its place among the outputs."""
    name = str(output.name)
    output.name = f"{name}/exact"
    readers = list(output.uses())
    first, second = round_pair(output, name, dtype)
    graph.insert_after(node, [first, second])
    take_over(graph, output, second.outputs[0], readers)
    return second.outputs[0]


def _replace_by_steps(graph: ir.Graph, node: ir.Node, steps: Sequence[Step], dtype: LowDtype) -> ir.Value:
    output = node.outputs[0]
    name = str(output.name)
    source = node.inputs[0]
    assert source is not None
    made: dict[str, ir.Value] = {"x": source}
    nodes: list[ir.Node] = []
    for step in steps:
        inputs = [made[item] if isinstance(item, str) else _number(graph, item) for item in step.inputs]
        domain = node.domain if step.op_type == node.op_type else ""
        exact = ir.node(step.op_type, inputs, domain=domain, name=f"{node.name}/{step.name}")
        is_last = step is steps[-1]
        final = name if is_last else f"{name}/{step.name}"
        dtype_of_step = ir.DataType.BOOL if step.op_type == "Greater" else ir.DataType.FLOAT
        nodes.append(exact)
        if step.rounds:
            describe_value(exact.outputs[0], f"{final}/exact", dtype_of_step, output.shape)
            nodes.extend(round_pair(exact.outputs[0], final, dtype))
        else:
            describe_value(exact.outputs[0], final, dtype_of_step, output.shape)
        made[step.name] = nodes[-1].outputs[0]
    output.name = f"{name}/unused"
    return _swap(graph, node, nodes)


def _split_mean(graph: ir.Graph, node: ir.Node, dtype: LowDtype) -> ir.Node:
    """Replaces a ReduceMean by a ReduceSum whose result is rounded, and a division by the count; gives the division."""
    output, source = node.outputs[0], node.inputs[0]
    assert source is not None
    name = str(output.name)
    axes = _axes(graph, node)
    total = sum_node(graph, node)
    describe_value(total.outputs[0], f"{name}/sum", ir.DataType.FLOAT, output.shape)
    first, second = round_pair(total.outputs[0], f"{name}/sum/rounded", dtype)
    count_nodes, count = _reduced_count(graph, node, source, axes, dtype)
    division = ir.node("Div", [second.outputs[0], count], name=f"{node.name}/division")
    output.name = f"{name}/unused"
    describe_value(division.outputs[0], name, ir.DataType.FLOAT, output.shape)
    _swap(graph, node, [*count_nodes, total, first, second, division])
    return division


def sum_node(graph: ir.Graph, mean: ir.Node) -> ir.Node:
    """The ReduceSum over what a ReduceMean averages; not yet part of the graph."""
    axes = _axes(graph, mean)
    attributes: dict[str, int | list[int]] = {"keepdims": mean.attributes.get_int("keepdims", 1) or 0}
    if axes is None and _averages_nothing(mean):
        attributes["noop_with_empty_axes"] = 1
    inputs = [mean.inputs[0]]
    if axes is not None and graph.opset_imports.get("", 0) >= SUM_AXES_AS_INPUT:
        inputs.append(axes)
    elif axes is not None:
        attributes["axes"] = [int(axis) for axis in np.atleast_1d(_array(axes))]
    return ir.node("ReduceSum", inputs, attributes, name=f"{mean.name}/sum")


def _swap(graph: ir.Graph, node: ir.Node, nodes: Sequence[ir.Node]) -> ir.Value:
    """Puts `nodes` in the place of `node`; the last one's output replaces its output."""
    output = node.outputs[0]
    graph.insert_before(node, nodes)
    take_over(graph, output, nodes[-1].outputs[0], list(output.uses()))
    graph.remove(node, safe=True)
    return nodes[-1].outputs[0]


def _axes(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """The reduced axes as a value, wherever the opset keeps them; None for all axes."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = node.inputs[1]
        return None if axes.const_value is not None and axes.const_value.size == 0 else axes
    if "axes" in node.attributes:
        array = np.array(list(node.attributes["axes"].as_ints()), np.int64)
        return register_constant(graph, f"{node.name}/axes", array)
    return None


def _averages_nothing(mean: ir.Node) -> bool:
    """Whether a mean over no axes is over nothing rather than everything."""
    return mean.attributes.get_int("noop_with_empty_axes", 0) == 1


def _reduced_count(
    graph: ir.Graph, node: ir.Node, source: ir.Value, axes: ir.Value | None, dtype: LowDtype
) -> tuple[list[ir.Node], ir.Value]:
    """How many elements each mean is over, rounded to the low dtype as the kernel's divisor is."""
    if axes is None and _averages_nothing(node):
        return [], _number(graph, 1.0)
    if axes is not None and axes.const_value is not None and source.shape is not None:
        sizes = [source.shape[int(axis)] for axis in np.atleast_1d(_array(axes))]
        if sizes and all(isinstance(size, int) for size in sizes):
            product = float(np.prod([int(size) for size in sizes if isinstance(size, int)]))
            return [], _number(graph, float(round_to(np.asarray(product, np.float32), dtype, saturate=False)))
    nodes = [ir.node("Shape", [source], name=f"{node.name}/shape")]
    if axes is not None:
        nodes.append(ir.node("Gather", [nodes[0].outputs[0], axes], {"axis": 0}, name=f"{node.name}/sizes"))
    nodes.append(ir.node("ReduceProd", [nodes[-1].outputs[0]], {"keepdims": 0}, name=f"{node.name}/product"))
    nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": int(IR_DTYPES[dtype])}, name=f"{node.name}/down"))
    nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/up"))
    for index, made in enumerate(nodes):
        made.outputs[0].name = f"{node.name}/count.{index}"
    return nodes, nodes[-1].outputs[0]


def _number(graph: ir.Graph, number: float) -> ir.Value:
    return register_constant(graph, f"number/{number!r}", np.array(number, np.float32))


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()
