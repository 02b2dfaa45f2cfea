"""Latencies of judged plans on the scale of the estimates, whether the plans were timed or rejected before.

A device that measures takes other milliseconds than the profile says. What both agree on is what fp32 takes: a timed
plan counts as the estimate of fp32 by its speedup.
"""

from __future__ import annotations

from collections.abc import Callable

from precision_search.judging.trial import Trial
from precision_search.precision.plan import Plan
from precision_search.strategies.base import SearchSpace


def fp32_plan(space: SearchSpace) -> Plan:
    """fp32 itself: what may be low and what the user wants low is not."""
    everything = space.plan_of(frozenset(space.choices))
    return Plan(everything.dtype, everything.variant, everything.fp32 | space.forced_low)


def scaled_ms(trial: Trial, fp32_ms: float, estimate: Callable[[Plan], float]) -> float:
    """Latency of a judged plan, in milliseconds of the estimates.

    Args:
        trial: the judged plan.
        fp32_ms: the estimate of the base graphs in fp32, which speedups are over.
        estimate: the estimated latency of a plan in milliseconds.
    """
    if trial.latency is None:
        return estimate(trial.plan.plan)
    return fp32_ms / trial.latency.speedup
