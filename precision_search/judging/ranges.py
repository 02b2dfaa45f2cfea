"""Ranges before search: how large the values around and inside every compute node get, in one fp32 pass.

The statistics are reduced inside the graphs, so that no activation leaves them. Masks (a constant of one element beyond
the low dtype's range, and whatever is added to it) saturate by design and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from precision_search.model.graph import Graph, NodeKind, float_inputs, is_float, is_weight
from precision_search.model.layout import SEQ2SEQ
from precision_search.precision.kernels import Internals, kernel_for
from precision_search.precision.low import LowDtype, low_max, smallest_normal
from precision_search.precision.lowering import sum_node
from precision_search.runtime.backends import create_session
from precision_search.runtime.progress import Progress, no_progress
from precision_search.runtime.session import SessionSettings, run_session
from precision_search.runtime.teacher_forcing import ForcedBatch, feed_of

LARGEST = "range/largest/"
INSIDE = "range/inside/"
TINY = "range/tiny/"
NEGATIVE = "/negative"


@dataclass(frozen=True, slots=True)
class NodeRange:
    """What one compute node met on the calibration set, in fp32.

    Attributes:
        key: node key.
        op_type: ONNX op type.
        largest_input: largest magnitude among its float inputs that are not constants.
        largest_output: largest magnitude of its result.
        largest_inside: largest magnitude its low kernel would store on the way (the sum of a mean); 0 if nothing.
        underflow: share of its result's values that are not 0 but below the low dtype's smallest normal number, on
            the first batch, or on both of two (a share needs no more, and counting costs more than the pass itself).
    """

    key: str
    op_type: str
    largest_input: float
    largest_output: float
    largest_inside: float
    underflow: float

    @property
    def largest(self) -> float:
        """The largest magnitude that must fit into the low dtype for the node to be low."""
        # np.max keeps a NaN, max() may lose it.
        return float(np.max([self.largest_input, self.largest_output, self.largest_inside]))


def measure_ranges(
    encoder: Graph,
    decoder: Graph,
    batches: Sequence[ForcedBatch],
    dtype: LowDtype,
    settings: SessionSettings,
    *,
    progress: Progress = no_progress,
) -> Mapping[str, NodeRange]:
    """One teacher-forced fp32 pass over the batches.

    Args:
        encoder: the encoder graph.
        decoder: the decoder graph without past; it holds every key of the decoder family.
        batches: the calibration set with its reference tokens.
        dtype: whose range and kernels count.
        settings: session settings.
        progress: receives how many samples are done.

    Returns:
        The range of every compute node of both families, by key.
    """
    first, then = SEQ2SEQ.encoder, SEQ2SEQ.decoder
    probes: dict[str, _Probe] = {}
    found: dict[str, NodeRange] = {}
    done, total = 0, sum(len(batch.source.indices) for batch in batches)
    progress(done, total, "samples")
    for number, batch in enumerate(batches):
        # Counting slows a pass; two sessions that do not count are worth it if more than one batch is left.
        if number == 0 or (number == 1 and len(batches) > 2):
            found = _merge(found, probes)
            probes = {
                graph.name: _Probe(graph, dtype, settings, count_tiny=number == 0) for graph in (encoder, decoder)
            }
        hidden = probes[first.name].run(feed_of(first, batch), first.output)
        probes[then.name].run(feed_of(then, batch, hidden), then.output)
        done += len(batch.source.indices)
        progress(done, total, "samples")
    return _merge(found, probes)


def _merge(found: Mapping[str, NodeRange], probes: Mapping[str, _Probe]) -> dict[str, NodeRange]:
    """The larger of what was found before and what the probes saw; the underflow of whoever counted it first."""
    merged = dict(found)
    for probe in probes.values():
        for new in probe.results():
            old = found.get(new.key, new)
            merged[new.key] = NodeRange(
                new.key,
                new.op_type,
                float(np.maximum(old.largest_input, new.largest_input)),
                float(np.maximum(old.largest_output, new.largest_output)),
                float(np.maximum(old.largest_inside, new.largest_inside)),
                old.underflow,
            )
    return merged


def hard_set(ranges: Mapping[str, NodeRange], dtype: LowDtype, safety: float) -> Mapping[str, float]:
    """Keys of the nodes that do not fit into the low dtype with a safety factor, with their largest magnitude."""
    limit = low_max(dtype) / safety
    # `not <=` rather than `>`: a NaN does not fit either.
    return {key: found.largest for key, found in ranges.items() if not found.largest <= limit}


def mask_threshold(graph: Graph, dtype: LowDtype) -> float:
    """Magnitudes from here on belong to masks: slightly below the smallest mask constant of the graph, or infinite.

    A score added to a mask constant moves it by far less than the one percent that is left here.
    """
    sizes = [
        abs(float(value.const_value.numpy().reshape(-1)[0]))
        for value in graph.model.graph.initializers.values()
        if is_float(value) and not is_weight(value) and value.const_value is not None and value.const_value.size == 1
    ]
    return min((0.99 * size for size in sizes if size > low_max(dtype)), default=np.inf)


class _Probe:
    """A graph that returns statistics of its values beside one real output."""

    def __init__(self, graph: Graph, dtype: LowDtype, settings: SessionSettings, *, count_tiny: bool) -> None:
        self._graph = graph
        self._count_tiny = count_tiny
        self._model = graph.model.clone()
        self._threshold = mask_threshold(graph, dtype)
        self._tiny = smallest_normal(dtype)
        self._largest: dict[str, float] = {}
        self._tiny_shares: dict[str, float] = {}
        kept = {str(value.name) for value in self._model.graph.outputs}
        self._instrument(dtype)
        self._session = create_session(self._model, settings, consume=True)
        self._statistics = [str(v.name) for v in self._model.graph.outputs if str(v.name) not in kept]

    def run(self, feed: Mapping[str, np.ndarray], output: str) -> np.ndarray:
        found = run_session(self._session, [output, *self._statistics], feed)
        for name, value in zip(self._statistics, found[1:], strict=True):
            number = float(value)
            if name.startswith(TINY):
                self._tiny_shares[name] = number
            else:
                key = name.removesuffix(NEGATIVE)
                # np.maximum keeps a NaN, max() may lose it.
                self._largest[key] = float(np.maximum(self._largest.get(key, 0.0), abs(number)))
        return np.asarray(found[0])

    def results(self) -> list[NodeRange]:
        found = []
        for node in self._graph.model.graph:
            facts = self._graph.nodes[str(node.name)]
            if facts.kind is not NodeKind.COMPUTE:
                continue
            inputs = [self._get(LARGEST, value) for _, value in float_inputs(node)]
            outputs = [self._get(LARGEST, value) for value in node.outputs]
            found.append(
                NodeRange(
                    facts.key,
                    facts.op_type,
                    float(np.max(inputs, initial=0.0)),
                    float(np.max(outputs, initial=0.0)),
                    self._largest.get(f"{INSIDE}{facts.key}", 0.0),
                    self._tiny_shares.get(f"{TINY}{node.outputs[0].name}", 0.0),
                )
            )
        return found

    def _get(self, prefix: str, value: ir.Value) -> float:
        return self._largest.get(f"{prefix}{value.name}", 0.0)

    def _instrument(self, dtype: LowDtype) -> None:
        build = _Builder(self._model, self._threshold, self._tiny)
        masked = _reached_by_masks(self._model, self._threshold)
        measured: set[ir.Value] = set()
        for node in list(self._model.graph):
            facts = self._graph.nodes[str(node.name)]
            if facts.kind is not NodeKind.COMPUTE:
                continue
            for value in (*(value for _, value in float_inputs(node)), *node.outputs):
                if value not in measured and is_float(value) and not value.is_initializer():
                    measured.add(value)
                    build.magnitude(value, masked=value in masked)
                    if self._count_tiny and value in node.outputs:
                        build.tiny_share(value)
            kernel = kernel_for(facts.op_type, dtype)
            if kernel is not None and kernel.internals is Internals.SUM_STORED_LOW:
                build.sum_inside(node)


def _reached_by_masks(model: ir.Model, threshold: float) -> set[ir.Value]:
    """The values that a mask constant reaches before a Softmax turns it into zeros."""
    reached: set[ir.Value] = set()
    for value in model.graph.initializers.values():
        array = None if value.const_value is None or value.const_value.size != 1 else value.const_value.numpy()
        if array is not None and is_float(value) and abs(float(array.reshape(-1)[0])) >= threshold:
            reached.add(value)
    for node in model.graph:
        if node.op_type != "Softmax" and any(value in reached for _, value in float_inputs(node)):
            reached.update(node.outputs)
    return reached


class _Builder:
    """Adds the statistics nodes."""

    def __init__(self, model: ir.Model, threshold: float, tiny: float) -> None:
        self._model = model
        self._graph = model.graph
        self._constants = {
            name: self._constant(name, value)
            for name, value in (("threshold", threshold), ("tiny", tiny), ("zero", 0.0))
        }

    def magnitude(self, value: ir.Value, *, masked: bool) -> None:
        name = f"{LARGEST}{value.name}"
        if masked:
            self._output(name, self._op("ReduceMax", self._unmasked(value), keepdims=0))
            return
        # Two reductions that allocate nothing: an Abs in front would cost more than both.
        self._output(name, self._op("ReduceMax", value, keepdims=0))
        self._output(f"{name}{NEGATIVE}", self._op("ReduceMin", value, keepdims=0))

    def tiny_share(self, value: ir.Value) -> None:
        below = self._op("Less", self._op("Abs", value), self._constants["tiny"])
        nonzero = self._op("Cast", value, to=int(ir.DataType.BOOL))
        share = self._op("Cast", self._op("And", below, nonzero), to=int(ir.DataType.FLOAT))
        self._output(f"{TINY}{value.name}", self._op("ReduceMean", share, keepdims=0))

    def sum_inside(self, node: ir.Node) -> None:
        total = sum_node(self._model.graph, node)
        self._graph.append(total)
        self._output(f"{INSIDE}{node.name}", self._op("ReduceMax", self._op("Abs", total.outputs[0]), keepdims=0))

    def _unmasked(self, value: ir.Value) -> ir.Value:
        size = self._op("Abs", value)
        masked = self._op("GreaterOrEqual", size, self._constants["threshold"])
        return self._op("Where", masked, self._constants["zero"], size)

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        self._graph.append(node)
        return node.outputs[0]

    def _output(self, name: str, value: ir.Value) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        self._graph.outputs.append(value)

    def _constant(self, name: str, number: float) -> ir.Value:
        tensor = ir.Tensor(np.array(number, np.float32))
        value = ir.Value(name=f"range/{name}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
        value.const_value = tensor
        self._graph.register_initializer(value)
        return value
