"""Concrete shapes of every value of a graph at a given workload.

Exporters leave symbolic shapes, misleading ones, or none. So the graph inputs are bound to the workload by what they
are called, and shapes are inferred node by node from there; small integer tensors (the arithmetic on shapes that
Reshape, Range and Expand read) are computed on the way. Where inference gives no answer, the shape the file declares
is evaluated; where that fails too, a value is taken to be as large as its node's largest input, and reported.
"""

import ast
import contextlib
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
import onnx.reference
import onnx.shape_inference
import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.model.layout import SEQ2SEQ, Axis

Dims = tuple[int, ...]

_FEW = 8  # elements: no shape has more dimensions, and larger integer tensors are data
_LARGEST_DIM = 1 << 40
"""Of a tensor: no memory holds more, and sizes are multiplied."""

_OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True, slots=True)
class Point:
    """The sizes of one run of one graph, in sentences and tokens.

    Attributes:
        batch: sentences.
        source: source tokens of each.
        target: target tokens given to this run; nothing reads it in an encoder.
        past: target tokens already in the cache; nothing reads it in a graph without one.
    """

    batch: int
    source: int
    target: int = 1
    past: int = 0

    def size(self, axis: Axis | None) -> int | None:
        """How long an axis of an input is; None where the model decides it."""
        match axis:
            case None:
                return None
            case "total":
                return self.past + self.target
            case "batch" | "source" | "target" | "past":
                return int(getattr(self, axis))


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is known of a graph's values, initializers among them.

    Attributes:
        dims: the concrete shape by value name.
        dtypes: the dtype by value name; values of unknown dtype are absent.
        assumed: names of values whose shape was guessed, sorted.
    """

    dims: Mapping[str, Dims]
    dtypes: Mapping[str, ir.DataType]
    assumed: tuple[str, ...]


def infer_shapes(model: ir.Model, point: Point) -> Shapes:
    """Shapes of all values of `model` when it runs at `point`.

    Inputs are recognised by name: `input_ids`, `attention_mask`, `encoder_hidden_states`, `encoder_attention_mask`,
    `decoder_input_ids`, `decoder_attention_mask`, `past_key_values.<n>.<decoder|encoder>.<key|value>`; dimensions of
    other inputs by their symbol (`batch_size`, `past_sequence_length` and so on), and failing that they are assumed
    to be 1. Weights are not read.

    Raises:
        InputError: the graph has an input of a fixed size that `point` does not have.
    """
    inference = _Inference(model, point)
    inference.bind_inputs()
    for name, value in model.graph.initializers.items():
        inference.add_initializer(name, value)
    for node in model.graph:
        inference.visit(node)
    return Shapes(
        MappingProxyType(inference.dims),
        MappingProxyType(inference.dtypes),
        tuple(sorted(inference.assumed)),
    )


class _Inference:
    """What is known so far while the nodes of one graph are visited in order."""

    def __init__(self, model: ir.Model, point: Point) -> None:
        self.dims: dict[str, Dims] = {}
        self.dtypes: dict[str, ir.DataType] = {}
        self.assumed: set[str] = set()
        self._known: dict[str, np.ndarray] = {}
        self._symbols: dict[str, int] = {}
        self._model = model
        self._point = point
        self._opsets = dict(model.graph.opset_imports or model.opset_imports)
        self._opset_protos = [onnx.helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]

    def bind_inputs(self) -> None:
        inputs = [value for value in self._model.graph.inputs if value.name not in self._model.graph.initializers]
        axes = SEQ2SEQ.axes(str(value.name) for value in inputs)
        # An input with named dimensions first: its symbols then explain those of the others.
        for value in sorted(inputs, key=lambda value: str(value.name) not in axes):
            roles = [self._point.size(axis) for axis in axes.get(str(value.name), ())]
            declared = list(value.shape) if value.shape is not None else [None] * len(roles)
            dims = [
                self._input_dim(str(value.name), axis, dim, roles[axis] if axis < len(roles) else None)
                for axis, dim in enumerate(declared)
            ]
            self._set(value, tuple(dims), value.dtype)

    def _input_dim(self, name: str, axis: int, declared: int | ir.SymbolicDim | None, role: int | None) -> int:
        if isinstance(declared, int):
            if role is not None and role != declared:
                raise InputError(
                    f"the graph cannot run at the workload: its input {name} has {declared} on axis {axis}",
                    why=f"the workload needs {role} there, and the size is fixed in the file",
                    fix="export the model with dynamic axes, or set [workload] to the fixed sizes",
                )
            return declared
        symbol = None if declared is None else declared.value
        size = role if role is not None else self._symbols.get(str(symbol), _size_by_symbol(str(symbol), self._point))
        if size is None:
            self.assumed.add(name)
            return 1
        if symbol is not None:
            self._symbols.setdefault(symbol, size)
        return size

    def add_initializer(self, name: str, value: ir.Value) -> None:
        tensor = value.const_value
        shape = tensor.shape if tensor is not None else value.shape
        dtype = tensor.dtype if tensor is not None else value.dtype
        dims = None if shape is None else _static(shape)
        self._set(value, () if dims is None else dims, dtype)
        if dims is None:
            self.assumed.add(name)
        elif tensor is not None and _is_few(dims):
            self._known[name] = tensor.numpy()

    def visit(self, node: ir.Node) -> None:
        inferred = self._infer(node)
        for value in node.outputs:
            if not value.name:
                continue
            dims, dtype = inferred.get(value.name, (None, None))
            if dims is None:
                dims = self._declared(value)
            if dims is None:
                dims = self._largest_input(node)
                self.assumed.add(value.name)
            self._set(value, dims, dtype or value.dtype)
        self._compute(node)

    def _set(self, value: ir.Value, dims: Dims, dtype: ir.DataType | None) -> None:
        name = str(value.name)
        self.dims[name] = dims
        if dtype is not None:
            self.dtypes[name] = dtype
        for dim, size in zip(value.shape or (), dims, strict=False):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                self._symbols.setdefault(dim.value, size)

    def _infer(self, node: ir.Node) -> dict[str, tuple[Dims | None, ir.DataType | None]]:
        """What onnx infers for the node's outputs; nothing for op types it does not know."""
        names = [value.name for value in node.inputs if value is not None and value.name]
        if any(name not in self.dtypes for name in names):
            return {}
        types = {name: onnx.helper.make_tensor_type_proto(int(self.dtypes[name]), self.dims[name]) for name in names}
        data = {name: onnx.numpy_helper.from_array(self._known[name]) for name in names if name in self._known}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets[node.domain], node.domain)
            proto = ir.serde.serialize_node(node)
            outputs = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self._opset_protos, ir_version=self._model.ir_version
            )
        except (
            KeyError,
            RuntimeError,
            onnx.checker.ValidationError,
            onnx.defs.SchemaError,
            onnx.shape_inference.InferenceError,
        ):
            return {}
        return {name: _read_type(type_proto) for name, type_proto in outputs.items()}

    def _declared(self, value: ir.Value) -> Dims | None:
        """The shape the file declares, with the symbols bound so far."""
        if value.const_value is not None:
            return _static(value.const_value.shape)
        if value.shape is None:
            return None
        sizes = [dim if isinstance(dim, int) else evaluate_dim(dim.value, self._symbols) for dim in value.shape]
        return None if None in sizes else tuple(size for size in sizes if size is not None)

    def _largest_input(self, node: ir.Node) -> Dims:
        shapes = [self.dims[str(value.name)] for value in node.inputs if value is not None]
        return max(shapes, key=lambda dims: int(np.prod(dims)), default=())

    def _compute(self, node: ir.Node) -> None:
        """Computes the node's output if it is a small tensor that depends on shapes and constants only."""
        output = node.outputs[0]
        name = str(output.name)
        if len(node.outputs) != 1 or name in self.assumed or not _is_few(self.dims[name]):
            return
        inputs = [str(value.name) for value in node.inputs if value is not None]
        if node.op_type == "Shape":
            dims = self.dims[inputs[0]]
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
            self._known[name] = np.array(dims[start:end], np.int64)
        elif node.op_type == "Size":
            self._known[name] = np.array(np.prod(self.dims[inputs[0]], dtype=np.int64))
        elif all(name in self._known for name in inputs) and not node.op_type.startswith("Random"):
            # The evaluator raises whatever the op raises; an unknown value only costs precision, and is reported later.
            with contextlib.suppress(Exception), np.errstate(all="ignore"):
                evaluator = onnx.reference.ReferenceEvaluator(ir.serde.serialize_node(node), opsets=self._opsets)
                results = evaluator.run(None, {name: self._known[name] for name in inputs})
                self._known[name] = np.asarray(results[0])  # type: ignore[index]


