"""Sessions of the command line in processes that get a signal: at a call of some function, or after some time.

The processes are forked from one that has imported what a run needs, which takes seconds otherwise.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.warm import IMPORTED

INTERRUPTED = 130
KILLED = -signal.SIGKILL if sys.platform != "win32" else None


@dataclass(frozen=True, slots=True)
class Call:
    """The moment at which a session is killed: a function, looked up where it is used, is called for the nth time.

    `by` is the signal.
    """

    module: str
    name: str
    count: int = 1
    by: int = signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL

    def session(self, config: Path, out: Path) -> int:
        """Runs until then, or to the end, and gives the exit code."""
        return _session(arguments(config, out), (self,), None)[0]


@dataclass(frozen=True, slots=True)
class After:
    """Some time after the session was started."""

    seconds: float

    def session(self, config: Path, out: Path) -> int:
        """Runs until then, or to the end, and gives the exit code."""
        return _session(arguments(config, out), (), self.seconds)[0]


def interrupted(config: Path, out: Path, *calls: Call) -> str:
    """What a session says that gets a signal at each call and ends as interrupted."""
    code, said = _session(arguments(config, out), calls, None)
    assert code == INTERRUPTED, said
    return said


def arguments(config: Path, out: Path) -> list[str]:
    """A run that goes on where there is one."""
    return ["run", str(config), "--out", str(out), *(["--resume"] if out.exists() else [])]


def _session(command: Sequence[str], calls: Sequence[Call], seconds: float | None) -> tuple[int, str]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with tempfile.NamedTemporaryFile() as said:
        process = context.Process(target=_command_line, args=(command, calls, said.name))
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        code = process.exitcode
        process.close()
        text = Path(said.name).read_text()
        assert code is not None and code in (KILLED, INTERRUPTED, 0), text
    return code, text


def _command_line(command: Sequence[str], calls: Sequence[Call], said: str) -> None:
    """In the child."""
    file = os.open(said, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # Whatever started the tests may ignore signals, as `nohup` does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for call in calls:
        holder = importlib.import_module(call.module)
        setattr(holder, call.name, _killing(getattr(holder, call.name), call))
    sys.argv = ["precision-search", *command]
    importlib.import_module("precision_search.cli.commands").main()


def _killing(function: Callable[..., Any], call: Call) -> Callable[..., Any]:
    left = call.count

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), call.by)
        return function(*arguments, **options)

    return counted
