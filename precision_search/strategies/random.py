"""Random subsets of the searchable op types: what a search has to beat with the same budget."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from precision_search.judging.trial import Proposal, Trial
from precision_search.strategies.base import OpTypeSteps, Steps, StrategyContext


class RandomSearch:
    """Judges fp32 first, then subsets drawn uniformly without repeats until all were drawn."""

    name: ClassVar[str] = "random"

    def __init__(self, context: StrategyContext) -> None:
        self._steps = OpTypeSteps(context.space, _draws(context))

    def propose(self) -> Proposal | None:
        """The next draw's plan."""
        return self._steps.next()

    def observe(self, trial: Trial) -> None:
        """Takes no notice: draws do not depend on verdicts."""

    def remaining(self) -> int:
        """Every subset that was not drawn yet."""
        return self._steps.remaining


def _draws(context: StrategyContext) -> Steps:
    choices = context.space.choices
    generator = np.random.default_rng(context.seed)
    yield frozenset(choices), context.space.stage_of_everything, None
    drawn: set[bytes] = set()
    # Redrawing repeats needs about k * 2^k * log(2) draws to see all of 2^k subsets: a run that gets there is small.
    while len(drawn) < 2 ** len(choices):
        bits = generator.integers(0, 2, len(choices), dtype=np.int8)
        if bits.tobytes() not in drawn:
            drawn.add(bits.tobytes())
            yield frozenset(choice for choice, bit in zip(choices, bits, strict=True) if bit), "random", None
