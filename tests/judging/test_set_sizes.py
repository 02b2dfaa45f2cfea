"""What is said of sample sets that are too small, or not apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from precision_search.config import DataSection, Requirement
from precision_search.judging.sample_sets import SetName
from precision_search.judging.set_sizes import set_warnings
from precision_search.model.samples import Sample, SampleSet


def said(sizes: dict[SetName, list[str]], share: float = 0.0, **prefixes: str) -> list[str]:
    texts = {
        name: SampleSet(
            name, Path(f"{name}.txt"), tuple(Sample(text, None, line) for line, text in enumerate(lines, 1)), "", ()
        )
        for name, lines in sizes.items()
    }
    sections = {name: DataSection(Path(f"{name}.txt"), prefix=prefixes.get(name, "")) for name in sizes}
    return list(set_warnings(texts, sections, Requirement(share)))


def lines(count: int, word: str = "a") -> list[str]:
    return [f"{word} {number}" for number in range(count)]


def test_sets_that_can_tell_are_passed_over() -> None:
    sets: dict[SetName, list[str]] = {"calibration": lines(20), "validation": lines(100, "b"), "test": lines(20, "c")}
    assert said(sets, 0.99) == []


@pytest.mark.parametrize(("count", "told"), [(1, "1 sample, which says little"), (19, "19 samples, which say little")])
def test_a_small_set_is_named(count: int, told: str) -> None:
    (warning,) = said({"calibration": lines(count)})
    assert warning == f"calibration.txt has {told} about others; give 20 or more"


@pytest.mark.parametrize(
    ("share", "count", "enough"), [(0.99, 60, 100), (0.99, 99, 100), (0.9, 9, 10), (0.98, 49, 50), (0.999, 100, 1000)]
)
def test_a_share_that_lets_a_plan_miss_nothing_is_said(share: float, count: int, enough: int) -> None:
    found = said({"calibration": lines(20), "validation": lines(count, "b")}, share)
    assert any(f"means all of them: from {enough} samples on" in warning for warning in found)
    assert not any("means all" in w for w in said({"calibration": [], "validation": lines(enough, "b")}, share))


def test_a_share_of_all_means_all_and_needs_no_word() -> None:
    assert said({"calibration": lines(20), "validation": lines(20, "b")}, 1.0) == []


def test_samples_in_two_sets_are_counted_and_the_first_is_named() -> None:
    sets: dict[SetName, list[str]] = {
        "calibration": lines(20),
        "validation": [*lines(20, "b"), "a 3", "a 4"],
        "test": lines(20, "b"),
    }
    first, second = said(sets)
    assert first.startswith("2 of 22 validation samples are in the calibration set, too, the first in line 21 of")
    assert second.startswith("20 of 20 test samples are in the validation set, too, the first in line 1 of test.txt")


def test_another_prefix_makes_another_sample() -> None:
    assert said({"calibration": lines(20), "test": lines(20)}, test="en: ") == []
