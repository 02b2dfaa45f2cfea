"""Flip risk: how many greedy tokens in 1,000 unseen ones a plan would change by rounding noise alone.

In: the signed margin of every token in fp32 and under the plan, by sentence. Out: the expected number, with a 90%
interval.

A token flips if its margin m becomes m + s <= 0. Few margins are that small, so counting flips on a hundred sentences
says little. But all tokens show how large a shift s the plan causes, and the reference shows how dense margins are near
zero. With F(t) = P(m <= t), and s of near-ties taken as independent of m,

    risk = 1000 * E[F(max(0, -s))]

Three facts make that work on real models (each measured on the demo model):

- At a near-tie which token is the reference's is chance, so s and -s are equally likely there: both are used.
- Low-precision logits put the plan's margins on a lattice, where a whole step's worth of near-ties lands on exactly 0,
  and a tie counts as a flip. A lattice value v therefore stands for the interval (v - step, v]: the shift is spread by
  it. Without this the risk of fp16 logits comes out at a third of the truth.
- Tokens of a sentence are alike (a model that repeats itself meets the same near-tie again and again): sentences are
  what the interval is bootstrapped over, not tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precision_search.errors import InputError
from precision_search.judging.trial import FlipRisk

Margins = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ALL = FlipRisk(1000.0, 1000.0, 1000.0)
"""The risk of a plan that gives a value that is not finite."""

WINDOW_SENTENCES = 25
"""The density of margins near zero is taken from a window that this many sentences reach into: a trade between few
sentences (34% standard error with 10 of them) and a wide window (18% too low with 80, because margins are densest at
zero). Both figures are for 100 sentences drawn from the 2,000 unlabelled ones of the demo."""

NEAR_SHARE = 0.25
"""Shifts are taken from tokens whose margin is among this share of the smallest: those of confident tokens are larger,
by a quarter on the demo model."""

SPREAD = (np.arange(4) + 0.5) / 4
"""Where in its lattice cell a margin may have been, in steps."""

LEVELS = 48
HORIZON = 20_000
"""Tokens in which the interval expects the flips to be counted."""

DISPERSION = 2.0
"""Variance of a count of flips over its mean: flips come in clusters, in sentences that repeat themselves."""

Z90 = 1.6449


@dataclass(frozen=True, slots=True)
class TokenMargins:
    """The margins of a sample set, one entry a token.

    Attributes:
        reference: signed margins in fp32 (logits), float64 [T].
        plan: those under the plan, float64 [T]; NaN where the plan's were not computed.
        sentence: the sentence each token belongs to, int64 [T], from 0.
        sentences: how many sentences there are.
    """

    reference: Floats
    plan: Floats
    sentence: Ints
    sentences: int

    @classmethod
    def of(cls, reference: Sequence[Margins], plan: Mapping[int, Margins]) -> TokenMargins:
        """Joins margins by sample: `reference` for every sample, `plan` for those that were screened.

        Tokens whose reference margin is NaN (forced ones) are left out. A plan's margin that is not finite at any other
        token becomes minus infinity.
        """
        joined = []
        for number, margins in enumerate(reference):
            judged = ~np.isnan(margins)
            mine = plan.get(number)
            after = np.full(judged.sum(), np.nan) if mine is None else mine[judged].astype(np.float64)
            if mine is not None:
                after[~np.isfinite(after)] = -np.inf
            joined.append((margins[judged].astype(np.float64), after, np.full(judged.sum(), number)))
        if not joined:
            return cls(np.empty(0), np.empty(0), np.empty(0, np.int64), 0)
        before, after, sentence = (np.concatenate(parts) for parts in zip(*joined, strict=True))
        return cls(before, after, sentence.astype(np.int64), len(reference))


def estimate_flip_risk(
    unfiltered: TokenMargins,
    filtered: TokenMargins | None = None,
    *,
    seed: int = 0,
    replicates: int = 1000,
) -> FlipRisk:
    """Expected flips in 1,000 unseen tokens, with an interval for what 20,000 unseen tokens would show.

    Args:
        unfiltered: margins on sentences that were not chosen by margin (the validation set).
        filtered: margins on others (the calibration set); they tell about shifts only.
        seed: of the bootstrap; equal input and seed give equal output.
        replicates: bootstrap samples.

    Raises:
        InputError: there is no token to learn from.
    """
    sets = [unfiltered] if filtered is None else [unfiltered, filtered]
    if any(np.isneginf(part.plan).any() for part in sets):
        return ALL
    if unfiltered.reference.size == 0 or all(np.isnan(part.plan).all() for part in sets):
        raise InputError(
            "flip risk cannot be estimated",
            why="no sentence has a token with a margin",
            fix="give sentences for which fp32 chooses at least one token",
        )
    window = _Window.of(unfiltered)
    shifts = _near_shifts(sets)
    flips = _pair_flips(unfiltered, window, shifts)
    tokens = np.bincount(unfiltered.sentence, minlength=unfiltered.sentences).astype(np.float64)
    value = 1000.0 * flips.sum() / (tokens.sum() * shifts.per_sentence.sum())
    spread = _bootstrap_error(flips, tokens, shifts.per_sentence, np.random.default_rng(seed), replicates)
    # A density seen in k sentences is known no better than to 1/sqrt(k), however alike the replicates are.
    relative = max(spread, window.sentences**-0.5)
    return _interval(float(value), relative, window.sentences)


@dataclass(frozen=True, slots=True)
class _Window:
    """The neighbourhood of zero where margins are taken as equally dense.

    Attributes:
        width: in logits.
        counts: margins within it, by sentence, float64 [sentences].
        sentences: how many sentences have one.
    """

    width: float
    counts: Floats
    sentences: int

    @classmethod
    def of(cls, margins: TokenMargins) -> _Window:
        smallest = np.full(margins.sentences, np.inf)
        np.minimum.at(smallest, margins.sentence, margins.reference)
        smallest = np.sort(smallest[np.isfinite(smallest)])
        # A small set must not stretch the window over margins of all sizes.
        wanted = min(WINDOW_SENTENCES, math.ceil(0.3 * smallest.size))
        width = max(float(smallest[wanted - 1]), float(np.finfo(np.float32).tiny))
        counts = _count(margins, width)
        return cls(width, counts, int(np.count_nonzero(counts)))


@dataclass(frozen=True, slots=True)
class _Shifts:
    """By how much margins fall, in all ways that weigh the same.

    Attributes:
        losses: max(0, -s) with both signs of s, spread over the lattice step, float64 [J, 2 * len(SPREAD)].
        sentence: of each of the J tokens, int64 [J], numbered on from set to set.
        per_sentence: tokens by sentence, float64 [S].
    """

    losses: Floats
    sentence: Ints
    per_sentence: Floats


def _near_shifts(sets: Sequence[TokenMargins]) -> _Shifts:
    limit = float(np.quantile(np.concatenate([part.reference[~np.isnan(part.plan)] for part in sets]), NEAR_SHARE))
    plans, shifts, sentences, first = [], [], [], 0
    for part in sets:
        near = (part.reference <= limit) & ~np.isnan(part.plan)
        plans.append(part.plan[near])
        shifts.append(part.plan[near] - part.reference[near])
        sentences.append(part.sentence[near] + first)
        first += part.sentences
    shift, sentence = np.concatenate(shifts), np.concatenate(sentences)
    spread = SPREAD * lattice_step(np.concatenate(plans))
    losses = np.maximum(0.0, np.concatenate([shift[:, None] + spread, spread - shift[:, None]], axis=1))
    return _Shifts(losses, sentence, np.bincount(sentence, minlength=first).astype(np.float64))


def lattice_step(margins: Floats) -> float:
    """The mean step of the lattice that a plan's margins (float64 [T], from float32) lie on.

    Logits in fp16 or bf16 are multiples of a power of two, which depends on their size, and so are their differences.
    Half of all multiples of a step are odd, a quarter twice an odd number, and so on: if a share w(k) of tokens has the
    step 2^k, the share u(k) whose margin is an odd multiple of 2^k is w(k)/2 + w(k-1)/4 + ..., thus
    w(k) = 2 u(k) - u(k-1). Summed from the finest step up until all tokens are accounted for. (For fp32 logits this
    gives the negligible step of fp32.)
    """
    mantissa, exponent = np.frexp(np.abs(margins[margins != 0.0]))
    digits = (mantissa * 2.0**53).astype(np.int64)
    powers = np.log2((digits & -digits).astype(np.float64)).astype(np.int64) + exponent - 53
    step, finer, left = 0.0, 0.0, 1.0
    for power in range(powers.min(initial=0), powers.max(initial=-1) + 1):
        share = float(np.mean(powers == power))
        with_step = min(max(0.0, 2 * share - finer), left)
        step += with_step * 2.0**power
        finer, left = share, left - with_step
    return step


def _count(margins: TokenMargins, limit: float) -> Floats:
    inside = margins.sentence[margins.reference <= limit]
    return np.bincount(inside, minlength=margins.sentences).astype(np.float64)


def _pair_flips(margins: TokenMargins, window: _Window, shifts: _Shifts) -> Floats:
    """Expected flips if every margin of sentence i met every shift of sentence k, float64 [i, k].

    Within the window the number of margins below a loss is proportional to it, beyond they are counted, on `LEVELS`
    levels of loss.
    """
    losses, columns = shifts.losses, shifts.per_sentence.size
    weight = 1.0 / losses.shape[1]
    within = np.where(losses <= window.width, losses, 0.0).sum(axis=1) * weight
    flips = np.outer(window.counts / window.width, np.bincount(shifts.sentence, within, minlength=columns))
    beyond = losses > window.width
    if beyond.any():
        levels = np.unique(np.quantile(losses[beyond], np.linspace(0.0, 1.0, LEVELS)))
        level = np.minimum(np.searchsorted(levels, losses[beyond]), levels.size - 1)
        column = np.broadcast_to(shifts.sentence[:, None], losses.shape)[beyond]
        met = np.bincount(level * columns + column, minlength=levels.size * columns).reshape(levels.size, columns)
        flips += np.stack([_count(margins, limit) for limit in levels], axis=1) @ (met * weight)
    return flips


def _bootstrap_error(
    flips: Floats, tokens: Floats, shifts: Floats, generator: np.random.Generator, replicates: int
) -> float:
    """Relative standard error of the risk over sentences drawn anew; unfiltered ones bring margins and shifts along."""
    unfiltered = tokens.size
    rows = generator.multinomial(unfiltered, np.full(unfiltered, 1.0 / unfiltered), replicates).astype(np.float64)
    columns = rows
    if others := shifts.size - unfiltered:
        drawn = generator.multinomial(others, np.full(others, 1.0 / others), replicates)
        columns = np.concatenate([rows, drawn], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        risks = ((rows @ flips) * columns).sum(axis=1) / ((rows @ tokens) * (columns @ shifts))
    # A replicate may have drawn sentences without tokens only.
    risks = risks[np.isfinite(risks)]
    mean = float(risks.mean()) if risks.size else 0.0
    return float(risks.std()) / mean if mean > 0.0 else 0.0


def _interval(value: float, relative: float, sentences: int) -> FlipRisk:
    """A 90% interval for the rate that `HORIZON` unseen tokens show: that of the rate, and the chance of the count.

    On the scale of square roots a count's standard error does not depend on the rate (it is a half, in counts), so both
    parts add up as squares. The quantile is Student's with as many degrees of freedom as there are sentences in the
    window less one, by its expansion in 1/df (Abramowitz and Stegun 26.7.5).
    """
    quantile = Z90 + (Z90**3 + Z90) / (4 * max(sentences - 1, 1))
    root = math.sqrt(value)
    error = math.hypot(root * relative / 2, math.sqrt(DISPERSION * 1000.0 / HORIZON) / 2)
    low, high = max(0.0, root - quantile * error) ** 2, (root + quantile * error) ** 2
    return FlipRisk(min(value, 1000.0), min(low, 1000.0), min(high, 1000.0))
