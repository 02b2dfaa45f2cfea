"""Every subset of the searchable op types, in both families at once, those that the range profile suggests included.

The yardstick for the other strategies, and the answer where the space is small.
"""

from __future__ import annotations

from itertools import chain, combinations
from typing import ClassVar

from precision_search.errors import ConfigError
from precision_search.judging.trial import Proposal, Trial
from precision_search.strategies.base import OpTypeSteps, Steps, StrategyContext


class Exhaustive:
    """Judges fp32 first, then every other subset in the order of estimated latency, fastest first."""

    name: ClassVar[str] = "exhaustive"

    def __init__(self, context: StrategyContext) -> None:
        """Raises ConfigError if there are more subsets than trials."""
        count = len(context.space.choices)
        if 2**count > context.max_trials:
            raise ConfigError(
                f"strategy 'exhaustive' judges {2**count} plans, search.max_trials is {context.max_trials}",
                why=f"{count} op types are searchable, and every subset of them is judged",
                fix=f"set search.max_trials to {2**count}, pin op types with search.keep_fp32 or search.force_low, "
                "or take the strategy 'op-types'",
            )
        self._steps = OpTypeSteps(context.space, _subsets(context))

    def propose(self) -> Proposal | None:
        """The next subset's plan."""
        return self._steps.next()

    def observe(self, trial: Trial) -> None:
        """Takes no notice: the order is fixed."""

    def remaining(self) -> int:
        """Every subset that was not proposed yet."""
        return self._steps.remaining


def _subsets(context: StrategyContext) -> Steps:
    choices = context.space.choices
    subsets = [frozenset(s) for s in chain.from_iterable(combinations(choices, n) for n in range(len(choices) + 1))]
    yield frozenset(choices), context.space.stage_of_everything, None
    for subset in sorted(subsets, key=lambda s: context.estimate(context.space.plan_of(s))):
        yield subset, "all", None
