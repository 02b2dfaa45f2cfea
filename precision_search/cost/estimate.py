"""The cost model: how long one generated batch takes on a device that is not here.

In: the three graphs in fp32, a workload and a device profile. Out: seconds by node and by cast, as plain numbers for
whoever places casts, and the latency of any mixed version of the same graphs. `docs/reference/cost-model.md` has the
formula, its constants with their sources, and what it ignores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precision_search.cost.energy import PlacementCosts
from precision_search.cost.launches import Work, node_work
from precision_search.cost.shapes import Point, Shapes, infer_shapes
from precision_search.device.profile import DeviceProfile
from precision_search.errors import ConfigError, InternalError
from precision_search.model.graph import FLOATS, Graph, GraphName, is_weight
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.rewrites.sizes_on_device import VIEWS, place
from precision_search.precision.low import DTYPE_NAMES, IR_DTYPES, LowDtype
from precision_search.precision.wiring import wiring_of

Floats = NDArray[np.float64]
DTypes = tuple[ir.DataType | None, ...]

STORING = 1e-15
"""Seconds that a byte of an initializer counts for if it is stored in both dtypes. Nobody waits for it: at hundreds of
times less than reading the byte once, even on the fastest device, it settles ties and little else."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The workload that latency refers to.

    Attributes:
        batch: sentences in a batch.
        source_length: tokens of each source.
        target_length: tokens of each target.
    """

    batch: int
    source_length: int
    target_length: int

    def __post_init__(self) -> None:
        for name in ("batch", "source_length", "target_length"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"`workload.{name}` cannot be {getattr(self, name)}", why="it must be at least 1", fix="raise it"
                )


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds to generate one batch, encoder and all steps, with an interval.

    Attributes:
        p50_ms: the median measured, or the estimate.
        low_ms: lower end: of the confidence interval, or of the estimate as its assumptions vary.
        high_ms: upper end.
        source: where the number comes from; the two are never mixed.
        profile: the device profile of an estimate, else None.
    """

    p50_ms: float
    low_ms: float
    high_ms: float
    source: Literal["measured", "estimated"]
    profile: str | None


@dataclass(frozen=True, slots=True)
class _Seconds:
    """Time over all runs of a graph, apart by which assumption it depends on."""

    launching: float = 0.0
    working: float = 0.0

    def __add__(self, other: "_Seconds") -> "_Seconds":
        return _Seconds(self.launching + other.launching, self.working + other.working)

    @property
    def total(self) -> float:
        return self.launching + self.working


@dataclass(frozen=True, slots=True, eq=False)
class _NodeCost:
    """One node of an original graph, its work given for every run of the graph.

    Attributes:
        op_type: as in the original, to recognise the node in a converted graph.
        launches: in each run.
        moved: elements by run and by value (inputs, then outputs).
        flops: by run.
        dtypes: in the original, by value.
        outputs: names of the original's outputs.
        seconds: by the dtypes of the values; filled as they come up.
    """

    op_type: str
    launches: int
    moved: Floats
    flops: Floats
    dtypes: DTypes
    outputs: tuple[str, ...]
    seconds: dict[DTypes, _Seconds] = field(default_factory=dict)


class CostModel:
    """Estimates latencies of mixed versions of `graphs` (fp32, every node with a name of its own).

    Shapes are worked out once, here; an estimate is then a sum of table look-ups.

    Raises:
        InputError: a graph has a fixed size that the workload does not have.
        InternalError: two nodes of a graph share a name.
    """

    def __init__(self, graphs: Mapping[GraphName, ir.Model], workload: Workload, profile: DeviceProfile) -> None:
        self._profile = profile
        self._graphs = {name: _GraphCost(name, model, workload, profile) for name, model in graphs.items()}

    @property
    def assumed_shapes(self) -> Mapping[GraphName, tuple[str, ...]]:
        """Names of the values whose shape was guessed, by graph; empty in a graph that could be read."""
        return {name: graph.assumed_shapes for name, graph in self._graphs.items()}

    @property
    def unmodelled(self) -> Mapping[GraphName, tuple[str, ...]]:
        """Names of the nodes of unknown op type, taken to be one pass over their tensors, by graph."""
        return {name: graph.unmodelled for name, graph in self._graphs.items()}

    def estimate(self, models: Mapping[GraphName, ir.Model]) -> Latency:
        """Latency of a converted version of the graphs: nodes keep their names; Cast nodes and views may be new.

        Raises:
            ConfigError: a graph holds bfloat16 and the device has none.
            InternalError: other graphs than this model was made from.
        """
        seconds = self._seconds(models)
        spread, loss = self._profile.assumptions.launch_spread, self._profile.assumptions.efficiency_spread
        return Latency(
            p50_ms=seconds.total * 1e3,
            low_ms=(seconds.launching * (1 - spread) + seconds.working / (1 + loss)) * 1e3,
            high_ms=(seconds.launching * (1 + spread) + seconds.working / (1 - loss)) * 1e3,
            source="estimated",
            profile=self._profile.name,
        )

    def launch_share(self, models: Mapping[GraphName, ir.Model]) -> float:
        """The share of what `estimate` says that goes into launches, 0 to 1."""
        seconds = self._seconds(models)
        return seconds.launching / seconds.total

    def launches(self, models: Mapping[GraphName, ir.Model]) -> Mapping[GraphName, int]:
        """Kernels, copies and library calls of one run of each graph of a converted version (see `estimate`)."""
        return {name: self._graphs[name].launches(model) for name, model in models.items()}

    def node_costs(self, graph_name: GraphName, dtype: LowDtype = "float16") -> Mapping[str, tuple[float, float]]:
        """Seconds that each node takes in one generated batch: as in the original, and with all its floats low.

        Raises:
            ConfigError: `dtype` is bfloat16 and the device has none.
        """
        return self._graphs[graph_name].node_costs(IR_DTYPES[dtype])

    def cast_cost(self, graph_name: GraphName, value_name: str) -> float:
        """Seconds that a cast of the value between fp32 and a low dtype takes in one generated batch.

        Nothing for constants, which are stored converted. Either direction and either low dtype cost the same.
        """
        graph = self._graphs[graph_name]
        return graph.cast(value_name, ir.DataType.FLOAT, IR_DTYPES["float16"]).total

    def _seconds(self, models: Mapping[GraphName, ir.Model]) -> _Seconds:
        if models.keys() != self._graphs.keys():
            raise InternalError(
                "the cost model was given other graphs than it was made from",
                why=f"it has {', '.join(self._graphs)}; it was given {', '.join(models)}",
            )
        return sum((self._graphs[name].seconds(model) for name, model in models.items()), _Seconds())


