"""A disk that is small or read-only, for tests: a tmpfs that only one child process and its children see.

In: a shell script, which finds the disk at `$DISK`. Out: what it printed. Nothing stays mounted; where the system does
not let us mount, tests skip.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.warm import python_command

NO_SKIP = "PRECISION_SEARCH_NO_SKIP"


def on_disk(disk: Path, kib: int, script: str, **variables: str) -> str:
    """Runs the script in bash, with an empty disk of that size at `$DISK`; gives its stdout and stderr together.

    `$RUN` is the command line. Skips the test where nothing can be mounted.
    """
    if why := why_not():
        pytest.fail(f"{NO_SKIP} is set, but: {why}") if os.environ.get(NO_SKIP) else pytest.skip(why)
    disk.mkdir(exist_ok=True)
    mounted = f'mount -t tmpfs -o size={kib}k,mode=755 tmpfs "$DISK"\n{script}'
    environment = {
        **os.environ,
        "PYTHONPATH": _path(),
        "DISK": str(disk),
        "RUN": shlex.join((*_python(), "-m", "precision_search")),
        **variables,
    }
    done = subprocess.run(
        [*_namespace(), "bash", "-euc", mounted],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@functools.cache
def why_not() -> str | None:
    """Why no disk can be mounted here; None where one can."""
    if shutil.which("unshare") is None:
        return "needs unshare (util-linux), to mount a disk of its own"
    probe = [*_namespace(), "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"needs to mount a disk: {done.stderr.strip()}"


def _namespace() -> list[str]:
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def _python() -> Sequence[str]:
    """A forked one can enter the child's mounts where we are root."""
    return python_command() if os.geteuid() == 0 else (sys.executable,)


def _path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
