"""Where ONNX Runtime's CUDA provider runs a graph's nodes, and graphs that leave nothing to copy to the device.

In: an `onnx_ir.Model`. Out: its nodes and values on the host, as the runtime places them; or the model changed so that
no device kernel reads a value that the host computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.model.graph import drop_unused_initializers

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Dropout"})
"""Outputs that share their input's buffer."""

UNLAUNCHED = frozenset({"Shape", "Size", "Constant"})
"""Answered by the host without touching the device."""

HOST_INPUTS: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
}
"""Inputs that a device kernel reads in host memory: they move no device bytes. Held true by the tests on the dry
CUDA runtime."""

_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_READERS = _COMPARISONS | {"Add", "Div", "Gather", "Max", "Min", "Mod", "Mul", "ScatterND", "Sub", "Where"}
"""Op types whose device kernels take integers and read all of them on the device. Other readers are left alone: to give
one that wants its size on the host a size on the device would trade a copy for a wait."""

_SMALL = 100
"""Elements of the largest constant that ONNX Runtime takes along when it moves a node to the host
(`IsSmallInitializer` in its fallback_cpu_capability.cc)."""

_LOW_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""A node that reads one of these stays on the device (same file)."""

_RANGE_OPSET = 11
"""The first one with Range."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the nodes of a graph run, as far as that makes them free.

    Attributes:
        idle: nodes that launch nothing.
        constants: names of initializers and of values that the session folds into constants when it is made.
        host: names of values that lie in host memory.
    """

    idle: frozenset[ir.Node]
    constants: frozenset[str]
    host: frozenset[str]


def place(model: ir.Model) -> Placement:
    """Finds the nodes that launch nothing: views, folded constants and shape arithmetic.

    The last as ONNX Runtime decides it: a node whose operands are all small constants or on the host already runs on
    the host, unless its device kernel wants one of them there (a Range over a computed length stays on the device). Not
    modelled: ONNX Runtime moves a node to the host, too, that reads something on the host and else inputs of the graph.
    """
    idle: set[ir.Node] = set()
    constants = set(model.graph.initializers) - {str(value.name) for value in model.graph.inputs}
    host: set[str] = set()

    def stays(node: ir.Node, index: int, value: ir.Value) -> bool:
        """Whether this operand lets the node run on the host."""
        if value.dtype in _LOW_FLOATS:
            return False
        if value.name in constants:
            return _size(value) <= _SMALL
        return value.name in host and index not in HOST_INPUTS.get(node.op_type, ())

    for node in model.graph:
        inputs = [(index, value) for index, value in enumerate(node.inputs) if value is not None]
        if all(value.name in constants for _, value in inputs):
            idle.add(node)
            constants.update(str(value.name) for value in node.outputs)
        elif node.op_type in UNLAUNCHED or all(stays(node, index, value) for index, value in inputs):
            idle.add(node)
            host.update(str(value.name) for value in node.outputs)
        elif node.op_type in VIEWS:
            idle.add(node)
    return Placement(frozenset(idle), frozenset(constants), frozenset(host))


def _size(value: ir.Value) -> int:
    """The number of elements, 1 where it is not known: what the session folds is mostly shapes."""
    if value.const_value is not None:
        return int(value.const_value.size)
    dims = [] if value.shape is None else value.shape.dims
    return math.prod(dim for dim in dims if isinstance(dim, int))


def compute_sizes_on_device(model: ir.Model) -> int:
    """Changes `model` so that its device kernels read no size that the host computed; returns how many they read.

    A graph that turns a length into data, such as the position of the next token, would have it copied to the device in
    every run. A Range over [length, length + 1) holds the same number and is made there: its kernel takes its bounds
    from the host. Every output of the graph stays the same bit for bit. Only int64 values of one element are changed,
    and only for readers that are sure to take them on the device; what else a graph has the host compute stays.
    """
    if model.opset_imports.get("", 0) < _RANGE_OPSET:
        return 0
    crossings = list(_crossings(model))
    ranges: dict[ir.Value, ir.Value] = {}
    for node, index, value in crossings:
        root = _root(value)
        if root not in ranges:
            ranges[root] = _range_of(model, root)
        node.replace_input_with(index, _in_shape(model, ranges[root], value, before=node))
    for _, _, value in crossings:
        _drop_unused(model, value.producer())
    drop_unused_initializers(model)
    return len(crossings)


def _crossings(model: ir.Model) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """Where a node on the device reads an int64 value of one element from the host: node, input and value."""
    placement = place(model)
    for node in model.graph:
        if node.domain or node.op_type not in _READERS or node.outputs[0].name in placement.host:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in placement.host and _is_number(value):
                yield node, index, value


def _is_number(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.INT64 and value.shape is not None and all(size == 1 for size in value.shape)


def _root(value: ir.Value) -> ir.Value:
    """The number that `value` is, before views and additions of zero."""
    producer = value.producer()
    if producer is None:
        return value
    source = producer.inputs[0] if producer.op_type in VIEWS else None
    if producer.op_type == "Add":
        source = next((other for one, other in (producer.inputs, producer.inputs[::-1]) if _is_zero(one)), None)
    return value if source is None or source.producer() is None or not _is_number(source) else _root(source)


def _is_zero(value: ir.Value | None) -> bool:
    if value is None or value.const_value is None or value.is_graph_input():
        return False
    return value.const_value.size == 1 and not value.const_value.numpy().any()


def _range_of(model: ir.Model, root: ir.Value) -> ir.Value:
    """A value [1] on the device that holds the number `root`."""
    producer = root.producer()
    assert producer is not None, "values on the host are computed"
    scalar, nodes = root, []
    if root.shape is None or root.shape.rank() > 0:
        squeeze = _node(model, producer, "Squeeze", [root], [])
        nodes, scalar = [squeeze], squeeze.outputs[0]
    one = _constant(model, f"{root.name}:one", np.array(1, np.int64))
    following = _node(model, producer, "Add", [scalar, one], [])
    made = _node(model, producer, "Range", [scalar, following.outputs[0], one], [1])
    model.graph.insert_after(producer, [*nodes, following, made])
    return made.outputs[0]


def _in_shape(model: ir.Model, made: ir.Value, like: ir.Value, *, before: ir.Node) -> ir.Value:
    """The value [1] under the shape of `like`, which has one element too."""
    rank = 0 if like.shape is None else like.shape.rank()
    if rank == 1:
        return made
    shape = _constant(model, f"{made.name}:shape{rank}", np.ones(rank, np.int64))
    node = _node(model, before, "Reshape", [made, shape], [1] * rank)
    model.graph.insert_before(before, node)
    return node.outputs[0]


def _node(model: ir.Model, beside: ir.Node, op_type: str, inputs: list[ir.Value], shape: list[int]) -> ir.Node:
    """An int64 node of the same module as `beside`, under the first key that is free."""
    stem = f"{(beside.name or '').rpartition('/')[0]}/{op_type}"
    taken = {node.name for node in model.graph}
    free = (f"{stem}.{number}" if number else stem for number in itertools.count())
    node = ir.node(op_type, inputs, name=next(name for name in free if name not in taken))
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{node.name}:0", ir.TensorType(ir.DataType.INT64), ir.Shape(shape)
    return node


def _constant(model: ir.Model, name: str, array: npt.NDArray[np.int64]) -> ir.Value:
    if name not in model.graph.initializers:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        model.graph.register_initializer(value)
    return model.graph.initializers[name]


def _drop_unused(model: ir.Model, node: ir.Node | None) -> None:
    """Removes a node that nobody reads any more, then what it alone read."""
    if node is None or node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    sources = [value.producer() for value in node.inputs if value is not None]
    model.graph.remove(node, safe=True)
    for source in sources:
        _drop_unused(model, source)
