"""Graph variants: a bundle's fp32 graphs after a sequence of rewrites, each under a name that plans bear.

In: a bundle. Out: the same with its variants beside it. References and what is published as fp32 are the base graphs';
everything that a plan decides about, and what it costs, is about the graphs of its variant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import onnx_ir as ir

from precision_search.errors import InputError, InternalError
from precision_search.model.bundle import Bundle
from precision_search.model.graph import BASE_VARIANT, Graph, GraphName, describe
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.pairing import aligned

Rewrite = Callable[[GraphName, ir.Model], None]
"""Changes a graph in place. Whatever it adds has a name and a type of its own, and the same computation in both decoder
graphs the same node name, since node names become node keys."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What makes a variant.

    Attributes:
        name: as plans and blocklists have it.
        rewrites: what is done to each of the three graphs, in order.
    """

    name: str
    rewrites: tuple[Rewrite, ...]


VARIANTS: tuple[Variant, ...] = (Variant(BASE_VARIANT, ()),)
"""The variants that a run searches, in this order; the base graphs come first."""


def variant_names() -> tuple[str, ...]:
    """The names that a plan may bear."""
    return tuple(variant.name for variant in VARIANTS)


def with_variants(bundle: Bundle, names: Iterable[str] | None = None) -> Bundle:
    """The bundle with its variants of these names; None for all.

    Raises:
        InputError: there is no such variant.
        InternalError: a rewrite changed what a graph takes or gives.
    """
    known = {variant.name: variant for variant in VARIANTS}
    made: dict[str, Mapping[GraphName, Graph]] = {}
    for name in known if names is None else names:
        if name not in known:
            raise InputError(
                f"there is no graph variant {name!r}",
                why=f"this version knows {', '.join(map(repr, known))}",
                fix="use the version of precision-search that made it",
            )
        if name != BASE_VARIANT:
            made[name] = _rewritten(bundle.graphs, known[name])
    return replace(bundle, variants=MappingProxyType(made))


def _rewritten(graphs: Mapping[GraphName, Graph], variant: Variant) -> Mapping[GraphName, Graph]:
    found = {}
    for name, graph in graphs.items():
        model = graph.model.clone()
        for rewrite in variant.rewrites:
            rewrite(name, model)
        if _ends(model) != _ends(graph.model):
            raise InternalError(
                f"the graph variant {variant.name!r} has another {name}",
                why="a rewrite changed its inputs or outputs, which other graphs and generators rely on",
            )
        found[name] = describe(name, model)
    later = SEQ2SEQ.decoder_with_past.name
    return found | {later: aligned(found[SEQ2SEQ.decoder.name], found[later])}


def _ends(model: ir.Model) -> list[tuple[str | None, ir.DataType | None]]:
    return [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]