def _size_by_symbol(symbol: str, point: Point) -> int | None:
    """The size that a dimension's own name stands for, as exporters commonly call it."""
    words = (
        ("batch", point.batch),
        ("past", point.past),
        ("encoder", point.source),
        ("source", point.source),
        ("decoder", point.target),
        ("target", point.target),
    )
    return next((size for word, size in words if word in symbol.lower()), None)


def evaluate_dim(expression: str | None, symbols: Mapping[str, int]) -> int | None:
    """The value of a symbolic dimension such as `past_sequence_length + 1`; None if a symbol in it is unknown."""
    try:
        tree = ast.parse(expression or "", mode="eval")
        size = _evaluate(tree.body, symbols)
        return None if size is not None and abs(size) > _LARGEST_DIM else size
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):
        # Names that are no identifiers, such as `batch.1`, are symbols as a whole.
        return symbols.get(expression or "")


def _evaluate(node: ast.expr, symbols: Mapping[str, int]) -> int | None:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return symbols.get(name)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATORS:
            a, b = _evaluate(left, symbols), _evaluate(right, symbols)
            return None if a is None or b is None else _OPERATORS[type(operation)](a, b)
    raise ValueError("not a sum, difference, product or quotient of symbols and integers")


def _static(shape: Iterable[object]) -> Dims | None:
    dims = list(shape)
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return tuple(sizes) if len(sizes) == len(dims) else None


def _is_few(dims: Dims) -> bool:
    return len(dims) <= 1 and int(np.prod(dims)) <= _FEW


def _read_type(type_proto: onnx.TypeProto) -> tuple[Dims | None, ir.DataType | None]:
    tensor = type_proto.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None, dtype
    return tuple(dim.dim_value for dim in tensor.shape.dim), dtype
