"""Measured latency: two generators on the same synthetic batch, interleaved, so that drift hits both alike.

Order A B B A: whatever warms up, throttles or is taken away by others during a round falls on both sides.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precision_search.model.generation_config import GenerationSettings

WARM_UP_ROUNDS = 2
ROUNDS = 10
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock times of one side, in milliseconds.

    Attributes:
        p50_ms: median.
        low_ms, high_ms: bootstrap 95% interval of the median.
        samples_ms: every time measured after the warm-up, in order.
    """

    p50_ms: float
    low_ms: float
    high_ms: float
    samples_ms: tuple[float, ...]


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


def interleave(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Timing, Timing]:
    """Times two callables against each other; each must return only when its work is done.

    Args:
        first: what is run first and last in each round.
        second: what is run twice in between.
        rounds: rounds that count, after `WARM_UP_ROUNDS` that do not.
        seed: of the bootstrap.
        clock: seconds, monotonic.

    Returns:
        The timing of each, two samples a round.
    """
    times: dict[int, list[float]] = {0: [], 1: []}
    for number in range(WARM_UP_ROUNDS + rounds):
        for side, run in ((0, first), (1, second), (1, second), (0, first)):
            start = clock()
            run()
            if number >= WARM_UP_ROUNDS:
                times[side].append((clock() - start) * 1e3)
    return _summary(times[0], seed), _summary(times[1], seed)


def _summary(samples: list[float], seed: int) -> Timing:
    """Median and its percentile-bootstrap interval (Efron and Tibshirani 1993, chapter 13)."""
    array = np.array(samples)
    drawn = np.random.default_rng(seed).choice(array, (RESAMPLES, len(array)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(drawn, axis=1), [tail, 1 - tail])
    return Timing(float(np.median(array)), float(low), float(high), tuple(samples))
