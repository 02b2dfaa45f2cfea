"""One-node graphs of every op type of the kernel table, with inputs at the edges, and how far results may be apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from precision_search.precision.low import LowDtype, smallest_normal
from tests.gpu.devices import Array, every_number
from tests.kernel_models import low

BITS: Mapping[LowDtype, int] = {"float16": 10, "bfloat16": 7}
WIDTH = 192


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a kernel may be from its model.

    Attributes:
        share: of all results, how many may differ at all.
        steps: by how many neighbouring numbers of the dtype.
        absolute: or by how much of the dtype's step at 1, where a subtraction inside the kernel cancels.
        of_terms: or by how much of the sum of the magnitudes that are added, times the fp32 step at 1.
    """

    share: float = 0.0
    steps: float = 0.0
    absolute: float = 0.0
    of_terms: float = 0.0


EXACT = Tolerance()
"""One rounding of an exact result: bit for bit."""
APPROXIMATE = Tolerance(share=0.01, steps=1)
"""An fp32 function that is off by a few ulps of fp32: next to a tie that decides."""
SUMS = Tolerance(share=0.03, steps=1, of_terms=64)
"""fp32 sums in another order, on tensor cores with truncated additions."""
SUM_AND_QUOTIENT = Tolerance(share=0.03, steps=2, of_terms=64)

Inputs = Callable[[LowDtype], Sequence[Array]]


@dataclass(frozen=True, slots=True)
class Probe:
    """A node, what it reads, and what its result may differ by; `terms` gives the magnitudes that are summed."""

    op_type: str
    inputs: Inputs
    tolerance: Tolerance = EXACT
    attributes: Mapping[str, Any] = field(default_factory=dict)
    terms: Callable[..., Array] | None = None


EDGES = (
    *(0.0, -0.0, 1.0, -1.0, 0.1, 3.14159, 255.9, 1000.0, 2049.0, 1e-3, 6e-5, 6e-8, -3e-8),
    *(65504.0, -65504.0, 65472.0, 30000.0, -181.0, 256.0, np.inf, -np.inf, np.nan),
)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def whole(limit: int, *shape: int, seed: int = 0) -> Array:
    """Whole numbers up to a limit: their sums are exact in fp32 in any order."""
    return np.random.default_rng(seed).integers(-limit, limit + 1, shape).astype(np.float32)


def numbers(dtype: LowDtype) -> Sequence[Array]:
    return [every_number(dtype)]


def bend(dtype: LowDtype) -> Sequence[Array]:
    """All numbers where an activation is neither a straight line nor constant, with zeros, infinities and NaN."""
    values, size = every_number(dtype), np.abs(every_number(dtype))
    return [values[((size >= 2.0**-5) & (size < 16)) | ~np.isfinite(values) | (size == 0)]]


def pairs(dtype: LowDtype) -> Sequence[Array]:
    """Every edge with every edge, and with numbers of ordinary size."""
    values = low(np.concatenate([np.asarray(EDGES, np.float32), normal(78, scale=8)]), dtype)
    return [grid.ravel().copy() for grid in np.meshgrid(values, values)]


def scores(dtype: LowDtype) -> Sequence[Array]:
    """Attention scores: ordinary rows, a masked tail, a row all masked, a NaN, numbers beyond fp16, one that wins."""
    rows = normal(40, 50, scale=5)
    rows[0, 10:] = -np.inf
    rows[1] = -np.inf
    rows[2, 3] = np.nan
    rows[3] = 1e5
    rows[4, 1:] = -65504.0
    return [low(rows, dtype)]


def rows(dtype: LowDtype) -> Sequence[Array]:
    """Rows of d_model numbers: of ordinary size, whole, and with sums at and beyond fp16's largest number."""
    ordinary = normal(6, 5, WIDTH, scale=100)
    means = np.array([340.0, 341.0, 342.0, 343.0, 30000.0], np.float32)
    return [low(np.concatenate([ordinary, whole(30, 1, 5, WIDTH), np.tile(means[:, None], (1, 1, WIDTH))]), dtype)]


def reduced(dtype: LowDtype) -> Sequence[Array]:
    return [*rows(dtype), np.array([-1])]


def normed(count: int) -> Inputs:
    def inputs(dtype: LowDtype) -> Sequence[Array]:
        scale, shift = normal(WIDTH, seed=1), np.linspace(-1, 1, WIDTH, dtype=np.float32)
        return [*rows(dtype), *(low(array, dtype) for array in (scale, shift)[:count])]

    return inputs


def factors(*shapes: Sequence[int], limit: int | None = None) -> Inputs:
    """Random factors; with a limit whole numbers, whose products have exact sums."""

    def inputs(dtype: LowDtype) -> Sequence[Array]:
        made = [
            normal(*shape, seed=seed) if limit is None else whole(limit, *shape, seed=seed)
            for seed, shape in enumerate(shapes)
        ]
        return [low(array, dtype) for array in made]

    return inputs


def of_product(left: Array, right: Array, *bias: Array) -> Array:
    terms: Array = np.abs(left) @ np.abs(right)
    return terms + np.abs(bias[0]) if bias else terms


