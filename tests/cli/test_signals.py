"""Signals to a command: all that ask it to end do what Ctrl-C does, and no torch worker outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from precision_search import api
from tests.checkpoints import saved_checkpoints
from tests.cli_models import invoke, write_run
from tests.processes import lives, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGHUP, and no kill -9")

SIGNALS = pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])

SCRIPT = """
import os, signal, sys
from precision_search.cli.commands import main
from precision_search.errors import UsageError
from precision_search.machine import doctor

def examine():
    try:
        os.kill(os.getpid(), signal.SIGNAL)
        raise UsageError("nothing ended it")
    finally:
        for again in AGAIN:
            os.kill(os.getpid(), again)
        print("tidied up", file=sys.stderr)

doctor.examine = examine
main()
"""


def _heed() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def doctor(name: str, again: str = "()", before: str = "", script: str = SCRIPT) -> tuple[int, str]:
    """Exit code and stderr of a command that gets a signal, and others while it tidies up."""
    code = script.replace("SIGNAL", name).replace("AGAIN", again)
    command = ["sh", "-c", f'{before} exec "$0" "$@"', sys.executable, "-c", code, "doctor"]
    # Whatever started the tests may ignore signals, as `nohup` does.
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=_heed)
    assert done.stdout == ""
    return done.returncode, done.stderr


@SIGNALS
def test_each_signal_that_ends_a_command_interrupts_it_and_further_ones_do_not_disturb_the_end(name: str) -> None:
    again = "(signal.SIGHUP, signal.SIGTERM, signal.SIGINT)"
    assert doctor(name, again) == (130, "tidied up\ninterrupted\n")


LOST = """
import os, signal, sys, time
from precision_search.cli.commands import main
from precision_search.errors import UsageError
from precision_search.machine import doctor

class Signalling:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGNAL)

def examine():
    Signalling()
    for _ in range(6000):
        time.sleep(0.01)
    raise UsageError("nothing ended it")

doctor.examine = examine
main()
"""


@SIGNALS
def test_a_signal_that_comes_while_an_object_is_deleted_is_not_lost(name: str) -> None:
    """Python ignores what is raised there, and in callbacks of weak references."""
    assert doctor(name, script=LOST) == (130, "interrupted\n")


@SIGNALS
def test_what_is_ignored_stays_ignored(name: str) -> None:
    ignoring = f"trap '' {name.removeprefix('SIG')};"
    assert doctor(name, before=ignoring) == (2, "tidied up\nerror: nothing ended it\n")


def test_functions_leave_signals_alone(tmp_path: Path) -> None:
    handled = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in handled]
    api.pareto(write_run(tmp_path / "run"))
    invoke("pareto", tmp_path / "run")
    assert [signal.getsignal(number) for number in handled] == before


EXPORTING = """
import os, subprocess, sys

class Noted(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        with open(log, "a") as file:
            file.write(f"{self.pid}\\n")

log, subprocess.Popen = sys.argv.pop(1), Noted
os.cpu_count = lambda: 2
from precision_search.cli.commands import main
main()
"""


class Exporting:
    """A command that exports a checkpoint with two torch workers, and is somewhere in it."""

    def __init__(self, folder: Path, *command: str | Path) -> None:
        self.log = folder / "workers"
        self.log.unlink(missing_ok=True)
        self.bundles = folder / "precision-search/bundles"
        self.process = subprocess.Popen(
            [sys.executable, "-c", EXPORTING, str(self.log), *map(str, command)],
            env={**os.environ, "XDG_CACHE_HOME": str(folder)},
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: self.ended() or len(self.workers()) == 2)

    def workers(self) -> list[int]:
        return [int(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def ended(self) -> bool:
        return self.process.poll() is not None

    def end(self, number: int) -> tuple[int, str]:
        """Its exit code after that signal, and what it said; its workers are gone then, or soon."""
        assert not self.ended()
        workers = self.workers()
        assert len(workers) == 2 and all(map(lives, workers))
        self.process.send_signal(number)
        _, said = self.process.communicate()
        wait_until(lambda: not any(map(lives, workers)))
        return self.process.returncode, said


@pytest.mark.slow
def test_torch_workers_end_with_the_command_whatever_ends_it(tmp_path: Path, export_cache: Path) -> None:
    model = saved_checkpoints(export_cache) / "mt5"
    killed = Exporting(tmp_path, "inspect", model)
    wait_until(lambda: killed.ended() or list(killed.bundles.glob(".export-*/work/*.onnx")))
    (left,) = killed.bundles.iterdir()
    assert killed.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert list(killed.bundles.iterdir()) == [left]

    (tmp_path / "sentences.txt").write_text("a b\n")
    config = tmp_path / "config.toml"
    config.write_text(f'[model]\npath = "{model}"\n[calibration]\npath = "sentences.txt"\n[device]\nkind = "cpu"\n')
    ended = Exporting(tmp_path, "run", config, "--out", tmp_path / "run")
    assert not left.exists()
    code, said = ended.end(signal.SIGTERM)
    assert code == 130
    assert said.splitlines()[-1] == "interrupted; nothing was written"
    assert list(ended.bundles.iterdir()) == []
    assert not (tmp_path / "run").exists()
