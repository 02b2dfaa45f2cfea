"""The ceiling: what lower precision could gain at most, and the batch from which that is worth a search.

In: how much a search could gain at a batch. Out: the smallest batch at which that is enough. What it could gain is for
`judging.ceiling` to say, which knows the graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

WORTH_IT = 1.1
"""The ceiling from which a search is worth its time. No T5 keeps its tokens where all is low that may be, so that what
a search finds lies below the ceiling, for the demo at little more than half of the gain; and an estimate is no
measurement. So it is well above what counts as faster at all (`strategies.pareto.LEAST_SPEEDUP`)."""

MOST_BATCH = 4096
"""Larger batches are not asked about."""

_SECANTS = 8
"""Steps that follow the gain's slope; the gain is all but linear, so that more are seldom needed. Then halves."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What lower precision could gain at most at a workload.

    Attributes:
        speedup: fp32's estimate divided by that of the minimum cut in which only what can never be low is pinned, and
            what the config pins.
        variant: the graph variant whose cut that is.
        source: always an estimate, where latency is measured, too.
        profile: the device profile that it is made with.
        launch_share: the share of fp32's time that goes into launches, 0 to 1; no plan for the same graphs saves any of
            it.
        from_batch: the smallest batch at which the ceiling is at least 1.1 (`WORTH_IT`), with sources and targets as
            long; None where it is at no batch up to 4,096 (`MOST_BATCH`).
    """

    speedup: float
    variant: str
    source: Literal["estimated"]
    profile: str
    launch_share: float
    from_batch: int | None


def first_batch(gain: Callable[[int], float], batch: int) -> int | None:
    """The smallest batch up to `MOST_BATCH` at which the gain is not negative, None if there is none.

    Launches cost the same for one sentence and for a thousand, so that a gain grows with the batch: here it must not
    fall below zero again.

    Args:
        gain: by batch, what could be saved less what must be, in milliseconds. Asked about as few batches as possible,
            about some of them twice.
        batch: where to begin.
    """
    batch = min(batch, MOST_BATCH)
    here = gain(batch)
    low, high = (1, batch) if here >= 0 else (batch, MOST_BATCH)
    below, above = (gain(low), here) if here >= 0 else (here, gain(high))
    if above < 0:
        return None
    return low if below >= 0 else _crossing(gain, (low, below), (high, above))


def _crossing(gain: Callable[[int], float], low: tuple[int, float], high: tuple[int, float]) -> int:
    """Where the gain stops being negative, between a batch where it is and one where it is not.

    By the Illinois method (a secant, whose end that stays counts half), then by halves.
    """
    (low_batch, below), (high_batch, above) = low, high
    stayed, step = "", 0
    while high_batch - low_batch > 1:
        part = below / (below - above) if step < _SECANTS else 0.5
        middle = low_batch + round(part * (high_batch - low_batch))
        middle = min(max(middle, low_batch + 1), high_batch - 1)
        found = gain(middle)
        if found >= 0:
            high_batch, above = middle, found
            below *= 0.5 if stayed == "low" else 1.0
            stayed = "low"
        else:
            low_batch, below = middle, found
            above *= 0.5 if stayed == "high" else 1.0
            stayed = "high"
        step += 1
    return high_batch
