"""The binomial interval: published values, symmetry, and that it holds the share it was made from."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.judging.intervals import binomial_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998),
        # 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert binomial_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_a_perfect_score_is_not_certainty() -> None:
    low, high = binomial_interval(100, 100)
    z = 1.959964
    assert low == pytest.approx(100 / (100 + z * z), abs=1e-6)
    assert high == 1.0


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.01, 0.999))
def test_it_holds_the_share_and_mirrors(counts: tuple[int, int], confidence: float) -> None:
    successes, n = counts
    low, high = binomial_interval(successes, n, confidence)
    assert 0.0 <= low <= successes / n <= high <= 1.0
    assert (1.0 - high, 1.0 - low) == pytest.approx(binomial_interval(n - successes, n, confidence), abs=1e-9)


def test_more_samples_and_less_confidence_narrow_it() -> None:
    def width(n: int, confidence: float) -> float:
        low, high = binomial_interval(n // 2, n, confidence)
        return high - low

    assert width(1000, 0.95) < width(100, 0.95) < width(10, 0.95)
    assert width(100, 0.5) < width(100, 0.95) < width(100, 0.999)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.9), (-1, 5, 0.9), (6, 5, 0.9), (1, 5, 1.0)])
def test_impossible_arguments_are_refused(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {n}"):
        binomial_interval(successes, n, confidence)
    assert math.isfinite(sum(binomial_interval(1, 5, 0.9)))
