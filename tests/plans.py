"""Plans of the demo by what they keep, and sample sets cut to what a test can afford."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from precision_search.judging.sample_sets import SampleRows
from precision_search.model.bundle import Bundle
from precision_search.model.graph import compute_keys_by_op_type
from precision_search.precision.low import LowDtype
from precision_search.precision.plan import FAMILIES, Plan, all_compute_keys, pinned_keys
from precision_search.runtime.generator import Generator
from precision_search.runtime.reference import make_reference
from precision_search.runtime.session import SessionSettings

NORMS = ("Pow", "ReduceMean", "Sqrt", "Reciprocal", "Add", "Mul")
"""The norms with all Add and Mul: finite garbage becomes NaN, because the encoder's `wo` overflow by themselves."""

CLASSIC = ("Pow", "ReduceMean", "Sqrt", "Softmax", "Relu")
"""The list that people keep by hand."""

WO = tuple(f"encoder.block.{layer}.layer.1.DenseReluDense.wo/MatMul" for layer in range(4))
"""The encoder's matrix products that overflow in fp16."""

SETTINGS = SessionSettings(threads=1)


def keeping(bundle: Bundle, op_types: Collection[str] = (), nodes: Collection[str] = ()) -> Plan:
    """The fp16 plan that keeps these op types (in both families) and nodes in fp32; nothing is all-low."""
    kept = set(nodes) | pinned_keys(bundle.graphs)
    for family in FAMILIES:
        by_type = compute_keys_by_op_type(bundle.graphs, family)
        for op_type in op_types:
            kept |= by_type.get(op_type, frozenset())
    return Plan("float16", "base", frozenset(kept))


def lowering(bundle: Bundle, keys: Collection[str] = (), dtype: LowDtype = "float16") -> Plan:
    """The plan in which only these nodes are low; none is fp32."""
    return Plan(dtype, "base", all_compute_keys(bundle.graphs) - frozenset(keys))


def sample_rows(bundle: Bundle, rows: Sequence[tuple[int, ...]], batch_size: int = 32) -> SampleRows:
    """Rows of input ids with their fp32 reference."""
    generator = Generator(bundle.models, bundle.generation, SETTINGS)
    return SampleRows(tuple(rows), make_reference(bundle, generator, rows, batch_size, SETTINGS))
