"""What sample sets can't tell: too few samples for the requirement or for anything, and samples that are in two sets.

In: sample sets as read, before anything runs. Out: warnings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from precision_search.config import DataSection, Requirement
from precision_search.judging.sample_sets import SetName
from precision_search.model.samples import SampleSet

FEW = 20
"""Samples below which a set says little: if all of 19 are exact, the 95% Wilson interval of the share begins at 83%."""


def set_warnings(
    texts: Mapping[SetName, SampleSet], sections: Mapping[SetName, DataSection], requirement: Requirement
) -> Iterator[str]:
    """What to know about the sets before trusting a run.

    Args:
        texts: the sets.
        sections: how the config says that each is read.
        requirement: what a winner must keep of the validation set.
    """
    for samples in texts.values():
        count = len(samples.samples)
        if count < FEW:
            says = f"which say{'s' * (count == 1)} little about others; give {FEW} or more"
            is_part = sum(samples.path == other.path for other in texts.values()) > 1
            where = f"the {samples.name} set" if is_part else samples.path
            yield f"{where} has {_counted(count, 'sample')}, {says}"
    validation = texts.get("validation")
    if validation is not None and (missing := _cannot_miss_one(len(validation.samples), requirement.share)):
        yield missing
    rows = {name: _rows(samples, sections[name].prefix) for name, samples in texts.items()}
    for first, second in combinations(texts, 2):
        known = set(rows[first])
        shared = [number for number, row in enumerate(rows[second]) if row in known]
        if shared:
            line = texts[second].samples[shared[0]].line
            yield (
                f"{len(shared)} of {_counted(len(rows[second]), f'{second} sample')} "
                f"{'is' if len(shared) == 1 else 'are'} in the {first} set, too, the first in line {line} of "
                f"{texts[second].path}: what the {second} set says of them is no news"
            )


def _cannot_miss_one(count: int, share: float) -> str | None:
    """Says so where the requirement comes to all of the samples, though it is less than 100%."""
    if share >= 1.0 or math.ceil(share * count - 1e-9) < count:
        return None
    enough = math.ceil(1.0 / (1.0 - share) - 1e-9)
    return (
        f"{share * 100:.6g}% of {_counted(count, 'validation sample')} means all of them: from {enough} samples on, "
        "validation.min_exact_match lets a plan miss one"
    )


def _rows(samples: SampleSet, prefix: str) -> Sequence[str]:
    return [prefix + sample.text for sample in samples.samples]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
