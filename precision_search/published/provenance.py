"""What the metadata of a published ONNX file says: `precision_search.json` entry by entry, and each node's part.

In: a `ModelFacts`, and why each node has its precision. Out: `metadata_props`, which Netron and other viewers show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from precision_search.model.graph import Graph
from precision_search.model.onnx_files import strip_notes
from precision_search.precision.plan import Plan
from precision_search.published.facts import ModelFacts
from precision_search.records.codec import to_json

PRODUCER = "precision-search"
METADATA = "precision_search."
"""What the names of a model's metadata begin with."""

PRECISION, WHY = "precision", "why"
"""The metadata of a node. Without a prefix: Netron cuts names after a dozen characters."""

NODE_METADATA_VERSION = 10
"""ONNX IR version from which nodes carry metadata."""


def metadata_of(facts: ModelFacts) -> Mapping[str, str]:
    """The facts as flat texts: `precision_search.verdict.exact_match` is `1.0`; the blocklist is one JSON text.

    What is not known is left out.
    """
    content = {name: value for name, value in _mapping(to_json(facts)).items() if name != "plan"}
    blocklist = json.dumps(facts.plan.to_json(), separators=(",", ":"))
    return {**dict(_flat(METADATA.rstrip("."), content)), f"{METADATA}blocklist": blocklist}


def annotate(model: ir.Model, graph: Graph, plan: Plan, facts: ModelFacts, reasons: Mapping[str, str]) -> None:
    """Puts our provenance in place of the exporter's notes, which tell paths on the machine it ran on.

    Args:
        model: the converted graph.
        graph: the fp32 graph it was made from.
        plan: what stays in fp32.
        facts: what the model says of itself.
        reasons: why each compute node has its precision, by key.
    """
    model.producer_name, model.producer_version = PRODUCER, facts.tool_version
    strip_notes(model)
    model.metadata_props.update(metadata_of(facts))
    if model.ir_version >= NODE_METADATA_VERSION:
        compute = {node.key for node in graph.compute}
        for node in model.graph:
            if node.name in compute:
                node.metadata_props[PRECISION] = "float32" if node.name in plan.fp32 else plan.dtype
                if node.name in reasons:
                    node.metadata_props[WHY] = reasons[node.name]


def _flat(name: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value
