"""What lower precision could gain at most: the minimum cut in which only what can never be low is pinned.

In: the estimates of a workload, and what is pinned in the graphs of each variant. Out: a `Ceiling`. Nothing runs, and
no ranges are needed, so that it is known before a search begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from precision_search.cost.ceiling import WORTH_IT, Ceiling, first_batch
from precision_search.cost.placement import Placer
from precision_search.judging.latency import EstimatedLatency
from precision_search.precision.low import LowDtype


@dataclass(frozen=True, slots=True)
class Pins:
    """What is decided about the graphs of a variant before a search.

    Attributes:
        fixed: node keys that stay in fp32 in every plan.
        forced_low: node keys that are low in every plan; `fixed` wins over it.
    """

    fixed: frozenset[str]
    forced_low: frozenset[str] = frozenset()


def find_ceiling(estimate: EstimatedLatency, dtype: LowDtype, pins: Mapping[str, Pins]) -> Ceiling:
    """The best that any plan under these pins could do, by the estimates of a workload.

    Costs a cut at the workload and at a few other batches, each with shapes of its own: about 0.3 s for 800 nodes.

    Args:
        estimate: of the workload.
        dtype: the low dtype of all plans.
        pins: by variant.

    Raises:
        ConfigError: `dtype` is bfloat16 and the device has none.
    """

    least_ms, variant = _least_ms(estimate, dtype, pins)

    @cache
    def gain(batch: int) -> float:
        """Milliseconds that the best plan saves beyond those that would make it worth a search."""
        if batch == estimate.workload.batch:
            return estimate.fp32_ms - WORTH_IT * least_ms
        there = estimate.at_batch(batch)
        return there.fp32_ms - WORTH_IT * _least_ms(there, dtype, pins)[0]

    return Ceiling(
        # Two sums of the same numbers differ in their last bits: fp32 itself is 1.0 times as fast.
        speedup=round(estimate.fp32_ms / least_ms, 9),
        variant=variant,
        source="estimated",
        profile=estimate.profile,
        launch_share=estimate.launch_share,
        from_batch=first_batch(gain, estimate.workload.batch),
    )


def _least_ms(estimate: EstimatedLatency, dtype: LowDtype, pins: Mapping[str, Pins]) -> tuple[float, str]:
    """The least that a plan could take, in milliseconds, and the variant that takes it; the first of equals."""
    found = []
    for variant, pinned in pins.items():
        graphs, costs = estimate.graphs_of(variant), estimate.placement_costs(dtype, variant)
        placer = Placer(graphs, dtype, variant, costs, fixed=pinned.fixed, forced_low=pinned.forced_low)
        found.append((placer.place().seconds * 1e3, variant))
    return min(found, key=lambda each: each[0])
