"""The converter: a plan in, three mixed-precision graphs out, and proof that they are what the plan says.

Works on graphs whose weights stay where they are; only those that a low node reads are rounded, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from precision_search.errors import InputError, InternalError
from precision_search.model.graph import (
    FLOATS,
    SHAPE_OPS,
    Graph,
    GraphName,
    NodeKind,
    drop_unused_initializers,
    float_inputs,
    is_float,
    is_weight,
    retype,
)
from precision_search.model.layout import SEQ2SEQ
from precision_search.precision.dtypes import Assignment, assign
from precision_search.precision.low import IR_DTYPES, LowDtype, is_exact_or_mask, low_max
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache
from precision_search.precision.wiring import sources


@dataclass(frozen=True, slots=True)
class Converted:
    """The three graphs under a plan.

    Attributes:
        models: the mixed graphs; node names of the originals are kept, casts are new nodes.
        casts: Cast nodes added, over the three graphs.
        size_bytes: bytes of all weights as stored, over the three graphs.
    """

    models: Mapping[GraphName, ir.Model]
    casts: int
    size_bytes: int


def convert(graphs: Mapping[GraphName, Graph], plan: Plan, weights: WeightCache | None = None) -> Converted:
    """Converts the three graphs and checks the result (see `check_types`, `check_boundaries`).

    Raises:
        InputError: the plan makes a node low whose weight does not fit into the dtype.
        InternalError: a postcondition does not hold.
    """
    weights = weights or WeightCache()
    assignments = assign(graphs, plan)
    models = {
        name: _GraphConverter(graph, assignments[name], plan.dtype, weights).run() for name, graph in graphs.items()
    }
    for name, model in models.items():
        check_types(model, name)
        check_round_trips(model, name)
    check_boundaries(models)
    casts = sum(len(model.graph) - len(graphs[name].model.graph) for name, model in models.items())
    size = sum(
        value.const_value.nbytes
        for model in models.values()
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    return Converted(models, casts, size)


def overflowing_weights(graphs: Mapping[GraphName, Graph], dtype: LowDtype) -> Mapping[str, float]:
    """Keys of compute nodes that read a weight outside the low dtype's range, with its largest magnitude.

    A constant of one element saturates instead (that is what a mask is), and so does a table that is moved about and
    holds nothing but exact numbers and such. A weight that saturated would be another weight, so its nodes belong to
    every plan.
    """
    weights, found = WeightCache(), dict[str, float]()
    for graph in graphs.values():
        for node in graph.model.graph:
            if graph.nodes[str(node.name)].kind is not NodeKind.COMPUTE:
                continue
            for _, value in float_inputs(node):
                for source in sources(value, graph):
                    if not _fits(source, dtype, weights, is_moved=source is not value) and source.const_value:
                        largest = weights.largest(source.const_value)
                        found[str(node.name)] = max(found.get(str(node.name), 0.0), largest)
    return found


def _fits(value: ir.Value, dtype: LowDtype, weights: WeightCache, *, is_moved: bool) -> bool:
    """Whether a value is no weight, or one that the low dtype can hold."""
    if not is_weight(value) or value.const_value is None or weights.largest(value.const_value) <= low_max(dtype):
        return True
    return is_moved and is_exact_or_mask(value.const_value.numpy(), dtype)


class _GraphConverter:
    """Converts one graph: retype what is low, give low nodes low weights, cast where dtypes meet."""

    def __init__(self, graph: Graph, assignment: Assignment, dtype: LowDtype, weights: WeightCache) -> None:
        self.graph = graph
        self.assignment = assignment
        self.dtype = dtype
        self.low = IR_DTYPES[dtype]
        self.weights = weights
        self.model = graph.model.clone()
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> ir.Model:
        values = [*self.model.graph.inputs, *(v for node in self.model.graph for v in node.outputs)]
        for value in values:
            if is_float(value) and str(value.name) in self.assignment.low_values:
                retype(value, self.low)
        for node in list(self.model.graph):
            if node.op_type in SHAPE_OPS:
                continue
            facts = self.graph.nodes[str(node.name)]
            wanted = self.low if facts.key in self.assignment.low_nodes else ir.DataType.FLOAT
            for index, value in list(float_inputs(node)):
                node.replace_input_with(index, self._as(value, wanted, node))
        for index, value in enumerate(list(self.model.graph.outputs)):
            if is_float(value):
                self._deliver(index, value)
        drop_unused_initializers(self.model)
        return self.model

    def _as(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        if value.dtype == wanted:
            return value
        if value.is_initializer():
            return self._low_initializer(value, reader)
        if (value, wanted) not in self.casts:
            self.casts[value, wanted] = self._cast(value, wanted)
        return self.casts[value, wanted]

    def _low_initializer(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        name = f"{value.name}/{self.dtype}"
        found = self.model.graph.initializers.get(name)
        if found is not None:
            return found
        assert value.const_value is not None
        is_moved = self.graph.nodes[str(reader.name)].kind is NodeKind.MOVEMENT
        if not _fits(value, self.dtype, self.weights, is_moved=is_moved):
            raise InputError(
                f"the plan makes {reader.name} low, whose weight {value.name} does not fit into {self.dtype}",
                why=f"its largest magnitude is beyond {low_max(self.dtype):.6g}",
                fix="keep that node in fp32",
            )
        low = ir.Value(name=name, const_value=self.weights.low(value.const_value, self.dtype))
        retype(low, self.low)
        low.shape = value.shape
        self.model.graph.register_initializer(low)
        return low

    def _cast(self, value: ir.Value, wanted: ir.DataType, output: ir.Value | None = None) -> ir.Value:
        producer = value.producer()
        stem = producer.name if producer is not None else value.name
        suffix = "" if producer is None or len(producer.outputs) == 1 else f".{value.index()}"
        node = ir.node(
            "Cast",
            [value],
            {"to": int(wanted)},
            name=f"{stem}/aux/Cast.{wanted.name.lower()}{suffix}",
            outputs=[output or ir.Value(name=f"{value.name}/{wanted.name.lower()}", shape=value.shape)],
        )
        result = node.outputs[0]
        retype(result, wanted)
        if producer is not None:
            self.model.graph.insert_after(producer, node)
        else:
            self.model.graph.insert_before(self.model.graph[0], node)
        return result

    def _deliver(self, index: int, value: ir.Value) -> None:
        """Casts a graph output that must leave in another dtype than it was made in; the outside name stays."""
        name = str(value.name)
        wanted = self.low if name in self.assignment.low_outputs else ir.DataType.FLOAT
        if value.dtype == wanted:
            return
        made = self.casts.get((value, wanted))
        value.name = f"{name}/{value.dtype.name.lower() if value.dtype else ''}"
        if made is None:
            made = self._cast(value, wanted)
        made.name = name
        self.model.graph.outputs[index] = made


def check_types(model: ir.Model, name: GraphName) -> None:
    """Postcondition: every float edge of compute and movement nodes has one dtype a node, casts say what they make.

    Raises:
        InternalError: the first node for which that does not hold.
    """
    for node in model.graph:
        outputs = {value.dtype for value in node.outputs if value.dtype in FLOATS}
        if node.op_type == "Cast":
            to = node.attributes.get_int("to")
            if to != node.outputs[0].dtype:
                raise InternalError(f"{name}: {node.name} casts to {to}, its output is {node.outputs[0].dtype}")
            continue
        inputs = {value.dtype for _, value in float_inputs(node)}
        if len(inputs) > 1 or (inputs and outputs and inputs != outputs):
            raise InternalError(f"{name}: {node.name} reads {inputs} and writes {outputs}")


def check_round_trips(model: ir.Model, name: GraphName) -> None:
    """Postcondition: no value goes from fp32 through a cast to low straight back to fp32, and none is cast twice.

    Raises:
        InternalError: the first cast for which that does not hold.
    """
    seen: set[tuple[str | None, int | None]] = set()
    for node in model.graph:
        if node.op_type != "Cast" or not is_float(node.inputs[0]) or not is_float(node.outputs[0]):
            continue
        source = node.inputs[0]
        assert source is not None
        before = source.producer()
        if before is not None and before.op_type == "Cast" and is_float(before.inputs[0]):
            raise InternalError(f"{name}: {node.name} casts what {before.name} has just cast")
        edge = (source.name, node.attributes.get_int("to"))
        if edge in seen:
            raise InternalError(f"{name}: {source.name} is cast twice")
        seen.add(edge)


def check_boundaries(models: Mapping[GraphName, ir.Model]) -> None:
    """Postcondition: a tensor that leaves one graph and enters another has the same dtype in all of them.

    Raises:
        InternalError: the first tensor for which that does not hold.
    """
    dtypes: dict[str, tuple[GraphName, ir.DataType | None]] = {}
    for name, model in models.items():
        for value in (*model.graph.inputs, *model.graph.outputs):
            crossing = SEQ2SEQ.crossing(str(value.name))
            if crossing is None or not is_float(value):
                continue
            first = dtypes.setdefault(crossing, (name, value.dtype))
            if first[1] != value.dtype:
                raise InternalError(f"{crossing} is {first[1]} in {first[0]} and {value.dtype} in {name}")
