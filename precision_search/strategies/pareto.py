"""The choice among judged plans: the Pareto front of latency and flip risk, and the winner.

In: trials. Out: which of them are on the front, which one is chosen, and the reason in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from precision_search.config import Requirement, percent
from precision_search.judging.trial import Trial

LEAST_SPEEDUP = 1.01
"""Speedup from which a plan counts as faster than fp32: less than a percent is within what neither a measurement nor an
estimate can tell, and not worth a flipped token."""

ALIKE = 1.02
"""Plans whose latencies differ by up to this factor are as good as equally fast: flip risk decides between them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen plan.

    Attributes:
        trial: the winner; fp32 itself where no other plan is stable; None where not even fp32 was judged.
        reason: why this one, one sentence.
        faster: whether it is a plan other than fp32 and faster than fp32; if not, fp32 is what gets published.
        requirements_met: whether a plan other than fp32 keeps the required share of the validation samples; true where
            nothing is required.
        only_fp32: whether no other plan is stable, so that none could have kept it.
    """

    trial: Trial | None
    reason: str
    faster: bool
    requirements_met: bool = True
    only_fp32: bool = False

    @property
    def why_fp32(self) -> str:
        """Why fp32 is published, as the end of a line; empty where it is not."""
        if self.faster:
            return ""
        if self.only_fp32:
            return f" (fp32: {self.reason})"
        missed = not self.requirements_met and self.trial is not None and self.trial.is_fp32
        return " (fp32: no plan keeps what is required)" if missed else " (fp32: nothing is faster)"


def front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Indices of the points that no other point dominates, in the order given; both coordinates are minimised.

    A point dominates another if it is nowhere larger and somewhere smaller, so equal points stay together. Infinity is
    a coordinate like any other.
    """
    kept: list[int] = []
    least = math.inf
    best = (math.inf, math.inf)
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not kept or points[index][1] < least or points[index] == best:
            kept.append(index)
            best = points[index]
            least = best[1]
    return tuple(sorted(kept))


