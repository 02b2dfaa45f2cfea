"""Text files of somebody else's: what they hold, line by line, or what is wrong with them and where.

In: a path and what messages call it. Out: text without byte order mark, and its lines. Files in another encoding are
told with the command that converts them.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from precision_search.errors import InputError
from precision_search.files import read_file, reason

T = TypeVar("T")

_WIDE = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""Encodings that a byte order mark gives away."""


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file of sentences.

    Attributes:
        path: where it is.
        name: the role of its sentences ("calibration", "validation", "test"), or "data" where an option names it.
    """

    path: Path
    name: str

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.name} file {self.path}"

    @property
    def is_configured(self) -> bool:
        """Whether a config names it."""
        return self.name != "data"


def opening(file: NamedFile, read: Callable[[], T]) -> T:
    """What `read` gives.

    Raises:
        InputError: it raised an OSError; the message says what stands in the file's place.
    """
    try:
        return read()
    except FileNotFoundError as error:
        why = f"there is no such file, seen from {Path.cwd()}"
        fix = f"check {file.name}.path in the config" if file.is_configured else "check the path"
        raise InputError(f"{file.label} does not exist", why=why, fix=fix) from error
    except IsADirectoryError as error:
        fix = "name a file in it, text with one sentence a line or .jsonl"
        raise InputError(f"{file.label} is a directory", why="a file is expected", fix=fix) from error
    except OSError as error:
        fix = "check path and permissions"
        raise InputError(f"{file.label} cannot be read", why=reason(error), fix=fix) from error


def read_text(file: NamedFile) -> str:
    """The text of a file in UTF-8.

    Raises:
        InputError: it cannot be read, is binary or in another encoding.
    """
    path = file.path
    data = opening(file, lambda: read_file(path))
    if wide := next((each for mark, each in _WIDE if data.startswith(mark)), None):
        fix = f"iconv -f {wide} -t UTF-8 {path} > converted.txt"
        raise InputError(f"{file.label} is {wide}", why=f"line 1 begins with the mark of {wide}", fix=fix)
    if b"\0" in data:
        raise _with_nul(data, file)
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_utf8(data, error.start, file) from error


def _with_nul(data: bytes, file: NamedFile) -> InputError:
    offset = data.index(0)
    why = f"it has a NUL byte at offset {offset} (line {_line(data, offset)}), which text never has"
    fix = "give a text or JSONL file in UTF-8"
    if data.count(0) * 3 > len(data):  # every second byte of Latin letters
        wide = "UTF-16BE" if offset % 2 == 0 else "UTF-16LE"
        fix += f"; convert it, if it is UTF-16: iconv -f {wide} -t UTF-8 {file.path} > converted.txt"
    return InputError(f"{file.label} is binary", why=why, fix=fix)


def _not_utf8(data: bytes, offset: int, file: NamedFile) -> InputError:
    line = _line(data, offset)
    why = f"byte 0x{data[offset]:02x} at offset {offset} (line {line}) is not valid there"
    if any(not each.isascii() for each in _byte_lines(data) if _is_utf8(each)):
        bad = sum(not _is_utf8(each) for each in _byte_lines(data))
        why += f"; other lines are UTF-8, so the file mixes encodings: {bad} of its lines are something else"
        fix = (
            f"convert line {line} and any like it to UTF-8; `grep -naxv '.*' {file.path}` lists them in a UTF-8 locale"
        )
    else:
        fix = f"convert it, if it is Latin-1: iconv -f ISO-8859-1 -t UTF-8 {file.path} > converted.txt"
    return InputError(f"{file.label} is not UTF-8", why=why, fix=fix)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _byte_lines(data: bytes) -> list[bytes]:
    return data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def _line(data: bytes, offset: int) -> int:
    return len(_byte_lines(data[:offset]))


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number from 1."""
    # Not splitlines(): it also breaks at U+2028 and the like, which sentences and JSON strings may contain.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if line.strip():
            yield number, line
