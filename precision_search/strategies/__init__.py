"""The search strategies, in one table. A new one is a module beside these and a name in `STRATEGIES`."""

from __future__ import annotations

from precision_search.errors import ConfigError
from precision_search.strategies.base import Strategy, StrategyContext
from precision_search.strategies.exhaustive import Exhaustive
from precision_search.strategies.nodes import NodeSearch
from precision_search.strategies.op_types import OpTypeSearch
from precision_search.strategies.random import RandomSearch

STRATEGIES: tuple[type[Strategy], ...] = (NodeSearch, OpTypeSearch, Exhaustive, RandomSearch)


def make_strategy(name: str, context: StrategyContext) -> Strategy:
    """The strategy of that name, ready to propose.

    Raises:
        ConfigError: no strategy has that name, or the space and the budget do not fit it.
    """
    for strategy in STRATEGIES:
        if strategy.name == name:
            return strategy(context)
    known = ", ".join(strategy.name for strategy in STRATEGIES)
    raise ConfigError(f"there is no strategy {name!r}", fix=f"set search.strategy to one of {known}")