def pareto_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The stable trials on the front of latency and the upper end of flip risk, fastest first.

    An unknown latency or flip risk counts as infinite.
    """
    stable = [trial for trial in trials if trial.verdict == "stable"]
    chosen = [stable[index] for index in front([(_latency(t), _risk(t)) for t in stable])]
    return tuple(sorted(chosen, key=_by_speed))


def is_acceptable(trial: Trial, min_exact_match: float) -> bool:
    """Whether a plan may win: stable, and at least that share of the validation samples kept, if there are any."""
    kept = trial.validation_match is None or trial.validation_match >= min_exact_match
    return trial.verdict == "stable" and kept


def is_faster(trial: Trial) -> bool:
    """Whether a plan is known to be faster than fp32: by `LEAST_SPEEDUP`, and its interval, if measured, is above 1."""
    found = trial.latency
    if found is None or found.speedup < LEAST_SPEEDUP:
        return False
    return found.speedup_low is None or found.speedup_low > 1.0


def choose_winner(trials: Sequence[Trial], requirement: Requirement) -> Choice:
    """Chooses the plan to publish.

    That is, of the stable plans other than fp32 that keep the required share of the validation samples, or have no
    validation result, the one that `pick` takes. Where no plan keeps the share, the requirement says what is chosen:
    fp32, or the stable plan with the least flip risk.
    """
    stable = [trial for trial in trials if trial.verdict == "stable"]
    candidates = [trial for trial in stable if not trial.is_fp32]
    fp32 = next((trial for trial in stable if trial.is_fp32), None)
    nothing_required = requirement.share == 0.0
    if not candidates:
        others = any(not trial.is_fp32 for trial in trials)
        reason = "no plan other than fp32 is stable" if others else "no plan other than fp32 was judged"
        return Choice(fp32, reason, faster=False, requirements_met=nothing_required, only_fp32=True)
    good = [trial for trial in candidates if is_acceptable(trial, requirement.share)]
    if not good:
        return _on_miss(candidates, fp32, requirement)
    trial, fastest = pick(good), _fastest(good)
    kept = (
        "stable plan"
        if trial.validation_match is None
        else f"stable plan that keeps at least {percent(requirement.share)} of the validation samples"
    )
    reason = f"the fastest {kept}"
    if trial != fastest:
        reason = f"the one with the least flip risk within {ALIKE - 1:.0%} of {reason}"
    if fastest != min(good, key=_by_speed):
        reason += ", of those known to be faster than fp32"
    return _if_faster(trial, reason, requirements_met=True)


def fastest_to_choose(trials: Sequence[Trial], requirement: Requirement) -> Trial | None:
    """The fastest of the plans that may win and are known to be faster than fp32, None if there is none.

    It never becomes slower while plans are judged. What `choose_winner` takes may, by at most `ALIKE`, when a plan with
    less flip risk comes up.
    """
    good = [t for t in trials if not t.is_fp32 and is_acceptable(t, requirement.share) and is_faster(t)]
    return _fastest(good) if good else None


def _on_miss(candidates: Sequence[Trial], fp32: Trial | None, requirement: Requirement) -> Choice:
    """The choice where stable plans keep too few of the validation samples."""
    missed = f"no plan keeps {percent(requirement.share)} of the validation samples"
    if requirement.on_miss == "calmest":
        trial = min(candidates, key=lambda t: (_risk(t), *_by_speed(t)))
        reason = f"{missed}; this one has the least flip risk ({_share(trial.validation_match)} of them kept)"
        return _if_faster(trial, reason, requirements_met=False)
    nearest = min(candidates, key=lambda t: (-(t.validation_match or 0.0), *_by_speed(t)))
    reason = f"{missed}; the nearest is plan {nearest.id} with {_share(nearest.validation_match)}"
    return Choice(fp32, reason, faster=False, requirements_met=False)


def _if_faster(trial: Trial, reason: str, *, requirements_met: bool) -> Choice:
    """The choice of a plan, with what there is to say where it is not faster than fp32."""
    if is_faster(trial):
        return Choice(trial, reason, True, requirements_met)
    if trial.latency is not None and trial.latency.speedup >= LEAST_SPEEDUP:
        reason += "; its times vary too much to say that it is faster than fp32"
    else:
        reason += "; it is not faster than fp32"
    return Choice(trial, reason, False, requirements_met)


def pick(acceptable: Sequence[Trial]) -> Trial:
    """The best of acceptable trials, of which there is at least one.

    A plan that is known to be faster than fp32 goes before one that is not (see `is_faster`). Among those, the fastest
    and all within `ALIKE` of its latency are as good as equally fast: of these the one with the least flip risk wins,
    then the faster one, then the one with fewer casts, then the one judged first.
    """
    fastest = _fastest(acceptable)
    alike = [t for t in acceptable if _latency(t) <= ALIKE * _latency(fastest) and is_faster(t) == is_faster(fastest)]
    return min(alike, key=lambda t: (_risk(t), *_by_speed(t)))


def _fastest(trials: Sequence[Trial]) -> Trial:
    return min(trials, key=lambda t: (not is_faster(t), *_by_speed(t)))


def _by_speed(trial: Trial) -> tuple[float, float, float, int]:
    return _latency(trial), _risk(trial), math.inf if trial.casts is None else trial.casts, trial.id


def _latency(trial: Trial) -> float:
    """As a share of fp32's, timed in the same rounds: milliseconds of plans timed at different moments drift apart."""
    return math.inf if trial.latency is None else 1 / trial.latency.speedup


def _risk(trial: Trial) -> float:
    return math.inf if trial.flip_risk is None else trial.flip_risk.high


def _share(value: float | None) -> str:
    """A kept share in percent, rounded down: only what is exact reads as 100%."""
    return "none" if value is None else f"{math.floor(value * 1000 + 1e-9) / 10:.1f}%"
