"""Device memory that sessions read and write by address.

In: an element type and how many elements there must be room for. Out: `Buffer`s, bound to an `IOBinding` under the
shape of the moment, so that a tensor that grows by one position a step is allocated once.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.errors import DeviceMemoryError, first_line
from precision_search.runtime.backends import backend_of, in_host_memory
from precision_search.runtime.session import SessionSettings, is_out_of_memory, run_error

if TYPE_CHECKING:
    from onnxruntime import IOBinding, OrtValue


_shared: weakref.WeakSet[Buffer] = weakref.WeakSet()
"""The buffers in memory that sessions share (see `SessionSettings.memory_limit`)."""


def release_shared() -> bool:
    """Gives back the memory of every buffer that shares it with sessions; nothing may be running there.

    Returns:
        Whether any of them held memory.
    """
    held = [buffer for buffer in tuple(_shared) if buffer.holds_memory]
    for buffer in held:
        buffer.release()
    return bool(held)


class Buffer:
    """Memory on a device for elements of one type; grows when asked and never shrinks.

    With `fill`, every element holds that value from the start; nothing should be bound to write to it.
    """

    def __init__(self, dtype: ir.DataType, settings: SessionSettings, *, fill: int | None = None) -> None:
        self._dtype = dtype
        self._settings = settings
        self._fill = fill
        self._capacity = 0
        self._value: OrtValue | None = None
        self._address = 0
        self._memory = backend_of(settings).memory
        self._place = self._memory, settings.device_id, int(dtype)
        self._item_size = int(dtype.itemsize)
        if settings.memory_limit is not None:
            _shared.add(self)

    @property
    def holds_memory(self) -> bool:
        """Whether there is room for any element."""
        return self._value is not None

    def release(self) -> None:
        """Gives the memory back; `reserve` comes before the next use."""
        self._value, self._capacity = None, 0

    def reserve(self, count: int) -> None:
        """Makes room for `count` elements; growing loses the contents.

        Raises:
            DeviceMemoryError: the device has no memory left.
            DeviceError, MissingPackageError, InputError: it failed otherwise (see `run_error`).
        """
        if count <= self._capacity:
            return
        self._value, self._capacity = None, 0  # first, since old and new together may not fit
        try:
            self._value = self._allocate(count)
        except Exception as error:  # ONNX Runtime raises classes of its own
            beyond_any = count * self._dtype.itemsize >= 2**63  # the binding refuses the number itself
            if not (is_out_of_memory(error) or beyond_any):
                raise run_error(error) from error
            raise DeviceMemoryError(
                f"no memory for {count * self._dtype.itemsize / 2**20:,.0f} MiB on {self._settings.device}",
                why=first_line(error),
                fix="use a smaller batch or fewer new tokens",
            ) from error
        self._capacity = count
        self._address = self._value.data_ptr()

    def read(self) -> npt.NDArray[Any]:
        """A host copy of the whole buffer, one-dimensional."""
        assert self._value is not None, "reserve() comes before use"
        return np.asarray(self._value.numpy())

    def host_bytes(self, *shape: int) -> npt.NDArray[np.uint8]:
        """The first elements as an array of `shape` in host memory, as bytes, since numpy knows no bfloat16.

        The last dimension counts bytes: it is as many times longer as an element has. Writing to it writes to the
        buffer, whose next growth makes it invalid.
        """
        assert in_host_memory(self._settings), "device memory has no host address"
        sizes = *shape[:-1], shape[-1] * self._item_size
        assert math.prod(sizes) <= self._capacity * self._item_size, "reserve() comes before use"
        memory = (ctypes.c_uint8 * math.prod(sizes)).from_address(self._address)
        return np.ctypeslib.as_array(memory).reshape(sizes)

    def move_rows(self, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], size: int) -> None:
        """Copies rows of `size` elements to other places in host memory; no row is both a source and a target."""
        rows = self.host_bytes(self._capacity // size, size)
        rows[targets] = rows[sources]

    def bind_input(self, binding: IOBinding, name: str, shape: Sequence[int], *, offset: int = 0) -> None:
        """Lets a session read the elements from `offset` on as its input `name` of `shape`."""
        binding.bind_input(name, *self._place, shape, self._address + offset * self._item_size)

    def bind_output(self, binding: IOBinding, name: str, shape: Sequence[int], *, offset: int = 0) -> None:
        """Lets a session write its output `name` of `shape` to the elements from `offset` on."""
        binding.bind_output(name, *self._place, shape, self._address + offset * self._item_size)

    def _allocate(self, count: int) -> OrtValue:
        from onnxruntime import OrtValue

        memory, device_id = self._memory, self._settings.device_id
        if self._fill is None:
            return OrtValue.ortvalue_from_shape_and_type([count], int(self._dtype), memory, device_id)
        return OrtValue.ortvalue_from_numpy(np.full(count, self._fill, self._dtype.numpy()), memory, device_id)
