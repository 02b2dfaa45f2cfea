"""The batches in which a sample set is judged beside its own: its most fragile samples with padding, and one by one.

In: the rows of a set and their reference. Out: which samples go into such batches, and where fp32 itself differs there.

A model whose low precision breaks only in padded rows passes on sets that need no padding, or that run one by one. Rows
of a batch do not see each other: all that a row twice as long does to those beside it is to pad them, so padding is all
that is made. Another batch size is another shape of every product, and may be another kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from precision_search.judging.trial import BatchKind
from precision_search.model.generation_config import GenerationSettings
from precision_search.runtime.batch_limit import BatchLimit
from precision_search.runtime.generator import Generator
from precision_search.runtime.reference import ForcedModel, Reference, first_difference, generate_all
from precision_search.runtime.teacher_forcing import ForcedBatch, encoder_is_finite, forced_batches

FIRST_BATCH = 8
"""Samples in the first, most fragile batch, if batches are that large: enough to show damage, little to pay for it."""

GENERATED_ALONE = 2
"""Of the samples that are forced one by one, those that are generated, too. On a CPU a batch of one takes two fifths of
the time of a batch of eight, for an eighth of its samples."""

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class OwnDifference:
    """Where fp32 gives another token than in the set's own batches: a near-tie of its own, held against no plan."""

    batch: BatchKind
    sample: int
    position: int


@dataclass(frozen=True, slots=True)
class FragileBatches:
    """Samples of a set that are judged in other batches, too, the most fragile first.

    Attributes:
        padded: those that are judged with padding.
        width: positions that their sources are padded to.
        alone: those that are judged one by one.
        differences: where fp32 itself gives other tokens there; these samples are in neither.
    """

    padded: tuple[int, ...] = ()
    width: int = 0
    alone: tuple[int, ...] = ()
    differences: tuple[OwnDifference, ...] = ()

    @property
    def generated_alone(self) -> tuple[int, ...]:
        """Those of the samples judged one by one that are generated, too."""
        return self.alone[:GENERATED_ALONE]


NONE_FRAGILE = FragileBatches()


def choose_fragile(rows: Rows, reference: Reference, longest: int) -> FragileBatches:
    """The samples with the smallest margins; padded to twice the longest of them, but to no more than `longest`.

    A row as long as the model reads can be padded by none, so it is not among the padded ones.
    """
    order = reference.fragile_first
    padded = tuple(index for index in order if len(rows[index]) < longest)[:FIRST_BATCH]
    width = min(longest, 2 * max((len(rows[index]) for index in padded), default=0))
    return FragileBatches(padded, width, order[:FIRST_BATCH])


def without_own_differences(
    chosen: FragileBatches,
    rows: Rows,
    reference: Reference,
    *,
    generator: Generator,
    forced: ForcedModel,
    generation: GenerationSettings,
    batch_size: int,
    limit: BatchLimit,
) -> FragileBatches:
    """The same batches without the samples on which fp32 itself, forced or generating, differs there.

    Args:
        chosen: from `choose_fragile`.
        rows: input ids of each sample of the set.
        reference: what fp32 generates in the set's own batches.
        generator: on the fp32 graphs.
        forced: the fp32 encoder and decoder, ready to be forced.
        generation: how the reference was generated.
        batch_size: padded rows at once, if the memory holds them.
        limit: of rows at once, shared with others.

    Raises:
        DeviceMemoryError: the memory does not hold one row.
    """
    tokens, pad = reference.tokens, generation.pad_token_id

    def look(kind: BatchKind, samples: tuple[int, ...], generated: tuple[int, ...], size: int) -> list[OwnDifference]:
        width = chosen.width if kind == "padded" else 0
        found: dict[int, int] = {}
        if generated:
            made, nonfinite = generate_all(generator, [rows[index] for index in generated], pad, size, width=width)
            for index, own, is_bad in zip(generated, made, nonfinite, strict=True):
                if is_bad or own != tokens[index]:
                    found[index] = 0 if own == tokens[index] else first_difference(own, tokens[index])
        batches = forced_batches(rows, tokens, generation, size, samples, width=width)
        for index, position in _lost_when_forced(forced, batches):
            found.setdefault(index, position)
        return [OwnDifference(kind, index, position) for index, position in sorted(found.items())]

    most = min(FIRST_BATCH, batch_size)
    padded = limit.fitting(most, lambda size: look("padded", chosen.padded, chosen.padded, size))
    alone = limit.fitting(1, lambda size: look("alone", chosen.alone, chosen.generated_alone, size))
    return replace(
        chosen,
        padded=_others(chosen.padded, padded),
        alone=_others(chosen.alone, alone),
        differences=(*padded, *alone),
    )


def _others(samples: Sequence[int], differences: Sequence[OwnDifference]) -> tuple[int, ...]:
    lost = {each.sample for each in differences}
    return tuple(index for index in samples if index not in lost)


def _lost_when_forced(forced: ForcedModel, batches: Sequence[ForcedBatch]) -> Iterator[tuple[int, int]]:
    """Samples and the first position where the reference's token does not win, or 0 where the encoder is not finite."""
    for batch in batches:
        hidden = forced.encoder.encode(batch)
        margins, finite = forced.decoder.margins(batch, hidden), encoder_is_finite(batch, hidden)
        for row, index in enumerate(batch.source.indices):
            if (position := first_lost(margins[row], batch.valid[row], is_finite=bool(finite[row]))) is not None:
                yield index, position


def first_lost(margins: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], *, is_finite: bool) -> int | None:
    """The first position at which a row's label does not win, 0 where its source is not finite; None if there is none.

    Args:
        margins: of the labels, float32 [T]; NaN where a logit is not finite.
        valid: which positions count, bool [T].
        is_finite: whether the encoder's output is.
    """
    if not is_finite:
        return 0
    # `not >` also finds NaN.
    wrong = np.flatnonzero(~(margins > 0) & valid)
    return int(wrong[0]) if wrong.size else None
