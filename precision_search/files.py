"""Files at the door: only regular ones are read, and what cannot be written is told with its path and the remedy.

In: paths that users or programs give. Out: bytes, or the error that says what stands there instead. Nothing here waits
for the other end of a pipe or reads a device that never ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from precision_search.errors import EnvironmentProblemError, OutputExistsError, UsageError, first_line

LARGEST_TEXT = 1 << 30
"""Bytes of the largest file that is read as text: sentences and logs."""

LARGEST_JSON = 1 << 27
"""Bytes of the largest JSON file: a tokenizer of 250,000 tokens has a tenth of them."""

DEEPEST_JSON = 100
"""Arrays and objects inside each other that JSON may have."""

_OTHER_KINDS = (
    (stat.S_ISFIFO, "it is a pipe, not a file; save what comes through it as a file"),
    (stat.S_ISCHR, "it is a device, not a file"),
    (stat.S_ISBLK, "it is a device, not a file"),
    (stat.S_ISSOCK, "it is a socket, not a file"),
)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def read_file(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, or is not such a file; `strerror` says what it is.
    """
    check_size(path, most)
    return path.read_bytes()


def check_size(path: Path, most: int) -> None:
    """Raises OSError where `path` is no regular file of at most `most` bytes, for those who let a library read it."""
    found = path.stat()
    for is_kind, what in _OTHER_KINDS:
        if is_kind(found.st_mode):
            raise OSError(errno.EINVAL, what, str(path))
    if found.st_size > most:
        raise OSError(
            errno.EFBIG, f"it has {found.st_size} bytes, more than the {most} that such a file may have", str(path)
        )


def parse_json(data: bytes | str) -> Any:
    """A JSON value of somebody else's making; an integer that needs more than 64 bits becomes a float.

    Raises:
        ValueError: it is no JSON, or nested deeper than anything honest is.
    """
    try:
        # UTF-8 as `json` would find out itself, but a byte order mark is harmless.
        value = json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data, parse_int=_bounded_integer)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_depth(value)
    return value


def read_json(path: Path) -> Any:
    """The JSON value in a file (see `parse_json`).

    Raises:
        OSError: as `read_file`, with a limit that suits JSON.
        ValueError: as `parse_json`.
    """
    return parse_json(read_file(path, LARGEST_JSON))


_TOO_DEEP = f"it has more than {DEEPEST_JSON} arrays and objects inside each other"


def _bounded_integer(digits: str) -> int | float:
    # Python's integers grow without end and then fit into no float, no array and no other program.
    if len(digits) <= 20 and abs(number := int(digits)) < 1 << 63:
        return number
    return float(digits)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST_JSON + 1):
        level = [
            inner
            for each in level
            if isinstance(each, list | dict)
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


@contextlib.contextmanager
def writing(path: Path, otherwise: str = "") -> Iterator[None]:
    """What is done to write `path`; a failure of the system becomes one error that says what to do.

    Args:
        path: what is written.
        otherwise: what to do where another place would do as well.

    Raises:
        EnvironmentProblemError: an OSError was raised inside.
    """
    try:
        yield
    except OSError as error:
        raise EnvironmentProblemError(
            f"cannot write {path}", why=reason(error), fix=remedy(error, otherwise)
        ) from error


def write_atomically(path: Path, content: bytes, otherwise: str = "") -> None:
    """Writes a file through to the disk; a reader sees the old file or the new one, never a part.

    `otherwise` is as in `writing`.

    Raises:
        EnvironmentProblemError: the file cannot be written; what was there is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path, otherwise):
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def append(path: Path, data: bytes) -> None:
    """Appends to a file, through to the disk and whole or not at all.

    Raises:
        EnvironmentProblemError: it cannot be written; what was there is untouched.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):  # a part of a line is dropped when it is read, too
                os.truncate(path, before)
            raise


def refuse_existing(path: Path, or_else: str = "") -> None:
    """Raises OutputExistsError where anything is at `path`, be it a link that leads nowhere.

    Args:
        path: where something is to be written.
        or_else: what can be done instead of giving another path.
    """
    if path.exists() or path.is_symlink():
        kind = "a link" if path.is_symlink() else "a directory" if path.is_dir() else "a file"
        raise OutputExistsError(
            f"{path} already exists",
            why=f"it is {kind}, and this never overwrites what is there",
            fix=f"give another path, or {or_else}" if or_else else "give another path",
        )


def check_name(path: Path) -> None:
    """Raises UsageError where the path is no text: ONNX's own tools take no other, and say so late."""
    whole = str(path.absolute())
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{path} cannot be the path of a model or a run",
            why=f"the byte {ord(whole[error.start]) - 0xDC00:#x} in it is not UTF-8",
            fix="use a directory whose path is UTF-8",
        ) from error


def reason(error: Exception) -> str:
    """Why the system refused, in its words, without number and path; of another error what it says first."""
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


def remedy(error: OSError, otherwise: str = "") -> str:
    """What to do about it; `otherwise` follows where another place would do as well."""
    if error.errno in _FULL:
        fix = "free some space on that disk"
    elif error.errno in _READ_ONLY:
        fix = "make it writable"
    else:
        fix = "check the path, its permissions and the free space"
    return f"{fix}, or {otherwise}" if otherwise else fix
