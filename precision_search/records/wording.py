"""How numbers and shares are worded wherever a run is shown."""

from __future__ import annotations

import math

UNKNOWN = "-"
ABBREVIATED = {"estimated": "est.", "measured": "meas."}
"""Where a latency is from, where there is little room."""
SHOWN_HASH = 16
"""Hexadecimal digits, as many as a model card shows."""


def share(value: float | None) -> str:
    """A share in percent, rounded down: only what is exact reads as 100%."""
    if value is None:
        return UNKNOWN
    return "100%" if value >= 1.0 else f"{math.floor(max(value, 0.0) * 1000 + 1e-9) / 10:.1f}%"


def milliseconds(value: float) -> str:
    """A time in milliseconds, to three digits or a tenth."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def number(value: float | None) -> str:
    """A count as it is, any other number to two digits."""
    if value is None:
        return UNKNOWN
    return str(value) if isinstance(value, int) else f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"
