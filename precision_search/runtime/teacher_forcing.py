"""Teacher forcing: one pass over source and reference tokens that gives the signed margin of every token.

Greedy decoding equals the reference if and only if every reference token wins after the reference prefix, so this
decides exact match for a whole batch without generating.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.model.generation_config import GenerationSettings
from precision_search.model.layout import SEQ2SEQ, GraphLayout, InputKind
from precision_search.model.samples import TokenBatch, batches
from precision_search.runtime.backends import create_session
from precision_search.runtime.head import HIDDEN, LABELS, MARGIN, TOKEN_PHASE, with_margin_head
from precision_search.runtime.session import SessionSettings, run_session
from precision_search.runtime.token_rules import has_token_rules, phase_of

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Feed = Mapping[str, npt.NDArray[Any]]
NOTHING: Feed = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ForcedBatch:
    """A padded batch of sources with their reference tokens.

    Attributes:
        source: the sources; `source.indices` are sample numbers.
        decoder_input_ids: start token and reference prefix, int64 [B, T].
        labels: reference tokens, int64 [B, T].
        valid: which positions hold a reference token, bool [B, T].
    """

    source: TokenBatch
    decoder_input_ids: IntArray
    labels: IntArray
    valid: npt.NDArray[np.bool_]


def forced_batches(
    rows: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[int]],
    generation: GenerationSettings,
    batch_size: int,
    order: Sequence[int] | None = None,
    *,
    width: int = 0,
) -> tuple[ForcedBatch, ...]:
    """Batches sources and their reference tokens, in the given order of samples (all, in theirs, if None).

    Sources are padded to `width` at least. A forced last token is no choice of the model's, so it is not judged.
    """
    found = []
    for source in batches(rows, batch_size, generation.pad_token_id, order, width=width):
        targets = [tokens[index] for index in source.indices]
        length = max(1, *(len(target) for target in targets))
        labels = np.full((len(targets), length), generation.pad_token_id, np.int64)
        valid = np.zeros(labels.shape, np.bool_)
        for row, target in enumerate(targets):
            labels[row, : len(target)] = target
            valid[row, : len(target)] = True
            if generation.forced_bos_token_id is not None:
                valid[row, 0] = False
            if generation.forced_eos_token_id is not None and len(target) == generation.max_new_tokens:
                valid[row, len(target) - 1] = False
        start = np.full((len(targets), 1), generation.decoder_start_token_id, np.int64)
        found.append(ForcedBatch(source, np.concatenate([start, labels[:, :-1]], axis=1), labels, valid))
    return tuple(found)


def feed_of(graph: GraphLayout, batch: ForcedBatch, hidden: FloatArray | None = None) -> dict[str, npt.NDArray[Any]]:
    """What a graph reads of a batch, by input name; a decoder reads the encoder's output `hidden` too."""
    values: dict[InputKind, npt.NDArray[Any]] = {
        "source_ids": batch.source.input_ids,
        "source_mask": batch.source.attention_mask,
        "decoder_ids": batch.decoder_input_ids,
    }
    if hidden is not None:
        values["encoder_states"] = hidden
    return graph.feed(values)


def by_target_length(tokens: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Sample numbers from the shortest target to the longest: the order in which batches hold the least padding.

    Targets count, not sources: most of the work is the decoder's, and a model that repeats itself up to the limit does
    so on short sources too.
    """
    return tuple(sorted(range(len(tokens)), key=lambda index: len(tokens[index])))


class ForcedEncoder:
    """An encoder in fp32 (original, emulated, widened or switchable), ready to run on batches.

    With `consume` the model is used up. What `extra` holds is fed beside the batch: the flags of a switchable graph.
    """

    def __init__(self, model: ir.Model, settings: SessionSettings, *, consume: bool = False) -> None:
        self._session = create_session(model, settings, consume=consume)

    def encode(self, batch: ForcedBatch, extra: Feed = NOTHING, *, release: bool = False) -> FloatArray:
        """The output for a batch, float32 [B, S, D]. With `release` the session then gives its memory back."""
        feed = {**feed_of(SEQ2SEQ.encoder, batch), **extra}
        return run_session(self._session, [HIDDEN], feed, release=release)[0]


class ForcedDecoder:
    """A decoder without past in fp32 (original, emulated, widened or switchable), ready to be forced.

    With `consume` the model is used up. What `extra` holds is fed beside the batch: the flags of a switchable graph.
    The token rules of `generation` hold; None has none.
    """

    def __init__(
        self,
        model: ir.Model,
        settings: SessionSettings,
        *,
        consume: bool = False,
        generation: GenerationSettings | None = None,
    ) -> None:
        headed = with_margin_head(model, consume=consume, generation=generation)
        self._session = create_session(headed, settings, consume=True)
        self._rules = generation if generation is not None and has_token_rules(generation) else None

    def margins(
        self, batch: ForcedBatch, hidden: FloatArray, extra: Feed = NOTHING, *, release: bool = False
    ) -> FloatArray:
        """Signed margins of the labels, float32 [B, T]: NaN where a logit is not finite or the position not valid.

        With `release` the session then gives its memory back.
        """
        feed = {**feed_of(SEQ2SEQ.decoder, batch, hidden), LABELS: batch.labels, **extra}
        if self._rules is not None:
            phases = [phase_of(self._rules, step) for step in range(batch.labels.shape[1])]
            feed[TOKEN_PHASE] = np.array(phases, np.int64)
        found = run_session(self._session, [MARGIN], feed, release=release)[0]
        return np.where(batch.valid, found, np.float32(np.nan))


def encoder_is_finite(batch: ForcedBatch, hidden: FloatArray) -> npt.NDArray[np.bool_]:
    """For each row, whether the encoder's output is finite at every position that is not padding, bool [B]."""
    finite = np.isfinite(hidden).all(axis=-1)
    return np.asarray((finite | (batch.source.attention_mask == 0)).all(axis=-1))
