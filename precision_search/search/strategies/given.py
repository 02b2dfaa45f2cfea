"""One given plan beside fp32: what `run --plan` judges. Not a search, so not in the table of strategies."""

from __future__ import annotations

from typing import ClassVar

from precision_search.precision.plan import Plan
from precision_search.search.strategies.base import Proposal
from precision_search.search.trials import Trial


class GivenPlan:
    """Proposes fp32, then the given plan."""

    name: ClassVar[str] = "given"

    def __init__(self, fp32: Plan, given: Plan) -> None:
        self._left = [Proposal(fp32, "fp32"), Proposal(given, "given")]
        if fp32 == given:
            self._left.pop()

    def propose(self) -> Proposal | None:
        """The next of the two."""
        return self._left.pop(0) if self._left else None

    def observe(self, trial: Trial) -> None:
        """Nothing follows from a verdict."""
