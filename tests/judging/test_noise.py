"""Noise: the number that tells damage from rounding."""

from __future__ import annotations

import numpy as np
import pytest

from precision_search.judging.noise import DAMAGE_NOISE, is_damaged, noise, rounding_unit, shifts
from tests.search_models import trial

REFERENCE = (np.array([4.0, 8.0, np.nan], np.float32), np.array([12.0, 8.0], np.float32))


def test_a_unit_is_the_roundoff_at_a_typical_margin() -> None:
    assert rounding_unit(REFERENCE, "float16") == 8.0 * 2.0**-11
    assert rounding_unit(REFERENCE, "bfloat16") == 8.0 * 2.0**-8


@pytest.mark.parametrize("margins", [(), (np.array([np.nan], np.float32),), (np.zeros(3, np.float32),)])
def test_a_unit_is_never_zero(margins: tuple[np.ndarray, ...]) -> None:
    assert rounding_unit(margins, "float16") == 2.0**-11


def test_shifts_are_of_judged_tokens_of_screened_samples() -> None:
    plan = {0: np.array([4.5, 7.0, np.nan], np.float32)}
    assert shifts(REFERENCE, plan).tolist() == [0.5, 1.0]
    assert noise(REFERENCE, plan, 0.5) == 2.0


def test_what_is_not_finite_has_no_noise() -> None:
    plan = {1: np.array([np.nan, 8.0], np.float32)}
    assert shifts(REFERENCE, plan).tolist() == [np.inf, 0.0]
    assert noise(REFERENCE, plan, 0.5) is None
    assert noise(REFERENCE, {}, 0.5) is None


def test_one_token_in_a_hundred_counts() -> None:
    reference = (np.ones(100, np.float32),)
    plan = reference[0].copy()
    plan[-1] += 3.0
    assert noise(reference, {0: plan}, 1.0) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("verdict", "size", "damaged"),
    [
        ("stable", 3.0, False),
        ("stable", None, False),
        ("mismatch", DAMAGE_NOISE - 1, False),
        ("mismatch", DAMAGE_NOISE, True),
        ("nonfinite", None, True),
        ("error", None, False),
    ],
)
def test_damage_is_told_from_noise(verdict: str, size: float | None, damaged: bool) -> None:
    assert is_damaged(trial(verdict=verdict, noise=size)) is damaged
