"""What ONNX Runtime's CUDA kernels do inside when a node runs in fp16 or bf16, and rounding to those dtypes.

`KERNELS` is what the emulation, the hard set and the converter build on: an op type without an entry, or without a
kernel for the dtype, stays in fp32. Facts are those of onnxruntime-gpu 1.31, from the names of the kernels it launches
and from the machine code of those kernels (compute capabilities 7.5, 8.0, 8.6, 8.9 and 12.0 round alike).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from precision_search.precision.low import LOW_DTYPES, LowDtype, round_to

_BOTH: frozenset[LowDtype] = frozenset(LOW_DTYPES)
_FLOAT16: frozenset[LowDtype] = frozenset({"float16"})


class Internals(enum.Enum):
    """Where a kernel rounds, seen from a graph that computes in fp32."""

    ELEMENTWISE = "computes in fp32, or so that it equals that, and rounds its result once"
    ACCUMULATE_FP32 = "sums in fp32 and rounds its result once"
    SUM_STORED_LOW = "sums in fp32, stores the sum low, divides it by the count (also stored low) and rounds again"
    COPY = "copies elements and rounds none; only its table is stored low"
    STEPS = "rounds between its operations: see `steps_of`"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The low CUDA kernel of one op type.

    Attributes:
        op_type: ONNX op type.
        internals: where it rounds.
        low_dtypes: the dtypes it exists for.
        source: the kernels launched, `T` for the dtype.
        note: what else a reader of a verdict should know.
    """

    op_type: str
    internals: Internals
    low_dtypes: frozenset[LowDtype]
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation inside a kernel that rounds between its operations.

    Attributes:
        name: unique among the steps of the kernel; the last step is the result.
        op_type: the ONNX op type that does it in fp32.
        inputs: "x" for the node's input, names of earlier steps, and constants as they are used (rounded already).
        rounds: whether its result is rounded to the low dtype; the first half of a fused multiply-add is not, nor is
            what is exact anyway.
    """

    name: str
    op_type: str
    inputs: tuple[str | float, ...]
    rounds: bool = True


def _elementwise(op_types: Iterable[str], kernel: str, low_dtypes: frozenset[LowDtype], note: str = "") -> list[Kernel]:
    return [
        Kernel(op_type, Internals.ELEMENTWISE, low_dtypes, kernel.format(op_type=op_type), note) for op_type in op_types
    ]


_UNARY = "_UnaryElementWise<T, T, OP_{op_type}<T>>"
_BINARY = "_BinaryElementWiseSimple<T, T, T, OP_{op_type}<T, T, T>> and its broadcasting siblings"
_GEMM = "cublasGemmEx, cublasGemmStridedBatchedEx or cublasGemmBatchedEx, compute type CUBLAS_COMPUTE_32F"
_GEMM_NOTE = (
    "The math mode allows partial sums in the low dtype (split K), unless ORT_CUDA_GEMM_OPTIONS=2 forbids that for "
    "fp16; the variable does nothing for bf16. 1 would accumulate in fp16."
)
_ATOMIC_NOTE = (
    "When the reduced axis holds all elements (one token) and is 4096 or longer, reduce_matrix_rows_kernel adds one "
    "partial sum a block into the low result: a few more roundings."
)
_RECIPROCAL_NOTE = "fp16 multiplies by the fp32 approximation MUFU.RCP; an ulp there changes 14 of a million quotients."

_TABLE: tuple[Kernel, ...] = (
    *_elementwise(("Add", "Sub", "Mul"), _BINARY, _BOTH, "fp16: HADD2 and HMUL2; bf16: fp32, then rounded to even"),
    *_elementwise(("Div",), _BINARY, _BOTH, _RECIPROCAL_NOTE),
    *_elementwise(("Max", "Min"), _BINARY, _BOTH, "NaN wins, as in fp32"),
    *_elementwise(("Pow",), _BINARY, _BOTH, "powf in fp32; in double where the exponent has another dtype"),
    *_elementwise(("Sqrt", "Relu", "Tanh", "Erf", "Exp", "Neg", "Abs"), _UNARY, _BOTH),
    *_elementwise(("Reciprocal",), _UNARY, _FLOAT16, _RECIPROCAL_NOTE),
    *_elementwise(("Log",), _UNARY, _FLOAT16),
    *_elementwise(("Clip",), "_Clip<T>", _FLOAT16, "opset 12 or later"),
    Kernel("Sigmoid", Internals.STEPS, _BOTH, _UNARY.format(op_type="Sigmoid")),
    Kernel(
        "Gelu",
        Internals.STEPS,
        _BOTH,
        "_UnaryElementWise<T, T, OP_Gelu<T>>; "
        'with approximate="tanh" FastGeluKernel2 (fp16) and FastGeluKernel<BFloat16>',
    ),
    Kernel("MatMul", Internals.ACCUMULATE_FP32, _BOTH, _GEMM, _GEMM_NOTE),
    Kernel("Gemm", Internals.ACCUMULATE_FP32, _BOTH, f"BroadcastBiasKernel<T>, then {_GEMM}, beta 1", _GEMM_NOTE),
    Kernel(
        "Softmax",
        Internals.ACCUMULATE_FP32,
        _BOTH,
        "softmax_warp_forward<T, T, float> up to 1024 elements, else softmax_block_forward<8, T, float, T>",
    ),
    Kernel(
        "LogSoftmax",
        Internals.ACCUMULATE_FP32,
        _FLOAT16,
        "softmax_warp_forward<T, T, float> up to 1024 elements, else softmax_block_forward<8, T, float, T>",
    ),
    Kernel(
        "ReduceSum",
        Internals.ACCUMULATE_FP32,
        _BOTH,
        "reduce_matrix_columns_kernel<T, T, float>; reduce_matrix_rows_kernel<T, T, float> for leading axes",
        _ATOMIC_NOTE,
    ),
    Kernel(
        "ReduceMean",
        Internals.SUM_STORED_LOW,
        _BOTH,
        "reduce_matrix_columns_kernel<T, T, float> (of one token: reduce_matrix_rows_kernel<T, T, float>), "
        "then _UnaryElementWise<T, T, OP_Div<T>>",
        f"{_ATOMIC_NOTE} Over axes in the middle cuDNN averages in fp32 and nothing is stored.",
    ),
    *_elementwise(("ReduceMax", "ReduceMin"), "cudnnReduceTensor, selects and rounds nothing", _FLOAT16),
    *(
        Kernel(op_type, Internals.ACCUMULATE_FP32, _BOTH, "cuApplyLayerNorm<T, float, T>", "scale and bias in fp32")
        for op_type in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
    ),
    Kernel("Gather", Internals.COPY, _BOTH, "_GatherKernel<short>"),
)

KERNELS: Mapping[str, Kernel] = MappingProxyType({kernel.op_type: kernel for kernel in _TABLE})
"""The low CUDA kernels by op type: every op type that computes floats in graphs of the T5 family (ReLU, gated GELU,
gated SiLU; exported with torch's dynamo or TorchScript exporter), and a few that other exporters use for the same."""


def kernel_for(op_type: str, dtype: LowDtype) -> Kernel | None:
    """The low CUDA kernel of an op type, or None: nodes of that type then stay in fp32 (`why_fp32` says why)."""
    kernel = KERNELS.get(op_type)
    return kernel if kernel is not None and dtype in kernel.low_dtypes else None


def why_fp32(op_type: str, dtype: LowDtype) -> str | None:
    """Why nodes of an op type can never be low, for people, or None if they can."""
    if op_type not in KERNELS:
        return f"how {op_type} rounds on CUDA is not known"
    if kernel_for(op_type, dtype) is None:
        return f"CUDA has no {dtype} kernel for {op_type}"
    return None


def steps_of(op_type: str, dtype: LowDtype, approximate: str = "none") -> tuple[Step, ...]:
    """The operations of a kernel whose internals are `STEPS`, in order.

    Args:
        op_type: "Gelu" or "Sigmoid".
        dtype: the low dtype.
        approximate: the attribute of a Gelu node, "none" or "tanh".

    Raises:
        KeyError: the kernel of `op_type` has no steps.
    """
    if op_type == "Gelu":
        return _tanh_gelu(dtype) if approximate == "tanh" else _erf_gelu(dtype)
    if op_type == "Sigmoid":
        return _sigmoid(dtype)
    raise KeyError(op_type)


def _tanh_gelu(dtype: LowDtype) -> tuple[Step, ...]:
    """x * (a + a * tanh(x * (c * x * x + b))) with all constants stored low; fp16 has fused multiply-adds."""
    a, b, c = (_rounded(value, dtype) for value in (0.5, np.sqrt(2 / np.pi), 0.044715 * np.sqrt(2 / np.pi)))
    fused = dtype == "float16"
    return (
        Step("cubic", "Mul", ("x", c)),
        Step("square", "Mul", ("cubic", "x"), rounds=not fused),
        Step("slope", "Add", ("square", b)),
        Step("argument", "Mul", ("x", "slope")),
        Step("tanh", "Tanh", ("argument",)),
        Step("half", "Mul", ("tanh", a), rounds=not fused),
        Step("cdf", "Add", ("half", a)),
        Step("y", "Mul", ("x", "cdf")),
    )


def _erf_gelu(dtype: LowDtype) -> tuple[Step, ...]:
    """fp16 goes through fp32 as a whole; bf16 stores the normal distribution function before the product."""
    if dtype == "float16":
        return (Step("y", "Gelu", ("x",)),)
    return (
        Step("scaled", "Mul", ("x", float(np.sqrt(0.5))), rounds=False),
        Step("erf", "Erf", ("scaled",), rounds=False),
        Step("twice", "Add", ("erf", 1.0), rounds=False),
        Step("cdf", "Mul", ("twice", 0.5)),
        Step("y", "Mul", ("x", "cdf")),
    )


def _sigmoid(dtype: LowDtype) -> tuple[Step, ...]:
    """fp16 goes through fp32 as a whole; bf16 stores each of p = 1 / (1 + exp(-|x|)), and 1 - p for x <= 0."""
    if dtype == "float16":
        return (Step("y", "Sigmoid", ("x",)),)
    return (
        Step("size", "Abs", ("x",), rounds=False),
        Step("minus", "Neg", ("size",), rounds=False),
        Step("exp", "Exp", ("minus",)),
        Step("sum", "Add", ("exp", 1.0)),
        Step("upper", "Div", (1.0, "sum")),
        Step("lower", "Sub", (1.0, "upper")),
        Step("positive", "Greater", ("x", 0.0), rounds=False),
        Step("y", "Where", ("positive", "upper", "lower"), rounds=False),
    )


def _rounded(value: float, dtype: LowDtype) -> float:
    return float(round_to(np.asarray(value, dtype=np.float32), dtype, saturate=False))
