"""An encoder and a decoder made up for the screen: what they say of each sample is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.screen import FP32_ENCODER, PreparedPlan, SampleScreen
from precision_search.model.generation_config import GenerationSettings
from precision_search.runtime.reference import Reference
from precision_search.runtime.teacher_forcing import NOTHING, Feed, ForcedBatch, ForcedDecoder, ForcedEncoder

GREEDY = GenerationSettings(0, (1,), 0, 8, None, None)
SOURCE = 3


class FakeEncoder:
    """Says zeros, and something else for the samples listed."""

    def __init__(self, values: Mapping[int, float]) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.released: list[bool] = []
        self._values = values

    def encode(self, batch: ForcedBatch, extra: Feed = NOTHING, *, release: bool = False) -> npt.NDArray[np.float32]:
        self.seen.append(batch.source.indices)
        self.released.append(release)
        hidden = np.zeros((*batch.source.input_ids.shape, 2), np.float32)
        for row, sample in enumerate(batch.source.indices):
            hidden[row, -1, 1] = self._values.get(sample, 0.0)
        return hidden


class FakeDecoder:
    """Knows the margins under a plan; 1 where nothing is said."""

    def __init__(self, margins: Mapping[int, Sequence[float]]) -> None:
        self._margins = margins

    def margins(
        self, batch: ForcedBatch, hidden: npt.NDArray[np.float32], extra: Feed = NOTHING, *, release: bool = False
    ) -> npt.NDArray[np.float32]:
        found = np.ones(batch.labels.shape, np.float32)
        for row, sample in enumerate(batch.source.indices):
            told = self._margins.get(sample, ())
            found[row, : len(told)] = told
        return np.where(batch.valid, found, np.float32(np.nan))


def plan_with(
    margins: Mapping[int, Sequence[float]] | None = None,
    hidden: Mapping[int, float] | None = None,
    *,
    encoder_id: bytes = FP32_ENCODER,
) -> PreparedPlan:
    encoder = cast(ForcedEncoder, FakeEncoder(hidden or {}))
    return PreparedPlan(encoder, cast(ForcedDecoder, FakeDecoder(margins or {})), NOTHING, NOTHING, encoder_id, 0.5)


def samples_with(
    smallest: Sequence[float],
    targets: Sequence[int] | None = None,
    *,
    sources: Sequence[int] | None = None,
    size: int = 8,
) -> SampleScreen:
    """Samples with these smallest margins and lengths; without lengths, of three source and two target tokens."""
    lengths = targets or [2] * len(smallest)
    margins = tuple(
        np.array([margin] + [9.0] * (n - 1), np.float32) for margin, n in zip(smallest, lengths, strict=True)
    )
    rows = tuple((2,) * length for length in sources or [SOURCE] * len(smallest))
    return SampleScreen(SampleRows(rows, Reference(tuple((5,) * n for n in lengths), margins)), GREEDY, size)
