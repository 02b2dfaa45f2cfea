"""Timing is interleaved, leaves the warm-up out, and states a median with an interval that means something."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.model.generation_config import GenerationSettings
from precision_search.runtime.generator import Generator
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.timing import (
    ROUNDS,
    WARM_UP_ROUNDS,
    Timing,
    interleave,
    synthetic_batch,
    without_end,
)
from tests.toy_bundle import VOCABULARY, Toy


class Stopwatch:
    """Two runs that last as long as their lists say, on a clock that only they advance."""

    def __init__(self, first: list[float], second: list[float]) -> None:
        self.now = 100.0
        self.order = ""
        self._left = {"A": list(first), "B": list(second)}

    def run(self, side: str) -> None:
        self.order += side
        self.now += self._left[side].pop(0)

    def interleave(self, rounds: int, seed: int = 0) -> tuple[Timing, Timing]:
        return interleave(
            lambda: self.run("A"), lambda: self.run("B"), rounds=rounds, seed=seed, clock=lambda: self.now
        )


def padded_with_warm_up(seconds: list[float]) -> list[float]:
    return [1e6] * (2 * WARM_UP_ROUNDS) + seconds


def timing_of(seconds: list[float], seed: int = 0) -> Timing:
    watch = Stopwatch(padded_with_warm_up(seconds), padded_with_warm_up(seconds))
    return watch.interleave(len(seconds) // 2, seed)[0]


def test_each_round_goes_a_b_b_a() -> None:
    watch = Stopwatch([1.0] * 100, [1.0] * 100)

    watch.interleave(3)

    assert watch.order == "ABBA" * (WARM_UP_ROUNDS + 3)


def test_a_steady_drift_falls_on_both_sides_alike() -> None:
    """Each run takes a second longer than the one before: A B A B would make B look slower."""
    clock = iter(range(10_000))
    now = [0.0]

    def drift() -> None:
        now[0] += next(clock)

    first, second = interleave(drift, drift, rounds=5, clock=lambda: now[0])

    assert first.p50_ms == second.p50_ms
    assert sum(first.samples_ms) == sum(second.samples_ms)


def test_the_warm_up_does_not_count() -> None:
    watch = Stopwatch(padded_with_warm_up([0.001, 0.003]), padded_with_warm_up([0.010, 0.020]))

    first, second = watch.interleave(1)

    assert first.samples_ms == pytest.approx((1.0, 3.0), rel=1e-6)
    assert second.samples_ms == pytest.approx((10.0, 20.0), rel=1e-6)
    assert (first.p50_ms, second.p50_ms) == pytest.approx((2.0, 15.0), rel=1e-6)


def test_all_rounds_count_by_default() -> None:
    watch = Stopwatch([1.0] * 100, [1.0] * 100)

    first, second = interleave(lambda: watch.run("A"), lambda: watch.run("B"), clock=lambda: watch.now)

    assert len(first.samples_ms) == len(second.samples_ms) == 2 * ROUNDS


def test_one_slow_run_moves_neither_median_nor_interval() -> None:
    calm, disturbed = timing_of([0.125] * 20), timing_of([0.125] * 19 + [500.0])

    assert (calm.p50_ms, calm.low_ms, calm.high_ms) == (125.0, 125.0, 125.0)
    assert (disturbed.p50_ms, disturbed.low_ms, disturbed.high_ms) == (125.0, 125.0, 125.0)
    assert max(disturbed.samples_ms) == 500_000.0


@settings(deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.floats(1e-3, 10), min_size=2 * n, max_size=2 * n)))
def test_the_interval_holds_the_median_and_lies_within_the_samples(seconds: list[float]) -> None:
    timing = timing_of(seconds)

    assert min(timing.samples_ms) <= timing.low_ms <= timing.p50_ms <= timing.high_ms <= max(timing.samples_ms)
    assert timing.p50_ms == pytest.approx(1e3 * float(np.median(seconds)), rel=1e-6)
    assert timing == timing_of(seconds)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    """200 series of 20 lognormal times, whose median is 1 ms. The percentile bootstrap is known to be a bit short."""
    generator = np.random.default_rng(5)

    timings = [timing_of(list(1e-3 * generator.lognormal(0.0, 0.3, 20))) for _ in range(200)]

    covered = sum(timing.low_ms <= 1.0 <= timing.high_ms for timing in timings) / len(timings)
    assert 0.88 <= covered <= 0.99


GREEDY = GenerationSettings(2, (1, 3), 0, 12, 5, 1)


def test_nothing_ends_a_timed_sentence_early() -> None:
    endless = without_end(GREEDY, 7)

    assert endless == GenerationSettings(2, (), 0, 7, None, None)
    generator = Generator(Toy.random(3).models(), endless, SessionSettings(threads=1))
    ids = np.array([[3, 4, 5], [1, 1, 1], [6, 0, 0]], np.int64)
    assert generator.generate(ids, np.ones_like(ids)).lengths.tolist() == [7, 7, 7]


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_a_synthetic_batch_holds_tokens_of_the_vocabulary(batch: int, length: int, vocabulary: int, seed: int) -> None:
    ids = synthetic_batch(batch, length, vocabulary, seed)

    assert ids.shape == (batch, length)
    assert ids.dtype == np.int64
    assert 0 <= ids.min() <= ids.max() < vocabulary
    np.testing.assert_array_equal(ids, synthetic_batch(batch, length, vocabulary, seed))
    if vocabulary > VOCABULARY:
        assert ids.min() >= 3
