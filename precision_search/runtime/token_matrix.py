"""Tokens handed to a tensor library without a copy.

In: int64 token ids on the host. Out: a `TokenMatrix`, which `torch.from_dlpack` and its like take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from precision_search.errors import MissingPackageError
from precision_search.runtime.session import SessionSettings

if TYPE_CHECKING:
    from onnxruntime import OrtValue


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
            self._value = self._make()
        return self._value

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The DLPack capsule. All is complete when a consumer gets it, so that no `stream` need wait.

        Raises:
            BufferError: a copy or another device is asked for.
            MissingPackageError: this build of ONNX Runtime has no DLPack.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("a TokenMatrix shares its memory on its own device; copy what was made of it")
        return self._export().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device, in DLPack's terms."""
        kind, number = self._export().__dlpack_device__()
        return int(kind), int(number)

    def _export(self) -> Any:
        value = self.ort_value._ortvalue
        if not hasattr(value, "__dlpack__"):
            import onnxruntime

            raise MissingPackageError(
                "this build of ONNX Runtime has no DLPack",
                why=f"onnxruntime {onnxruntime.__version__} was built without it",
                fix="install onnxruntime-gpu, whose CPU provider is the same, or take the token ids",
            )
        return value

    def _make(self) -> OrtValue:
        from onnxruntime import OrtValue

        place = self._settings.device, self._settings.device_id
        if self._settings.device == "cuda":
            return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(self._tokens), *place)
        # Not from numpy: that would be numpy's memory, which a consumer of the capsule does not keep alive.
        value = OrtValue.ortvalue_from_shape_and_type(list(self.shape), np.int64, *place)
        value.numpy()[:] = self._tokens
        return value
