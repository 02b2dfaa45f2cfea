"""Python imports this by itself where its folder is on the path: then every error of ours notes where it was made.

In: `PRECISION_SEARCH_ERROR_LOG`, a file. Out: a line for each place, with the place that called it. So child processes
take part, whoever starts them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

VARIABLE = "PRECISION_SEARCH_ERROR_LOG"


def record(log: Path) -> None:
    """Appends each place once a process; a line is one write, so that processes may share the file."""
    from precision_search.errors import PrecisionSearchError

    make = PrecisionSearchError.__init__
    seen: set[str] = set()

    def noted(self: PrecisionSearchError, what: str, *, why: str = "", fix: str = "") -> None:
        make(self, what, why=why, fix=fix)
        here = sys._getframe(1)
        frames = (here, here.f_back or here)
        line = "\t".join(f"{frame.f_code.co_filename}:{frame.f_lineno}" for frame in frames) + "\n"
        if line not in seen:
            seen.add(line)
            with contextlib.suppress(OSError), log.open("ab", buffering=0) as file:
                file.write(line.encode())

    PrecisionSearchError.__init__ = noted  # type: ignore[method-assign]


if VARIABLE in os.environ:
    with contextlib.suppress(ImportError):  # a Python without our packages
        record(Path(os.environ[VARIABLE]))
