"""The parts of a generator that run graphs: the encoder once, then decoder steps on buffers that stay on the device.

In: graphs, token ids, and how far to decode. Out: histories of tokens and flags, copied to the host at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.model.generation_config import GenerationSettings
from precision_search.runtime import head
from precision_search.runtime.buffers import Buffer
from precision_search.runtime.cache import Cache
from precision_search.runtime.session import SessionSettings, create_session, run_error

if TYPE_CHECKING:
    from onnxruntime import OrtValue

ATTENTION_MASK = "attention_mask"
ENCODER_MASK = "encoder_attention_mask"
ENCODER_STATES = "encoder_hidden_states"

_ROW_ALIGNMENT = 64
"""Rows of a history start at multiples of this many elements: at 256 bytes or more, as CUDA's own allocations do."""

_INT64, _FLOAT, _BOOL = ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch on the device, valid until the encoder runs again.

    Attributes:
        batch: rows.
        source: positions.
        mask: int64 [batch, source].
        states: the encoder output, [batch, source, width].
        width: its last dimension.
    """

    batch: int
    source: int
    mask: OrtValue
    states: Buffer
    width: int


@dataclass(frozen=True, slots=True)
class History:
    """What decoder steps gave, on the host: one column a step.

    Attributes:
        tokens: int64 [batch, steps].
        damaged: bool [batch, steps], whether a logit of the step was not finite.
        margins: float32 [batch, steps], or None.
    """

    tokens: npt.NDArray[np.int64]
    damaged: npt.NDArray[np.bool_]
    margins: npt.NDArray[np.float32] | None


class Encoder:
    """The encoder graph, its session and its output buffers."""

    def __init__(self, model: ir.Model, settings: SessionSettings) -> None:
        states = head.find_output(model, head.HIDDEN)
        self._runner = _Runner(head.with_finite_head(model), settings)
        self._width = head.last_dimension(states)
        self._states = Buffer(states.dtype or _FLOAT, settings)
        self._check = Buffer(_FLOAT, settings)
        self._settings = settings

    def run(self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]) -> Encoded:
        """Encodes a batch, both arrays int64 [B, S]."""
        batch, source = input_ids.shape
        ids, mask = self._upload(input_ids), self._upload(attention_mask)
        self._states.reserve(batch * source * self._width)
        self._check.reserve(batch * source)
        self._runner.bind_value(head.INPUT_IDS, ids)
        self._runner.bind_value(ATTENTION_MASK, mask)
        self._states.bind_output(self._runner.binding, head.HIDDEN, (batch, source, self._width))
        self._check.bind_output(self._runner.binding, head.FINITE_CHECK, (batch, source, 1))
        self._runner.run()
        return Encoded(batch, source, mask, self._states, self._width)

    def damaged(self, attention_mask: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which rows of the batch encoded last have a value that is not finite at a valid position; bool [B]."""
        check = self._check.read()[: attention_mask.size].reshape(attention_mask.shape)
        damaged: npt.NDArray[np.bool_] = (np.isnan(check) & (attention_mask != 0)).any(axis=1)
        return damaged

    def _upload(self, array: npt.NDArray[np.int64]) -> OrtValue:
        from onnxruntime import OrtValue

        contiguous = np.ascontiguousarray(array)
        return OrtValue.ortvalue_from_numpy(contiguous, self._settings.device, self._settings.device_id)


