"""A real terminal for tests: a bash in tmux, of a size that can change, whose screen can be read at any moment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest

from tests.conftest import HANGS_S, ROOT
from tests.warm import python_command

PROMPT = "$ "
HEIGHT = 50


def require_tmux() -> str:
    """The path of tmux; without it the test is skipped, or fails where nothing may be skipped."""
    found = shutil.which("tmux")
    if found is None:
        if os.environ.get("PRECISION_SEARCH_NO_SKIP"):
            pytest.fail("there is no tmux")
        pytest.skip("there is no tmux")
    return found


class Terminal:
    """A terminal window with a shell in which `precision-search` is a command.

    Its tmux server is its own, found through a socket in a directory of its own, so that no other tmux is touched.
    """

    def __init__(self, work: Path, width: int, *, fresh: bool = False, **environment: str) -> None:
        """`work` is the shell's directory, `environment` adds to the little it gets.

        A `fresh` command is a Python that the terminal itself started, and so gets its signals.
        """
        self._tmux = require_tmux()
        self._runs = 0
        self._folder = tempfile.TemporaryDirectory(
            prefix="tmux-", ignore_cleanup_errors=True
        )  # sockets' paths are short
        home = Path(self._folder.name)
        command = home / "bin/precision-search"
        command.parent.mkdir()
        python = shlex.join((sys.executable,) if fresh else python_command())
        command.write_text(f'#!/bin/sh\nexec {python} -m precision_search "$@"\n')
        command.chmod(0o755)
        variables = {
            "HOME": str(home),
            "PATH": f"{command.parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "PS1": PROMPT,
            "HISTFILE": "/dev/null",
            "LANG": "C.UTF-8",
            "TERM": "screen",
            "TMPDIR": str(home),
            **environment,
        }
        shell = ["env", "-i", *(f"{name}={value}" for name, value in variables.items()), "bash", "--norc"]
        options = ["-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(HEIGHT), "-c", str(work)]
        self._call("-u", *options, shlex.join(shell))
        self.wait(lambda screen: screen.rstrip("\n") == PROMPT.rstrip())

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call("kill-server")
        self._folder.cleanup()

    def type(self, text: str) -> None:
        """Types a line."""
        self._call("send-keys", "-l", text)
        self._call("send-keys", "Enter")

    def press(self, key: str) -> None:
        """Presses a key by its tmux name, such as `C-c`."""
        self._call("send-keys", key)

    def resize(self, width: int) -> None:
        """Makes the window so many columns wide."""
        self._call("resize-window", "-x", str(width))

    def screen(self) -> str:
        """What the window shows, without trailing spaces and lines."""
        return self._call("capture-pane", "-p").rstrip("\n")

    def history(self) -> list[str]:
        """All lines since the start; what the terminal wrapped is one line again."""
        return [line.rstrip() for line in self._call("capture-pane", "-p", "-J", "-S", "-").rstrip("\n").split("\n")]

    def styled(self) -> str:
        """Everything since the start with its colours and styles, as escape codes."""
        return self._call("capture-pane", "-p", "-e", "-S", "-")

    def cursor_is_visible(self) -> bool:
        """Whether the terminal shows its cursor."""
        return self._call("display-message", "-p", "#{cursor_flag}").strip() == "1"

    def wait(self, seen: Callable[[str], object]) -> str:
        """The screen as soon as it is what is waited for."""
        end = time.monotonic() + HANGS_S
        while not seen(screen := self.screen()):
            if time.monotonic() > end:
                pytest.fail(f"the screen never showed what was waited for:\n{screen}")
            time.sleep(0.05)
        return screen

    def run(self, command: str) -> int:
        """Runs a command to its end and gives its exit code; the screen is cleared before."""
        self._runs += 1
        number = self._runs
        self.type(f"clear; {command}; echo exit=$?=run={number}")
        screen = self.wait(lambda screen: _exit_code(screen, number) is not None)
        return int(_exit_code(screen, number) or 0)

    def _call(self, *arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "TMUX"}
        done = subprocess.run(
            [self._tmux, "-S", f"{self._folder.name}/socket", *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def _exit_code(screen: str, number: int) -> str | None:
    """The exit code of the command of that number, once it has ended and the shell waits for the next one."""
    found = re.search(rf"^exit=(\d+)=run={number}\n{re.escape(PROMPT.rstrip())} ?\Z", screen, re.MULTILINE)
    return None if found is None else found[1]
