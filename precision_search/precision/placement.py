"""Where casts go: for pinned nodes the plan of least cost, by a minimum cut over the three graphs at once.

**What a plan costs here** is the sum of its nodes, each in its dtype, and of the casts that a conversion adds. That is
a cost of nodes and of pairs of neighbours, so a cut minimises it. Its variables are the compute keys (one for both
decoder graphs), the movement nodes, and the tensors that cross between graphs. A value that several readers want cast
pays once: an auxiliary variable for each direction stands between the value and its readers.

**What a cut cannot say** is half of the rule by which `dtypes.assign` decides movement and crossing tensors: low if all
it is made of is low, or all that reads it. "Everything of these is low, so that is low" holds in a cut for one
variable, not for several, and "that is low, so these or those are" not at all. So the cut knows what follows from one
variable, from both sides together where a pin settles one of them, and from chains; apart from that it may choose.
Everything `assign` can do the cut can do too, so that `Placement.seconds` is a lower bound of every plan's cost under
the same pins, up to the resolution of the capacities, and the plan's own cost, worked out with `assign`, an upper bound
of the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from precision_search.model.graph import Graph, GraphName, NodeKind
from precision_search.precision.dtypes import constants_survive
from precision_search.precision.mincut import FP32, Edge, MinCut
from precision_search.precision.plan import LowDtype, Plan, all_compute_keys, pinned_keys
from precision_search.precision.wiring import WiredNode, Wiring, crossing_name, wiring_of


@dataclass(frozen=True, slots=True)
class PlacementCosts:
    """Seconds over the whole workload, by graph.

    Attributes:
        nodes: by node key, in fp32 and low; a node that is neither compute nor movement costs the former.
        casts: by value name, one cast of it in either direction.
        duplicates: by initializer name, what it costs to store it in both dtypes. Nobody waits for that: these are far
            below every other cost and only choose between plans that are equally fast. They are not in `seconds`.
    """

    nodes: Mapping[GraphName, Mapping[str, tuple[float, float]]]
    casts: Mapping[GraphName, Mapping[str, float]]
    duplicates: Mapping[GraphName, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Placement:
    """A plan and what it costs as far as the cut knows.

    Attributes:
        plan: the plan.
        seconds: its cost, movement as the cut has it; no plan under the same pins costs less.
    """

    plan: Plan
    seconds: float


class Placer:
    """Completes sets of pinned nodes to the plans of least cost.

    Args:
        graphs: the fp32 graphs.
        dtype: the low dtype of all plans.
        variant: the graph variant of all plans.
        costs: of their nodes and casts.
        fixed: keys that stay in fp32 in every plan; index arithmetic (`Node.pinned`) always does.
        forced_low: keys that are low in every plan, unless they are pinned to fp32.
    """

    def __init__(
        self,
        graphs: Mapping[GraphName, Graph],
        dtype: LowDtype,
        variant: str,
        costs: PlacementCosts,
        *,
        fixed: frozenset[str],
        forced_low: frozenset[str],
    ) -> None:
        self._dtype = dtype
        self._variant = variant
        self._fixed = fixed | pinned_keys(graphs)
        self._forced_low = forced_low
        self._keys = {key: index for index, key in enumerate(sorted(all_compute_keys(graphs)))}
        self._energy = _Energy({name: wiring_of(graph) for name, graph in graphs.items()}, self._keys, dtype, costs)

    def place(
        self,
        fp32: frozenset[str] = frozenset(),
        low: frozenset[str] = frozenset(),
        prices: Mapping[str, float] = MappingProxyType({}),
    ) -> Placement:
        """The plan of least cost that keeps `fixed` and `fp32` in fp32 and `forced_low` and `low` low.

        A key on both sides stays in fp32. Among equally cheap plans the one with the fewest low nodes, so that a node
        is low only where that saves time. Keys that the graphs lack are ignored.

        Args:
            fp32: further keys that stay in fp32.
            low: further keys that are low.
            prices: by key, seconds (not negative) that being low must save and more. They choose the plan and are not
                in its cost.
        """
        kept = self._fixed | fp32
        pinned_fp32 = {self._keys[key] for key in kept if key in self._keys}
        pinned_low = {self._keys[key] for key in (self._forced_low | low) - kept if key in self._keys}
        priced = {self._keys[key]: seconds for key, seconds in prices.items() if key in self._keys}
        chosen = self._energy.minimise(pinned_low, pinned_fp32, priced)
        plan = Plan(
            self._dtype, self._variant, frozenset(key for key, index in self._keys.items() if not chosen[index])
        )
        return Placement(plan, self._energy.seconds(chosen))


@dataclass(frozen=True, slots=True)
class _Follower:
    """A variable that nobody decides: low if all of `data` is low, or all `readers` are, or any of `any_of`."""

    variable: int
    data: tuple[int, ...]
    readers: tuple[int, ...]
    any_of: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Value:
    """A value that may have to be cast: who makes it, who reads it, seconds of a cast."""

    maker: int
    readers: tuple[int, ...]
    seconds: float


class _Energy:
    """The cost of a choice for every variable, and the network that minimises it.

    Args:
        wirings: of the graphs.
        keys: variables of the compute keys, numbered from 0.
        dtype: the low dtype.
        costs: of nodes and casts.
    """

    def __init__(
        self, wirings: Mapping[GraphName, Wiring], keys: Mapping[str, int], dtype: LowDtype, costs: PlacementCosts
    ) -> None:
        self._keys = keys
        self._dtype = dtype
        self._count = len(keys)
        self._followers: list[_Follower] = []
        self._values: list[_Value] = []
        self._duplicates: list[_Value] = []
        self._crossings = self._add_crossings(wirings.values())
        nodes: list[tuple[int, float, float]] = []
        for name, wiring in wirings.items():
            nodes += self._add_graph(wiring, costs.nodes[name], costs.casts[name], costs.duplicates[name])
        fp32, low = np.zeros(self._count), np.zeros(self._count)
        self._base = 0.0
        for variable, high_seconds, low_seconds in nodes:
            if variable == FP32:
                self._base += high_seconds
            else:
                fp32[variable] += high_seconds
                low[variable] += low_seconds
        self._base += float(fp32.sum())
        self._saved: NDArray[np.float64] = fp32 - low
        self._makers = np.array([value.maker for value in self._values], np.intp)
        self._cast_seconds = np.array([value.seconds for value in self._values], np.float64)
        self._reading = self._reading_matrix()
        self._n_readers = np.array([len(value.readers) for value in self._values])
        self._implied = self._implications()
        self._cut = self._network()

    def seconds(self, low: NDArray[np.bool_]) -> float:
        """The cost of a choice (a boolean for each variable, auxiliary ones left out)."""
        low = low[: self._count]
        readers_low = self._reading @ low.astype(np.int64)
        maker_low = np.append(low, False)[self._makers]  # FP32 is the last
        cast_down = ~maker_low & (readers_low > 0)
        cast_up = maker_low & (readers_low < self._n_readers)
        return float(self._base - self._saved[low].sum() + self._cast_seconds[cast_down | cast_up].sum())

    def minimise(self, low: set[int], fp32: set[int], prices: Mapping[int, float]) -> NDArray[np.bool_]:
        """The cheapest choice under pins and prices of compute keys."""
        forbidden = []
        sure = {FP32, *fp32}
        for follower in self._followers:
            made_of_fp32 = not follower.data or not sure.isdisjoint(follower.data)
            read_in_fp32 = not follower.readers or not sure.isdisjoint(follower.readers)
            open_any = [each for each in follower.any_of if each not in sure]
            if made_of_fp32 and read_in_fp32 and not open_any:
                sure.add(follower.variable)
            elif not follower.any_of:
                if made_of_fp32:
                    forbidden += [(follower.variable, each) for each in follower.readers]
                if read_in_fp32:
                    forbidden += [(follower.variable, each) for each in follower.data]
            elif made_of_fp32 and read_in_fp32 and len(open_any) == 1:
                forbidden.append((follower.variable, open_any[0]))
        savings = self._saved.copy()
        for variable, seconds in prices.items():
            savings[variable] -= seconds
        return self._cut.solve(savings, low, sure - {FP32}, forbidden)

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _key(self, key: str | None) -> int:
        return FP32 if key is None else self._keys[key]

    def _add_crossings(self, wirings: Iterable[Wiring]) -> Mapping[str, int]:
        makers: dict[str, set[str | None]] = {}
        readers: dict[str, set[str | None]] = {}
        for wiring in wirings:
            for crossing, keys in wiring.makers.items():
                makers.setdefault(crossing, set()).update(keys)
            for crossing, keys in wiring.readers.items():
                readers.setdefault(crossing, set()).update(keys)
        variables = {}
        for crossing, made in sorted(makers.items()):
            variables[crossing] = self._new()
            data, ends = (tuple(sorted(map(self._key, each))) for each in (made, readers.get(crossing, ())))
            self._followers.append(_Follower(variables[crossing], data, ends, ()))
        return variables

    def _add_graph(
        self,
        wiring: Wiring,
        node_costs: Mapping[str, tuple[float, float]],
        cast_costs: Mapping[str, float],
        duplicates: Mapping[str, float],
    ) -> Iterator[tuple[int, float, float]]:
        """Adds the graph's followers and values; yields the variable of each node with its two costs."""
        makers: dict[str, int] = {name: self._crossings.get(crossing_name(name) or "", FP32) for name in wiring.inputs}
        moved: dict[str, WiredNode] = {}
        readers: dict[str, set[int]] = {name: set() for name in wiring.inputs}
        stored: dict[str, set[int]] = {}
        unseen = dict(node_costs)
        for node in wiring.nodes:
            variable = FP32
            if node.kind is NodeKind.COMPUTE:
                variable = self._keys[node.key]
            elif node.kind is NodeKind.MOVEMENT:
                variable = self._follow(node, makers, moved)
                moved.update(dict.fromkeys(node.writes, node))
            for name in node.writes:
                makers[name] = variable
            for name in node.reads:
                readers.setdefault(name, set()).add(variable)
            for name in node.constants:
                stored.setdefault(name, set()).add(variable)
            yield variable, *unseen.pop(node.key)
        for name in wiring.outputs:
            if (crossing := crossing_name(name)) is not None:
                readers.setdefault(name, set()).add(self._crossings[crossing])
        for name, found in readers.items():
            if (ends := found - {makers[name]}) and cast_costs[name] > 0:
                self._values.append(_Value(makers[name], tuple(sorted(ends)), cast_costs[name]))
        for name, found in stored.items():
            if len(found) > 1 and duplicates.get(name, 0.0) > 0:
                self._duplicates.append(_Value(FP32, tuple(sorted(found)), duplicates[name]))
        yield from ((FP32, *pair) for pair in unseen.values())

    def _follow(self, node: WiredNode, makers: Mapping[str, int], moved: Mapping[str, WiredNode]) -> int:
        """The variable of a movement node: that of the one before it where both have the same readers."""
        before = moved.get(node.reads[0]) if len(node.reads) == 1 else None
        if before is not None and (before.sinks, before.crossings) == (node.sinks, node.crossings):
            return makers[node.reads[0]]
        variable = self._new()
        data = tuple(sorted({makers[name] for name in node.reads}))
        readers = {*map(self._key, node.sinks), *(self._crossings[name] for name in node.crossings)}
        ends = tuple(sorted(readers))
        if not ends:
            follower = _Follower(variable, (), (), data)
        elif constants_survive(node, self._dtype):
            # Behind another such node it is low if that one is, whose readers include its own.
            follower = _Follower(variable, data, (), () if data else ends)
        else:
            follower = _Follower(variable, data, ends, ())
        self._followers.append(follower)
        return variable

    def _implications(self) -> set[Edge]:
        """Pairs (u, v): wherever u is low, `assign` makes v low."""
        makes_low: dict[int, frozenset[int]] = {FP32: frozenset()}
        makes_low |= {each: frozenset({each}) for each in self._keys.values()}
        for follower in self._followers:
            found = frozenset[int]().union(*(makes_low[each] for each in follower.any_of))
            for side in (follower.data, follower.readers):
                if side:
                    found |= frozenset.intersection(*(makes_low[each] for each in side))
            makes_low[follower.variable] = found | {follower.variable}
        return {(u, v) for v, found in makes_low.items() for u in found if u != v}

    def _reading_matrix(self) -> csr_array:
        rows = [row for row, value in enumerate(self._values) for reader in value.readers if reader != FP32]
        columns = [reader for value in self._values for reader in value.readers if reader != FP32]
        ones = np.ones(len(rows), np.int64)
        return csr_array((ones, (rows, columns)), shape=(len(self._values), self._count))

    def _network(self) -> MinCut:
        costs: dict[Edge, float] = {}

        def pay(low: int, fp32: int, seconds: float) -> None:
            if low not in (FP32, fp32):
                costs[low, fp32] = costs.get((low, fp32), 0.0) + seconds

        for low, fp32 in self._implied:
            pay(low, fp32, np.inf)
        variables = self._count

        def gather(readers: tuple[int, ...], *, any_low: bool) -> int:
            """A variable that is low if any reader is, or one that is fp32 if any is."""
            nonlocal variables
            if len(readers) == 1:
                return readers[0]
            if not any_low and FP32 in readers:
                return FP32
            variables += 1
            for reader in readers:
                pay(*((reader, variables - 1) if any_low else (variables - 1, reader)), np.inf)
            return variables - 1

        for value in self._values:
            pay(gather(value.readers, any_low=True), value.maker, value.seconds)
            pay(value.maker, gather(value.readers, any_low=False), value.seconds)
        for value in self._duplicates:
            pay(gather(value.readers, any_low=True), gather(value.readers, any_low=False), value.seconds)
        switches = {
            (follower.variable, each)
            for follower in self._followers
            for each in (*follower.data, *follower.readers, *follower.any_of)
        }
        return MinCut(self._saved, costs, switches)
