"""The reference: what the fp32 bundle generates, and by how much every token won."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precision_search.errors import InputError
from precision_search.model.bundle import Bundle
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.samples import batches
from precision_search.runtime.batch_limit import BatchLimit, after_release
from precision_search.runtime.generator import Generator
from precision_search.runtime.progress import Progress, no_progress
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.teacher_forcing import (
    ForcedBatch,
    ForcedDecoder,
    ForcedEncoder,
    by_target_length,
    forced_batches,
)

NEAR_TIE = 1e-3
"""Margins below this are near-ties of fp32 itself: its own rounding, which differs between libraries and batch shapes,
moves logits of magnitude 20 by about 1e-5, and 1e-3 leaves two orders of magnitude above that."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Greedy tokens of the fp32 bundle for a sample set.

    Attributes:
        tokens: token ids of each sample, EOS included, without start token and padding.
        margins: for each sample the signed margin of each token, float32 [T]; NaN where a token was forced.
    """

    tokens: tuple[tuple[int, ...], ...]
    margins: tuple[npt.NDArray[np.float32], ...]

    @property
    def smallest(self) -> npt.NDArray[np.float32]:
        """Each sample's smallest margin, float32 [samples]; infinite for a sample without judged tokens."""
        return np.array([np.nanmin(m, initial=np.inf) for m in self.margins], np.float32)

    @property
    def fragile_first(self) -> tuple[int, ...]:
        """Sample numbers by smallest margin, ascending."""
        return tuple(int(index) for index in np.argsort(self.smallest, kind="stable"))


@dataclass(frozen=True, slots=True)
class ParityDifference:
    """A sample on which the bundle and its checkpoint generate different tokens.

    Attributes:
        sample: its number.
        position: where they part.
        bundle_token: what the bundle chose, or None where it had ended.
        checkpoint_token: what transformers chose, or None where it had ended.
        margin: the bundle's margin at that position, None where it had ended; closer to 0 than `NEAR_TIE` the
            difference is nobody's fault.
    """

    sample: int
    position: int
    bundle_token: int | None
    checkpoint_token: int | None
    margin: float | None

    @property
    def near_tie(self) -> bool:
        """Whether fp32 itself cannot tell the two tokens apart."""
        return self.margin is not None and abs(self.margin) < NEAR_TIE


def generate_all(
    generator: Generator,
    rows: Sequence[Sequence[int]],
    pad_token_id: int,
    batch_size: int,
    progress: Progress = no_progress,
    *,
    width: int = 0,
) -> tuple[tuple[tuple[int, ...], ...], npt.NDArray[np.bool_]]:
    """Greedy tokens for every row, batched by length so that little padding is computed, but padded to `width`.

    Returns:
        Token ids of each row (EOS included), and whether each row met a non-finite logit, bool [rows].
    """
    tokens: list[tuple[int, ...]] = [()] * len(rows)
    nonfinite = np.zeros(len(rows), np.bool_)
    done = 0
    progress(done, len(rows), "samples")
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for batch in batches(rows, batch_size, pad_token_id, by_length, width=width):
        out = generator.generate(batch.input_ids, batch.attention_mask)
        for row, index in enumerate(batch.indices):
            tokens[index] = tuple(int(token) for token in out.tokens[row, : out.lengths[row]])
            nonfinite[index] = out.nonfinite[row]
        done += len(batch.indices)
        progress(done, len(rows), "samples")
    return tuple(tokens), nonfinite


@dataclass(frozen=True, slots=True)
class ForcedModel:
    """The fp32 encoder and decoder, ready to be forced."""

    encoder: ForcedEncoder
    decoder: ForcedDecoder


def open_forced(bundle: Bundle, settings: SessionSettings) -> ForcedModel:
    """The sessions that give the margins of a reference.

    Raises:
        DeviceMemoryError: the memory does not hold them.
    """
    encoder = after_release(lambda: ForcedEncoder(bundle.graphs[SEQ2SEQ.encoder.name].model, settings))
    model, generation = bundle.graphs[SEQ2SEQ.decoder.name].model, bundle.generation
    decoder = after_release(lambda: ForcedDecoder(model, settings, generation=generation))
    return ForcedModel(encoder, decoder)


