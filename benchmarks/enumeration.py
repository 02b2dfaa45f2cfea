"""The fastest acceptable plan at op-type level, with a proof: plans in ascending latency, judged until one is good.

A plan is a number here: bit `i` is set where choice `i` of the search space stays in fp32; the encoder's choices have
the lowest bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

MOST_CHOICES = 24
"""Beyond this the tables alone would take a gigabyte."""

Verdict = Literal["damaged", "rejected", "acceptable"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Optimum:
    """How the enumeration ended.

    Attributes:
        plan: the fastest acceptable plan, None where the evaluations ended before one was met.
        evaluations: plans judged.
        faster: plans that are faster than it (or than the next one, where none was met).
        skipped: those of them that were not judged, because a plan that keeps at least as much was damaged.
    """

    plan: int | None
    evaluations: int
    faster: int
    skipped: int


def latency_table(
    encoder: int, decoder: int, ms: Callable[[int, int], float], crosses_low: Callable[[int, int], bool]
) -> Floats:
    """The latency of every plan, from few: the two families only meet in the dtype of the encoder's output.

    That is low where its maker is (the encoder alone decides) or where all its readers are (the decoder alone does).
    For either dtype, latency is a sum of what the two families take.

    Args:
        encoder: how many choices the encoder has.
        decoder: how many choices the decoder has.
        ms: latency of one plan, by its encoder bits and its decoder bits; asked about twice for each half.
        crosses_low: whether the encoder's output is low in that plan; what keeps less never makes it fp32 again.

    Returns:
        Latency by plan, float64 [2 ** (encoder + decoder)], in the unit of `ms`.
    """
    if encoder + decoder > MOST_CHOICES:
        raise ValueError(f"{encoder + decoder} choices are too many to enumerate")
    all_encoder, all_decoder = 2**encoder - 1, 2**decoder - 1
    encoders, decoders = range(all_encoder + 1), range(all_decoder + 1)
    made_low = np.array([crosses_low(bits, all_decoder) for bits in encoders])
    read_low = np.array([crosses_low(all_encoder, bits) for bits in decoders])
    # All in fp32 is the base of what crosses in fp32, all low the base of what crosses low.
    high, low = (
        np.add.outer([ms(base_encoder, bits) for bits in decoders], [ms(bits, base_decoder) for bits in encoders])
        - ms(base_encoder, base_decoder)
        for base_encoder, base_decoder in ((all_encoder, all_decoder), (0, 0))
    )
    table: Floats = np.where(np.logical_or.outer(read_low, made_low), low, high).reshape(-1)
    return table


def find_optimum(table: Floats, judge: Callable[[int], Verdict], most: int) -> Optimum:
    """Judges plans in ascending latency until one is acceptable; of equally fast ones the one with the lower number.

    Damage is taken to be monotone: what keeps no more than a damaged plan is not judged. To make use of that, each
    choice is first made low by itself.

    Args:
        table: latency by plan.
        judge: asked at most once about a plan.
        most: evaluations to spend.
    """
    everything = len(table) - 1
    numbers = np.arange(len(table))
    excluded = np.zeros(len(table), np.bool_)
    known: dict[int, Verdict] = {}

    def ask(plan: int) -> Verdict:
        if plan not in known:
            known[plan] = judge(plan)
            if known[plan] == "damaged":
                np.logical_or(excluded, numbers & ~plan == 0, out=excluded)
        return known[plan]

    singles = [everything & ~(1 << bit) for bit in range(everything.bit_length())]
    for plan in sorted(singles, key=lambda single: float(table[single])):
        if len(known) < most:
            ask(plan)
    order = np.argsort(table, kind="stable")
    for place, plan in enumerate(order.tolist()):
        if excluded[plan]:
            continue
        if plan not in known and len(known) >= most:
            return Optimum(None, len(known), place, int(np.count_nonzero(excluded[order[:place]])))
        verdict = ask(plan)
        if verdict == "acceptable":
            judged = sum(int(table[other] < table[plan]) for other in known)
            faster = int(np.count_nonzero(table < table[plan]))
            return Optimum(plan, len(known), faster, faster - judged)
    return Optimum(None, len(known), len(table), int(np.count_nonzero(excluded)))
