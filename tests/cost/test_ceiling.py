"""The first batch that is worth a search, against asking about every batch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.cost.ceiling import MOST_BATCH, first_batch


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    crossing=st.integers(1, MOST_BATCH + 500) | st.integers(1, 40),
    below=st.tuples(st.floats(0.01, 100.0), st.floats(0.1, 4.0)),
    above=st.tuples(st.floats(0.01, 100.0), st.floats(0.1, 4.0)),
    start=st.integers(1, 10**6) | st.integers(1, 40),
)
def test_it_is_the_first_wherever_one_begins(
    crossing: int, below: tuple[float, float], above: tuple[float, float], start: int
) -> None:
    """However steep the gain is on either side."""
    asked = set[int]()

    def gain(batch: int) -> float:
        asked.add(batch)
        scale, power = above if batch >= crossing else below
        return float(scale * abs(batch - crossing + 0.5) ** power * (1 if batch >= crossing else -1))

    expected = next((batch for batch in range(1, MOST_BATCH + 1) if gain(batch) >= 0), None)
    asked.clear()

    assert first_batch(gain, start) == expected
    # The ends, the secants, and 12 halves of 4,096.
    assert len(asked) <= 2 + 8 + 12


@pytest.mark.parametrize("start", [1, 8, 4096])
def test_a_gain_that_grows_evenly_is_asked_about_few_batches(start: int) -> None:
    asked = set[int]()

    def gain(batch: int) -> float:
        asked.add(batch)
        return 1.14 * batch - 15.2

    assert first_batch(gain, start) == 14
    assert len(asked) <= 5


def test_no_gain_at_any_batch_is_none() -> None:
    assert first_batch(lambda batch: -1.0, 8) is None
    assert first_batch(lambda batch: 0.0, 8) == 1
