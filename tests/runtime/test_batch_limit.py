"""The batch shrinks when memory runs out, for good and for all that share the limit; results hold one size alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import onnx_ir as ir
import pytest

from precision_search.errors import DeviceMemoryError, InputError
from precision_search.runtime.batch_limit import BatchLimit, after_release
from precision_search.runtime.buffers import Buffer, release_shared
from precision_search.runtime.session import NO_LIMIT, SessionSettings


@pytest.fixture(autouse=True)
def nothing_shared() -> None:
    """What earlier tests of the process left in shared buffers would be given back first, and the work done again."""
    release_shared()


def holding(most: int, sizes: list[int]) -> Callable[[int], int]:
    def work(size: int) -> int:
        sizes.append(size)
        if size > most:
            raise DeviceMemoryError("no memory", why=f"{size} asked")
        return size

    return work


def test_the_batch_is_halved_until_it_fits_and_stays_so() -> None:
    said: list[str] = []
    sizes: list[int] = []
    limit = BatchLimit(said.append)
    work = holding(5, sizes)
    assert limit.fitting(16, work) == 4
    assert limit.fitting(16, work) == 4
    assert (limit.fitting(3, work), limit.of(16), limit.of(2)) == (3, 4, 2)
    assert sizes == [16, 8, 4, 4, 3]
    assert said == [
        "out of memory with 16 samples at once, going on with 8",
        "out of memory with 8 samples at once, going on with 4",
    ]


def test_a_smaller_set_that_does_not_fit_shrinks_the_limit_of_larger_ones() -> None:
    limit = BatchLimit()
    work = holding(2, [])
    limit.fitting(4, work)
    assert limit.of(32) == 2


def test_one_sample_that_does_not_fit_is_an_error_with_exit_code_3() -> None:
    sizes: list[int] = []
    work = holding(0, sizes)
    with pytest.raises(DeviceMemoryError, match="does not hold one sample") as caught:
        BatchLimit().fitting(4, work)
    assert sizes == [4, 2, 1]
    assert (caught.value.exit_code, caught.value.why) == (3, "1 asked")
    assert "--resume" in caught.value.fix


@pytest.fixture
def idle() -> Buffer:
    """A buffer in shared memory that holds some; no other does."""
    release_shared()
    buffer = Buffer(ir.DataType.FLOAT, SessionSettings(memory_limit=NO_LIMIT))
    buffer.reserve(1)
    return buffer


def beside(buffer: Buffer, tried: list[int]) -> Callable[[int], int]:
    """Work that fits only when the buffer's memory is free."""

    def work(size: int) -> int:
        tried.append(size)
        if buffer.holds_memory:
            raise DeviceMemoryError("no memory", why="a buffer has it")
        return size

    return work


@pytest.mark.parametrize("size", [16, 1])
def test_what_idle_buffers_hold_is_given_back_before_the_batch_shrinks(idle: Buffer, size: int) -> None:
    said: list[str] = []
    tried: list[int] = []
    limit = BatchLimit(said.append)
    assert limit.fitting(size, beside(idle, tried)) == size
    assert (tried, said, limit.of(32)) == ([size, size], [], 32)


def test_one_sample_is_tried_once_more_and_no_more(idle: Buffer) -> None:
    sizes: list[int] = []
    with pytest.raises(DeviceMemoryError, match="does not hold one sample"):
        BatchLimit().fitting(1, holding(0, sizes))
    assert sizes == [1, 1]
    assert not idle.holds_memory


def test_making_sessions_takes_what_idle_buffers_hold(idle: Buffer) -> None:
    work = beside(idle, [])
    assert after_release(lambda: work(3)) == 3


def test_without_anything_to_give_back_nothing_is_tried_again(idle: Buffer) -> None:
    sizes: list[int] = []
    idle.release()
    with pytest.raises(DeviceMemoryError, match="no memory"):
        after_release(lambda: holding(0, sizes)(2))
    assert sizes == [2]


def test_other_errors_release_nothing(idle: Buffer) -> None:
    def work() -> None:
        raise InputError("a broken graph")

    with pytest.raises(InputError):
        after_release(work)
    assert idle.holds_memory


@pytest.mark.parametrize("error", [InputError("a broken graph"), RuntimeError("CUDA failure 700: illegal address")])
def test_other_errors_pass_through(error: Exception) -> None:
    def work(size: int) -> None:
        raise error

    limit = BatchLimit()
    with pytest.raises(type(error)):
        limit.fitting(4, work)
    assert limit.of(4) == 4


def test_memory_that_runs_out_in_the_words_of_the_runtime_counts_too() -> None:
    def work(size: int) -> int:
        if size > 1:
            raise RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 4096")
        return size

    assert BatchLimit().fitting(4, work) == 1


def test_what_did_not_fit_is_gone_before_the_next_attempt() -> None:
    class Large:
        pass

    held: list[weakref.ref[Large]] = []

    def work(size: int) -> bool:
        if size == 1:
            return held[0]() is None
        large = Large()
        held.append(weakref.ref(large))
        raise DeviceMemoryError("no memory")

    assert BatchLimit().fitting(2, work)
