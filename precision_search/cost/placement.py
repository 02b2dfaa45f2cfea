"""Where casts go: for pinned nodes the plan of least cost, by minimum cuts over the three graphs at once.

**What one cut cannot say** is half of the rule by which `dtypes.assign` decides movement and crossing tensors: low if
all it is made of is low, or all that reads it is. "All of these are low, so that is low" holds in a cut for one
variable, not for several, and "that is low, so these or those are" not at all. A cut knows what follows from one
variable, and from both sides where a pin settles one of them; apart from that it may choose. So it can do all that
`assign` can, and its cost is a lower bound for all plans under the same pins.

Where its choice breaks the rule, branch and bound goes on: each way to keep the rule there is a further cut. With real
costs the first cut nearly always keeps it.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from precision_search.cost.energy import Choice, Energy, Follower, PlacementCosts
from precision_search.cost.mincut import FP32, Edge, Floats, MinCut
from precision_search.model.graph import Graph, GraphName
from precision_search.precision.low import LowDtype
from precision_search.precision.plan import Plan, all_compute_keys, pinned_keys
from precision_search.precision.wiring import wiring_of

__all__ = ["Placement", "PlacementCosts", "Placer"]

MAX_CUTS = 64
"""Cuts for one placement; what is left open then is the difference between a plan's cost and `Placement.seconds`."""
CLOSE = 1e-9
"""A plan whose cost exceeds the bound by no more than this share of it is taken to be the cheapest."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A plan and what it costs as far as cuts know.

    Attributes:
        plan: the plan.
        seconds: its cost, or less where the cuts left a gap. No plan under the same pins (and prices, which are not in
            here) costs less, by more than the resolution of the cut and the duplicates, nanoseconds both.
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
        self._energy = Energy({name: wiring_of(graph) for name, graph in graphs.items()}, self._keys, dtype, costs)
        self._cut = _network(self._energy)

    def place(
        self,
        fp32: frozenset[str] = frozenset(),
        low: frozenset[str] = frozenset(),
        prices: Mapping[str, float] = MappingProxyType({}),
    ) -> Placement:
        """The plan of least cost that keeps `fixed` and `fp32` in fp32 and `forced_low` and `low` low.

        A key on both sides stays in fp32. Among equally cheap plans the one with the fewest low nodes, so that a node
        is low only where that saves time (not promised where one cut was not enough). Keys that the graphs lack are
        ignored.

        Args:
            fp32: further keys that stay in fp32.
            low: further keys that are low.
            prices: by key, seconds (not negative) that being low must save and more. They choose the plan and are not
                in its cost.
        """
        kept = self._fixed | fp32
        pinned_fp32 = {self._keys[key] for key in kept if key in self._keys}
        pinned_low = {self._keys[key] for key in (self._forced_low | low) - kept if key in self._keys}
        price = np.zeros(len(self._energy.savings))
        for key, seconds in prices.items():
            if key in self._keys and self._keys[key] not in pinned_low:
                price[self._keys[key]] = seconds
        choice, bound = self._search(pinned_low, pinned_fp32, price)
        plan = Plan(self._dtype, self._variant, frozenset(k for k, index in self._keys.items() if not choice[index]))
        return Placement(plan, bound - float(price[choice].sum()))

    def _search(self, low: set[int], fp32: set[int], price: Floats) -> tuple[Choice, float]:
        """The cheapest choice that keeps the rules, and a lower bound of its cost, prices included."""
        savings = self._energy.savings - price
        sure_fp32, rules = _what_pins_settle(self._energy.followers, fp32)

        open_ones: list[_Relaxed] = []

        def relax(more: tuple[Edge, ...]) -> None:
            found = self._cut.solve(savings, low, sure_fp32, (*rules, *more))
            if found is not None:
                choice = found[: len(savings)]
                bound = self._energy.seconds(choice) + float(price[choice].sum())
                heapq.heappush(open_ones, _Relaxed(bound, more, choice))

        relax(())
        assert open_ones, "pins of compute nodes never contradict each other"
        best, best_cost, cuts = np.zeros(len(savings), np.bool_), np.inf, 1
        while open_ones:
            relaxed = heapq.heappop(open_ones)
            settled = self._energy.settle(relaxed.choice)
            cost = self._energy.seconds(settled) + float(price[settled].sum())
            if cost < best_cost:
                best, best_cost = settled, cost
            if best_cost <= relaxed.bound * (1 + CLOSE) or cuts >= MAX_CUTS:
                return best, min(relaxed.bound, best_cost)
            for more in _ways_to_keep(_broken(self._energy.followers, relaxed.choice), relaxed.choice):
                relax((*relaxed.rules, *more))
                cuts += 1
        return best, best_cost


@dataclass(frozen=True, slots=True, order=True)
class _Relaxed:
    """A choice that may break rules, the cheapest one under some of them, and its cost."""

    bound: float
    rules: tuple[Edge, ...]
    choice: Choice = field(compare=False)


def _network(energy: Energy) -> MinCut:
    """The network of the energy: each shared value has a variable for each direction, between it and its readers."""
    pairs: dict[Edge, float] = dict.fromkeys(_implications(energy), np.inf)
    count = len(energy.savings)

    def pay(low: int, fp32: int, seconds: float) -> None:
        if low not in (FP32, fp32):
            pairs[low, fp32] = pairs.get((low, fp32), 0.0) + seconds

    def any_low(readers: tuple[int, ...]) -> int:
        nonlocal count
        if len(readers) == 1:
            return readers[0]
        count += 1
        for reader in readers:
            pay(reader, count - 1, np.inf)
        return count - 1

    def all_low(readers: tuple[int, ...]) -> int:
        nonlocal count
        if len(readers) == 1 or FP32 in readers:
            return min(readers)
        count += 1
        for reader in readers:
            pay(count - 1, reader, np.inf)
        return count - 1

    for value in energy.shared:
        wanted_low, wanted_fp32 = any_low(value.readers), all_low(value.readers)
        if value.maker is None:
            pay(wanted_low, wanted_fp32, value.seconds)
        else:
            pay(wanted_low, value.maker, value.seconds)
            pay(value.maker, wanted_fp32, value.seconds)
    switches = set[Edge]()
    for follower in energy.followers:
        for each in (*follower.data, *follower.readers, *follower.any_of):
            switches |= {(follower.variable, each), (each, follower.variable)}
    return MinCut(energy.savings, pairs, {edge for edge in switches if edge[0] != FP32})


def _implications(energy: Energy) -> set[Edge]:
    """Pairs (u, v): wherever u is low, v is by the rules."""
    n_keys = len(energy.savings) - len(energy.followers)
    makes_low = {each: frozenset({each}) for each in range(n_keys)} | {FP32: frozenset[int]()}
    for follower in energy.followers:
        found = frozenset[int]().union(*(makes_low[each] for each in follower.any_of))
        for side in (follower.data, follower.readers):
            if side:
                found |= frozenset.intersection(*(makes_low[each] for each in side))
        makes_low[follower.variable] = found | {follower.variable}
    return {(u, v) for v, found in makes_low.items() for u in found if u != v}


def _what_pins_settle(followers: Collection[Follower], fp32: set[int]) -> tuple[set[int], list[Edge]]:
    """All variables that are fp32 where these are, and the pairs (u, v) of which then u is low only if v is."""
    sure, rules = {FP32, *fp32}, list[Edge]()
    for follower in followers:
        sides = (follower.data, follower.readers, *((each,) for each in follower.any_of))
        possible = [side for side in sides if side and sure.isdisjoint(side)]
        if not possible:
            sure.add(follower.variable)
        elif len(possible) == 1:
            rules += [(follower.variable, each) for each in possible[0]]
    return sure - {FP32}, rules


def _broken(followers: Collection[Follower], choice: Choice) -> Follower:
    """The first follower that is not as it should be."""
    low = set(np.flatnonzero(choice).tolist())
    return next(each for each in followers if each.is_low(low) != (each.variable in low))


def _ways_to_keep(follower: Follower, choice: Choice) -> Iterator[tuple[Edge, ...]]:
    """Sets of pairs (u, v), u low only if v is, of which every choice that keeps the rules satisfies one."""
    low = set(np.flatnonzero(choice).tolist())
    sides = (follower.data, follower.readers, *((each,) for each in follower.any_of))
    if follower.variable in low:
        for side in sides:
            if side:
                yield tuple((follower.variable, each) for each in side)
    else:
        side = next(side for side in sides if side and low.issuperset(side))
        yield from (((each, follower.variable),) for each in side)
