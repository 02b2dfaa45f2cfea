"""Whether other processes still live, for tests of how they end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import HANGS_S


def lives(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):  # not on Linux, or gone in this moment
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return Path(f"/proc/{pid}").exists() or not Path("/proc/self").exists()


def wait_until(holds: Callable[[], object]) -> None:
    """Returns once `holds()` is true; fails where that takes so long that something must hang."""
    end = time.monotonic() + HANGS_S
    while not holds():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
