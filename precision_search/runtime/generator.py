"""Greedy generation through I/O binding: tensors stay on the device, one implementation for `cpu` and `cuda`.

In: the three graphs of a bundle (any mixture of precisions) and token ids. Out: tokens, as `transformers` gives them
with `num_beams=1, do_sample=False`. No torch.

A step reads its token where the step before wrote it: the rows of a token history on the device. The cache has two
buffers a tensor, swapped between steps. What comes back to the host is the flags of finished rows, one byte a row
every `check_every` steps, and the histories at the end. Steps run after every row has finished give pad, which is
trimmed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.errors import InputError, UsageError
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.graph import GraphName
from precision_search.model.layout import SEQ2SEQ
from precision_search.runtime import decoding
from precision_search.runtime.backends import backend_of, in_host_memory
from precision_search.runtime.cache import Cache, cache_tensors
from precision_search.runtime.session import SessionSettings

IDS = SEQ2SEQ.encoder.input("source_ids")
MASK = SEQ2SEQ.encoder.input("source_mask")


@dataclass(frozen=True, slots=True)
class Generation:
    """What came out for a batch of B rows; T is the length of the longest.

    Attributes:
        tokens: int64 [B, T], without the start token, pad after a row's end.
        lengths: int64 [B], tokens of each row, its EOS included.
        nonfinite: bool [B], whether the encoder output at a valid position, or a logit at a step up to the row's end,
            was not finite.
        margins: float32 [B, T] if asked for: the best logit minus the second best; NaN where a logit was not finite,
            infinite where nothing was chosen (forced tokens, after the end).
    """

    tokens: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    nonfinite: npt.NDArray[np.bool_]
    margins: npt.NDArray[np.float32] | None


class Generator:
    """Generates with one set of graphs. Sessions and buffers are kept from call to call.

    Buffers grow to the largest batch, source length and number of new tokens seen. Calls from several threads run one
    after another (a lock sees to it), because they share the buffers.
    """

    def __init__(
        self,
        models: Mapping[GraphName, ir.Model],
        generation: GenerationSettings,
        settings: SessionSettings,
        *,
        check_every: int | None = None,
        leave_out_finished: bool = False,
        leave_out_padding: bool = False,
    ) -> None:
        """Makes the sessions; the decoder graphs are kept for `with_margins`, none is modified.

        Args:
            models: the three graphs in the usual layout.
            generation: how decoding starts, stops, and what it forces.
            settings: where and how the sessions run.
            check_every: steps between looks at the finished flags; None takes what suits the device.
            leave_out_finished: on a CPU, go on without rows that have ended. Rows then run in batches of changing size,
                which moves logits by fp32's own rounding.
            leave_out_padding: on a CPU, encode rows of like length together, which moves logits likewise. What the
                model makes of padding is then not seen: not for graphs that may overflow there.

        Raises:
            InputError: a graph is missing, has inputs unknown here, or does not fit the others.
            MissingPackageError, DeviceError: the device does not start.
        """
        _check_inputs(models)
        self._steps = models[SEQ2SEQ.decoder.name], models[SEQ2SEQ.decoder_with_past.name]
        self._generation = generation
        self._settings = settings
        self._check_every = check_every or backend_of(settings).check_every
        self._cache = Cache(cache_tensors(*self._steps), settings)
        self._encoder = decoding.Encoder(models[SEQ2SEQ.encoder.name], settings)
        self._decoders = {False: self._make_decoder(with_margins=False)}
        self._leave_out_finished = leave_out_finished and in_host_memory(settings)
        self._leave_out_padding = leave_out_padding and in_host_memory(settings)
        self._lock = threading.Lock()
        self._owner: int | None = None

    def generate(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        *,
        max_new_tokens: int | None = None,
        with_margins: bool = False,
        on_step: Callable[[decoding.Step], None] | None = None,
    ) -> Generation:
        """Decodes greedily until every row has ended or has `max_new_tokens` tokens.

        Args:
            input_ids: int64 [B, S], ids from 0 on.
            attention_mask: int64 [B, S], 1 where a token counts, 0 where it is padding.
            max_new_tokens: at least 1; None takes it from the generation settings.
            with_margins: also returns margins; makes two more sessions the first time.
            on_step: called after every step until all rows have ended; on CUDA that waits for each step. What it
                raises ends the generation.

        Raises:
            InputError: the arrays or the limit are not as said above.
            UsageError: called from `on_step`.
            DeviceError: the device has no memory left for the buffers.
        """
        limit = self._generation.max_new_tokens if max_new_tokens is None else max_new_tokens
        _check_arrays(input_ids, attention_mask, limit)
        check_every = 1 if on_step is not None else self._check_every
        with self._exclusive():
            decoder = self._decoders.get(with_margins)
            if decoder is None:
                decoder = self._decoders[with_margins] = self._make_decoder(with_margins=True)
            encode = self._encoder.run_by_length if self._leave_out_padding else self._encoder.run
            encoded = encode(input_ids, attention_mask)
            decoder.start(encoded, limit)
            for step in range(limit):
                decoder.step(step)
                if on_step is not None:
                    on_step(decoder.result(step))
                if (step + 1) % check_every or step + 1 == limit:
                    continue
                if decoder.all_finished(step):
                    break
                if self._leave_out_finished:
                    decoder.leave_out_finished(step)
            return self._collect(self._encoder.damaged(attention_mask), decoder.history(step + 1), limit)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        if self._owner == threading.get_ident():
            raise UsageError(
                "generate was called while it runs in the same thread",
                why="its own callback called it, and the two would share buffers",
                fix="let the callback only note what it is given, or use a second generator",
            )
        with self._lock:
            try:
                self._owner = threading.get_ident()
                yield
            finally:
                self._owner = None

    def _make_decoder(self, *, with_margins: bool) -> decoding.Decoder:
        first, later = self._steps
        return decoding.Decoder(first, later, self._generation, self._cache, self._settings, with_margins=with_margins)

    def _collect(self, damaged: npt.NDArray[np.bool_], history: decoding.History, limit: int) -> Generation:
        """Trims what ran on after the end."""
        steps = history.tokens.shape[1]
        ends = np.isin(history.tokens, self._generation.eos_token_ids)
        lengths = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, steps).astype(np.int64)
        longest = int(lengths.max())
        before_end = np.arange(steps) < lengths[:, None]
        margins = history.margins
        if margins is not None:
            forced = [decoding.forced_token(self._generation, step, limit) >= 0 for step in range(steps)]
            margins = np.where(before_end & ~np.array(forced), margins, np.float32(np.inf))[:, :longest]
        nonfinite = damaged | (history.damaged & before_end).any(axis=1)
        return Generation(history.tokens[:, :longest], lengths, nonfinite, margins)


def _check_inputs(models: Mapping[GraphName, ir.Model]) -> None:
    for layout in SEQ2SEQ.graphs:
        if layout.name not in models:
            raise InputError(
                f"the graph {layout.name!r} is missing",
                why=f"given: {', '.join(models) or 'none'}",
                fix=f"export the three graphs {SEQ2SEQ.names}",
            )
        names = {str(value.name) for value in models[layout.name].graph.inputs}
        names = {name for name in names if not SEQ2SEQ.is_past(name)}
        if layout.inputs[0].name not in names or not names <= layout.known_inputs:
            raise InputError(
                f"the inputs of the graph {layout.name!r} are not as expected",
                why=f"it takes {', '.join(sorted(names))}; known are {', '.join(sorted(layout.known_inputs))}",
                fix="export the model in the usual three-graph layout",
            )


def _check_arrays(input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64], limit: int) -> None:
    for name, array in ((IDS, input_ids), (MASK, attention_mask)):
        if array.dtype != np.int64 or array.ndim != 2 or array.size == 0:
            raise InputError(
                f"{name} cannot be generated from",
                why=f"it is {array.dtype} of shape {array.shape}; int64 [batch, positions] is needed, none of them 0",
                fix=f"convert it: {name}.astype(numpy.int64), one row a sentence",
            )
    if input_ids.shape != attention_mask.shape:
        raise InputError(
            f"{IDS} and {MASK} do not fit together",
            why=f"their shapes are {input_ids.shape} and {attention_mask.shape}",
            fix="take both from the same call of the tokenizer",
        )
    if input_ids.min() < 0:
        raise InputError(
            f"{IDS} holds a negative id",
            why=f"the smallest is {input_ids.min()}",
            fix="pad with the pad token and mask it, not with -100",
        )
    if not np.isin(attention_mask, (0, 1)).all():
        raise InputError(
            f"{MASK} holds other values than 0 and 1",
            why=f"it ranges from {attention_mask.min()} to {attention_mask.max()}",
            fix="use 1 where a token counts and 0 where it is padding",
        )
    if limit < 1:
        raise InputError(
            "nothing to generate", why=f"max_new_tokens is {limit}", fix="set max_new_tokens to at least 1"
        )
