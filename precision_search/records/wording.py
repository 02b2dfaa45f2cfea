"""How numbers and shares are worded wherever a run is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precision_search.judging.trial import Judged, Lengths

UNKNOWN = "-"
ABBREVIATED = {"estimated": "est.", "measured": "meas."}
"""Where a latency is from, where there is little room."""
SHOWN_HASH = 16
"""Hexadecimal digits, as many as a model card shows."""


def share(value: float | None) -> str:
    """A share in percent, rounded down: only what is exact reads as 100%."""
    if value is None:
        return UNKNOWN
    return "100%" if value >= 1.0 else f"{math.floor(value * 1000 + 1e-9) / 10:.1f}%"


def milliseconds(value: float) -> str:
    """A time in milliseconds, to three digits or a tenth."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def number(value: float | None) -> str:
    """A count as it is, any other number to two digits."""
    if value is None:
        return UNKNOWN
    return str(value) if isinstance(value, int) else f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def listed(numbers: Sequence[int]) -> str:
    """Numbers as people list them: `1, 8 and 32`."""
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def judged_text(judged: Judged | None) -> str:
    """The batches and lengths that a plan was judged with; None is an older version's."""
    if judged is None:
        return "with no other batch size, and not with padding of its own (an older version judged it)"
    padded = "with padding, too" if judged.padded else "with no more padding than the samples need"
    return (
        f"batches of {listed(judged.batch_sizes)}, the most fragile samples {padded}; "
        f"{_lengths(judged.source_lengths)} source and {_lengths(judged.target_lengths)} target tokens"
    )


def _lengths(lengths: Lengths) -> str:
    return str(lengths.min) if lengths.min == lengths.max else f"{lengths.min} to {lengths.max}"
