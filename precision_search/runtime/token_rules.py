"""Constant token rules: which tokens must not be chosen at a step, as transformers' logits processors say it.

In: generation settings. Out: for each phase of a generation a mask over the vocabulary, and the phase of each step.
Masks are constants of a graph and a phase is one number, so that nothing else goes to the device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precision_search.model.generation_config import GenerationSettings

PHASES = 4
"""Every combination of the two bits below."""

_BEGIN = 1
_NO_END_YET = 2


def has_token_rules(generation: GenerationSettings) -> bool:
    """Whether any token is ever forbidden."""
    early_end = generation.min_new_tokens > 0 and bool(generation.eos_token_ids)
    return bool(generation.suppressed_tokens or generation.begin_suppressed_tokens or early_end)


def phase_of(generation: GenerationSettings, step: int) -> int:
    """The phase of step number `step`, from 0; the beginning is the first step at which nothing is forced."""
    begin = 0 if generation.forced_bos_token_id is None else 1
    return (_BEGIN if step == begin else 0) | (_NO_END_YET if step < generation.min_new_tokens else 0)


def forbidden_tokens(generation: GenerationSettings, vocabulary: int) -> npt.NDArray[np.bool_]:
    """Which tokens must not be chosen in each phase, bool [PHASES, vocabulary]."""
    forbidden = np.zeros((PHASES, vocabulary), np.bool_)
    for phase in range(PHASES):
        forbidden[phase, list(generation.suppressed_tokens)] = True
        if phase & _BEGIN:
            forbidden[phase, list(generation.begin_suppressed_tokens)] = True
        if phase & _NO_END_YET:
            forbidden[phase, list(generation.eos_token_ids)] = True
    return forbidden
