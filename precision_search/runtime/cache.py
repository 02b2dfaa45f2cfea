"""The key-value cache between decoder steps: what it consists of, and the buffers it lives in.

In: the two decoder graphs. Out: a `Cache` that binds, for each step, the past that the step reads and the present that
it writes. Self-attention tensors have two buffers each, at the longest length, swapped between steps, since a step
copies the whole past into its present and must not overwrite what it reads. Cross-attention tensors are written by the
first step and read by all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.model.layout import SEQ2SEQ
from precision_search.runtime.buffers import Buffer
from precision_search.runtime.session import SessionSettings

if TYPE_CHECKING:
    from onnxruntime import IOBinding

_FIRST = SEQ2SEQ.decoder.name
_LATER = SEQ2SEQ.decoder_with_past.name


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """One tensor of the cache, [batch, heads, positions, head_size].

    Attributes:
        past: its name as an input of `decoder_with_past`.
        present: its name as an output.
        is_self: of self-attention: grows by one position a step. Else of cross-attention: written once.
        dtype: element type, the same in both decoder graphs.
        heads: its fixed second dimension.
        head_size: its fixed last dimension.
    """

    past: str
    present: str
    is_self: bool
    dtype: ir.DataType
    heads: int
    head_size: int


def cache_tensors(decoder: ir.Model, decoder_with_past: ir.Model) -> tuple[CacheTensor, ...]:
    """The cache as the two decoder graphs hand it to each other, in the order of the inputs.

    Raises:
        InputError: a tensor is missing on one side, differs in dtype, or has no known size.
    """
    first = {value.name: value for value in decoder.graph.outputs}
    later = {value.name: value for value in decoder_with_past.graph.outputs}
    found = []
    for value in decoder_with_past.graph.inputs:
        name = str(value.name)
        link = SEQ2SEQ.cache_link(name)
        if link is None:
            continue
        for graph, outputs in ((_FIRST, first), *(((_LATER, later),) if link.is_self else ())):
            giver = outputs.get(link.present)
            if giver is None or giver.dtype != value.dtype:
                given = "does not give it" if giver is None else f"gives it as {giver.dtype}"
                raise _mismatch(name, f"{_LATER} takes it as {value.dtype}, but {graph} {given}")
        shape = value.shape if value.shape is not None and len(value.shape) == 4 else (None,) * 4
        heads, head_size = shape[1], shape[3]
        if value.dtype is None or not isinstance(heads, int) or not isinstance(head_size, int):
            raise _mismatch(name, f"its shape is {value.shape}; fixed heads and head size are needed")
        found.append(CacheTensor(name, link.present, link.is_self, value.dtype, heads, head_size))
    if not any(tensor.is_self for tensor in found):
        raise _mismatch(SEQ2SEQ.caches(1)[0].past, f"{_LATER} has no such input")
    return tuple(found)


class Cache:
    """Buffers for the cache of one batch, kept and grown from batch to batch."""

    def __init__(self, tensors: tuple[CacheTensor, ...], settings: SessionSettings) -> None:
        self._self = [
            (tensor, (Buffer(tensor.dtype, settings), Buffer(tensor.dtype, settings)))
            for tensor in tensors
            if tensor.is_self
        ]
        self._cross = [(tensor, Buffer(tensor.dtype, settings)) for tensor in tensors if not tensor.is_self]
        self._batch = 0
        self._source = 0

    def reserve(self, batch: int, source: int, steps: int) -> None:
        """Makes room for `batch` rows, `source` encoder positions and `steps` decoder positions.

        Raises:
            DeviceError: the device has no memory left.
        """
        self._batch, self._source = batch, source
        for tensor, pair in self._self:
            for buffer in pair:
                buffer.reserve(batch * tensor.heads * steps * tensor.head_size)
        for tensor, buffer in self._cross:
            buffer.reserve(batch * tensor.heads * source * tensor.head_size)

    def bind_cross_outputs(self, binding: IOBinding) -> None:
        """Lets the first step write the cross-attention tensors."""
        for tensor, buffer in self._cross:
            buffer.bind_output(binding, tensor.present, self._shape(tensor, self._source))

    def bind_cross_inputs(self, binding: IOBinding) -> None:
        """Lets later steps read the cross-attention tensors; once for a batch."""
        for tensor, buffer in self._cross:
            buffer.bind_input(binding, tensor.past, self._shape(tensor, self._source))

    def bind_step(self, binding: IOBinding, step: int) -> None:
        """Lets step number `step` (the first is 0 and has no past) read `step` positions and write one more."""
        for tensor, pair in self._self:
            if step > 0:
                pair[(step - 1) % 2].bind_input(binding, tensor.past, self._shape(tensor, step))
            pair[step % 2].bind_output(binding, tensor.present, self._shape(tensor, step + 1))

    def shrink(
        self, batch: int, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], positions: int
    ) -> None:
        """Goes on with the first `batch` rows once the rows `sources` have replaced the rows `targets`; CPU only.

        `positions` were written by the last step. Cross-attention inputs are to be bound anew.
        """
        for tensor, pair in self._self:
            pair[(positions - 1) % 2].move_rows(sources, targets, tensor.heads * positions * tensor.head_size)
        for tensor, buffer in self._cross:
            buffer.move_rows(sources, targets, tensor.heads * self._source * tensor.head_size)
        self._batch = batch

    def _shape(self, tensor: CacheTensor, positions: int) -> tuple[int, int, int, int]:
        return self._batch, tensor.heads, positions, tensor.head_size


def _mismatch(name: str, why: str) -> InputError:
    return InputError(
        f"the decoder graphs do not fit together at {name!r}",
        why=why,
        fix="export the three graphs together, in the usual layout with past and present names",
    )