def make_reference(
    bundle: Bundle,
    generator: Generator,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    settings: SessionSettings,
    *,
    forced: Callable[[], ForcedModel] | None = None,
    limit: BatchLimit | None = None,
    progress: Progress = no_progress,
) -> Reference:
    """Generates with the fp32 bundle and measures every token's margin by teacher forcing.

    Args:
        bundle: the fp32 bundle.
        generator: a generator on its graphs.
        rows: input ids of each sample.
        batch_size: rows at once, if the memory holds them.
        settings: for the teacher-forced sessions.
        forced: gives the teacher-forced sessions, once all is generated; None makes them.
        limit: of rows at once, shared with others.
        progress: receives how many rows were generated; forcing them is the smaller part of the work.

    Raises:
        InputError: the fp32 model itself gives non-finite logits, or its two decoder graphs want different tokens.
        DeviceMemoryError: the memory does not hold one row.
    """
    limit = limit or BatchLimit()
    pad = bundle.generation.pad_token_id
    tokens, nonfinite = limit.fitting(batch_size, lambda size: generate_all(generator, rows, pad, size, progress))
    if nonfinite.any():
        raise InputError(
            f"the fp32 model gives non-finite logits on sample {int(np.argmax(nonfinite)) + 1}",
            why="there is no reference to compare with",
            fix="check the checkpoint; a model stored in fp16 may have lost its weights' range",
        )
    sessions = forced() if forced is not None else open_forced(bundle, settings)

    def force(size: int) -> tuple[npt.NDArray[np.float32], ...]:
        margins: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(rows)
        for batch in forced_batches(rows, tokens, bundle.generation, size, by_target_length(tokens)):
            found = sessions.decoder.margins(batch, sessions.encoder.encode(batch))
            _check_agreement(batch, found)
            for row, index in enumerate(batch.source.indices):
                margins[index] = found[row, : len(tokens[index])]
        return tuple(margins)

    return Reference(tokens, limit.fitting(batch_size, force))


def _check_agreement(batch: ForcedBatch, margins: npt.NDArray[np.float32]) -> None:
    """Every token came from `decoder` or `decoder_with_past`; `decoder` alone, given the prefix, must choose it too."""
    # `not >` also finds NaN.
    wrong = np.argwhere(batch.valid & ~(margins > -NEAR_TIE))
    if wrong.size:
        row, position = (int(index) for index in wrong[0])
        raise InputError(
            f"{SEQ2SEQ.decoder.name} and {SEQ2SEQ.decoder_with_past.name} disagree on token {position + 1} of sample "
            f"{batch.source.indices[row] + 1}",
            why=f"the chosen token's margin is {margins[row, position]:.4g} when decoder reads the whole prefix",
            fix="export the two graphs together, from the same checkpoint",
        )


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The first position at which two token sequences differ; the shorter one's length where it begins the other."""
    common = min(len(one), len(other))
    return next((position for position in range(common) if one[position] != other[position]), common)


def compare_with_oracle(reference: Reference, oracle: Sequence[Sequence[int]]) -> tuple[ParityDifference, ...]:
    """Where the bundle's tokens differ from those of transformers on the checkpoint, one entry a differing sample."""
    found = []
    for sample, (ours, theirs) in enumerate(zip(reference.tokens, oracle, strict=True)):
        if list(ours) == list(theirs):
            continue
        position = first_difference(ours, theirs)
        margins = reference.margins[sample]
        margin = float(margins[position]) if position < len(margins) else None
        found.append(
            ParityDifference(
                sample,
                position,
                ours[position] if position < len(ours) else None,
                theirs[position] if position < len(theirs) else None,
                margin,
            )
        )
    return tuple(found)
