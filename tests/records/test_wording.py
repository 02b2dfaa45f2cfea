"""How a run's numbers are worded."""

from __future__ import annotations

import dataclasses

import pytest

from precision_search.cost.ceiling import Ceiling
from precision_search.judging.trial import Judged, Lengths
from precision_search.records.run_json import WorkloadInfo
from precision_search.records.wording import ceiling_line, judged_text, listed, part_of

WORKLOAD = WorkloadInfo(8, 128, 64)


def line(speedup: float, profile: str, from_batch: int | None) -> str:
    return ceiling_line(Ceiling(speedup, "base", "estimated", profile, 0.876, from_batch), WORKLOAD)


def test_a_ceiling_says_how_much_where_why_and_from_when() -> None:
    place = "at batch 8, 128/64 on T4, estimated; 88% of the time is launches"
    assert line(1.067, "t4", 14) == f"ceiling: at most 1.07x {place}; worth it from batch 14"
    assert line(1.004, "t4", None) == f"ceiling: no gain, at most 1.00x {place}; not worth it at any batch up to 4,096"
    assert " on my-t4 (calibrated 2026-11-23), " in line(1.5, "my-t4 (calibrated 2026-11-23)", 1)


@pytest.mark.parametrize(
    ("part", "whole", "expected"), [(125, 320, "125 of 320"), (0, 320, "0 of 320"), (125, None, "125"), (None, 3, "-")]
)
def test_a_part_is_told_with_the_whole_where_that_is_known(part: int | None, whole: int | None, expected: str) -> None:
    assert part_of(part, whole) == expected


def test_batches_padding_and_lengths_are_said() -> None:
    judged = Judged((1, 8, 32), True, Lengths(2, 40), Lengths(6, 6))

    assert judged_text(judged) == (
        "batches of 1, 8 and 32, the most fragile samples with padding, too; 2 to 40 source and 6 target tokens"
    )
    assert "no more padding than the samples need" in judged_text(dataclasses.replace(judged, padded=False))
    assert "an older version" in judged_text(None)
    assert listed([7]) == "7"
