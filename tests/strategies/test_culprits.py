"""Culprits are found as brute force finds them, in few questions, on judges that are monotone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.strategies.culprits import Questions, Unit, find_culprits, keys_of, split


def answer(questions: Questions, bad: frozenset[str]) -> tuple[frozenset[str], list[frozenset[str]]]:
    """Answers that a set is too much if it holds something bad; gives the result and what was asked."""
    asked = []
    try:
        low = next(questions)
        while True:
            asked.append(low)
            low = questions.send(bool(low & bad))
    except StopIteration as done:
        return done.value, asked


@st.composite
def units_and_bad(draw: st.DrawFn) -> tuple[list[Unit], frozenset[str]]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=12))
    units = [tuple(f"{number}.{index}" for index in range(size)) for number, size in enumerate(sizes)]
    keys = sorted(keys_of(units))
    return units, frozenset(draw(st.lists(st.sampled_from(keys), unique=True)))


@given(units_and_bad())
def test_exactly_the_bad_keys_are_found(case: tuple[list[Unit], frozenset[str]]) -> None:
    units, bad = case
    low: set[str] = set()
    found, asked = answer(split(units, low, known=False), bad)
    assert found == bad
    assert low == keys_of(units) - bad
    assert len(set(asked)) == len(asked)
    if bad:
        found, asked = answer(find_culprits(units), bad)
        assert found == bad
        assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("position", [0, 17, 63])
def test_one_culprit_takes_a_logarithm_of_questions(position: int) -> None:
    units = [tuple(f"{number}.{layer}" for layer in range(8)) for number in range(64)]
    found, asked = answer(find_culprits(units), frozenset({f"{position}.3"}))
    assert found == {f"{position}.3"}
    # The prefix, the nodes of the unit, and what came after the unit in one question.
    assert len(asked) <= math.log2(64) + 2 * math.log2(8) + 1


def test_culprits_that_come_last_leave_the_rest_alone() -> None:
    units: list[Unit] = [(f"n{number}",) for number in range(100)]
    bad = frozenset(f"n{number}" for number in range(92, 100))
    found, asked = answer(find_culprits(units), bad)
    assert found == bad
    assert len(asked) <= math.ceil(math.log2(100)) + 2 * len(bad)


def test_nothing_to_add_asks_nothing() -> None:
    assert answer(split([], set(), known=False), frozenset()) == (frozenset(), [])
