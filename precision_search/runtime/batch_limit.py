"""How many samples run at once: what was asked for, until the device's memory does not hold them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from precision_search.errors import DeviceMemoryError, first_line
from precision_search.runtime.buffers import release_shared
from precision_search.runtime.session import is_out_of_memory

Result = TypeVar("Result")


def after_release(work: Callable[[], Result]) -> Result:
    """Calls `work`; where memory runs out, once more without what the shared buffers hold (see `release_shared`).

    For work that makes sessions, and for work on batches: another's idle buffers should cost neither a run nor a batch.
    """
    try:
        return work()
    except Exception as error:
        if not _means_no_memory(error) or not release_shared():
            raise
    # Outside of the handler, whose error keeps alive what did not fit.
    return work()


class BatchLimit:
    """The most samples that run at once; halved whenever they do not fit, for everything that shares the limit.

    Another size of batch sums in another order and moves logits by the rounding of fp32, about 1e-5. So a piece of work
    that belongs together (generating or forcing a sample set) is done again from its start at the new size, and no
    result of one pass holds samples of two sizes. Pieces of different sizes are still comparable: what decides is
    tokens, a screen batches in another order than the reference does anyway, and margins within that distance of zero
    are near-ties, which a run lists.
    """

    def __init__(self, warn: Callable[[str], None] = lambda _: None) -> None:
        """`warn` receives a line each time the limit shrinks."""
        self._warn = warn
        self._most: int | None = None

    def of(self, wanted: int) -> int:
        """`wanted` samples, or as many as the limit allows."""
        return wanted if self._most is None else min(wanted, self._most)

    def fitting(self, wanted: int, work: Callable[[int], Result]) -> Result:
        """Calls `work` with a number of samples that fits: `wanted`, or half of it, and so on down to 1.

        A size is given up only when the work failed with the memory of all shared buffers given back.

        Raises:
            DeviceMemoryError: not even one sample fits.
        """
        while True:
            size = self.of(wanted)
            try:
                return after_release(partial(work, size))
            except Exception as error:
                if not _means_no_memory(error):
                    raise
                if size == 1:
                    raise DeviceMemoryError(
                        "the memory does not hold one sample at a time",
                        why=error.why if isinstance(error, DeviceMemoryError) else first_line(error),
                        fix="free memory on the device or raise device.memory_limit; a run goes on with --resume",
                    ) from error
                self._most = size // 2
            release_shared()
            self._warn(f"out of memory with {size} samples at once, going on with {self._most}")


def _means_no_memory(error: Exception) -> bool:
    """Whether memory ran out; an upload may say so in ONNX Runtime's own words."""
    return isinstance(error, DeviceMemoryError) or is_out_of_memory(error)
