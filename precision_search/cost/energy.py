"""What a plan costs, as a sum over variables that are low or fp32 and over pairs of them.

Variables are the compute keys (one for both decoder graphs), the tensors that cross between graphs, and the movement
nodes (one for a chain of them with the same readers). The last two nobody decides: they follow, by the rules of
`dtypes.assign`. A value that is cast is cast once for all its readers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precision_search.cost.mincut import FP32, Floats
from precision_search.model.graph import GraphName, NodeKind
from precision_search.model.layout import SEQ2SEQ
from precision_search.precision.dtypes import constants_survive
from precision_search.precision.low import LowDtype
from precision_search.precision.wiring import WiredNode, Wiring, crossing_ends

Choice = NDArray[np.bool_]
"""For each variable whether it is low."""


@dataclass(frozen=True, slots=True)
class PlacementCosts:
    """Seconds over the whole workload, by graph.

    Attributes:
        nodes: by node key, in fp32 and low; a node that is neither compute nor movement costs the former.
        casts: by value name, one cast of it in either direction.
        duplicates: by initializer name, what it costs to store it in both dtypes. Nobody waits for that: these should
            be so small that they only choose between plans that are equally fast, or nearly. No reported cost holds
            them.
    """

    nodes: Mapping[GraphName, Mapping[str, tuple[float, float]]]
    casts: Mapping[GraphName, Mapping[str, float]]
    duplicates: Mapping[GraphName, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Follower:
    """A variable that follows others: low if all of `data` is low, or all `readers` are, or any of `any_of` is."""

    variable: int
    data: tuple[int, ...]
    readers: tuple[int, ...]
    any_of: tuple[int, ...]

    def is_low(self, low: Collection[int]) -> bool:
        """Whether it is, given the variables that are low."""
        sides = (self.data, self.readers)
        return any(side and all(each in low for each in side) for side in sides) or any(v in low for v in self.any_of)


@dataclass(frozen=True, slots=True)
class Shared:
    """A value that is paid for once if its ends differ.

    Attributes:
        maker: who makes it; None for an initializer, which is stored in the dtypes of its readers.
        readers: who reads it, `maker` left out.
        seconds: of one cast in either direction, or of storing it twice.
    """

    maker: int | None
    readers: tuple[int, ...]
    seconds: float


class Energy:
    """The cost of every choice.

    Args:
        wirings: of the graphs.
        keys: variables of the compute keys, numbered from 0.
        dtype: the low dtype.
        costs: of nodes and casts.

    Attributes:
        followers: in an order in which each comes after those that it follows.
        savings: of each variable, seconds that it saves by being low.
        shared: values that may be cast, and initializers that may be stored twice.
    """

    def __init__(
        self, wirings: Mapping[GraphName, Wiring], keys: Mapping[str, int], dtype: LowDtype, costs: PlacementCosts
    ) -> None:
        self._keys = keys
        self._dtype = dtype
        self.followers: list[Follower] = []
        self.shared: list[Shared] = []
        makers, readers = crossing_ends(wirings.values())
        self._crossings = {
            name: self._follow(map(self._key, makers[name]), map(self._key, readers[name])) for name in sorted(makers)
        }
        nodes: list[tuple[int, float, float]] = []
        for name, wiring in wirings.items():
            nodes += self._add_graph(wiring, costs.nodes[name], costs.casts[name], costs.duplicates[name])
        self._fp32_seconds = sum(seconds for _, seconds, _ in nodes)
        self.savings: Floats = np.zeros(len(keys) + len(self.followers))
        for variable, fp32_seconds, low_seconds in nodes:
            if variable != FP32:
                self.savings[variable] += fp32_seconds - low_seconds
        casts = [value for value in self.shared if value.maker is not None]
        self._makers = np.array([value.maker for value in casts], np.intp)
        self._cast_seconds = np.array([value.seconds for value in casts], np.float64)
        self._n_readers = np.array([len(value.readers) for value in casts], np.int64)
        self._readers = np.array([each for value in casts for each in value.readers], np.intp)
        self._starts = np.cumsum(self._n_readers) - self._n_readers

    def seconds(self, choice: Choice) -> float:
        """The cost of a choice, duplicated initializers left out."""
        low = np.append(choice, False)  # where FP32, the index -1, looks
        made_low = low[self._makers]
        n_low = np.add.reduceat(low[self._readers], self._starts, dtype=np.int64) if len(self._starts) else 0
        is_cast = np.where(made_low, n_low < self._n_readers, n_low > 0)
        return float(self._fp32_seconds - self.savings[choice].sum() + self._cast_seconds[is_cast].sum())

    def settle(self, choice: Choice) -> Choice:
        """The choice as `assign` has it: that of the compute keys, and what follows from them."""
        low = set(np.flatnonzero(choice[: len(self._keys)]).tolist())
        for follower in self.followers:
            if follower.is_low(low):
                low.add(follower.variable)
        settled = np.zeros(len(self.savings), np.bool_)
        settled[list(low)] = True
        return settled

    def _key(self, key: str | None) -> int:
        return FP32 if key is None else self._keys[key]

    def _follow(self, data: Iterable[int], readers: Iterable[int], any_of: Iterable[int] = ()) -> int:
        variable = len(self._keys) + len(self.followers)
        sides = (tuple(sorted(set(side))) for side in (data, readers, any_of))
        self.followers.append(Follower(variable, *sides))
        return variable

    def _add_graph(
        self,
        wiring: Wiring,
        node_costs: Mapping[str, tuple[float, float]],
        cast_costs: Mapping[str, float],
        duplicates: Mapping[str, float],
    ) -> Iterator[tuple[int, float, float]]:
        """Adds the graph's followers and shared values; yields the variable of each node with its two costs."""
        makers: dict[str, int] = {
            name: self._crossings.get(SEQ2SEQ.crossing(name) or "", FP32) for name in wiring.inputs
        }
        moved: dict[str, WiredNode] = {}
        readers: dict[str, set[int]] = {}
        stored: dict[str, set[int]] = {}
        variables: dict[str, int] = {}
        for node in wiring.nodes:
            variable = FP32
            if node.kind is NodeKind.COMPUTE:
                variable = self._keys[node.key]
            elif node.kind is NodeKind.MOVEMENT:
                variable = self._movement(node, makers, moved)
                moved.update(dict.fromkeys(node.writes, node))
            variables[node.key] = variable
            makers.update(dict.fromkeys(node.writes, variable))
            for name in node.reads:
                readers.setdefault(name, set()).add(variable)
            for name in node.constants:
                stored.setdefault(name, set()).add(variable)
        for name in wiring.outputs:
            if (crossing := SEQ2SEQ.crossing(name)) is not None:
                readers.setdefault(name, set()).add(self._crossings[crossing])
        for name, ends in readers.items():
            self._share(makers[name], ends - {makers[name]}, cast_costs[name])
        for name, ends in stored.items():
            self._share(None, ends if len(ends) > 1 else set(), duplicates.get(name, 0.0))
        yield from ((variables.get(key, FP32), *pair) for key, pair in node_costs.items())

    def _share(self, maker: int | None, readers: set[int], seconds: float) -> None:
        if readers and seconds > 0:
            self.shared.append(Shared(maker, tuple(sorted(readers)), seconds))

    def _movement(self, node: WiredNode, makers: Mapping[str, int], moved: Mapping[str, WiredNode]) -> int:
        """The variable of a movement node: that of the one before it where both have the same readers."""
        before = moved.get(node.reads[0]) if len(node.reads) == 1 else None
        if before is not None and (before.sinks, before.crossings) == (node.sinks, node.crossings):
            return makers[node.reads[0]]
        data = [makers[name] for name in node.reads]
        readers = [*map(self._key, node.sinks), *(self._crossings[name] for name in node.crossings)]
        if not readers:
            return self._follow((), (), data)
        if constants_survive(node, self._dtype):
            # Behind another such node it is low if that one is, whose readers include its own.
            return self._follow(data, ()) if data else self._follow((), (), readers)
        return self._follow(data, readers)
