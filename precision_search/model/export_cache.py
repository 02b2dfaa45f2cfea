"""The cache of exports and of transformers' tokens: each file has a hash, and what is broken is made again, once.

In: the place of an entry, and how to make it. Out: what the entry holds, provably as it was written. A disk, a copy or
a cleaning job may leave half a file or a flipped bit, and a model with one other weight would be searched for hours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from precision_search.errors import EnvironmentProblemError
from precision_search.files import read_json, reason, write_atomically, writing
from precision_search.model.snapshot import Snapshot
from precision_search.model.work_folder import only_one, work_folder
from precision_search.reporting import Reporter

HASHES = "hashes.json"
"""Of an export: the SHA-256 of every other file in its folder, by name."""

WORK = ".export-"
"""What the names of the folders begin with that exports are made in."""

T = TypeVar("T")
ELSEWHERE = "keep the cache elsewhere: set `model.cache` in the config, or XDG_CACHE_HOME"


class _BrokenError(Exception):
    """A file of the cache is not what was written there; the text says which, and what of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An export in the cache, all files of which are what was written.

    Attributes:
        path: its folder.
        files: the files as they were before they were hashed.
        hashes: the SHA-256 of each, by name.
    """

    path: Path
    files: Snapshot
    hashes: Mapping[str, str]


def kept_export(target: Path, make: Callable[[Path], None], reporter: Reporter) -> Entry:
    """The export at `target`: made if it is not there, and made again if it is broken, with a warning.

    Args:
        target: its folder; the name stands for all that it depends on.
        make: writes the files of the export into a folder.
        reporter: is warned.

    Raises:
        EnvironmentProblemError: it cannot be written, or is broken as soon as it is written.
        PrecisionSearchError: what `make` raises.
    """
    if os.path.lexists(target):
        try:
            return _whole(target)
        except _BrokenError as error:
            reporter.warn(f"{error}; the model is exported again")
    with writing(target, ELSEWHERE), work_folder(target.parent, WORK) as work:
        make(work)
        hashes = {path.name: file_hash(path) for path in work.iterdir()}
        (work / HASHES).write_text(json.dumps(hashes, indent=2, sort_keys=True) + "\n")
        _put(work, target)
    try:
        return _whole(target)
    except _BrokenError as error:
        raise EnvironmentProblemError(
            f"the cache in {target.parent} does not keep what is written there", why=str(error), fix=ELSEWHERE
        ) from error


def kept_answer(stored: Path, ask: Callable[[], T], reporter: Reporter) -> T:
    """The answer of transformers, any JSON, in the file `stored`; asked for if it is not there or broken, likewise.

    Raises:
        EnvironmentProblemError: it cannot be written.
        PrecisionSearchError: what `ask` raises.
    """
    if os.path.lexists(stored):
        try:
            kept: T = _read_answer(stored)
            return kept
        except _BrokenError as error:
            reporter.warn(f"{error}; transformers is asked again")
    answer = ask()
    with writing(stored, ELSEWHERE):
        stored.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(stored, json.dumps({"sha256": _answer_hash(answer), "tokens": answer}).encode(), ELSEWHERE)
    return answer


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's content, in hex.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _whole(entry: Path) -> Entry:
    """The entry, checked; raises _BrokenError."""
    found = Snapshot.of(entry)
    hashes = _json(entry / HASHES)
    if not isinstance(hashes, dict):
        raise _BrokenError(f"{entry / HASHES} is broken")
    # Hidden files are what systems leave in any folder.
    names = {path.name for path in entry.iterdir() if not path.name.startswith(".")} - {HASHES}
    for name in sorted(names | hashes.keys()):
        if name not in hashes:
            raise _BrokenError(f"{entry / name} was not written by the export")
        if not (entry / name).is_file():
            raise _BrokenError(f"{entry / name} is missing")
        try:
            if file_hash(entry / name) != hashes[name]:
                raise _BrokenError(f"{entry / name} is broken: it is not what was written there")
        except OSError as error:
            raise _BrokenError(f"{entry / name} cannot be read: {reason(error)}") from error
    return Entry(entry, found, hashes)


def _put(work: Path, target: Path) -> None:
    """Moves a finished export to its place, unless another process was faster; what is broken there goes."""
    with only_one(target.parent):
        if os.path.lexists(target):
            with contextlib.suppress(_BrokenError):
                _whole(target)
                return  # who opened it meanwhile goes on reading it
            target.rename(work.with_name("broken"))
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster still, where there are no locks
                raise


def _read_answer(stored: Path) -> Any:
    found = _json(stored)
    if not isinstance(found, dict) or found.get("sha256") != _answer_hash(found.get("tokens")):
        raise _BrokenError(f"{stored} is broken: it is not what was written there")
    return found["tokens"]


def _answer_hash(answer: object) -> str:
    return hashlib.sha256(json.dumps(answer).encode()).hexdigest()


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError as error:
        raise _BrokenError(f"{path} is missing") from error
    except OSError as error:
        raise _BrokenError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise _BrokenError(f"{path} is broken: it is not what was written there") from error
