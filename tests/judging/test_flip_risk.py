"""Flip risk against worlds whose true flip rate is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.errors import InputError
from precision_search.judging.flip_risk import ALL, Floats, TokenMargins, estimate_flip_risk, lattice_step


def world(rng: np.random.Generator, sentences: int, scale: float, smallest: float = 0.0) -> TokenMargins:
    """Sentences whose tokens are alike: hard ones have many small margins, noisy ones large shifts.

    Margins are exponential with a mean of 1 to 4 logits by sentence, shifts normal with a standard deviation of `scale`
    times 0.3 to 3 by sentence. Only sentences without a margin below `smallest` are taken.
    """
    drawn = sentences * (4 if smallest else 1)
    lengths = rng.integers(5, 25, drawn)
    starts = np.cumsum(lengths) - lengths
    margins = rng.exponential(np.repeat(rng.uniform(1.0, 4.0, drawn), lengths))
    shifts = rng.normal(0.0, np.repeat(scale * np.exp(rng.uniform(-1.2, 1.1, drawn)), lengths))
    kept = np.minimum.reduceat(margins, starts) >= smallest
    kept &= np.cumsum(kept) <= sentences
    assert kept.sum() == sentences
    tokens = np.repeat(kept, lengths)
    return TokenMargins(
        margins[tokens], (margins + shifts)[tokens], np.repeat(np.arange(sentences), lengths[kept]), sentences
    )


def rate(margins: TokenMargins) -> float:
    return 1000.0 * float(np.mean(margins.plan <= 0))


def with_plan(margins: TokenMargins, plan: Floats) -> TokenMargins:
    return TokenMargins(margins.reference, plan, margins.sentence, margins.sentences)


@pytest.mark.parametrize("scale", [0.002, 0.02, 0.3])
def test_the_interval_covers_the_rate_on_unseen_sentences(scale: float) -> None:
    rng = np.random.default_rng(7)
    covered, ratios, repetitions = 0, [], 100
    for seed in range(repetitions):
        risk = estimate_flip_risk(
            world(rng, 80, scale), world(rng, 40, scale, smallest=0.02), seed=seed, replicates=200
        )
        seen = rate(world(rng, 1400, scale))
        covered += risk.low <= seen <= risk.high
        ratios.append(risk.value / max(seen, 0.05))
        assert 0.0 <= risk.low <= risk.value <= risk.high <= 1000.0
        # An interval that covers because it says nothing would be no help.
        assert risk.high <= 3.0 * risk.value + 0.5
    assert covered >= 0.85 * repetitions
    assert np.median(ratios) == pytest.approx(1.0, abs=0.15)


def rounded_logits(rng: np.random.Generator, sentences: int, dtype: type[np.floating]) -> TokenMargins:
    """A plan that does nothing but round logits of magnitude 8 to 16."""
    length = 15
    second = rng.uniform(8.0, 12.0, sentences * length)
    first = second + rng.exponential(1.0, second.size)
    plan = first.astype(dtype).astype(np.float64) - second.astype(dtype).astype(np.float64)
    return TokenMargins(first - second, plan, np.repeat(np.arange(sentences), length), sentences)


def test_ties_of_rounded_logits_count_as_flips() -> None:
    rng = np.random.default_rng(0)
    risk = estimate_flip_risk(rounded_logits(rng, 400, np.float16))
    truth = rate(rounded_logits(rng, 100_000, np.float16))
    # Half a step of 2^-7 times a density of 1, nearly all of it ties.
    assert truth == pytest.approx(1000 * 2**-8, rel=0.1)
    assert risk.value == pytest.approx(truth, rel=0.2)
    assert risk.low < truth < risk.high


def test_the_lattice_step_is_the_mean_over_tokens() -> None:
    rng = np.random.default_rng(0)
    coarse, fine = rng.integers(-300, 300, 7000) * 2.0**-7, rng.integers(-300, 300, 3000) * 2.0**-8
    assert lattice_step(np.concatenate([coarse, fine])) == pytest.approx(0.7 * 2**-7 + 0.3 * 2**-8, rel=0.05)
    assert lattice_step(rng.normal(0, 3, 1000).astype(np.float32).astype(np.float64)) < 1e-6
    assert lattice_step(np.zeros(3)) == lattice_step(np.empty(0)) == 0.0


@given(st.integers(0, 2**32 - 1), st.floats(1.1, 30.0))
@settings(max_examples=20, deadline=None)
def test_larger_shifts_are_a_larger_risk(seed: int, factor: float) -> None:
    margins = world(np.random.default_rng(seed), 30, 0.01)
    shift = margins.plan - margins.reference
    small = estimate_flip_risk(margins, replicates=50)
    large = estimate_flip_risk(with_plan(margins, margins.reference + factor * shift), replicates=50)
    assert large.value > small.value
    assert large.high > small.high


def test_shifts_beyond_the_window_meet_the_margins_that_are_there() -> None:
    margins = world(np.random.default_rng(1), 200, 0.0)
    signs = np.where(np.arange(margins.reference.size) % 2, 1.5, -1.5)
    risk = estimate_flip_risk(with_plan(margins, margins.reference + signs))
    assert risk.value == pytest.approx(500.0 * np.mean(margins.reference <= 1.5), rel=0.02)


def test_without_a_shift_the_risk_is_next_to_nothing() -> None:
    margins = world(np.random.default_rng(1), 100, 0.0)
    risk = estimate_flip_risk(margins)
    assert risk.value < 1e-6
    assert risk.low == 0.0
    assert 0.0 < risk.high < 0.2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_margin_that_is_not_finite_is_all_the_risk_there_is(value: float) -> None:
    reference = [np.array([1.0, 2.0], np.float32)]
    broken = TokenMargins.of(reference, {0: np.array([1.0, value], np.float32)})
    sound = TokenMargins.of(reference, {0: reference[0]})
    assert estimate_flip_risk(broken) == ALL
    assert estimate_flip_risk(sound, broken) == ALL
    assert estimate_flip_risk(sound) != ALL


def test_forced_tokens_and_samples_not_screened_are_left_out() -> None:
    reference = [np.array([1.0, np.nan, 2.0], np.float32), np.array([3.0], np.float32)]
    margins = TokenMargins.of(reference, {0: np.array([0.5, np.nan, 2.5], np.float32)})
    np.testing.assert_array_equal(margins.reference, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(margins.plan, [0.5, 2.5, np.nan])
    np.testing.assert_array_equal(margins.sentence, [0, 0, 1])
    assert margins.sentences == 2


def test_the_density_comes_from_unfiltered_sentences_only() -> None:
    rng = np.random.default_rng(3)
    unfiltered = world(rng, 100, 0.01)
    alone = estimate_flip_risk(unfiltered)
    both = estimate_flip_risk(unfiltered, world(rng, 100, 0.01, smallest=0.05))
    assert both.value == pytest.approx(alone.value, rel=0.25)


def test_shifts_come_from_both_sets() -> None:
    rng = np.random.default_rng(3)
    unfiltered, filtered = world(rng, 60, 0.01), world(rng, 60, 0.01)
    shift = filtered.plan - filtered.reference
    calm = estimate_flip_risk(unfiltered, filtered)
    wild = estimate_flip_risk(unfiltered, with_plan(filtered, filtered.reference + 10 * shift))
    assert wild.value > 2 * calm.value


def test_the_same_seed_gives_the_same_interval() -> None:
    margins = world(np.random.default_rng(3), 50, 0.01)
    assert estimate_flip_risk(margins, seed=1) == estimate_flip_risk(margins, seed=1)
    assert estimate_flip_risk(margins, seed=1).high != estimate_flip_risk(margins, seed=2).high
    assert estimate_flip_risk(margins, seed=1).value == estimate_flip_risk(margins, seed=2).value


@pytest.mark.parametrize("sentences", [1, 2, 10])
def test_few_sentences_give_a_wide_interval_and_no_error(sentences: int) -> None:
    rng = np.random.default_rng(5)
    many, few = estimate_flip_risk(world(rng, 300, 0.02)), estimate_flip_risk(world(rng, sentences, 0.02))
    assert few.high / few.value > many.high / many.value


def test_exact_ties_of_the_reference_are_survived() -> None:
    risk = estimate_flip_risk(TokenMargins(np.zeros(40), np.zeros(40), np.arange(40), 40))
    assert 0.0 <= risk.low <= risk.value <= risk.high <= 1000.0


def test_nothing_to_learn_from_is_an_input_error() -> None:
    empty = TokenMargins.of([], {})
    unseen = TokenMargins.of([np.ones(3, np.float32)], {})
    for margins in (empty, unseen):
        with pytest.raises(InputError, match="flip risk cannot be estimated"):
            estimate_flip_risk(margins)
