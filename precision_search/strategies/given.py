"""One given plan: what `run --blocklist` judges. Not a search, so not in the table of strategies."""

from __future__ import annotations

from typing import ClassVar

from precision_search.judging.trial import Proposal, Trial
from precision_search.precision.plan import Plan


class GivenPlan:
    """Proposes the given plan."""

    name: ClassVar[str] = "given"

    def __init__(self, given: Plan) -> None:
        self._left = [Proposal(given, "given")]

    def propose(self) -> Proposal | None:
        """The plan, once."""
        return self._left.pop(0) if self._left else None

    def remaining(self) -> int:
        """1 until it was proposed."""
        return len(self._left)

    def observe(self, trial: Trial) -> None:
        """Nothing follows from a verdict."""
