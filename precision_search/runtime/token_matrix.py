"""Tokens handed to a tensor library without a copy.

In: int64 token ids on the host. Out: a `TokenMatrix`, which `torch.from_dlpack` and its like take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from precision_search.errors import MissingPackageError
from precision_search.runtime.backends import in_host_memory
from precision_search.runtime.decoding import upload
from precision_search.runtime.session import SessionSettings

if TYPE_CHECKING:
    from onnxruntime import OrtValue


_CPU = (1, 0)
"""The host in DLPack's terms (kDLCPU)."""


class TokenMatrix:
    """An int64 matrix [B, T] on the generator's device, for whatever speaks DLPack.

    `torch.from_dlpack(matrix)` shares its memory, which lives as long as one of the two; on a CPU
    `numpy.from_dlpack(matrix)` does too. It belongs to one result: later calls of a generator do not write to it. On
    CUDA it is made when first asked for, by one copy of eight bytes a token.
    """

    def __init__(self, tokens: npt.NDArray[np.int64], settings: SessionSettings) -> None:
        self._tokens = tokens
        self._settings = settings
        self._value: OrtValue | None = None

    def __repr__(self) -> str:
        return f"TokenMatrix(shape={self.shape}, device={self._settings.device!r})"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self._tokens.shape
        return rows, columns

    @property
    def ort_value(self) -> OrtValue:
        """The same memory as ONNX Runtime knows it, for an `IOBinding`."""
        if self._value is None:
            self._value = _on_device(self._tokens, self._settings)
        return self._value

    def __reduce__(self) -> tuple[type[TokenMatrix], tuple[npt.NDArray[np.int64], SessionSettings]]:
        # What a tensor library wrote to the memory travels too; the copy has memory of its own.
        return TokenMatrix, (self._host(), self._settings)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """A host copy for `numpy.asarray`, which does not speak DLPack."""
        if copy is False:
            raise ValueError("an array of a TokenMatrix is a copy; numpy.from_dlpack shares its memory")
        return np.array(self._host(), dtype)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The DLPack capsule, unversioned whatever `max_version` says (numpy then makes a read-only array of it).

        All is complete when a consumer gets it, so that no `stream` need wait. `copy=True` gives memory of its own,
        and so does asking a matrix on CUDA for the CPU.

        Raises:
            BufferError: another device is asked for, or the CPU's without a copy.
            MissingPackageError: this build of ONNX Runtime has no DLPack.
        """
        own = self.__dlpack_device__()
        device = own if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        if device != own and (device != _CPU or copy is False):
            raise BufferError(f"a TokenMatrix on device {own} cannot be shared with device {device}")
        if device == own and not copy:
            return _speaker(self.ort_value).__dlpack__()
        settings = self._settings if device == own else SessionSettings()
        return _speaker(_on_device(self._host(), settings)).__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device, in DLPack's terms."""
        kind, number = _speaker(self.ort_value).__dlpack_device__()
        return int(kind), int(number)

    def _host(self) -> npt.NDArray[np.int64]:
        """The values as they are now."""
        return self._tokens if self._value is None else np.array(self._value.numpy())


def _speaker(value: OrtValue) -> Any:
    """The object of ONNX Runtime that speaks DLPack."""
    inner = value._ortvalue
    if not hasattr(inner, "__dlpack__"):
        import onnxruntime

        raise MissingPackageError(
            "this build of ONNX Runtime has no DLPack",
            why=f"onnxruntime {onnxruntime.__version__} was built without it",
            fix="install onnxruntime-gpu, whose CPU provider is the same, or take the token ids",
        )
    return inner


def _on_device(tokens: npt.NDArray[np.int64], settings: SessionSettings) -> OrtValue:
    from onnxruntime import OrtValue

    if not in_host_memory(settings):
        return upload(tokens, settings)
    # Not from numpy: that would be numpy's memory, which a consumer of the capsule does not keep alive.
    value = OrtValue.ortvalue_from_shape_and_type(list(tokens.shape), np.int64)
    value.numpy()[:] = tokens
    return value
