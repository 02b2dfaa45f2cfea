"""What was asked of the dry CUDA runtime, as Python reads it from the log (`src/dry.h` has the format)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Direction = Literal["h2h", "h2d", "d2h", "d2d"]
Phase = Literal["session", "binding", "run"]
"""While a session is made; while one runs; and everything else: allocating, uploading, binding, reading."""

TF32_MATH = 3
"""CUBLAS_TF32_TENSOR_OP_MATH: fp32 matrix products may round their inputs to TF32."""

_NAMESPACES = re.compile(r"onnxruntime::(contrib::)?cuda::|onnxruntime::|\(anonymous namespace\)::|detail::")
_INTEGER_CASTS = re.compile(r"\((?:bool|int|unsigned int|long|unsigned long|short)\)")


@dataclass(frozen=True, slots=True)
class Gemm:
    """A matrix product, in cuBLAS's column-major words: ONNX's rows are `n` and its columns `m`.

    Attributes:
        function: the library function.
        m, n, k: rows and columns of the result, and what is summed over.
        batch: products in one call.
        left, right, result: element types.
        compute: what sums are kept in.
        math: the math mode of the handle.
    """

    function: str
    m: int
    n: int
    k: int
    batch: int
    left: str
    right: str
    result: str
    compute: str
    math: int


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy between or within host and device."""

    direction: Direction
    bytes: int


@dataclass(frozen=True, slots=True)
class Section:
    """What was asked in one phase: while one session was made, in one run, or between two of those.

    Attributes:
        phase: see `Phase`.
        graph: the name of the graph that was loaded or run; empty while binding.
        kernels: names of the kernels launched, without namespaces, return type and parameters; in order.
        gemms: matrix products.
        calls: other library calls that do work.
        copies: in order.
        sets: bytes of each piece of device memory set to a value.
        taken: bytes of each piece of device memory allocated.
        freed: of each given back.
        highest: by how many bytes the device memory in use rose, at most, above what it was at the start.
        pinned: bytes of each piece of pinned host memory allocated.
        waits: what the host waited for.
        tensors: bytes of each tensor that Python asked for on the device, whether or not a piece had to be allocated:
            ONNX Runtime keeps what was given back, and takes it again.
        unplaced: names of outputs that were bound without memory, so that every run allocates them.
        errors: what a device would not have survived.
    """

    phase: Phase
    graph: str
    kernels: tuple[str, ...]
    gemms: tuple[Gemm, ...]
    calls: tuple[str, ...]
    copies: tuple[Copy, ...]
    sets: tuple[int, ...]
    taken: tuple[int, ...]
    freed: tuple[int, ...]
    highest: int
    pinned: tuple[int, ...]
    waits: tuple[str, ...]
    tensors: tuple[int, ...]
    unplaced: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def launches(self) -> int:
        """Everything that the device has to start: kernels, library calls, copies within it, memory set."""
        return len(self.kernels) + len(self.gemms) + len(self.calls) + len(self.sets) + len(self.moved("d2d"))

    def moved(self, direction: Direction) -> tuple[int, ...]:
        """Bytes of each copy in a direction."""
        return tuple(copy.bytes for copy in self.copies if copy.direction == direction)

    def count(self, part: str) -> int:
        """Launches of kernels whose name holds `part`."""
        return sum(part in name for name in self.kernels)


def parse(log: str, phase: Phase, graph: str, kernel_name: Callable[[int], str]) -> Section:
    """Reads a log; `kernel_name` gives the short name of a kernel by its number. What Python asked for is not in it."""
    lines: dict[str, list[list[str]]] = {letter: [] for letter in "KGLCZMFHYE"}
    in_use = highest = 0
    for line in log.splitlines():
        letter, *fields = line.split("\t")
        lines[letter].append(fields)
        if letter in "MF":
            in_use += int(fields[0]) if letter == "M" else -int(fields[0])
            highest = max(highest, in_use)
    return Section(
        phase,
        graph,
        kernels=tuple(kernel_name(int(number)) for (number,) in lines["K"]),
        gemms=tuple(_gemm(fields) for fields in lines["G"]),
        calls=tuple(name for (name,) in lines["L"]),
        copies=tuple(_copy(*fields) for fields in lines["C"]),
        sets=_sizes(lines["Z"]),
        taken=_sizes(lines["M"]),
        freed=_sizes(lines["F"]),
        highest=highest,
        pinned=_sizes(lines["H"]),
        waits=tuple(what for (what,) in lines["Y"]),
        tensors=(),
        unplaced=(),
        errors=tuple(message for (message,) in lines["E"]),
    )


def short_name(demangled: str) -> str:
    """A kernel's name with its template arguments, without namespaces, return type and parameters.

    >>> short_name("void onnxruntime::cuda::_Unary<float, onnxruntime::cuda::OP_Sqrt<float>, 256>(float const*, int)")
    '_Unary<float, OP_Sqrt<float>, 256>'
    """
    name = _INTEGER_CASTS.sub("", _NAMESPACES.sub("", demangled)).strip()
    if name.endswith(")"):
        depth = 0
        for index in range(len(name) - 1, -1, -1):
            depth += {")": 1, "(": -1}.get(name[index], 0)
            if depth == 0:
                name = name[:index]
                break
    return name.removeprefix("void ").replace(" >", ">")


def peak(sections: Iterable[Section]) -> int:
    """The most device memory in use at any time, in bytes, counted from the first section on."""
    most = in_use = 0
    for section in sections:
        most = max(most, in_use + section.highest)
        in_use += sum(section.taken) - sum(section.freed)
    return most


def by_name(section: Section) -> Counter[str]:
    """Launches by kernel name."""
    return Counter(section.kernels)


def _gemm(fields: list[str]) -> Gemm:
    function, m, n, k, batch, left, right, result, compute, math = fields
    return Gemm(function, int(m), int(n), int(k), int(batch), left, right, result, compute, int(math))


def _copy(direction: str, size: str) -> Copy:
    for known in ("h2h", "h2d", "d2h", "d2d"):
        if direction == known:
            return Copy(known, int(size))
    raise ValueError(direction)


def _sizes(lines: list[list[str]]) -> tuple[int, ...]:
    return tuple(int(size) for (size,) in lines)