def of_row(values: Array, *_: Array) -> Array:
    terms: Array = np.abs(values).sum(axis=-1, keepdims=True)
    return terms


UNARY_EXACT = ("Relu", "Neg", "Abs")
UNARY = ("Sqrt", "Reciprocal", "Tanh", "Erf", "Exp", "Log")
BINARY_EXACT = ("Add", "Sub", "Mul", "Max", "Min")

PROBES: Mapping[str, Probe] = {
    **{op: Probe(op, numbers) for op in UNARY_EXACT},
    **{op: Probe(op, numbers, APPROXIMATE) for op in UNARY},
    **{op: Probe(op, pairs) for op in BINARY_EXACT},
    **{op: Probe(op, pairs, APPROXIMATE) for op in ("Div", "Pow")},
    "Clip": Probe(
        "Clip", lambda dtype: [every_number(dtype), *(low(np.asarray(v, np.float32), dtype) for v in (-1.0, 2.0))]
    ),
    # They vanish for negative numbers as differences of numbers next to 1. Rounding at other places than the kernels do
    # changes 28 to 47 % of the results.
    "Sigmoid": Probe("Sigmoid", bend, Tolerance(share=0.05, steps=2, absolute=2)),
    "Gelu": Probe("Gelu", bend, Tolerance(share=0.12, steps=2, absolute=2)),
    "Gelu, tanh": Probe("Gelu", bend, Tolerance(share=0.05, steps=2, absolute=4), {"approximate": "tanh"}),
    "Softmax": Probe("Softmax", scores, SUMS, {"axis": -1}),
    "LogSoftmax": Probe("LogSoftmax", scores, SUMS, {"axis": -1}),
    "ReduceSum": Probe("ReduceSum", reduced, SUMS, terms=of_row),
    "ReduceMean": Probe("ReduceMean", reduced, SUM_AND_QUOTIENT, terms=lambda *a: of_row(*a) / WIDTH),
    "ReduceMax": Probe("ReduceMax", reduced),
    "ReduceMin": Probe("ReduceMin", reduced),
    "MatMul": Probe("MatMul", factors((32, WIDTH), (WIDTH, 30)), SUMS, terms=of_product),
    "MatMul, heads": Probe("MatMul", factors((2, 4, 16, 64), (2, 4, 64, 24)), SUMS, terms=of_product),
    "MatMul, whole numbers": Probe("MatMul", factors((32, 64), (64, 30), limit=40)),
    "MatMul, beyond fp16": Probe("MatMul", factors((32, 64), (64, 30), limit=200)),
    "Gemm": Probe("Gemm", factors((32, WIDTH), (WIDTH, 30), (30,)), SUMS, terms=of_product),
    "LayerNormalization": Probe("LayerNormalization", normed(2), Tolerance(share=0.03, steps=1, absolute=0.1)),
    "RMSNormalization": Probe("RMSNormalization", normed(1), APPROXIMATE),
    "SimplifiedLayerNormalization": Probe("SimplifiedLayerNormalization", normed(1), APPROXIMATE),
    "Gather": Probe("Gather", lambda dtype: [low(normal(9, 8, scale=1e4), dtype), np.array([3, 0, 8])]),
}
"""By a name that begins with the op type. Every entry of the kernel table has one, which a test sees to."""


def step(values: Array, dtype: LowDtype) -> Array:
    """The distance from each number to the next of the dtype."""
    exponent = np.floor(np.log2(np.maximum(np.abs(values), smallest_normal(dtype))))
    return np.asarray(2.0 ** (exponent - BITS[dtype]))


def wrong(got: Array, expected: Array, probe: Probe, inputs: Sequence[Array], dtype: LowDtype) -> str | None:
    """What is wrong with a result, in a line; None if it is within the probe's tolerance."""
    if got.shape != expected.shape:
        return f"shape {got.shape} instead of {expected.shape}"
    if not np.array_equal(np.isnan(got), np.isnan(expected)):
        return f"NaN in {np.isnan(got).sum()} places instead of {np.isnan(expected).sum()}"
    differ = ~((got == expected) | np.isnan(expected))
    if differ.mean() > probe.tolerance.share:
        return f"{differ.mean():.3%} differ, such as {got[differ][:3]} instead of {expected[differ][:3]}"
    ours, theirs = (_bounded(values[differ], dtype) for values in (got, expected))
    allowed = probe.tolerance.steps * step(theirs, dtype) + probe.tolerance.absolute * 2.0 ** -BITS[dtype]
    if probe.terms is not None:
        terms = np.broadcast_to(probe.terms(*inputs), expected.shape)[differ]
        allowed = allowed + probe.tolerance.of_terms * 2.0**-23 * terms
    worst = np.abs(ours - theirs) - allowed
    if worst.size and worst.max() > 0:
        return f"{ours[worst.argmax()]} instead of {theirs[worst.argmax()]}, allowed {allowed[worst.argmax()]:.3g}"
    return None


def _bounded(values: Array, dtype: LowDtype) -> Array:
    """float64, infinity as the number that would come after the largest."""
    beyond = 65536.0 if dtype == "float16" else 2.0**128
    return np.clip(values.astype(np.float64), -beyond, beyond)
