"""Measured times: the sides of a comparison run in turn, on warm caches and clocks, until their ratio is known.

A round runs every side forwards and backwards (A B B A): whatever warms up, throttles or is taken away by others during
a round falls on all sides alike, a steady drift exactly so. Every time is kept, outliers and warm-up included: medians
and their intervals are what stands against them.

What is timed must return only when its work is done. `Generator.generate` does, on a device too: ONNX Runtime waits for
its stream at the end of each run (run option `disable_synchronize_execution_providers`, which we leave at 0), and at
the end the tokens are copied to the host, which cannot happen before they are there.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from precision_search.model.generation_config import GenerationSettings

ROUNDS = 10
RESAMPLES = 1000
CONFIDENCE = 0.95

Clock = Callable[[], float]
Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class TimingRules:
    """When times count, and when there are enough of them.

    Attributes:
        window: rounds that are held against the same number of rounds before them.
        tolerance: the warm-up is over when no side's median moved by more than this share from one window to the next.
            At 2%, a start-up that dies away leaves a fraction of a percent in what follows, which A B B A then shares.
        warm_up_rounds: the warm-up ends after so many rounds, stable or not.
        warm_up_seconds: likewise after so many seconds, once two windows have run.
        least_rounds: rounds that count, at least.
        most_rounds: likewise, at most. In between, their number is doubled while the interval of the ratio is wider
            than `width`: few looks, because an interval that is looked at after every round stops where it is small
            by luck.
        width: width of the ratio's interval, as a share of it, from which on more rounds are not needed. The default
            is what counts as faster, 1%.
        seconds: no more rounds than `least_rounds` where twice the rounds would take longer than this.
    """

    window: int = 2
    tolerance: float = 0.02
    warm_up_rounds: int = 30
    warm_up_seconds: float = 30.0
    least_rounds: int = ROUNDS
    most_rounds: int = 4 * ROUNDS
    width: float = 0.01
    seconds: float = 60.0


RULES = TimingRules()


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its bootstrap 95% interval.

    Attributes:
        value: the median.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Its width as a share of the estimate."""
        return (self.high - self.low) / abs(self.value) if self.value else math.inf


@dataclass(frozen=True, slots=True)
class Rounds:
    """What was timed, in seconds; for each side two times a round, in the order they were taken.

    Attributes:
        warm_up: before it was stable, or could not be waited for any longer.
        times: what counts.
        stable: whether the warm-up ended because times no longer moved.
        narrow: whether it ended because what was asked for is known well enough.
    """

    warm_up: tuple[tuple[float, ...], ...]
    times: tuple[tuple[float, ...], ...]
    stable: bool
    narrow: bool

    def by_round(self, side: int) -> npt.NDArray[np.float64]:
        """Mean of the two times of each round that counts; float64 [rounds], in seconds."""
        means: npt.NDArray[np.float64] = np.array(self.times[side]).reshape(-1, 2).mean(axis=1)
        return means


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock times of one side, in milliseconds.

    Attributes:
        p50_ms: median.
        low_ms, high_ms: bootstrap 95% interval of the median.
        samples_ms: every time measured after the warm-up, in order.
        warm_up_ms: every time before, in order.
    """

    p50_ms: float
    low_ms: float
    high_ms: float
    samples_ms: tuple[float, ...]
    warm_up_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides timed against each other.

    Attributes:
        first, second: the times of each.
        speedup: median over the rounds of the first side's time divided by the second's in the same round, with its
            interval: rounds are drawn, not times, so that what both sides share in a round takes no part.
        stable: whether times had stopped moving before those that count.
        narrow: whether the interval of the speedup is as narrow as it should be.
    """

    first: Timing
    second: Timing
    speedup: Interval
    stable: bool
    narrow: bool


def without_end(generation: GenerationSettings, target_length: int) -> GenerationSettings:
    """Settings under which every row takes exactly `target_length` steps, whatever it says."""
    return dataclasses.replace(
        generation,
        eos_token_ids=(),
        forced_bos_token_id=None,
        forced_eos_token_id=None,
        max_new_tokens=target_length,
    )


