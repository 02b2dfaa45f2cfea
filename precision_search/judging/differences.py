"""Samples on which two models part, for people to read.

In: tokens of the reference and of the model. Out: texts with the place where they part, and the margins there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from precision_search.model.samples import SampleSet
from precision_search.runtime.reference import NEAR_TIE, Reference, first_difference


@dataclass(frozen=True, slots=True)
class DifferingSample:
    """A sample whose tokens are not the reference's.

    Attributes:
        index: its number in the file, from 0.
        line: the line it stands on, from 1.
        source: the sentence.
        reference: what fp32 makes of it.
        model: what the model makes of it.
        position: the first differing token, from 0; where the model met a non-finite value and all tokens agree, 0.
        margin: the reference's margin (logits) there; None where that token was forced or the reference had ended.
        near_tie: whether fp32 itself cannot tell its two best tokens apart there.
        nonfinite: whether the model met a non-finite value that counts.
    """

    index: int
    line: int
    source: str
    reference: str
    model: str
    position: int
    margin: float | None
    near_tie: bool
    nonfinite: bool


def describe_difference(
    index: int,
    samples: SampleSet,
    reference: Reference,
    tokens: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    *,
    nonfinite: bool,
) -> DifferingSample:
    """What differs in the sample `index`, of which the model made `tokens`."""
    wanted = reference.tokens[index]
    same = tuple(tokens) == wanted
    position = 0 if same else first_difference(wanted, tokens)
    margins = reference.margins[index]
    margin = float(margins[position]) if position < len(margins) else float("nan")
    return DifferingSample(
        index=index,
        line=samples.samples[index].line,
        source=samples.samples[index].text,
        reference=decode(wanted),
        model=decode(tokens),
        position=position,
        margin=margin if np.isfinite(margin) else None,
        near_tie=not same and not nonfinite and margin < NEAR_TIE,
        nonfinite=nonfinite,
    )