def placement_costs(model: CostModel, graphs: Mapping[GraphName, Graph], dtype: LowDtype) -> PlacementCosts:
    """The costs of a cost model, for graphs that it was made from.

    Raises:
        ConfigError: `dtype` is bfloat16 and the device has none.
    """
    nodes, casts, duplicates = {}, {}, {}
    for name, graph in graphs.items():
        wiring = wiring_of(graph)
        nodes[name] = model.node_costs(name, dtype)
        read = {value for node in wiring.nodes for value in node.reads} | set(wiring.outputs)
        casts[name] = {value: model.cast_cost(name, value) for value in read}
        duplicates[name] = {
            value_name: value.const_value.nbytes * STORING
            for value_name, value in graph.model.graph.initializers.items()
            if is_weight(value) and value.const_value is not None
        }
    return PlacementCosts(nodes, casts, duplicates)


class _GraphCost:
    """The costs of one graph over all its runs."""

    def __init__(self, name: GraphName, model: ir.Model, workload: Workload, profile: DeviceProfile) -> None:
        self._profile = profile
        samples, weights = _interpolation(name, workload)
        self._n_runs = len(weights)
        shapes = [infer_shapes(model, point) for point in samples]
        placement = place(model)
        self._constants = placement.constants
        self.assumed_shapes = tuple(sorted({name for each in shapes for name in each.assumed}))
        names = list(shapes[0].dims)
        sizes = weights @ np.array([[np.prod(each.dims[name], dtype=np.float64) for name in names] for each in shapes])
        self._sizes: dict[str, Floats] = dict(zip(names, sizes.T, strict=True))
        self._nodes: dict[str, _NodeCost] = {}
        unmodelled = []
        for node in model.graph:
            work = [node_work(node, each, idle=node in placement.idle) for each in shapes]
            self._nodes[str(node.name)] = _node_cost(node, work, weights, shapes[0])
            if not work[0].modelled:
                unmodelled.append(str(node.name))
        self.unmodelled = tuple(unmodelled)
        if len(self._nodes) != len(model.graph):
            raise InternalError(
                f"nodes of the {name} share a name",
                why="costs are looked up by node name",
                fix="name nodes by their keys",
            )

    def seconds(self, model: ir.Model) -> _Seconds:
        """Time of a converted version of the graph."""
        launching = working = 0.0
        for node in model.graph:
            cost = self._original(node)
            if cost is not None:
                found = self._node(cost, tuple(self._dtype(value) for value in (*node.inputs, *node.outputs)))
            elif node.op_type == "Cast":
                found = self._inserted_cast(node)
            elif node.op_type in VIEWS:
                continue
            else:
                raise InternalError(
                    f"the cost model does not know node {node.name} ({node.op_type})",
                    why="only Cast nodes and views may be new in a converted graph",
                    fix="make the cost model from the graphs that were converted",
                )
            launching += found.launching
            working += found.working
        return _Seconds(launching, working)

    def launches(self, model: ir.Model) -> int:
        """Launches in one run of a converted version of the graph."""
        found = 0
        for node in model.graph:
            cost = self._original(node)
            if cost is not None:
                found += cost.launches
            elif node.op_type == "Cast" and self._inserted_cast(node) != _Seconds():
                found += 1
        return found

    def node_costs(self, low: ir.DataType) -> Mapping[str, tuple[float, float]]:
        costs = {}
        for name, cost in self._nodes.items():
            lowered = tuple(low if dtype in FLOATS else dtype for dtype in cost.dtypes)
            costs[name] = self._node(cost, cost.dtypes).total, self._node(cost, lowered).total
        return costs

    def cast(self, value_name: str, source: ir.DataType, target: ir.DataType) -> _Seconds:
        if value_name in self._constants:
            return _Seconds()
        moved = float(self._sizes[value_name].sum()) * (source.itemsize + target.itemsize)
        launching = self._n_runs * self._profile.launch_seconds
        return _Seconds(launching, moved / self._profile.bytes_per_second)

    def _node(self, cost: _NodeCost, dtypes: DTypes) -> _Seconds:
        found = cost.seconds.get(dtypes)
        if found is None:
            found = cost.seconds[dtypes] = self._roofline(cost, dtypes)
        return found

    def _roofline(self, cost: _NodeCost, dtypes: DTypes) -> _Seconds:
        """Launches, plus in each run the larger of FLOPs over their rate and bytes over bandwidth."""
        operand = next((dtype for dtype in dtypes if dtype in FLOATS), ir.DataType.FLOAT)
        rate = self._profile.flops_per_second(DTYPE_NAMES.get(operand, "float32"))
        # An absent input moves nothing whatever its size; a value of unknown dtype counts as fp32.
        item_sizes = np.array([4 if dtype is None else dtype.itemsize for dtype in dtypes], np.float64)
        working = np.maximum(cost.flops / rate, cost.moved @ item_sizes / self._profile.bytes_per_second)
        return _Seconds(cost.launches * self._n_runs * self._profile.launch_seconds, float(working.sum()))

    def _original(self, node: ir.Node) -> _NodeCost | None:
        cost = self._nodes.get(str(node.name))
        same = cost is not None and cost.op_type == node.op_type
        return cost if same and cost is not None and len(cost.dtypes) == len(node.inputs) + len(node.outputs) else None

    def _inserted_cast(self, node: ir.Node) -> _Seconds:
        source, target = node.inputs[0], node.outputs[0]
        assert source is not None  # a converter casts something
        source_dtype, target_dtype = self._dtype(source), self._dtype(target)
        if source_dtype is None or target_dtype is None or source.is_initializer():
            return _Seconds()
        return self.cast(self._original_name(source), source_dtype, target_dtype)

    def _original_name(self, value: ir.Value) -> str:
        """The value of the original graph that `value` is a copy of, in whatever dtype."""
        producer = value.producer()
        if producer is None:
            return str(value.name)
        cost = self._original(producer)
        if cost is not None:
            return cost.outputs[value.index() or 0]
        source = producer.inputs[0]
        return str(value.name) if source is None else self._original_name(source)

    def _dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The dtype of a value; where the graph does not say, what its producer makes of its inputs' dtypes."""
        if value is None or value.dtype is not None:
            return None if value is None else value.dtype
        if value.const_value is not None:
            return value.const_value.dtype
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast":
            return ir.DataType(producer.attributes.get_int("to"))
        cost = None if producer is None else self._original(producer)
        if producer is None or cost is None:
            return None
        original = cost.dtypes[len(producer.inputs) + (value.index() or 0)]
        inputs = [self._dtype(each) for each in producer.inputs] if original in FLOATS else []
        return next((dtype for dtype in inputs if dtype in FLOATS), original)


