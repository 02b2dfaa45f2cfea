"""How numbers and shares are worded wherever a run is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from precision_search.cost.ceiling import MOST_BATCH
from precision_search.device.profile import available_profiles
from precision_search.judging.trial import Judged, Lengths

if TYPE_CHECKING:
    from precision_search.cost.ceiling import Ceiling
    from precision_search.cost.estimate import Workload
    from precision_search.records.run_json import WorkloadInfo

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


def part_of(part: int | None, whole: int | None) -> str:
    """A count, of all there are where that is known: `125 of 320`."""
    if part is None:
        return UNKNOWN
    return str(part) if whole is None else f"{part} of {whole}"


def ceiling_line(ceiling: Ceiling, workload: Workload | WorkloadInfo) -> str:
    """What could be gained at most, as a line of its own."""
    return f"ceiling: {ceiling_text(ceiling, workload)}"


def ceiling_text(ceiling: Ceiling, workload: Workload | WorkloadInfo) -> str:
    """What could be gained at most at a workload, how much of the time no plan saves, and where it is worth it."""
    gain = f"at most {ceiling.speedup:.2f}x"
    most = gain if round(ceiling.speedup, 2) > 1.0 else f"no gain, {gain}"
    launches = f"{ceiling.launch_share:.0%} of the time is launches"
    return f"{most} {_place(ceiling, workload)}; {launches}; {_worth_it(ceiling)}"


def nothing_faster(ceiling: Ceiling, workload: Workload | WorkloadInfo) -> str:
    """The same, where no plan is faster than fp32."""
    most = f"at most {ceiling.speedup:.2f}x could be gained {_place(ceiling, workload)}"
    return f"nothing is faster than fp32: {most}; {_worth_it(ceiling)}"


def _place(ceiling: Ceiling, workload: Workload | WorkloadInfo) -> str:
    # Built-in profiles are named as their devices are, but for the case.
    device = ceiling.profile.upper() if ceiling.profile in available_profiles() else ceiling.profile
    lengths = f"{workload.source_length}/{workload.target_length}"
    return f"at batch {workload.batch}, {lengths} on {device}, {ceiling.source}"


def _worth_it(ceiling: Ceiling) -> str:
    if ceiling.from_batch is None:
        return f"not worth it at any batch up to {MOST_BATCH:,}"
    return f"worth it from batch {ceiling.from_batch}"
