"""Predicted flip risks beside counted ones: counting, coverage, and other samples drawn to predict from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from precision_search.judging.flip_risk import TokenMargins, estimate_flip_risk
from precision_search.judging.trial import FlipRisk

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlanMargins:
    """What a plan does to the margins of three sample sets."""

    calibration: TokenMargins
    validation: TokenMargins
    unlabelled: TokenMargins


@dataclass(frozen=True, slots=True)
class Outcome:
    """A predicted risk and what was counted, both in flips per 1,000 tokens."""

    predicted: FlipRisk
    counted: float

    @property
    def inside(self) -> bool:
        """Whether the interval covers what was counted."""
        return self.predicted.low <= self.counted <= self.predicted.high


@dataclass(frozen=True, slots=True)
class Summary:
    """How a prediction does over many plans.

    Attributes:
        plans: how many.
        inside: how many intervals cover the count.
        below: how many intervals lie wholly below it: the risk was taken too lightly.
        width: median of the interval's upper end over the predicted value.
        ratio: median of predicted over counted, among plans that flip anything.
        rank: rank correlation of predicted and counted, NaN where all are equal.
    """

    plans: int
    inside: int
    below: int
    width: float
    ratio: float
    rank: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Summary:
        """Sums up at least one outcome."""
        ratios = [each.predicted.value / each.counted for each in outcomes if each.counted > 0]
        return cls(
            plans=len(outcomes),
            inside=sum(each.inside for each in outcomes),
            below=sum(each.predicted.high < each.counted for each in outcomes),
            width=median(each.predicted.high / max(each.predicted.value, 1e-9) for each in outcomes),
            ratio=median(ratios) if ratios else float("nan"),
            rank=rank_correlation([o.predicted.value for o in outcomes], [o.counted for o in outcomes]),
        )


def count_flips(margins: TokenMargins) -> float:
    """Tokens of 1,000 that do not win under the plan: ties and values that are not finite count as lost.

    Raises:
        ValueError: the plan was not screened on every token.
    """
    if np.isnan(margins.plan).any():
        raise ValueError("a plan's flips can be counted only where it was screened to the end")
    return 1000.0 * float(np.mean(margins.plan <= 0.0))


def is_beyond_rounding(sets: Sequence[TokenMargins], limit: float) -> bool:
    """Whether a plan does more than round: a margin is not finite, or the median shift exceeds `limit` (logits)."""
    shifts = np.concatenate([np.abs(part.plan - part.reference) for part in sets])
    return bool(not np.isfinite(shifts).all() or np.median(shifts) > limit)


def predict(margins: PlanMargins, seed: int) -> Outcome:
    """The risk as a search estimates it, beside the count."""
    predicted = estimate_flip_risk(margins.validation, margins.calibration, seed=seed)
    return Outcome(predicted, count_flips(margins.unlabelled))


def draw_sets(plans: Sequence[PlanMargins], seed: int) -> list[PlanMargins]:
    """The same plans as if other sentences had been calibration and validation.

    Validation is drawn from the unlabelled sentences, as many as it has. Calibration is drawn from the rest, among
    those with no margin below the smallest of the real one, which was chosen so. What is left stays unlabelled.
    """
    first = plans[0]
    smallest = smallest_margins(first.unlabelled)
    sure = smallest_margins(first.calibration).min()
    order = np.random.default_rng(seed).permutation(first.unlabelled.sentences)
    validation, rest = order[: first.validation.sentences], order[first.validation.sentences :]
    calibration = rest[smallest[rest] >= sure][: first.calibration.sentences]
    left = np.setdiff1d(rest, calibration)
    return [
        PlanMargins(*(take(plan.unlabelled, chosen) for chosen in (calibration, validation, left))) for plan in plans
    ]


def smallest_margins(margins: TokenMargins) -> Floats:
    """The smallest fp32 margin of each sentence, float64 [sentences]; infinite for one without tokens."""
    smallest = np.full(margins.sentences, np.inf)
    np.minimum.at(smallest, margins.sentence, margins.reference)
    return smallest


def take(margins: TokenMargins, sentences: Ints) -> TokenMargins:
    """The margins of some sentences, numbered anew in the order given."""
    number = np.full(margins.sentences, -1)
    number[sentences] = np.arange(sentences.size)
    mine = number[margins.sentence]
    kept = np.flatnonzero(mine >= 0)
    kept = kept[np.argsort(mine[kept], kind="stable")]
    return TokenMargins(margins.reference[kept], margins.plan[kept], mine[kept], sentences.size)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; NaN where one side is all equal."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (one, other)]
    if any(np.ptp(each) == 0.0 for each in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Floats) -> Floats:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(sizes) - (sizes - 1) / 2)[group])
