"""Several strategies one after another: one for each graph variant, all of them in one run and one log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from precision_search.judging.trial import Proposal, Trial
from precision_search.strategies.base import Strategy


def shares(max_trials: int, count: int) -> tuple[int, ...]:
    """`max_trials` in `count` parts, as equal as they can be, the larger ones first."""
    return tuple(max_trials // count + (number < max_trials % count) for number in range(count))


class InTurn:
    """Asks each strategy for its share of the plans; what one leaves is for those after it."""

    name: ClassVar[str] = "in turn"

    def __init__(self, strategies: Sequence[Strategy], max_trials: int) -> None:
        self._left = list(strategies)
        self._current = self._left.pop(0)
        self._budget = max_trials
        self._quota = self._next_quota()

    def propose(self) -> Proposal | None:
        """The next plan of the strategy whose turn it is."""
        while True:
            proposal = self._current.propose() if self._quota > 0 or not self._left else None
            if proposal is not None:
                self._quota -= 1
                self._budget -= 1
                return proposal
            if not self._left:
                return None
            self._current = self._left.pop(0)
            self._quota = self._next_quota()

    def observe(self, trial: Trial) -> None:
        """Tells the strategy that proposed it."""
        self._current.observe(trial)

    def remaining(self) -> int | None:
        """The sum of all that have not ended; None while one of them does not know."""
        known = [strategy.remaining() for strategy in (self._current, *self._left)]
        return None if None in known else sum(each for each in known if each is not None)

    def _next_quota(self) -> int:
        return shares(self._budget, len(self._left) + 1)[0]