def synthetic_batch(batch: int, source_length: int, vocab_size: int, seed: int) -> npt.NDArray[np.int64]:
    """Random token ids, int64 [batch, source_length], without the first few ids (special tokens)."""
    low = min(3, vocab_size - 1)
    return np.random.default_rng(seed).integers(low, vocab_size, (batch, source_length), dtype=np.int64)


def compare_times(
    first: Run, second: Run, *, rules: TimingRules = RULES, seed: int = 0, clock: Clock = time.perf_counter
) -> Comparison:
    """Times two callables against each other; each must return only when its work is done.

    Args:
        first: what is run first and last in each round.
        second: what is run twice in between.
        rules: when times count, and how many.
        seed: of the bootstrap.
        clock: seconds, monotonic.
    """

    def ratio(rounds: Rounds) -> Interval:
        return median_interval(rounds.by_round(0) / rounds.by_round(1), seed)

    found = run_rounds((first, second), rules, clock, lambda rounds: ratio(rounds).width <= rules.width)
    sides = [_timing(*pair, seed) for pair in zip(found.times, found.warm_up, strict=True)]
    return Comparison(sides[0], sides[1], ratio(found), found.stable, found.narrow)


def run_rounds(sides: Sequence[Run], rules: TimingRules, clock: Clock, is_narrow: Callable[[Rounds], bool]) -> Rounds:
    """Runs all sides forwards and backwards, round by round: the warm-up, then what counts.

    Args:
        sides: callables that return only when their work is done.
        rules: when the warm-up ends, and how many rounds count.
        clock: seconds, monotonic.
        is_narrow: whether the rounds so far say what is asked with enough certainty.
    """
    began = clock()
    warm_up: list[tuple[float, ...]] = []
    stable = False
    while not stable and not _is_long(len(warm_up), clock() - began, rules):
        warm_up.append(_round(sides, clock))
        stable = _is_stable(warm_up, len(sides), rules)
    began = clock()
    rounds: list[tuple[float, ...]] = []
    wanted = rules.least_rounds
    while True:
        rounds += [_round(sides, clock) for _ in range(wanted - len(rounds))]
        found = Rounds(_by_side(warm_up, len(sides)), _by_side(rounds, len(sides)), stable, narrow=False)
        if is_narrow(found):
            return dataclasses.replace(found, narrow=True)
        if wanted >= rules.most_rounds or 2 * (clock() - began) > rules.seconds:
            return found
        wanted = min(2 * wanted, rules.most_rounds)


def median_interval(values: Sequence[float] | npt.NDArray[np.float64], seed: int) -> Interval:
    """Median and its percentile-bootstrap interval (Efron and Tibshirani 1993, chapter 13)."""
    array = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).choice(array, (RESAMPLES, len(array)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(drawn, axis=1), [tail, 1 - tail])
    return Interval(float(np.median(array)), float(low), float(high))


def _round(sides: Sequence[Run], clock: Clock) -> tuple[float, ...]:
    """The times of one round in the order they were taken: all sides, then all sides backwards."""
    times = []
    for run in (*sides, *reversed(sides)):
        start = clock()
        run()
        times.append(clock() - start)
    return tuple(times)


def _by_side(rounds: Sequence[tuple[float, ...]], count: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(t for times in rounds for t in (times[side], times[-1 - side])) for side in range(count))


def _is_stable(rounds: Sequence[tuple[float, ...]], count: int, rules: TimingRules) -> bool:
    if len(rounds) < 2 * rules.window:
        return False
    before, last = (
        _by_side(part, count) for part in (rounds[-2 * rules.window : -rules.window], rounds[-rules.window :])
    )
    pairs = [(median(old), median(new)) for old, new in zip(before, last, strict=True)]
    return all(abs(new - old) <= rules.tolerance * old for old, new in pairs)


def _is_long(rounds: int, seconds: float, rules: TimingRules) -> bool:
    return rounds >= rules.warm_up_rounds or (rounds >= 2 * rules.window and seconds > rules.warm_up_seconds)


def _timing(times: Sequence[float], warm_up: Sequence[float], seed: int) -> Timing:
    milliseconds = [1e3 * second for second in times]
    found = median_interval(milliseconds, seed)
    early = tuple(1e3 * second for second in warm_up)
    return Timing(found.value, found.low, found.high, tuple(milliseconds), early)