def _node_cost(node: ir.Node, work: Sequence[Work], weights: Floats, shapes: Shapes) -> _NodeCost:
    return _NodeCost(
        op_type=node.op_type,
        launches=work[0].launches,
        moved=weights @ np.array([each.moved for each in work], np.float64),
        flops=weights @ np.array([each.flops for each in work], np.float64),
        dtypes=tuple(
            None if value is None else shapes.dtypes.get(str(value.name)) for value in (*node.inputs, *node.outputs)
        ),
        outputs=tuple(str(value.name) for value in node.outputs),
    )


def _interpolation(name: GraphName, workload: Workload) -> tuple[Sequence[Point], Floats]:
    """Where to sample the shapes of a graph, and the weights (runs by samples) that give a size at each of its runs.

    While one batch is generated the encoder and the decoder run once, the decoder with past once for every further
    token. Sizes are polynomials in the length of the past, of degree one (the cache) or two (a position bias computed
    for all pairs), so that Lagrange interpolation through three points is exact.
    """
    pasts = SEQ2SEQ.graph(name).pasts(workload.target_length)
    sampled = sorted({pasts[0], pasts[len(pasts) // 2], pasts[-1]}) if pasts else [1]
    weights = np.ones((len(pasts), len(sampled)))
    for column, sample in enumerate(sampled):
        for other in sampled:
            if other != sample:
                weights[:, column] *= (np.array(pasts, np.float64) - other) / (sample - other)
    return [Point(workload.batch, workload.source_length, target=1, past=past) for past in sampled], weights
