"""Folders for work that may be killed: each is locked while its process lives, so that others can tell and sweep it.

In: the directory where the result will lie. Out: a folder beside it, gone when the work ends. The operating system
releases a lock when its process ends, however it ends; a process id would say less, since containers that share a
cache do not see each other's processes.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_LOCK = "lock"
STALE_SECONDS = 24 * 3600.0
"""Age from which a folder whose lock cannot be asked counts as left behind: no export takes a day."""


def try_lock(file: IO[Any]) -> bool | None:
    """Locks an open file for this process: whether that worked; None where the system has no such locks.

    The lock is held until the file is closed.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Waits until no other process is inside for this folder; does not, where the system has no such locks."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # Windows, some network file systems
            import fcntl

            number = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, number)
            fcntl.flock(number, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def work_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new empty folder in `parent`, removed at the end; first, what killed processes left of theirs is swept.

    Raises:
        OSError: it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent, prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        folder = Path(name)
        unlocked = folder / f"{_LOCK}.new"
        with unlocked.open("wb") as file:
            # Under its final name only once it is locked: a sweep in between would take it for a dead process's.
            try_lock(file)
            unlocked.rename(folder / _LOCK)
            inside = folder / "work"
            inside.mkdir()
            yield inside


def sweep(parent: Path, prefix: str) -> None:
    """Removes the folders of that prefix in `parent` that no living process works in."""
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        if _is_left_behind(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left_behind(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # no lock yet, or swept by somebody else in this moment
        with (folder / _LOCK).open("rb+") as file:
            locked = try_lock(file)
        if locked is not None:
            return locked
    with contextlib.suppress(OSError):
        return time.time() - folder.stat().st_mtime > STALE_SECONDS
    return False
