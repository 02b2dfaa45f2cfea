"""Buffers say why they could not be made."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from precision_search.errors import DeviceError, DeviceMemoryError, InputError, PrecisionSearchError
from precision_search.runtime.buffers import Buffer
from precision_search.runtime.session import SessionSettings

CPU = SessionSettings(threads=1)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 4096", DeviceMemoryError),
        ("CUDA failure 2: out of memory ; GPU=0", DeviceMemoryError),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", DeviceError),
        ("tensor.cc:57 Tensor shape.Size() must be >= 0", InputError),
    ],
)
def test_only_memory_that_runs_out_is_called_so(
    monkeypatch: pytest.MonkeyPatch, failure: str, kind: type[PrecisionSearchError]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(failure)

    buffer = Buffer(ir.DataType.FLOAT, CPU)
    monkeypatch.setattr(buffer, "_allocate", fail)

    with pytest.raises(PrecisionSearchError) as caught:
        buffer.reserve(4)

    assert type(caught.value) is kind
    assert caught.value.why in failure


def test_a_buffer_holds_memory_from_its_reservation_to_its_release() -> None:
    buffer = Buffer(ir.DataType.INT64, CPU, fill=7)
    assert not buffer.holds_memory
    buffer.reserve(3)
    assert buffer.holds_memory
    assert np.array_equal(buffer.read(), [7, 7, 7])
    buffer.release()
    assert not buffer.holds_memory
