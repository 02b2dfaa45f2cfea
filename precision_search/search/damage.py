"""Where damage starts: the first node, in topological order, whose result is far from the fp32 one.

Rounding noise grows slowly along a graph; damage jumps. One sample is enough, run alone and so without padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.model.graph import Graph, GraphName, NodeKind, is_float
from precision_search.precision.dtypes import assign
from precision_search.precision.emulate import emulate
from precision_search.precision.plan import Plan
from precision_search.precision.ranges import mask_threshold
from precision_search.precision.weights import WeightCache
from precision_search.runtime.forced import ForcedBatch
from precision_search.runtime.session import SessionSettings, create_session

THRESHOLD = 0.25
"""Relative error (largest difference over largest fp32 magnitude) from which a result is damaged. fp16 rounds to 2^-11
and hundreds of roundings in a row stay below a few percent; an overflow or a zeroed norm is an error of 1 or more.
"""

FORCED_GRAPHS: tuple[GraphName, GraphName] = ("encoder", "decoder")


@dataclass(frozen=True, slots=True)
class DamagedNode:
    """The first damaged node; `relative_error` is infinite where the node's result is not finite."""

    key: str
    relative_error: float


class DamageFinder:
    """Compares plans with fp32 node by node."""

    def __init__(self, graphs: Mapping[GraphName, Graph], weights: WeightCache, settings: SessionSettings) -> None:
        self._graphs = graphs
        self._weights = weights
        self._settings = settings
        self._reference: dict[GraphName, _Traced] = {}

    def find(self, plan: Plan, batch: ForcedBatch) -> DamagedNode | None:
        """The first damaged node on a batch of one sample, or None where no node stands out.

        The traces live only as long as this call: a search that rejects one plan in a hundred should not hold every
        activation's session for the rest.
        """
        assignments = assign(self._graphs, plan)
        hidden: dict[bool, npt.NDArray[np.float32]] = {}
        for name in FORCED_GRAPHS:
            graph = self._graphs[name]
            exact = self._reference.setdefault(name, _Traced(graph, graph.model, self._settings))
            changed = _Traced(graph, emulate(graph, plan, assignments[name], self._weights), self._settings)
            wanted, found = exact.run(batch, hidden.get(False)), changed.run(batch, hidden.get(True))
            damaged = _first_damaged(exact.keys, wanted, found, mask_threshold(graph, plan.dtype))
            if damaged is not None:
                return damaged
            hidden = {False: wanted[-1], True: found[-1]}
        return None


class _Traced:
    """A graph that returns the result of every compute node, and its first output last."""

    def __init__(self, graph: Graph, model: ir.Model, settings: SessionSettings) -> None:
        model = model.clone()
        names = {
            str(node.name): str(node.outputs[0].name)
            for node in graph.model.graph
            if graph.nodes[str(node.name)].kind is NodeKind.COMPUTE and is_float(node.outputs[0])
        }
        values = {str(value.name): value for node in model.graph for value in node.outputs}
        main = str(model.graph.outputs[0].name)
        # What the emulation fused away has no value any more; its neighbours show the damage.
        self.keys = [key for key, name in names.items() if name in values]
        self._outputs = [*(names[key] for key in self.keys), main]
        present = {str(value.name) for value in model.graph.outputs}
        model.graph.outputs.extend(values[name] for name in dict.fromkeys(self._outputs) if name not in present)
        self._session = create_session(model, settings, consume=True)

    def run(self, batch: ForcedBatch, hidden: npt.NDArray[np.float32] | None) -> Sequence[npt.NDArray[np.float32]]:
        feed: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": batch.source.input_ids,
            "attention_mask": batch.source.attention_mask,
        }
        if hidden is not None:
            feed = {
                "input_ids": batch.decoder_input_ids,
                "encoder_hidden_states": hidden,
                "encoder_attention_mask": batch.source.attention_mask,
            }
        return [np.asarray(array) for array in self._session.run(self._outputs, feed)]


def _first_damaged(
    keys: Sequence[str],
    wanted: Sequence[npt.NDArray[np.float32]],
    found: Sequence[npt.NDArray[np.float32]],
    masked_from: float,
) -> DamagedNode | None:
    for key, want, have in zip(keys, wanted, found, strict=False):
        counts = np.abs(want) < masked_from
        if not np.isfinite(have[counts]).all():
            return DamagedNode(key, float("inf"))
        size = float(np.max(np.abs(want[counts]), initial=0.0))
        difference = float(np.max(np.abs(want[counts] - have[counts]), initial=0.0))
        if size > 0 and difference / size >= THRESHOLD:
            return DamagedNode(key, difference / size)
    return None
