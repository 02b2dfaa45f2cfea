"""How many samples run at once: what was asked for, until the device's memory does not hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from precision_search.errors import DeviceMemoryError
from precision_search.runtime.buffers import release_shared
from precision_search.runtime.session import first_line, is_out_of_memory

Result = TypeVar("Result")


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

        Raises:
            DeviceMemoryError: not even one sample fits.
        """
        while True:
            size = self.of(wanted)
            try:
                return work(size)
            except Exception as error:  # an upload may fail in ONNX Runtime's own words
                if not isinstance(error, DeviceMemoryError) and not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise DeviceMemoryError(
                        "The memory does not hold one sample at a time.",
                        why=error.why if isinstance(error, DeviceMemoryError) else first_line(error),
                        fix="Free memory on the device, raise device.memory_limit or take another device; "
                        "a run goes on with --resume.",
                    ) from error
                self._most = size // 2
            # Outside of the handler, whose error keeps alive what did not fit.
            release_shared()
            self._warn(f"out of memory with {size} samples at once, going on with {self._most}")
