"""Proves that a split is a partition, that the seed alone decides it, and that the default share is what it says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.config import DataSection, Requirement
from precision_search.errors import InputError
from precision_search.judging.set_sizes import set_warnings
from precision_search.model.sample_split import SHARES, largest_share, split_samples
from precision_search.model.samples import Sample, SampleSet, sample_set

NAMES = tuple(SHARES)


def of(*texts: str) -> SampleSet:
    return sample_set("data", Path("data.txt"), tuple(Sample(text, None, n) for n, text in enumerate(texts, start=1)))


@given(texts=st.lists(st.text(min_size=1, max_size=3), min_size=3), seed=st.integers(0, 9))
def test_a_split_is_a_partition_of_the_different_sentences(texts: list[str], seed: int) -> None:
    if len(set(texts)) < 3:
        with pytest.raises(InputError, match="different sentence"):
            split_samples(of(*texts), seed, NAMES)
        return
    sets = split_samples(of(*texts), seed, NAMES)

    together = [sample.text for found in sets.values() for sample in found.samples]
    assert sorted(together) == sorted(set(texts))
    for found in sets.values():
        lines = [sample.line for sample in found.samples]
        assert lines and lines == sorted(lines)
        assert all(texts.index(sample.text) == sample.line - 1 for sample in found.samples)


@pytest.mark.parametrize(("count", "sizes"), [(3, (1, 1, 1)), (10, (4, 3, 3)), (60, (24, 18, 18)), (101, (40, 31, 30))])
def test_sizes_are_40_30_30(count: int, sizes: tuple[int, ...]) -> None:
    sets = split_samples(of(*map(str, range(count))), 0, NAMES)
    assert tuple(len(sets[name].samples) for name in NAMES) == sizes


def test_what_is_not_given_shares_the_rest() -> None:
    sets = split_samples(of(*map(str, range(70))), 0, ["calibration", "test"])
    assert {name: len(found.samples) for name, found in sets.items()} == {"calibration": 40, "test": 30}


def test_the_seed_decides_and_the_order_does_not() -> None:
    texts = [str(number) for number in range(30)]

    def calibration(seed: int, given: list[str]) -> set[str]:
        return {sample.text for sample in split_samples(of(*given), seed, NAMES)["calibration"].samples}

    assert calibration(0, texts) == calibration(0, texts[::-1])
    assert calibration(0, texts) != calibration(1, texts)


@given(count=st.integers(2, 100_000))
def test_the_largest_share_lets_one_sample_differ_and_not_two(count: int) -> None:
    share = largest_share(count)

    assert math.ceil(share * count - 1e-9) == count - 1
    assert len(f"{share:.6g}") <= 8


@pytest.mark.parametrize("count", [18, 30, 60, 100, 300, 1000])
def test_the_largest_share_is_not_warned_of(count: int) -> None:
    """The run that was made of it is not told that its validation set is too small for it."""
    texts = {"validation": of(*map(str, range(count)))}
    sections = {"validation": DataSection(Path("data.txt"))}
    warnings = set_warnings(texts, sections, Requirement(largest_share(count)))  # type: ignore[arg-type]

    assert not [each for each in warnings if "min_exact_match" in each]


def test_a_single_sample_must_be_kept() -> None:
    assert largest_share(1) == 1.0
