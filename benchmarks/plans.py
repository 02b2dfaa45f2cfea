"""The plans that the benchmarks time: what people convert by hand, what a search starts from, and how one ends."""

from __future__ import annotations

from collections.abc import Mapping

from precision_search.precision.plan import Plan
from precision_search.strategies.base import SearchSpace
from precision_search.strategies.op_types import CLASSIC

FP32, ALL_LOW, RANGES = "fp32", "all-low", "ranges"

LOW_IN_THE_END = frozenset({"MatMul", "Mul", "Relu", "Softmax"})
"""What the winner of the demo's op-type search makes low in the decoder; encoder and projection stay in fp32."""


def named_plans(space: SearchSpace) -> Mapping[str, Plan]:
    """The plans by name, fp32 first; `ranges` is left out where the space knows no ranges."""
    choices = frozenset(space.choices)
    selections = {
        FP32: choices,
        ALL_LOW: frozenset(),
        "classic": frozenset(choice for choice in choices if choice[1] in CLASSIC),
        RANGES: space.hard_choices,
        "winner-like": frozenset(c for c in choices if c[0] == "encoder" or c[1] not in LOW_IN_THE_END),
    }
    if not space.hard_choices:
        del selections[RANGES]
    return {name: space.plan_of(selection) for name, selection in selections.items()}
