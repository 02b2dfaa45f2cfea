"""What a node asks of a CUDA device: kernels launched, elements moved, floating-point operations.

The numbers describe the kernels of ONNX Runtime's CUDA provider at optimization level basic. Launch counts were
counted, not guessed: sessions of one node each, and the three T5 graphs whole, on a stand-in CUDA runtime that records
every launch, copy and library call (onnxruntime-gpu 1.31; docs/reference/cost-model.md has the figures).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from precision_search.cost.shapes import Dims, Shapes
from precision_search.model.rewrites.sizes_on_device import HOST_INPUTS, UNLAUNCHED, VIEWS

MATRIX_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul"})
"""One library call each; Gemm launches one more kernel to spread its bias."""

GATHERS = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
"""Read of their first input only what they write."""

LAUNCHES: Mapping[str, int] = {"GatherND": 2, "ReduceMax": 2, "ReduceMean": 2, "ReduceMin": 2, "ScatterND": 2}
"""Op types with more than one launch: slice offsets and the gather; cuDNN's reduction into a cleared result; a column
reduction and a Div; a copy and the scatter. Everything else on the device is one launch, or one copy; shapes may add to
that (see `node_work`)."""

SUMS = frozenset({"ReduceMean", "ReduceSum"})
"""Over leading axes, or over all elements (one token), these add up into a result that is set to zero first."""

_ARITHMETIC = frozenset({"Abs", "Add", "Ceil", "Clip", "Div", "Exp", "Floor", "Log", "Max", "Min", "Mod", "Mul", "Neg"})
_MORE_ARITHMETIC = frozenset({"CumSum", "Erf", "Pow", "Reciprocal", "Round", "Sign", "Sqrt", "Sub", "Sum"})
_LOGIC = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Where", "Xor"})
_ACTIVATIONS = frozenset({"Elu", "FastGelu", "Gelu", "LeakyRelu", "QuickGelu", "Relu", "Sigmoid", "Softplus", "Tanh"})
_MOVEMENT = frozenset(
    {"Cast", "Concat", "ConstantOfShape", "Expand", "Pad", "Range", "Split", "Tile", "Transpose", "Trilu"}
)
_REDUCTIONS = frozenset({"ReduceMax", "ReduceMin", "ReduceSum", "Softmax", "LogSoftmax"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
ONE_PASS = _ARITHMETIC | _MORE_ARITHMETIC | _LOGIC | _ACTIVATIONS | _MOVEMENT | _REDUCTIONS | _NORMS
"""One launch that reads every input once and writes every output once. Which kernels a shape picks does not matter
to that: a transpose that moves only a dimension of size 1 is a copy of the same bytes. A softmax over another axis
than the last is transposed there and back."""

MODELLED = ONE_PASS | MATRIX_PRODUCTS | GATHERS | LAUNCHES.keys() | VIEWS | UNLAUNCHED
"""Op types of which this module knows what they do; any other is taken to be one pass over its tensors."""


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one run of a node.

    Attributes:
        launches: kernels, copies and library calls; 0 for what runs on the host, shares a buffer or is folded.
        moved: elements read from each input, then elements written to each output.
        flops: floating-point operations of a matrix product, else 0: any other kernel is bound by its bytes.
        modelled: False if nothing is known of the op type, so that it is taken to be one pass over its tensors.
    """

    launches: int
    moved: tuple[int, ...]
    flops: int
    modelled: bool = True


@dataclass(frozen=True, slots=True)
class Product:
    """The sizes of a matrix product: [rows, inner] times [inner, columns], the rows of all products of a batch."""

    rows: int
    columns: int
    inner: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each term."""
        return 2 * self.rows * self.columns * self.inner


def matrix_product(node: ir.Node, shapes: Shapes) -> Product | None:
    """The matrix product that `node` is with these shapes, or None for other nodes."""
    if node.op_type not in MATRIX_PRODUCTS:
        return None
    dims = shapes.dims[str(node.outputs[0].name)]
    columns = dims[-1] if dims else 1
    rows = math.prod(dims) // columns if columns else 0
    return Product(rows, columns, _inner(node, shapes))


def node_work(node: ir.Node, shapes: Shapes, *, idle: bool) -> Work:
    """The work of `node` with these shapes; `idle` says that it launches nothing (see `place`)."""
    values = [*node.inputs, *node.outputs]
    if idle:
        return Work(0, (0,) * len(values), 0)
    sizes = [0 if value is None else math.prod(shapes.dims[str(value.name)]) for value in values]
    op_type, n_inputs = node.op_type, len(node.inputs)
    for index in HOST_INPUTS.get(op_type, ()):
        if index < n_inputs:
            sizes[index] = 0
    launches, flops = LAUNCHES.get(op_type, 1), 0
    if product := matrix_product(node, shapes):
        flops = product.flops
        if n_inputs > 2 and node.inputs[2] is not None:  # the bias is written to the output, which the product reads
            launches, sizes[n_inputs] = 2, 3 * sizes[n_inputs]
    elif op_type in GATHERS:
        sizes[0] = sizes[n_inputs]
    elif op_type in SUMS:
        passes = 3 if op_type == "ReduceMean" else 1  # the sums are written, then read, divided and written
        if _over_leading_axes(node, shapes):
            launches, passes = launches + 1, passes + 1
        sizes[n_inputs] *= passes
    elif op_type == "Expand" and sizes[0] == sizes[n_inputs]:  # copied, and then expanded all the same
        launches, sizes = 2, [2 * size for size in sizes]
    elif op_type in {"Softmax", "LogSoftmax"} and not _over_last_axis(node, shapes):
        launches, sizes = 3, [3 * size for size in sizes]
    return Work(launches, tuple(sizes), flops, op_type in MODELLED)


def _inner(node: ir.Node, shapes: Shapes) -> int:
    """The dimension that a matrix product sums over."""
    left = node.inputs[0]
    dims: Dims = () if left is None else shapes.dims[str(left.name)]
    transposed = bool(node.attributes.get_int("transA", 0))
    return 1 if not dims else dims[-2] if transposed and len(dims) > 1 else dims[-1]


def _over_last_axis(node: ir.Node, shapes: Shapes) -> bool:
    value = node.inputs[0]
    rank = 0 if value is None else len(shapes.dims[str(value.name)])
    return node.attributes.get_int("axis", -1) in {-1, rank - 1}


def _over_leading_axes(node: ir.Node, shapes: Shapes) -> bool:
    """Whether a reduction leaves nothing before the axes it reduces, or nothing at all; axes of size 1 do not count."""
    source, axes = node.inputs[0], _axes(node)
    dims: Dims = () if source is None else shapes.dims[str(source.name)]
    reduced = {axis % len(dims) for axis in axes} if axes and dims else set(range(len(dims)))
    long = [index in reduced for index, size in enumerate(dims) if size > 1]
    return bool(long) and long[0] and long == sorted(long, reverse=True)


def _axes(node: ir.Node) -> tuple[int, ...]:
    """The axes a reduction names, none if it does not or if they are not constant."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is not None and value.const_value is not None:
        return tuple(int(axis) for axis in value.const_value.numpy().reshape(-1))
    return tuple(int(axis) for axis in node.attributes.get_ints("axes", ()))
