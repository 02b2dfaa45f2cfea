"""The error tree of the project: everything it raises on purpose, and the exit code each error ends the command with.

    PrecisionSearchError                4
    ├── UsageError                      2  what the user gave cannot be used
    │   ├── ConfigError                 2  the config file or a `--set` override
    │   ├── InputError                  2  a data, model or plan file
    │   └── OutputExistsError           2  the output already exists
    ├── EnvironmentProblemError         3  this machine cannot do what was asked
    │   ├── MissingPackageError         3  a Python package or a system library is not installed
    │   └── DeviceError                 3  a device is absent, does not start, or broke down
    │       ├── DeviceMemoryError       3  a device has no memory left
    │       └── NoKernelError           3  a device cannot run a node of this graph
    ├── VerificationError               1  the work is complete and its result is "no"
    └── InternalError                   4  a postcondition of ours does not hold: a bug

Every error says what happened, why, and what to do about it.
"""

import reprlib
from collections.abc import Iterable
from typing import ClassVar

_SHOWN = 100
"""Characters of one value that a message shows."""

_LONGEST = 4000
"""Characters of each part of a message, whatever names it holds: a terminal shows them on some fifty lines."""


class PrecisionSearchError(Exception):
    """Root of all errors the project raises on purpose.

    `what` happened (one line), `why` (the cause, with the numbers or names found) and `fix` (what to do, ideally a
    command or the line to write); `why` and `fix` may be empty. `str()` shows them on lines of their own.
    `exit_code` is what the command line ends with.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = (cut(part, _LONGEST) for part in (what, why, fix))
        super().__init__(self.what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f"why: {self.why}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "\n  ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # The default pickles only `what` and drops keyword arguments; errors must cross process pools whole.
        return _rebuild, (type(self), self.what, self.why, self.fix)


def _rebuild(kind: type[PrecisionSearchError], what: str, why: str, fix: str) -> PrecisionSearchError:
    return kind(what, why=why, fix=fix)


class UsageError(PrecisionSearchError):
    """What the user gave cannot be used: a wrong command, config, file or directory."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """The config file or a `--set` override is wrong."""


class InputError(UsageError):
    """A data, model or plan file is missing, broken, or not of a kind we handle."""


class OutputExistsError(UsageError):
    """The output already exists and would be overwritten."""


class EnvironmentProblemError(PrecisionSearchError):
    """This machine cannot do what was asked."""

    exit_code: ClassVar[int] = 3


class MissingPackageError(EnvironmentProblemError):
    """A Python package or system library that the work needs is not installed."""


class DeviceError(EnvironmentProblemError):
    """A device is absent, does not start, or broke down while it worked."""


class DeviceMemoryError(DeviceError):
    """A device (the host's memory included) has none left for a graph, a run or a buffer.

    Says nothing about a plan: who may choose the batch tries a smaller one.
    """


class NoKernelError(DeviceError):
    """A device has no kernel for a node in the types that it has: another plan may give it others."""


class VerificationError(PrecisionSearchError):
    """A check of the result failed; whatever was written up to it is complete and readable."""

    exit_code: ClassVar[int] = 1


class InternalError(PrecisionSearchError):
    """A postcondition of our own does not hold: a bug in this project, never the user's fault."""


def first_line(said: Exception | str) -> str:
    """What a library says of its trouble, without stack traces and the like on further lines.

    Of an exception that says nothing, the name of its class.
    """
    lines = str(said).strip().splitlines()
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1].strip()}"
    return lines[0] if lines else type(said).__name__ if isinstance(said, Exception) else ""


def cut(text: str, most: int = _SHOWN) -> str:
    """The text as a message shows it: its beginning, where it is longer than anything that people write."""
    return text if len(text) <= most else f"{text[:most]}..."


def short(value: object) -> str:
    """A value as a message shows it: as Python writes it, with what is long or deeply nested cut."""
    return _SHORT.repr(value)


class _Short(reprlib.Repr):
    """Cuts before it writes: an integer of a megabyte has no decimals, and what is nested deep enough no `repr`."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3

    def repr_str(self, x: str, level: int) -> str:
        return repr(x) if len(x) <= _SHOWN else f"{x[:_SHOWN]!r}..."

    def repr_int(self, x: int, level: int) -> str:
        return str(x) if x.bit_length() <= 256 else f"a whole number of {x.bit_length()} bits"


_SHORT = _Short()


def counted(count: int, what: str) -> str:
    """So many of something, in the plural unless it is one: `1 sample`, `2 samples`."""
    return f"{count} {what}{'s' * (count != 1)}"


def did_you_mean(word: str, known: Iterable[str], *, also: str = "", cutoff: float = 0.6) -> str:
    """Asks whether the nearest of the known words was meant; nothing where none is near.

    Args:
        word: what was given.
        known: what could have been.
        also: what can be done in any case, told behind the question.
        cutoff: how near it must be, from 0 (anything) to 1 (equal), as `difflib` measures.
    """
    import difflib  # here, because nearly nobody mistypes

    near = difflib.get_close_matches(cut(word), list(known), n=1, cutoff=cutoff)
    return f"did you mean `{near[0]}`? {also}".rstrip() if near else also
