"""Graphs that are fp32 no more, or not as an exporter wrote them: recognized by their operators, refused by name.

In: an ONNX graph. Out: nothing, or the error that says what was done to it. What is quantized has lost the values that
the reference needs, and of what ONNX Runtime's optimizer fused nobody says how its kernels round in low precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from precision_search.errors import InputError

RUNTIME_DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Domains of operators that ONNX Runtime knows and the ONNX standard does not."""


@dataclass(frozen=True, slots=True)
class RefusedKind:
    """Graphs that are refused for their operators.

    Attributes:
        title: what was done to them.
        op_types: names of such operators; one that ends in `*` stands for all that begin like it.
        domains: where these are; none for anywhere.
        why: why they are refused.
        fix: what to do.
    """

    title: str
    op_types: tuple[str, ...]
    domains: tuple[str, ...]
    why: str
    fix: str

    def holds(self, node: ir.Node) -> bool:
        """Whether an operator is of this kind."""
        return (not self.domains or node.domain in self.domains) and any(
            node.op_type.startswith(each[:-1]) if each.endswith("*") else node.op_type == each for each in self.op_types
        )


_QUANTIZING = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantize*",
    "GatherBlockQuantized",
    "QLinear*",
    "QOrdered*",
)
_QUANTIZED = ("MatMulInteger*", "ConvInteger", "MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "QAttention", "QGemm", "QMoE")

REFUSED_KINDS: tuple[RefusedKind, ...] = (
    RefusedKind(
        "quantized",
        (*_QUANTIZING, *_QUANTIZED),
        (),
        "a quantized graph has lost the values that the reference needs",
        "start from the fp32 export that was quantized, or from the checkpoint",
    ),
    RefusedKind(
        "fused by an optimizer",
        ("*",),
        RUNTIME_DOMAINS,
        "how fused operators of ONNX Runtime round in low precision is not known",
        "export it again without optimization (no ORTOptimizer, no `--optimize`), or start from the checkpoint",
    ),
    RefusedKind(
        "fused by an optimizer",
        ("SimplifiedLayerNormalization",),
        (),
        "how fused operators of ONNX Runtime round in low precision is not known",
        "export it again without optimization (no ORTOptimizer, no `--optimize`), or start from the checkpoint",
    ),
)
"""The first that fits is told; where an operator is in several, quantized says more."""


def refuse_kinds(nodes: Iterable[ir.Node], path: Path) -> None:
    """Raises InputError where a node is of a kind that is refused."""
    nodes = list(nodes)
    for kind in REFUSED_KINDS:
        found = sorted({node.op_type for node in nodes if kind.holds(node)})
        if found:
            raise InputError(
                f"{path.name} is {kind.title}: it has {', '.join(found[:4])}{' and others' if len(found) > 4 else ''}",
                why=kind.why,
                fix=kind.fix,
            )
