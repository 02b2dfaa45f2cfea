"""How numbers are worded: what a plan was judged with."""

from __future__ import annotations

import dataclasses

from precision_search.judging.trial import Judged, Lengths
from precision_search.records.wording import judged_text, listed


def test_batches_padding_and_lengths_are_said() -> None:
    judged = Judged((1, 8, 32), True, Lengths(2, 40), Lengths(6, 6))

    assert judged_text(judged) == (
        "batches of 1, 8 and 32, the most fragile samples with padding, too; 2 to 40 source and 6 target tokens"
    )
    assert "no more padding than the samples need" in judged_text(dataclasses.replace(judged, padded=False))
    assert "an older version" in judged_text(None)
    assert listed([7]) == "7"
