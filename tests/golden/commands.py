"""Runs the command and public functions in child processes, as a user in a folder of their own would.

In: arguments. Out: exit code, stdout and stderr. Nothing of the package is imported here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a child process left."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Place:
    """A folder to work in, with a cache of its own, and where Python looks for the package.

    Attributes:
        folder: the working folder; commands get paths relative to it, so that no output depends on where it is.
        package: the folder that holds `precision_search`.
    """

    folder: Path
    package: Path = ROOT

    def command(self, *arguments: str, code: int = 0) -> Done:
        """Runs `precision-search` with these arguments; RuntimeError where it ends with another exit code."""
        return self._run(["-m", "precision_search", *arguments], code)

    def python(self, script: str, *arguments: str) -> Done:
        """Runs a script; RuntimeError where it fails."""
        return self._run(["-c", script, *arguments], 0)

    def _run(self, arguments: list[str], code: int) -> Done:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode != code:
            shown = " ".join(arguments)[:300]
            raise RuntimeError(f"ended with {done.returncode} instead of {code}: {shown}\n{done.stderr[-3000:]}")
        return Done(done.returncode, done.stdout, done.stderr)

    def _environment(self) -> Mapping[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        return {
            **kept,
            "PYTHONPATH": str(self.package),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "COLUMNS": "120",
            "TERM": "dumb",
            "NO_COLOR": "1",
            "LC_ALL": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
        }
