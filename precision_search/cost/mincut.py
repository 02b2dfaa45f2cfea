"""Minimum cuts: the cheapest choice between low and fp32 for many variables whose costs are theirs or of pairs.

A cost of a pair is paid where one is low and the other fp32. Such costs, and no others, are what a cut of least
capacity minimises exactly and fast.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

Edge = tuple[int, int]
Floats = NDArray[np.float64]

FP32 = -1
"""In place of a variable: fp32 whatever is chosen."""
LOW = -2
"""In place of a variable: low whatever is chosen."""

_FINITE = 2**29
_FOREVER = 2**30 - 1
"""scipy computes in int32, and silently so: int64 capacities wrap. No flow along an edge exceeds `_FOREVER`, so that
what remains of an edge and its reverse stays below 2**31."""


class MinCut:
    """A network that is built once and solved for different pins and costs of single variables.

    Args:
        savings: of each of the first variables, what it saves by being low instead of fp32 (negative if it costs more).
            They are those that a solution may pin; the others have costs of pairs only.
        pairs: for a pair (u, v) of variables what is paid where u is low and v fp32; infinity forbids it. `FP32` as v
            makes it a cost of u. Never negative. Variables are numbered from 0.
        switches: further pairs, which a solution may forbid.
    """

    def __init__(self, savings: Floats, pairs: Mapping[Edge, float], switches: Collection[Edge]) -> None:
        pinnable = len(savings)
        self._n = max((pinnable - 1, *(max(edge) for edge in (*pairs, *switches)))) + 1
        ends = [edge for each in range(pinnable) for edge in ((LOW, each), (each, FP32))]
        edges = sorted({*pairs, *switches, *ends})
        size = self._n + 2
        rows, columns = (np.array([self._vertex(edge[end]) for edge in edges], np.int64) for end in (0, 1))
        cells = np.unique(np.concatenate([rows * size + columns, columns * size + rows]))
        positions = np.searchsorted(cells, rows * size + columns).tolist()
        self._position = dict(zip(edges, positions, strict=True))
        self._columns = (cells % size).astype(np.int32)
        self._starts = np.searchsorted(cells, np.arange(size + 1) * size).astype(np.int32)
        self._saving_at = np.array([self._position[LOW, each] for each in range(pinnable)], np.intp)
        self._spending_at = np.array([self._position[each, FP32] for each in range(pinnable)], np.intp)
        total = sum(cost for cost in pairs.values() if np.isfinite(cost)) + float(np.abs(savings).sum())
        # A power of two, so that costs that are whole numbers (or halves, ...) stay exact, and ties stay ties.
        self._scale = 2.0 ** np.floor(np.log2(_FINITE / total)) if total > 0 else 1.0
        self._capacities = np.zeros(len(cells), np.int32)
        for edge, cost in pairs.items():
            capacity = max(round(cost * self._scale), 1) if np.isfinite(cost) else _FOREVER
            self._capacities[self._position[edge]] = capacity if cost > 0 else 0

    @property
    def resolution(self) -> float:
        """Costs that differ by less than this, for each pair, may count as equal."""
        return float(1 / self._scale)

    def solve(
        self, savings: Floats, low: Collection[int], fp32: Collection[int], forbidden: Sequence[Edge] = ()
    ) -> NDArray[np.bool_] | None:
        """The cheapest choice: for each variable whether it is low. Among equally cheap ones, that with fewest low.
        None if the pins, the forbidden pairs and those of infinite cost contradict each other.

        Args:
            savings: as for the network, or less (a variable can be made dearer).
            low: variables that must be low.
            fp32: variables that must be fp32.
            forbidden: of the switches, those that no solution may pay for.
        """
        capacities = self._capacities.copy()
        most = _FINITE * self.resolution
        whole = np.rint(np.clip(savings, -most, most) * self._scale).astype(np.int32)
        capacities[self._saving_at] += np.maximum(whole, 0)
        capacities[self._spending_at] += np.maximum(-whole, 0)
        pins = [*((LOW, each) for each in low), *((each, FP32) for each in fp32), *forbidden]
        capacities[[self._position[edge] for edge in pins]] = _FOREVER
        np.minimum(capacities, _FOREVER, out=capacities)
        source, sink = self._vertex(LOW), self._vertex(FP32)
        network = csr_array((capacities, self._columns, self._starts), shape=(self._n + 2, self._n + 2))
        found = maximum_flow(network, source, sink)
        if found.flow_value >= _FOREVER:
            return None
        residual = network - found.flow
        residual.eliminate_zeros()
        reached = np.zeros(self._n + 2, np.bool_)
        reached[breadth_first_order(residual, source, return_predecessors=False)] = True
        return reached[: self._n]

    def _vertex(self, variable: int) -> int:
        return variable if variable >= 0 else self._n - 1 - variable
