"""Which node of the decoder with past is the same computation as a node of the decoder, whatever they are called.

In: both graphs with their nodes described. Out: the later graph with the keys of the first one's nodes. As a rule it
has them already; where names are missing or mean nothing, partners are found by structure and weights.

What flows into a node differs between the graphs (a cache instead of keys that are computed anew), what becomes of its
result does not. So a node is told by its operator, its attributes and weights, and by which nodes read its result, down
to the outputs. Nodes that only move values differ between the graphs and are looked through.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.model.graph import (
    MOVEMENT_OPS,
    SHAPE_OPS,
    Graph,
    describe,
    float_inputs,
    is_weight,
)
from precision_search.model.layout import SEQ2SEQ

MOST_READERS = 1_000_000
"""Pairs of a value and a node that reads it, movement looked through, at which the search for partners gives up."""

_TOLD_BY = frozenset(
    {
        *(ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING),
        *(ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS),
    }
)

_Readers = frozenset[tuple[bytes, int]]
"""Who reads a value: the digest of a compute node and the position of the input; or that of an output's name."""


def aligned(decoder: Graph, with_past: Graph) -> Graph:
    """The decoder with past, whose compute nodes have the keys of the same computations in the decoder.

    It is `with_past` itself where equal keys mean equal computations already. Keys that come from counting alone may
    match by chance, so the nodes of one key must read the same weights, too.

    Raises:
        InputError: a node computes what no node of the decoder does.
    """
    strange = _strangers(decoder, with_past)
    if strange:
        found = _renamed(decoder, with_past)
        if found is not None and not _strangers(decoder, found):
            return found
        raise InputError(
            f"{len(strange)} compute nodes of {SEQ2SEQ.decoder_with_past.name} have no partner in "
            f"{SEQ2SEQ.decoder.name}, the first is {strange[0]}",
            why="the two graphs were exported differently, so one decision cannot be made for both",
            fix="export both graphs with the same exporter and options, or start from the checkpoint",
        )
    return with_past


def _strangers(decoder: Graph, with_past: Graph) -> list[str]:
    """Keys of compute nodes in `with_past` that mean nothing in `decoder`; where there are none, something else."""
    known = {str(node.name): node for node in decoder.model.graph}
    shared = {node.key for node in decoder.compute}
    strange = [node.key for node in with_past.compute if node.key not in shared]
    if not strange:
        others = (node for node in with_past.model.graph if node.name in shared)
        strange = [str(node.name) for node in others if not _read_equal_weights(node, known[str(node.name)])]
    return strange


def _read_equal_weights(left: ir.Node, right: ir.Node) -> bool:
    ours, theirs = (
        [value.const_value.numpy() for _, value in float_inputs(node) if is_weight(value) and value.const_value]
        for node in (left, right)
    )
    if left.op_type != right.op_type or len(ours) != len(theirs):
        return False
    return all(np.array_equal(one, other, equal_nan=True) for one, other in zip(ours, theirs, strict=True))


def _renamed(decoder: Graph, with_past: Graph) -> Graph | None:
    """A copy of `with_past` whose nodes have their partners' keys; None where a node has no partner."""
    partners: dict[bytes, list[str]] = defaultdict(list)
    outputs = {str(value.name) for value in decoder.model.graph.outputs}
    outputs &= {str(value.name) for value in with_past.model.graph.outputs}
    for key, digest in _digests(decoder, outputs):
        partners[digest].append(key)
    for keys in partners.values():
        keys.reverse()  # the first in the order of the graph is taken first
    names: dict[str, str] = {}
    for key, digest in _digests(with_past, outputs):
        if not partners[digest]:
            return None
        names[key] = partners[digest].pop()
    model = with_past.model.clone()
    for node in model.graph:
        node.name = names.get(str(node.name), node.name)
    return describe(with_past.name, model) if len({node.name for node in model.graph}) == len(model.graph) else None


def _digests(graph: Graph, outputs: set[str]) -> Iterator[tuple[str, bytes]]:
    """The compute nodes' keys in the order of the graph, each with what tells it."""
    found = _Digester(graph, outputs).digests
    return ((node.key, found[node.key]) for node in graph.compute if node.key in found)


class _Digester:
    """Goes through a graph from its outputs to its inputs."""

    def __init__(self, graph: Graph, outputs: set[str]) -> None:
        self.digests: dict[str, bytes] = {}
        self._contents: dict[int, bytes] = {}
        self._weights: dict[ir.Value, ir.TensorProtocol | None] = {}
        self._readers: dict[ir.Value, _Readers] = {}
        compute = {node.key for node in graph.compute}
        self._count = 0
        for node in reversed(list(graph.model.graph)):
            for value in node.outputs:
                self._readers[value] = self._readers_of(value, outputs)
            if node.name in compute:
                self.digests[str(node.name)] = self._digest(node)
            if self._count > MOST_READERS:
                self.digests.clear()
                return

    def _readers_of(self, value: ir.Value, outputs: set[str]) -> _Readers:
        found: set[tuple[bytes, int]] = set()
        if value.is_graph_output() and value.name in outputs:
            found.add((str(value.name).encode(), 0))
        for use in value.uses():
            self._count += 1
            digest = self.digests.get(str(use.node.name))
            if digest is not None:
                found.add((digest, use.idx))
            elif use.node.op_type not in SHAPE_OPS:
                for made in use.node.outputs:
                    found |= self._readers[made]
                    self._count += len(self._readers[made])
        return frozenset(found)

    def _digest(self, node: ir.Node) -> bytes:
        told = hashlib.sha256(repr((node.domain, node.op_type)).encode())
        for name in sorted(node.attributes):
            attr = node.attributes[name]
            told.update(repr((name, attr.value if attr.type in _TOLD_BY else None)).encode())
        for index, value in float_inputs(node):
            if weight := self._weight_of(value):
                told.update(repr(index).encode() + self._content(weight))
        for value in node.outputs:
            told.update(b"/")
            for digest, index in sorted(self._readers[value]):
                told.update(digest + repr(index).encode())
        return told.digest()

    def _content(self, weight: ir.TensorProtocol) -> bytes:
        if id(weight) not in self._contents:
            array = np.ascontiguousarray(weight.numpy())
            told = hashlib.sha256(repr((array.dtype.str, array.shape)).encode())
            told.update(array.data if array.size else b"")
            self._contents[id(weight)] = told.digest()
        return self._contents[id(weight)]

    def _weight_of(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The constant that a value is, or that it is moved from."""
        way = [value]  # each value is looked at once, however long the ways of its readers are
        while value not in self._weights:
            node = value.producer()
            source = node.inputs[0] if node is not None and node.op_type in MOVEMENT_OPS and node.inputs else None
            if source is None:
                self._weights[value] = value.const_value
                break
            value = source
            way.append(value)
        found = self._weights[value]
        self._weights.update(dict.fromkeys(way, found))
        return found
