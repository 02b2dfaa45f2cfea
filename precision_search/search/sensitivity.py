"""How much noise each role makes by itself: what orders culprits, and what the node search trades latency against.

In: the space's free nodes. Out: a number for each role, from one teacher-forced pass over the most fragile samples with
nothing but that role low. Roundings of different nodes are independent, so that their squares add up: on the demo model
the root of the sum over all roles is 1.2 times the noise of all of them low together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from precision_search.model.generation_config import GenerationSettings
from precision_search.precision.plan import LowDtype, Plan
from precision_search.runtime.reference import Reference
from precision_search.search.noise import DAMAGE_NOISE, noise, rounding_unit, shifts
from precision_search.search.screen import FIRST_BATCH, SampleRows, SampleScreen, Screener


def role_noise(
    screener: Screener,
    samples: SampleRows,
    generation: GenerationSettings,
    *,
    roles: Mapping[str, str],
    every_key: frozenset[str],
    dtype: LowDtype,
    variant: str,
) -> Mapping[str, float]:
    """The noise of each role, in rounding units (see `search.noise`).

    Args:
        screener: screens the plans.
        samples: the calibration set; its most fragile samples are run, as many as a screen's first batch holds.
        generation: how the reference was generated.
        roles: role of each node key that is to be low with its role.
        every_key: the keys of all compute nodes.
        dtype: the low dtype.
        variant: the graph variant.

    Returns:
        The root mean square of the margins' shifts; infinite where the role alone is damage.
    """
    fragile = SampleScreen(_subset(samples, samples.reference.fragile_first[:FIRST_BATCH]), generation, FIRST_BATCH)
    unit = rounding_unit(samples.reference.margins, dtype)
    margins = fragile.samples.reference.margins
    found = {}
    for role, keys in _members(roles).items():
        screened = screener.prepare(Plan(dtype, variant, every_key - keys)).screen(fragile, to_the_end=True)
        tail = noise(margins, screened.margins, unit)
        is_damage = screened.verdict == "nonfinite" or tail is None or tail >= DAMAGE_NOISE
        moved = shifts(margins, screened.margins)
        found[role] = np.inf if is_damage else float(np.sqrt(np.mean(np.square(moved, dtype=np.float64)))) / unit
    return found


def _members(roles: Mapping[str, str]) -> dict[str, frozenset[str]]:
    members: dict[str, set[str]] = {}
    for key, role in sorted(roles.items()):
        members.setdefault(role, set()).add(key)
    return {role: frozenset(keys) for role, keys in members.items()}


def _subset(samples: SampleRows, numbers: Iterable[int]) -> SampleRows:
    chosen = list(numbers)
    reference = samples.reference
    return SampleRows(
        tuple(samples.rows[number] for number in chosen),
        Reference(
            tuple(reference.tokens[number] for number in chosen), tuple(reference.margins[number] for number in chosen)
        ),
    )
