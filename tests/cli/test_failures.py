"""Whatever goes wrong in a command ends in one message and the exit code of its kind."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from precision_search import api
from precision_search.errors import InputError, InternalError
from tests.cli_models import fails, invoke, raiser, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


class MuteError(Exception):
    """An error that cannot even say what it is."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("one by nothing\nand more"), "ZeroDivisionError: one by nothing"),
        (ZeroDivisionError("\n \n"), "ZeroDivisionError"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (ValueError("x" * 100_000), "ValueError: xxx"),
        (ValueError("\udcff and \x1b[31mred\r\x07 and \u2028"), "ValueError: \\udcff and \\x1b[31mred"),
        (MuteError(), "MuteError: its message cannot be shown"),
        (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum recursion depth exceeded"),
        (InternalError("a postcondition"), "a postcondition"),
        (InternalError("a postcondition", why="one\ntwo"), "a postcondition (one two)"),
    ],
    ids=["lines", "blank", "empty", "long", "unprintable", "mute", "recursion", "ours", "ours-with-why"],
)
def test_a_bug_is_4_with_one_line_that_names_a_file_to_send(
    monkeypatch: pytest.MonkeyPatch, run: Path, reports: Path, error: Exception, words: str
) -> None:
    monkeypatch.setattr(api, "pareto", raiser(error))

    message = fails(invoke("pareto", run), 4)

    (report,) = reports.iterdir()
    assert message.startswith(f"error: internal error: {words}")
    assert message.endswith(f"; please report it with {report}\n")
    assert message.count("\n") == 1
    assert len(message) < 600
    assert all(char.isprintable() for char in message[:-1])
    text = report.read_text()
    assert "Traceback" in text
    assert type(error).__name__ in text
    assert text.startswith("command: ")


def test_a_report_holds_no_secrets(monkeypatch: pytest.MonkeyPatch, run: Path, reports: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-the-environment")
    secret = "hf_abcdefghijklmnop"
    url = "https://me:hunter2@example.org/model"
    monkeypatch.setattr(
        sys, "argv", ["precision-search", "verify", "--reference", url, "--api-key=k1234", f"token: {secret}"]
    )
    monkeypatch.setattr(api, "pareto", raiser(ValueError(f"401 for {url} with Authorization: Bearer abc.def-ghi")))

    fails(invoke("pareto", run), 4)

    text = next(reports.iterdir()).read_text()
    for hidden in ("of-the-environment", secret, "hunter2", "k1234", "abc.def-ghi"):
        assert hidden not in text
    assert "https://***@example.org/model" in text
    assert next(reports.iterdir()).stat().st_mode & 0o077 == 0


class Full:
    """A file that takes nothing, for this reason."""

    def __init__(self, reason: BaseException, make: Callable[..., Any]) -> None:
        self.reason, self.make = reason, make

    @contextlib.contextmanager
    def __call__(self, **options: Any) -> Iterator[Any]:
        with self.make(**options) as file:
            yield SimpleNamespace(name=file.name, write=raiser(self.reason))


def test_a_bug_where_the_report_does_not_fit_is_still_told(
    monkeypatch: pytest.MonkeyPatch, run: Path, reports: Path
) -> None:
    full = Full(OSError(errno.ENOSPC, "No space left on device"), tempfile.NamedTemporaryFile)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    monkeypatch.setattr(api, "pareto", raiser(ZeroDivisionError("one by nothing")))

    message = fails(invoke("pareto", run), 4)

    assert message.startswith("error: internal error: ZeroDivisionError: one by nothing; run it again with --verbose")
    assert message.count("\n") == 1
    assert list(reports.iterdir()) == []


def test_ctrl_c_while_the_report_is_written_is_130_and_leaves_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch, run: Path, reports: Path
) -> None:
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", Full(KeyboardInterrupt(), tempfile.NamedTemporaryFile))
    monkeypatch.setattr(api, "pareto", raiser(ZeroDivisionError("one by nothing")))

    assert fails(invoke("pareto", run), 130) == "interrupted\n"
    assert list(reports.iterdir()) == []


def test_what_is_expected_has_three_lines_and_no_report(
    monkeypatch: pytest.MonkeyPatch, run: Path, reports: Path
) -> None:
    error = InputError("file \x1b]0;title\x07 is bad", why="it \udcff is", fix="mend it")
    monkeypatch.setattr(api, "pareto", raiser(error))

    message = fails(invoke("pareto", run, "--verbose"), 2)

    assert message == "error: file \\x1b]0;title\\x07 is bad\n  why: it \\udcff is\n  fix: mend it\n"
    assert list(reports.iterdir()) == []


def test_the_exit_code_does_not_depend_on_who_reads_stderr(tmp_path: Path) -> None:
    for closed in ("2>&-", "2>/dev/full"):
        script = f'"{sys.executable}" -m precision_search pareto "{tmp_path}/nothing" {closed}'
        assert subprocess.run(["bash", "-c", script], check=False).returncode == 2


def test_verbose_shows_where_a_bug_is(monkeypatch: pytest.MonkeyPatch, run: Path, reports: Path) -> None:
    monkeypatch.setattr(api, "pareto", raiser(ZeroDivisionError("one by nothing")))

    result = invoke("pareto", run, "--verbose")

    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert len(list(reports.iterdir())) == 1


def test_a_bug_where_no_file_can_be_written_is_still_told(
    monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setattr(api, "pareto", raiser(ZeroDivisionError()))

    assert "ZeroDivisionError" in fails(invoke("pareto", run), 4)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"), "package torch is not installed"),
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/some/file"), "/some/file cannot be used"),
        (OSError(errno.ENOSPC, "No space left on device"), "fix: free some space on that disk"),
        (OSError(errno.EROFS, "Read-only file system", "/some/file"), "fix: make it writable"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/some/file"), "/some/file cannot be used"),
        (OSError(errno.EMFILE, "Too many open files", "/some/file"), "why: Too many open files"),
        (OSError(errno.EIO, "Input/output error", "/some/file"), "why: Input/output error"),
    ],
)
def test_trouble_of_the_machine_is_3(monkeypatch: pytest.MonkeyPatch, run: Path, error: Exception, text: str) -> None:
    monkeypatch.setattr(api, "pareto", raiser(error))

    assert text in fails(invoke("pareto", run), 3)


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'precision_search.x'", name="precision_search.x"),
        OSError("whatever a library calls so"),
        OSError(errno.EBADF, "Bad file descriptor"),
    ],
)
def test_what_nobody_expected_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, run: Path, reports: Path, error: Exception
) -> None:
    monkeypatch.setattr(api, "pareto", raiser(error))

    assert type(error).__name__ in fails(invoke("pareto", run), 4)


def test_ctrl_c_anywhere_is_130(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.setattr(api, "pareto", raiser(KeyboardInterrupt()))

    assert fails(invoke("pareto", run), 130) == "interrupted\n"


def test_a_reader_that_went_away_is_no_error(run: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "precision_search", "pareto", str(run), "--format", "json"]

    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)

    assert (done.returncode, done.stderr) == (0, b"")
