"""The parent's side: runs a function in a child process whose CUDA libraries are the stand-ins."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from tests import warm
from tests.conftest import HANGS_S
from tests.dry_cuda.recorder import FOLDER_VARIABLE

P = ParamSpec("P")
R = TypeVar("R")


class DryCuda:
    """The stand-in libraries in a folder, ready to be run on."""

    def __init__(self, libraries: Path) -> None:
        self._libraries = libraries

    @functools.cached_property
    def _variables(self) -> dict[str, str]:
        return os.environ | {
            FOLDER_VARIABLE: str(self._libraries),
            "LD_LIBRARY_PATH": str(self._libraries),
            "PYTHONPATH": os.pathsep.join(path for path in (str(Path.cwd()), *sys.path) if path),
        }

    @functools.cached_property
    def _python(self) -> tuple[str, ...]:
        """One that finds the stand-ins; none is loaded before it forks."""
        return warm.start((*warm.IMPORTED, "tests.dry_cuda.scenarios"), self._variables)

    def call(self, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """Calls a module-level function in a child process; everything goes through pickle.

        Raises:
            AssertionError: the child failed; its error output is in the message.
        """
        assert not arguments, "name the arguments"
        with tempfile.TemporaryDirectory() as folder:
            given, returned = Path(folder) / "arguments", Path(folder) / "result"
            given.write_bytes(pickle.dumps(options))
            command = [*self._python, "-m", "tests.dry_cuda.child", function.__module__, function.__name__]
            done = subprocess.run(
                [*command, str(given), str(returned)],
                env=self._variables,
                cwd=Path(__file__).parents[2],
                capture_output=True,
                text=True,
                timeout=HANGS_S,
                check=False,
            )
            assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stderr[-4000:]}"
            result: R = pickle.loads(returned.read_bytes())
            return result
