"""Timing is interleaved, leaves the warm-up out, and states a median with an interval that means something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.model.generation_config import GenerationSettings
from precision_search.runtime.generator import Generator
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.timing import (
    RULES,
    Comparison,
    Timing,
    TimingRules,
    compare_times,
    synthetic_batch,
    without_end,
)
from tests.toy_bundle import VOCABULARY, Toy

WARM_UP = 2 * RULES.window
"""Rounds of the shortest warm-up."""


class Stopwatch:
    """Two runs on a clock that only they advance: a run lasts as long as `ms` says for its side and number."""

    def __init__(self, ms: Callable[[str, int], float]) -> None:
        self.now = 100.0
        self.order = ""
        self._ms = ms

    def run(self, side: str) -> None:
        self.now += 1e-3 * self._ms(side, self.order.count(side))
        self.order += side

    def compare(self, rules: TimingRules = RULES, seed: int = 0) -> Comparison:
        return compare_times(
            lambda: self.run("A"), lambda: self.run("B"), rules=rules, seed=seed, clock=lambda: self.now
        )


def fixed(rounds: int) -> TimingRules:
    return replace(RULES, least_rounds=rounds, most_rounds=rounds)


def listed(first: list[float], second: list[float]) -> Stopwatch:
    """1 ms in the shortest warm-up, then the times given."""

    def ms(side: str, number: int) -> float:
        times = first if side == "A" else second
        return 1.0 if number < 2 * WARM_UP else times[number - 2 * WARM_UP]

    return Stopwatch(ms)


def timing_of(ms: list[float], seed: int = 0) -> Timing:
    return listed(ms, ms).compare(fixed(len(ms) // 2), seed).first


def noisy(seed: int, sigma: float, ratio: float = 1.0) -> Stopwatch:
    """Lognormal times around 1 and `1 / ratio` ms, and disturbances: one run in 20 takes up to three times as long."""
    generator = np.random.default_rng(seed)

    def ms(side: str, number: int) -> float:
        disturbed = 1.0 + 2.0 * generator.random() if generator.random() < 0.05 else 1.0
        return float((1.0 if side == "A" else 1.0 / ratio) * generator.lognormal(0.0, sigma) * disturbed)

    return Stopwatch(ms)


def test_each_round_goes_a_b_b_a() -> None:
    watch = Stopwatch(lambda side, number: 1.0)

    watch.compare(fixed(3))

    assert watch.order == "ABBA" * (WARM_UP + 3)


def test_a_steady_drift_falls_on_both_sides_alike() -> None:
    """Each run takes a millisecond longer than the one before: A B A B would make B look slower."""
    total = iter(range(100_000))
    watch = Stopwatch(lambda side, number: 1000.0 + next(total))

    found = watch.compare()

    assert found.first.p50_ms == pytest.approx(found.second.p50_ms)
    assert sum(found.first.samples_ms) == pytest.approx(sum(found.second.samples_ms))
    assert (found.speedup.low, found.speedup.high) == pytest.approx((1.0, 1.0))


def test_a_drift_does_not_move_the_speedup() -> None:
    """The device slows down by a third while it is measured; the sides keep their ratio."""
    watch = Stopwatch(lambda side, number: (1.0 if side == "A" else 0.8) * (1.0 + number / 240))

    found = watch.compare(fixed(40))

    assert found.first.high_ms / found.first.low_ms > 1.03
    assert found.speedup.value == pytest.approx(1.25, rel=1e-3)
    assert found.speedup.width < 0.01


def test_a_slow_start_does_not_count() -> None:
    watch = Stopwatch(lambda side, number: 1.0 + 50.0 * 0.6**number)

    found = watch.compare()

    assert found.stable
    assert max(found.first.samples_ms) < 1.02
    assert found.first.warm_up_ms[0] == pytest.approx(51.0)
    assert len(found.first.warm_up_ms) > 2 * WARM_UP


def test_the_shortest_warm_up_is_two_windows() -> None:
    found = Stopwatch(lambda side, number: 1.0).compare()

    assert found.stable
    assert len(found.first.warm_up_ms) == len(found.second.warm_up_ms) == 2 * WARM_UP


@pytest.mark.parametrize("unsettled", ["A", "B"])
def test_times_that_do_not_settle_are_said_to_be_so(unsettled: str) -> None:
    """One side gets 3% slower in each round, for good."""
    watch = Stopwatch(lambda side, number: 1.03 ** (number // 2) if side == unsettled else 1.0)

    found = watch.compare(replace(RULES, warm_up_seconds=1e9))

    assert not found.stable
    assert len(found.first.warm_up_ms) == 2 * RULES.warm_up_rounds


def test_slow_runs_are_not_warmed_up_for_longer_than_the_limit() -> None:
    watch = Stopwatch(lambda side, number: 10_000.0 * 1.03 ** (number // 2))

    found = watch.compare(replace(RULES, warm_up_seconds=300.0))

    assert not found.stable
    assert 300.0 < sum(found.first.warm_up_ms + found.second.warm_up_ms) / 1e3 < 400.0


def test_slow_runs_are_still_warmed_up_for_two_windows() -> None:
    found = Stopwatch(lambda side, number: 1e6).compare()

    assert found.stable
    assert len(found.first.warm_up_ms) == 2 * WARM_UP


def test_the_warm_up_does_not_count() -> None:
    found = listed([1.0, 3.0], [10.0, 20.0]).compare(fixed(1))

    assert found.first.samples_ms == pytest.approx((1.0, 3.0), rel=1e-6)
    assert found.second.samples_ms == pytest.approx((10.0, 20.0), rel=1e-6)
    assert (found.first.p50_ms, found.second.p50_ms) == pytest.approx((2.0, 15.0), rel=1e-6)


def test_calm_times_take_the_fewest_rounds() -> None:
    found = noisy(1, 1e-4).compare()

    assert (found.narrow, len(found.first.samples_ms)) == (True, 2 * RULES.least_rounds)


def test_noisy_times_take_more_rounds_and_say_when_those_do_not_help() -> None:
    some, many = (
        noisy(1, 0.008).compare(replace(RULES, seconds=1e9)),
        noisy(1, 0.2).compare(replace(RULES, seconds=1e9)),
    )

    assert some.narrow
    assert 2 * RULES.least_rounds < len(some.first.samples_ms) <= 2 * RULES.most_rounds
    assert not many.narrow
    assert len(many.first.samples_ms) == 2 * RULES.most_rounds


def test_slow_runs_get_no_more_rounds_than_there_is_time_for() -> None:
    found = noisy(1, 0.2).compare(replace(RULES, seconds=0.07))

    assert not found.narrow
    assert len(found.first.samples_ms) == 2 * RULES.least_rounds


def test_a_fixed_number_of_rounds_is_kept_to() -> None:
    watch = noisy(2, 0.2)

    found = watch.compare(fixed(7))

    assert len(found.first.samples_ms) == len(found.second.samples_ms) == 14


def test_one_slow_run_moves_neither_medians_nor_intervals_and_is_kept() -> None:
    found = listed([2.0] * 19 + [500.0], [2.0] * 20).compare(fixed(10))

    assert (found.first.p50_ms, found.first.low_ms, found.first.high_ms) == pytest.approx((2.0, 2.0, 2.0))
    assert max(found.first.samples_ms) == pytest.approx(500.0)
    assert (found.speedup.value, found.speedup.low) == pytest.approx((1.0, 1.0))


@settings(deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.floats(1e-3, 10), min_size=2 * n, max_size=2 * n)))
def test_the_interval_holds_the_median_and_lies_within_the_samples(ms: list[float]) -> None:
    timing = timing_of(ms)

    assert min(timing.samples_ms) <= timing.low_ms <= timing.p50_ms <= timing.high_ms <= max(timing.samples_ms)
    assert timing.p50_ms == pytest.approx(float(np.median(ms)), rel=1e-6)
    assert timing == timing_of(ms)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    """200 series of 20 lognormal times, whose median is 1 ms. The percentile bootstrap is known to be a bit short."""
    generator = np.random.default_rng(5)

    timings = [timing_of(list(generator.lognormal(0.0, 0.3, 20))) for _ in range(200)]

    covered = sum(timing.low_ms <= 1.0 <= timing.high_ms for timing in timings) / len(timings)
    assert 0.88 <= covered <= 0.99


@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.1])
def test_the_interval_of_the_speedup_holds_the_true_one(sigma: float) -> None:
    """In at least 88 of 100 runs, though it looks at its own interval to decide when to stop."""
    found = [noisy(seed, sigma, ratio=1.3).compare(seed=seed).speedup for seed in range(100)]

    assert sum(each.low <= 1.3 <= each.high for each in found) >= 88


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
