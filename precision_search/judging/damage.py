"""Where damage starts: the first node, in topological order, whose result is far from the fp32 one.

Rounding noise grows slowly along a graph; damage jumps. One sample is enough, run alone and without padding, unless
it was in a padded batch that the damage was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.judging.ranges import mask_threshold
from precision_search.model.graph import Graph, GraphName, NodeKind, is_float
from precision_search.model.layout import SEQ2SEQ
from precision_search.precision.dtypes import assign
from precision_search.precision.emulate import emulate
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache
from precision_search.runtime.backends import create_session
from precision_search.runtime.head import HIDDEN
from precision_search.runtime.session import SessionSettings, run_session
from precision_search.runtime.teacher_forcing import ForcedBatch, feed_of

FloatArray = npt.NDArray[np.float32]

THRESHOLD = 0.25
"""Relative error (largest difference over largest fp32 magnitude) from which a result is damaged. fp16 rounds to 2^-11
and hundreds of roundings in a row stay below a few percent; an overflow or a zeroed norm is an error of 1 or more.
"""

FORCED_GRAPHS: tuple[GraphName, GraphName] = (SEQ2SEQ.encoder.name, SEQ2SEQ.decoder.name)


@dataclass(frozen=True, slots=True)
class DamagedNode:
    """The first damaged node; `relative_error` is infinite where the node's result is not finite."""

    key: str
    relative_error: float


@dataclass(frozen=True, slots=True)
class _Trace:
    """What a graph gave for one batch: the result of every compute node by key, in order; the encoder's output, if so.

    Nodes that an emulation fused away are missing; their neighbours show the damage.
    """

    nodes: Mapping[str, FloatArray]
    hidden: FloatArray | None


class DamageFinder:
    """Compares plans with fp32 node by node.

    Of the fp32 model only the values of the sample looked at last are kept: most rejected plans fail on the same one,
    and sessions that give every activation away are too large to keep.
    """

    def __init__(self, graphs: Mapping[GraphName, Graph], weights: WeightCache, settings: SessionSettings) -> None:
        self._graphs = graphs
        self._weights = weights
        self._settings = settings
        self._exact: dict[GraphName, _Trace] = {}
        self._exact_of = b""

    def find(self, plan: Plan, batch: ForcedBatch) -> DamagedNode | None:
        """The first damaged node on a batch of one sample, or None where no node stands out."""
        assignments = assign(self._graphs, plan)
        hidden: FloatArray | None = None
        for name in FORCED_GRAPHS:
            graph = self._graphs[name]
            wanted = self._fp32(name, batch)
            model = emulate(graph, plan, assignments[name], self._weights)
            found = _trace(graph, model, batch, hidden, self._settings)
            damaged = _first_damaged(wanted.nodes, found.nodes, mask_threshold(graph, plan.dtype))
            if damaged is not None:
                return damaged
            hidden = found.hidden
        return None

    def _fp32(self, name: GraphName, batch: ForcedBatch) -> _Trace:
        this = batch.source.input_ids.tobytes() + batch.decoder_input_ids.tobytes()
        if this != self._exact_of:
            self._exact, self._exact_of = {}, this
        if name not in self._exact:
            hidden = None if name == FORCED_GRAPHS[0] else self._fp32(FORCED_GRAPHS[0], batch).hidden
            graph = self._graphs[name]
            self._exact[name] = _trace(graph, graph.model.clone(), batch, hidden, self._settings)
        return self._exact[name]


def _trace(
    graph: Graph, model: ir.Model, batch: ForcedBatch, hidden: FloatArray | None, settings: SessionSettings
) -> _Trace:
    """Runs a version of the graph (used up) on a batch; the decoder reads `hidden`."""
    names = {
        str(node.name): str(node.outputs[0].name)
        for node in graph.model.graph
        if graph.nodes[str(node.name)].kind is NodeKind.COMPUTE and is_float(node.outputs[0])
    }
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    names = {key: name for key, name in names.items() if name in values}
    present = {str(value.name) for value in model.graph.outputs}
    outputs = sorted({*names.values(), *({HIDDEN} & present)})
    model.graph.outputs.extend(values[name] for name in outputs if name not in present)
    feed = feed_of(SEQ2SEQ.graph(graph.name), batch, hidden)
    session = create_session(model, settings, consume=True)
    arrays = dict(zip(outputs, run_session(session, outputs, feed), strict=True))
    return _Trace({key: arrays[name] for key, name in names.items()}, arrays.get(HIDDEN))


def _first_damaged(
    wanted: Mapping[str, FloatArray], found: Mapping[str, FloatArray], masked_from: float
) -> DamagedNode | None:
    for key, want in wanted.items():
        have = found.get(key)
        if have is None:
            continue
        counts = np.abs(want) < masked_from
        if not np.isfinite(have[counts]).all():
            return DamagedNode(key, float("inf"))
        size = float(np.max(np.abs(want[counts]), initial=0.0))
        difference = float(np.max(np.abs(want[counts] - have[counts]), initial=0.0))
        if size > 0 and difference / size >= THRESHOLD:
            return DamagedNode(key, difference / size)
    return None
