"""Bisecting segments: how a list of nodes is lowered by those who know nothing of the graph but its order.

The rule is that of `auto_convert_mixed_precision` in onnxconverter-common 1.16, written anew: always the longest
undecided run of nodes is tried low, together with all that is low already; if that fails, the run is halved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bisected:
    """What bisection found: the keys that are low in the end, and how many sets of low keys were tried."""

    low: frozenset[str]
    evaluations: int


def bisect(keys: Sequence[str], passes: Callable[[frozenset[str]], bool]) -> Bisected:
    """The keys that can be low together, as far as halving finds them: none of the others can be added alone.

    "None of the others" holds for monotone failures, and for each key at the time when it was tried. Of equally long
    runs the first is tried.

    Args:
        keys: in the order of the graph.
        passes: whether a set of low keys does no harm.
    """
    low: frozenset[str] = frozenset()
    evaluations = 0
    undecided = [tuple(keys)] if keys else []
    while undecided:
        longest = max(range(len(undecided)), key=lambda index: len(undecided[index]))
        run = undecided.pop(longest)
        evaluations += 1
        if passes(low | set(run)):
            low |= set(run)
        elif len(run) > 1:
            middle = len(run) // 2
            undecided[longest:longest] = [run[:middle], run[middle:]]
    return Bisected(low, evaluations)
