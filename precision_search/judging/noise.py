"""How far a plan moves margins, in units of rounding: what tells damage from noise.

In: signed margins under a plan and in fp32. Out: one number that rounding keeps small whatever the model and the dtype,
and that an overflow or a zeroed norm makes large.

Rounding shifts logits in proportion to the dtype's unit roundoff and to how large logits are, so shifts are stated in
units of `unit roundoff * median margin of fp32`. Measured on the demo model, 99th percentile over tokens: at most 21
units for undamaged mixtures of fp16 nodes and as much for bfloat16, whose unit is eight times as large, with single
tokens up to 88; from 1,500 on where one node of one layer overflows. A network ten times as deep has about three times
the noise (roundings add up as squares).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from precision_search.judging.trial import Trial
from precision_search.precision.low import UNIT_ROUNDOFF, LowDtype

FloatArray = npt.NDArray[np.float32]


DAMAGE_NOISE = 256.0
"""Noise from which a plan is damaged: three times what rounding did to any token of the demo, a sixth of what its
mildest overflow does."""

TAIL = 0.99
"""The percentile of shifts that counts: damage in one token of a hundred is damage."""


def rounding_unit(margins: Sequence[FloatArray], dtype: LowDtype) -> float:
    """The shift that counts as one: unit roundoff of the dtype times the median margin of fp32, in logits.

    Args:
        margins: fp32 margins by sample, float32 [T], NaN for forced tokens.
        dtype: the low dtype.
    """
    flat = np.concatenate([np.zeros(0, np.float32), *margins])
    typical = float(np.nanmedian(np.abs(flat))) if np.isfinite(flat).any() else 1.0
    return UNIT_ROUNDOFF[dtype] * (typical or 1.0)


def shifts(reference: Sequence[FloatArray], plan: Mapping[int, FloatArray]) -> FloatArray:
    """By how much each token's margin moved, float32 [tokens]; forced tokens are left out, infinity for no number.

    Args:
        reference: fp32 margins by sample, float32 [T].
        plan: margins under the plan of the samples that were looked at.
    """
    moved = [np.zeros(0, np.float32)]
    for sample, margins in plan.items():
        judged = ~np.isnan(reference[sample])
        moved.append(np.abs(margins[judged] - reference[sample][judged]))
    found = np.concatenate(moved)
    return np.where(np.isfinite(found), found, np.float32(np.inf))


def noise(reference: Sequence[FloatArray], plan: Mapping[int, FloatArray], unit: float) -> float | None:
    """The 99th percentile of the shifts in rounding units; None where a margin is not finite or none was looked at."""
    moved = shifts(reference, plan)
    if not moved.size or not np.isfinite(moved).all():
        return None
    return float(np.quantile(moved, TAIL, method="higher")) / unit


def is_damage(is_finite: bool, noise: float | None) -> bool:
    """Whether a plan with that noise is damaged, which is no matter of near-ties."""
    return not is_finite or (noise is not None and noise >= DAMAGE_NOISE)


def is_damaged(trial: Trial) -> bool:
    """Whether the plan is broken beyond rounding noise, so that keeping even less in fp32 is broken too."""
    return is_damage(trial.verdict != "nonfinite", trial.noise)
