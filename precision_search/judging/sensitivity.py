"""How much noise each role makes by itself: what orders culprits, and what the node search trades latency against.

In: the nodes of a role. Out: a number, from one teacher-forced pass over the most fragile samples with nothing but them
low. Roundings of different nodes are independent, so that their squares add up: on the demo model
the root of the sum over all roles is 1.2 times the noise of all of them low together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from precision_search.judging.batches import FIRST_BATCH
from precision_search.judging.noise import is_damage, noise, rounding_unit, shifts
from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.screen import SampleScreen, Screener
from precision_search.model.generation_config import GenerationSettings
from precision_search.precision.plan import Plan
from precision_search.runtime.reference import Reference


class RoleProbe:
    """Runs the most fragile calibration samples, as many as a screen's first batch holds, with a few nodes low.

    Args:
        screener: screens the plans.
        samples: the calibration set.
        generation: how the reference was generated.
        fp32: the plan in which nothing is low.
    """

    def __init__(self, screener: Screener, samples: SampleRows, generation: GenerationSettings, fp32: Plan) -> None:
        self._screener = screener
        fragile = _subset(samples, samples.reference.fragile_first[:FIRST_BATCH])
        self._screen = SampleScreen(fragile, generation, FIRST_BATCH)
        self._fp32 = fp32
        self._unit = rounding_unit(samples.reference.margins, fp32.dtype)

    def noise(self, keys: frozenset[str]) -> float:
        """The noise of these nodes, low by themselves, in rounding units (see `judging.noise`).

        Root mean square of the margins' shifts; infinite where that is damage, 0 without any node.
        """
        if not keys:
            return 0.0
        plan = replace(self._fp32, fp32=self._fp32.fp32 - keys)
        found = self._screener.prepare(plan).screen(self._screen, to_the_end=True)
        margins = self._screen.samples.reference.margins
        if is_damage(found.verdict != "nonfinite", noise(margins, found.margins, self._unit)):
            return np.inf
        moved = shifts(margins, found.margins)
        return float(np.sqrt(np.mean(np.square(moved, dtype=np.float64)))) / self._unit


def _subset(samples: SampleRows, numbers: Iterable[int]) -> SampleRows:
    chosen = list(numbers)
    reference = samples.reference
    return SampleRows(
        tuple(samples.rows[number] for number in chosen),
        Reference(
            tuple(reference.tokens[number] for number in chosen), tuple(reference.margins[number] for number in chosen)
        ),
    )
