"""Strategies in turn share the budget, each is told of its own plans only, and what one leaves is for the next."""

from __future__ import annotations

from typing import ClassVar

import pytest

from precision_search.judging.trial import PlanRecord, Proposal, Trial
from precision_search.precision.plan import Plan
from precision_search.strategies.in_turn import InTurn, shares
from tests.search_models import trial


class Listed:
    """Proposes plans of one node each."""

    name: ClassVar[str] = "listed"

    def __init__(self, *nodes: str, knows_its_end: bool = True) -> None:
        self._left = list(nodes)
        self._knows_its_end = knows_its_end
        self.seen: list[str] = []

    def propose(self) -> Proposal | None:
        return Proposal(Plan("float16", "base", frozenset({self._left.pop(0)})), "some stage") if self._left else None

    def observe(self, trial: Trial) -> None:
        self.seen.extend(trial.plan.nodes)

    def remaining(self) -> int | None:
        return len(self._left) if self._knows_its_end else None


def proposed(strategy: InTurn) -> str:
    found = ""
    while (proposal := strategy.propose()) is not None:
        found += "".join(proposal.plan.fp32)
        strategy.observe(trial(plan=PlanRecord.of(proposal.plan, {})))
    return found


@pytest.mark.parametrize(("total", "parts", "wanted"), [(8, 2, (4, 4)), (7, 3, (3, 2, 2)), (1, 2, (1, 0))])
def test_shares_add_up_and_differ_by_one_at_most(total: int, parts: int, wanted: tuple[int, ...]) -> None:
    assert shares(total, parts) == wanted


def test_each_has_its_share_and_the_last_what_is_left() -> None:
    first, second = Listed(*"abcdef"), Listed(*"uvwxyz")

    assert proposed(InTurn([first, second], 6)) == "abcuvwxyz"  # the runner ends it where the budget does

    assert ("".join(first.seen), "".join(second.seen)) == ("abc", "uvwxyz")


def test_what_one_leaves_is_for_those_after_it() -> None:
    assert proposed(InTurn([Listed("a"), Listed(*"mnopq"), Listed(*"xy")], 9)) == "amnopxy"


def test_it_knows_its_end_where_all_do() -> None:
    assert InTurn([Listed(*"ab"), Listed(*"xyz")], 5).remaining() == 5
    assert InTurn([Listed(*"ab"), Listed("x", knows_its_end=False)], 5).remaining() is None