class Decoder:
    """The two decoder graphs with token heads, and everything that one step hands to the next."""

    def __init__(
        self,
        first: ir.Model,
        later: ir.Model,
        generation: GenerationSettings,
        cache: Cache,
        settings: SessionSettings,
        *,
        with_margins: bool,
    ) -> None:
        self._first = _Runner(head.with_token_head(first, generation, with_margin=with_margins), settings)
        self._later = _Runner(head.with_token_head(later, generation, with_margin=with_margins), settings)
        self._generation = generation
        self._cache = cache
        self._start = Buffer(_INT64, settings, fill=generation.decoder_start_token_id)
        self._nobody = Buffer(_BOOL, settings, fill=False)
        self._finished = (Buffer(_BOOL, settings), Buffer(_BOOL, settings))
        self._tokens = Buffer(_INT64, settings)
        self._checks = Buffer(_FLOAT, settings)
        self._margins = Buffer(_FLOAT, settings) if with_margins else None
        forced = {head.NOT_FORCED, generation.forced_bos_token_id, generation.forced_eos_token_id} - {None}
        self._forced = {token: Buffer(_INT64, settings, fill=token) for token in forced}
        self._batch = self._stride = self._limit = 0

    def start(self, encoded: Encoded, limit: int) -> None:
        """Prepares for at most `limit` steps on a batch."""
        self._batch, self._limit = encoded.batch, limit
        self._stride = -(-encoded.batch // _ROW_ALIGNMENT) * _ROW_ALIGNMENT
        for buffer in (self._start, self._nobody, *self._finished):
            buffer.reserve(encoded.batch)
        for buffer in (self._tokens, self._checks, *([self._margins] if self._margins else [])):
            buffer.reserve(limit * self._stride)
        for buffer in self._forced.values():
            buffer.reserve(1)
        self._cache.reserve(encoded.batch, encoded.source, limit)
        self._cache.bind_cross_outputs(self._first.binding)
        self._cache.bind_cross_inputs(self._later.binding)
        for runner in (self._first, self._later):
            runner.bind_value(ENCODER_MASK, encoded.mask)
            if ENCODER_STATES in runner.inputs:
                encoded.states.bind_input(
                    runner.binding, ENCODER_STATES, (encoded.batch, encoded.source, encoded.width)
                )

    def step(self, step: int) -> None:
        """Runs step number `step`; the first is 0 and reads the start token."""
        runner = self._later if step else self._first
        binding, column, row = runner.binding, (self._batch, 1), step * self._stride
        if step:
            self._tokens.bind_input(binding, head.INPUT_IDS, column, offset=row - self._stride)
            self._finished[(step - 1) % 2].bind_input(binding, head.FINISHED_IN, column)
        else:
            self._start.bind_input(binding, head.INPUT_IDS, column)
            self._nobody.bind_input(binding, head.FINISHED_IN, column)
        if head.FORCED_TOKEN in runner.inputs:
            self._forced[forced_token(self._generation, step, self._limit)].bind_input(binding, head.FORCED_TOKEN, (1,))
        self._cache.bind_step(binding, step)
        self._tokens.bind_output(binding, head.NEXT_TOKEN, column, offset=row)
        self._finished[step % 2].bind_output(binding, head.FINISHED, column)
        self._checks.bind_output(binding, head.FINITE_CHECK, (*column, 1), offset=row)
        if self._margins is not None:
            self._margins.bind_output(binding, head.MARGIN, (*column, 1), offset=row)
        runner.run()

    def all_finished(self, step: int) -> bool:
        """Whether every row had ended after step number `step`, the last one run."""
        return bool(self._finished[step % 2].read()[: self._batch].all())

    def history(self, steps: int) -> History:
        """What the first `steps` steps gave."""
        margins = None if self._margins is None else self._columns(self._margins, steps)
        return History(self._columns(self._tokens, steps), np.isnan(self._columns(self._checks, steps)), margins)

    def _columns(self, buffer: Buffer, steps: int) -> npt.NDArray[Any]:
        rows = buffer.read()[: steps * self._stride].reshape(steps, self._stride)
        return rows[:, : self._batch].T.copy()  # on the CPU the rows are the buffer itself


def forced_token(generation: GenerationSettings, step: int, limit: int) -> int:
    """The token that step number `step` of at most `limit` must choose, or `NOT_FORCED`.

    As in transformers: the first generated token for `forced_bos_token_id`, the last allowed one for
    `forced_eos_token_id`, which wins where both are the same.
    """
    if step == limit - 1 and generation.forced_eos_token_id is not None:
        return generation.forced_eos_token_id
    if step == 0 and generation.forced_bos_token_id is not None:
        return generation.forced_bos_token_id
    return head.NOT_FORCED


class _Runner:
    """A session and its binding, which keeps what is bound until it is bound anew; the model is used up."""

    def __init__(self, model: ir.Model, settings: SessionSettings) -> None:
        self._session = create_session(model, settings, consume=True)
        self.binding = self._session.io_binding()
        self.inputs = frozenset(value.name for value in self._session.get_inputs())

    def bind_value(self, name: str, value: OrtValue) -> None:
        if name in self.inputs:
            self.binding.bind_ortvalue_input(name, value)

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self.binding)
        except Exception as error:  # ONNX Runtime raises classes of its own
            raise run_error(error) from error
