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
from precision_search.model.layout import SEQ2SEQ
from precision_search.runtime import head
from precision_search.runtime.backends import backend_of, create_session
from precision_search.runtime.buffers import Buffer
from precision_search.runtime.cache import Cache
from precision_search.runtime.session import SessionSettings, run_error
from precision_search.runtime.token_rules import PHASES, has_token_rules, phase_of

if TYPE_CHECKING:
    from onnxruntime import OrtValue

SOURCE_IDS = SEQ2SEQ.encoder.input("source_ids")
ATTENTION_MASK = SEQ2SEQ.encoder.input("source_mask")
ENCODER_MASK = SEQ2SEQ.decoder.input("source_mask")
ENCODER_STATES = SEQ2SEQ.decoder.input("encoder_states")

_ROW_ALIGNMENT = 64
"""Rows of a history start at multiples of this many elements: at 256 bytes or more, as CUDA's own allocations do."""

_SHRINK_AT = 7 / 8
"""Share of rows not finished at which the others are left out: fewer copies than after every end, and as fast."""

_GROUP_POSITIONS = 256
"""Positions that the encoder runs on at least, where there are more: fewer are no faster each."""

_GROUP_SAVES = 7 / 8
"""Share of a batch's positions above which groups of like length are not worth their runs."""

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
class Step:
    """What one decoder step chose, for the B rows of a batch as they were given.

    Attributes:
        index: from 0.
        tokens: int64 [B], pad in rows that had ended before.
        finished: bool [B], rows that have ended, this step included.
    """

    index: int
    tokens: npt.NDArray[np.int64]
    finished: npt.NDArray[np.bool_]


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
        self._runner = _Runner(head.with_finite_head(model), settings, changing_shapes=True)
        self._width = head.last_dimension(states)
        self._states = Buffer(states.dtype or _FLOAT, settings)
        self._check = Buffer(_FLOAT, settings)
        self._group_states = Buffer(states.dtype or _FLOAT, settings)
        self._group_check = Buffer(_FLOAT, settings)
        self._settings = settings

    def run(self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]) -> Encoded:
        """Encodes a batch, both arrays int64 [B, S]."""
        batch, source = input_ids.shape
        mask = upload(attention_mask, self._settings)
        self._encode(input_ids, mask, self._states, self._check)
        return Encoded(batch, source, mask, self._states, self._width)

    def run_by_length(self, input_ids: npt.NDArray[np.int64], attention_mask: npt.NDArray[np.int64]) -> Encoded:
        """As `run`, on a CPU, with rows of like length together, so that little padding is computed; there zeros are.

        A row then runs in a batch of another shape, which moves its output by fp32's own rounding.
        """
        batch, source = input_ids.shape
        lengths = source - (attention_mask[:, ::-1] != 0).argmax(axis=1)
        groups = like_lengths(lengths)
        if len(groups) == 1:
            return self.run(input_ids, attention_mask)
        self._states.reserve(batch * source * self._width)
        self._check.reserve(batch * source)
        states, check = self._states.host_bytes(batch, source, self._width), self._check.host_bytes(batch, source, 1)
        for rows in groups:
            longest = int(lengths[rows].max())
            mask = upload(attention_mask[rows, :longest], self._settings)
            self._encode(input_ids[rows, :longest], mask, self._group_states, self._group_check)
            states[rows, :longest] = self._group_states.host_bytes(len(rows), longest, self._width)
            check[rows, :longest] = self._group_check.host_bytes(len(rows), longest, 1)
            states[rows, longest:] = 0
            check[rows, longest:] = 0
        return Encoded(batch, source, upload(attention_mask, self._settings), self._states, self._width)

    def _encode(self, input_ids: npt.NDArray[np.int64], mask: OrtValue, states: Buffer, check: Buffer) -> None:
        batch, source = input_ids.shape
        ids = upload(input_ids, self._settings)  # a name, since a binding does not keep the array alive
        states.reserve(batch * source * self._width)
        check.reserve(batch * source)
        self._runner.bind_value(SOURCE_IDS, ids)
        self._runner.bind_value(ATTENTION_MASK, mask)
        states.bind_output(self._runner.binding, head.HIDDEN, (batch, source, self._width))
        check.bind_output(self._runner.binding, head.FINITE_CHECK, (batch, source, 1))
        self._runner.run()

    def damaged(self, attention_mask: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which rows of the batch encoded last have a value that is not finite at a valid position; bool [B]."""
        check = self._check.read()[: attention_mask.size].reshape(attention_mask.shape)
        damaged: npt.NDArray[np.bool_] = (np.isnan(check) & (attention_mask != 0)).any(axis=1)
        return damaged


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
        changing = not backend_of(settings).plans_steps
        first, later = (head.with_token_head(model, generation, with_margin=with_margins) for model in (first, later))
        self._first = _Runner(first, settings, changing_shapes=changing)
        self._later = _Runner(later, settings, changing_shapes=changing)
        self._generation = generation
        self._cache = cache
        self._settings = settings
        self._start = Buffer(_INT64, settings, fill=generation.decoder_start_token_id)
        self._nobody = Buffer(_BOOL, settings, fill=False)
        self._finished = (Buffer(_BOOL, settings), Buffer(_BOOL, settings))
        self._tokens = Buffer(_INT64, settings)
        self._checks = Buffer(_FLOAT, settings)
        self._margins = Buffer(_FLOAT, settings) if with_margins else None
        forced = {head.NOT_FORCED, generation.forced_bos_token_id, generation.forced_eos_token_id} - {None}
        self._forced = {token: Buffer(_INT64, settings, fill=token) for token in forced}
        phases = PHASES if has_token_rules(generation) else 0
        self._phases = [Buffer(_INT64, settings, fill=phase) for phase in range(phases)]
        self._limit = 0

    def start(self, encoded: Encoded, limit: int) -> None:
        """Prepares for at most `limit` steps on a batch."""
        self._limit, self._encoded = limit, encoded
        self._batch, self._mask = encoded.batch, encoded.mask
        self._rows = np.arange(encoded.batch)
        self._done: list[_Span] = []
        self._begin = 0
        self._stride = -(-encoded.batch // _ROW_ALIGNMENT) * _ROW_ALIGNMENT
        for buffer in (self._start, self._nobody, *self._finished):
            buffer.reserve(encoded.batch)
        for buffer in (self._tokens, self._checks, *([self._margins] if self._margins else [])):
            buffer.reserve(limit * self._stride)
        for buffer in (*self._forced.values(), *self._phases):
            buffer.reserve(1)
        self._cache.reserve(encoded.batch, encoded.source, limit)
        self._cache.bind_cross_outputs(self._first.binding)
        self._bind_encoded(self._first)
        self._cache.bind_cross_inputs(self._later.binding)
        self._bind_encoded(self._later)

    def step(self, step: int) -> None:
        """Runs step number `step`; the first is 0 and reads the start token."""
        runner = self._later if step else self._first
        binding, column, row = runner.binding, (self._batch, 1), step * self._stride
        if step:
            self._tokens.bind_input(binding, head.INPUT_IDS, column, offset=row - self._stride)
        else:
            self._start.bind_input(binding, head.INPUT_IDS, column)
        before = self._finished[(step - 1) % 2] if step > self._begin else self._nobody
        before.bind_input(binding, head.FINISHED_IN, column)
        if head.FORCED_TOKEN in runner.inputs:
            self._forced[forced_token(self._generation, step, self._limit)].bind_input(binding, head.FORCED_TOKEN, (1,))
        if head.TOKEN_PHASE in runner.inputs:
            self._phases[phase_of(self._generation, step)].bind_input(binding, head.TOKEN_PHASE, (1,))
        self._cache.bind_step(binding, step)
        self._tokens.bind_output(binding, head.NEXT_TOKEN, column, offset=row)
        self._finished[step % 2].bind_output(binding, head.FINISHED, column)
        self._checks.bind_output(binding, head.FINITE_CHECK, (*column, 1), offset=row)
        if self._margins is not None:
            self._margins.bind_output(binding, head.MARGIN, (*column, 1), offset=row)
        runner.run()

    def all_finished(self, step: int) -> bool:
        """Whether every row had ended after step number `step`, the last one run."""
        return bool(self._flags(step).all())

    def result(self, step: int) -> Step:
        """What step number `step`, the last one run, chose."""
        tokens = np.full(self._encoded.batch, self._generation.pad_token_id, np.int64)
        tokens[self._rows] = self._columns(self._tokens, step, step + 1)[:, 0]
        finished = np.ones(self._encoded.batch, np.bool_)
        finished[self._rows] = self._flags(step)
        return Step(step, tokens, finished)

    def leave_out_finished(self, step: int) -> None:
        """On a CPU: goes on without the rows that had ended after step `step`, the last one run, if they are enough.

        Rows that go on take the places of those that do not, at the end of which the batch is cut.
        """
        finished = self._flags(step)
        batch = self._batch - int(finished.sum())
        if batch > _SHRINK_AT * self._batch or batch == 0:
            return
        self._done.append(self._span(step + 1))
        targets = np.flatnonzero(finished[:batch])
        sources = batch + np.flatnonzero(~finished[batch:])
        self._begin = step + 1
        self._rows[targets] = self._rows[sources]
        self._rows = self._rows[:batch]
        row = self._tokens.read()[step * self._stride :]
        row[targets] = row[sources]
        self._mask = upload(self._encoded.mask.numpy()[self._rows], self._settings)
        if ENCODER_STATES in self._later.inputs:
            self._encoded.states.move_rows(sources, targets, self._encoded.source * self._encoded.width)
        self._cache.shrink(batch, sources, targets, step + 1)
        self._batch = batch
        self._cache.bind_cross_inputs(self._later.binding)
        self._bind_encoded(self._later)

    def history(self, steps: int) -> History:
        """What the first `steps` steps gave; in rows that were left out pad, not damaged, and infinite margins."""
        last = self._span(steps)
        if not self._done:
            return last.history
        shape = self._encoded.batch, steps
        whole = History(
            np.full(shape, self._generation.pad_token_id, np.int64),
            np.zeros(shape, np.bool_),
            None if self._margins is None else np.full(shape, np.inf, np.float32),
        )
        for span in (*self._done, last):
            place = span.rows[:, None], np.arange(span.begin, span.begin + span.history.tokens.shape[1])
            whole.tokens[place] = span.history.tokens
            whole.damaged[place] = span.history.damaged
            if whole.margins is not None:
                whole.margins[place] = span.history.margins
        return whole

    def _bind_encoded(self, runner: _Runner) -> None:
        runner.bind_value(ENCODER_MASK, self._mask)
        if ENCODER_STATES in runner.inputs:
            shape = self._batch, self._encoded.source, self._encoded.width
            self._encoded.states.bind_input(runner.binding, ENCODER_STATES, shape)

    def _flags(self, step: int) -> npt.NDArray[np.bool_]:
        flags: npt.NDArray[np.bool_] = self._finished[step % 2].read()[: self._batch]
        return flags

    def _span(self, end: int) -> _Span:
        """What the rows that still go on have given since rows were last left out."""
        margins = None if self._margins is None else self._columns(self._margins, self._begin, end)
        tokens, checks = (self._columns(buffer, self._begin, end) for buffer in (self._tokens, self._checks))
        return _Span(self._rows.copy(), self._begin, History(tokens, np.isnan(checks), margins))

    def _columns(self, buffer: Buffer, begin: int, end: int) -> npt.NDArray[Any]:
        rows = buffer.read()[begin * self._stride : end * self._stride].reshape(end - begin, self._stride)
        return rows[:, : self._batch].T.copy()  # on the CPU the rows are the buffer itself


@dataclass(frozen=True, slots=True)
class _Span:
    """Steps that ran on the same rows: which rows of the batch, the first step, and what the steps gave."""

    rows: npt.NDArray[np.int64]
    begin: int
    history: History


def like_lengths(lengths: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """Rows in groups of like length, the longest first; one group where more would save too little padding."""
    order = np.argsort(-lengths, kind="stable")
    groups, begin, positions = [], 0, 0
    while begin < len(order):
        longest = int(lengths[order[begin]])
        rows = order[begin : begin + -(-_GROUP_POSITIONS // longest)]
        groups.append(rows)
        begin, positions = begin + len(rows), positions + len(rows) * longest
    padded = len(order) * int(lengths.max())
    return tuple(groups) if positions <= _GROUP_SAVES * padded else (order,)


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


def upload(array: npt.NDArray[np.int64] | npt.NDArray[np.float32], settings: SessionSettings) -> OrtValue:
    """An array on the device; on a CPU it shares the array's memory where that is contiguous.

    Raises:
        DeviceMemoryError: the device has no memory left.
    """
    from onnxruntime import OrtValue

    try:
        memory = backend_of(settings).memory
        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), memory, settings.device_id)
    except Exception as error:  # ONNX Runtime raises classes of its own
        raise run_error(error) from error


class _Runner:
    """A session and its binding, which keeps what is bound until it is bound anew; the model is used up."""

    def __init__(self, model: ir.Model, settings: SessionSettings, *, changing_shapes: bool) -> None:
        self._session = create_session(model, settings, consume=True, changing_shapes=changing_shapes)
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
