"""Minimum cuts against brute force over all choices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from precision_search.cost.mincut import FP32, Edge, MinCut

PROPERTY = settings(max_examples=300, deadline=None, derandomize=True)
COUNT, PINNABLE = 5, 4
PAIRS = st.tuples(st.integers(0, COUNT - 1), st.integers(FP32, COUNT - 1)).filter(lambda pair: pair[0] != pair[1])
COSTS = st.sampled_from((0.0, 1.0, 2.0, 3.0, 7.0, np.inf))


@dataclass(frozen=True, slots=True)
class Problem:
    """A small network with pins: what `MinCut` is made from and what one solution is asked for."""

    savings: tuple[int, ...]
    pairs: Mapping[Edge, float]
    switches: tuple[Edge, ...]
    low: frozenset[int]
    fp32: frozenset[int]

    def solve(self, scale: float = 1.0) -> tuple[bool, ...] | None:
        savings = scale * np.array(self.savings, np.float64)
        pairs = {pair: scale * cost for pair, cost in self.pairs.items()}
        found = MinCut(savings, pairs, self.switches).solve(savings, self.low, self.fp32, self.switches)
        return None if found is None else tuple(found.tolist()) + (False,) * (COUNT - len(found))

    def choices(self) -> Iterator[tuple[bool, ...]]:
        for choice in itertools.product((False, True), repeat=COUNT):
            if all(choice[each] for each in self.low) and not any(choice[each] for each in self.fp32):
                yield choice

    def cost(self, choice: tuple[bool, ...]) -> float:
        low = (*choice, False)  # FP32 is the last
        pairs = {**self.pairs, **dict.fromkeys(self.switches, np.inf)}
        paid = sum(cost for (u, v), cost in pairs.items() if low[u] and not low[v])
        return paid - sum(saving for saving, is_low in zip(self.savings, choice, strict=False) if is_low)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sides = [draw(st.sampled_from(("low", "fp32", "open", "open"))) for _ in range(PINNABLE)]
    return Problem(
        savings=tuple(draw(st.lists(st.integers(-5, 5), min_size=PINNABLE, max_size=PINNABLE))),
        pairs=draw(st.dictionaries(PAIRS, COSTS, max_size=10)),
        switches=tuple(draw(st.lists(PAIRS, max_size=2, unique=True))),
        low=frozenset(each for each, side in enumerate(sides) if side == "low"),
        fp32=frozenset(each for each, side in enumerate(sides) if side == "fp32"),
    )


@PROPERTY
@given(problem=problems(), scale=st.sampled_from((2.0**-40, 0.5, 1.0, 2.0**40)))
def test_the_cheapest_choice_with_the_fewest_low_is_found(problem: Problem, scale: float) -> None:
    choices = list(problem.choices())
    best = min(map(problem.cost, choices))
    wanted = min((choice for choice in choices if problem.cost(choice) == best), key=sum)
    assert problem.solve(scale) == (wanted if np.isfinite(best) else None)


def solved(cut: MinCut, *asked: Any) -> NDArray[np.bool_]:
    found = cut.solve(*asked)
    assert found is not None
    return found


def test_a_solution_leaves_the_network_as_it_was() -> None:
    savings = np.array([2.0, 2.0])
    cut = MinCut(savings, {(0, 1): 3.0}, [(1, 0)])
    assert solved(cut, savings, (), ()).tolist() == [True, True]
    assert solved(cut, savings, (), {0}, [(1, 0)]).tolist() == [False, False]
    assert solved(cut, savings - 5.0, (1,), ()).tolist() == [False, True]
    assert solved(cut, savings, (), ()).tolist() == [True, True]


@pytest.mark.parametrize("price", [1e3, 1e12, 1e300, np.inf])
def test_no_price_is_too_high(price: float) -> None:
    """Capacities are 32-bit numbers inside: they are capped, never wrapped."""
    savings = np.full(40, 1e-3)
    cut = MinCut(savings, {(each, each + 1): 1e-6 for each in range(39)}, [])
    dear = savings.copy()
    dear[::2] -= price
    assert solved(cut, dear, {3, 5}, ()).tolist() == [each % 2 == 1 for each in range(40)]


def test_many_forced_ones_do_not_overflow() -> None:
    """Each of 3,000 forced variables meets a forbidden pair's worth of capacity on the other side."""
    count = 3000
    savings = np.full(count, -1.0)
    cut = MinCut(savings, {(each, (each + 1) % count): 1.0 for each in range(count)}, [])
    found = solved(cut, savings, set(range(0, count, 2)), set(range(1, count, 2)))
    assert found.tolist() == [each % 2 == 0 for each in range(count)]


def test_without_costs_nothing_is_low() -> None:
    savings = np.zeros(3)
    assert not solved(MinCut(savings, {}, []), savings, (), ()).any()
    assert solved(MinCut(savings, {(0, 1): np.inf}, []), savings, {0}, ()).tolist() == [True, True, False]


def test_the_smallest_cost_settles_a_tie() -> None:
    savings = np.array([1e3, 0.0])
    assert solved(MinCut(savings, {(0, 1): 1e-15}, []), savings, (), ()).tolist() == [True, True]
    assert solved(MinCut(savings, {(1, FP32): 1e-15, (0, 1): 1e-3}, []), savings, (), ()).tolist() == [True, True]


def test_the_resolution_is_far_below_the_costs() -> None:
    cut = MinCut(np.array([1.0, -3.0]), {(0, 1): 4.0}, [])
    assert 0 < cut.resolution < 1e-7
