"""One list of sentences, split into the sets of a run.

In: samples and a seed. Out: disjoint sets of different samples. Which set a sentence falls into depends on the
sentence, the seed and what else is there, never on the order of the list; within a set the list's order stays.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from precision_search.errors import InputError
from precision_search.model.samples import SampleSet, sample_set

SHARES: Mapping[str, int] = {"calibration": 40, "validation": 30, "test": 30}
"""Percent of the sentences that a set gets; where a set is given, the others share in the same proportion."""


def split_samples(data: SampleSet, seed: int, names: Sequence[str]) -> dict[str, SampleSet]:
    """Splits the different samples of a set into sets of these names, by `SHARES`.

    Raises:
        InputError: there are fewer different sentences than sets.
    """
    different = tuple({sample.text: sample for sample in reversed(data.samples)}.values())
    count = len(different)
    if count < len(names):
        raise InputError(
            f"{data.path} has {count} different sentence{'s' * (count != 1)} for {len(names)} sets",
            why=f"{', '.join(names)} need one each",
            fix="give more sentences; about a hundred in each set make a verdict worth something",
        )
    drawn = sorted(different, key=lambda sample: hashlib.sha256(f"{seed}\n{sample.text}".encode()).digest())
    sets, start, shares = {}, 0, [SHARES[name] for name in names]
    for number, name in enumerate(names, start=1):
        end = (2 * count * sum(shares[:number]) + sum(shares)) // (2 * sum(shares))
        chosen = sorted(drawn[start:end], key=lambda sample: sample.line)
        sets[name] = sample_set(name, data.path, tuple(chosen))
        start = end
    return sets


def largest_share(count: int) -> float:
    """The largest share below 1 that so many samples can hold a plan to, so that one of them may differ.

    (count - 1) / count, rounded down to two decimals, or to as many as still let no second one differ. 1 for a single
    sample: nothing would be required of a plan otherwise.
    """
    if count == 1:
        return 1.0
    for digits in range(2, 8):
        parts: int = 10**digits
        share = (count - 1) * parts // count
        if -(-share * count // parts) == count - 1:
            return share / parts
    return math.nextafter(1.0, 0.0)
