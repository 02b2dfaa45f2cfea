"""Whatever goes wrong in a command ends in one message and the exit code of its kind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from precision_search import api
from precision_search.errors import InternalError
from tests.cli_models import fails, invoke, raiser, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


@pytest.mark.parametrize("error", [ZeroDivisionError("one by nothing\nand more"), InternalError("a postcondition")])
def test_a_bug_is_4_with_one_line_and_a_file_to_send(
    monkeypatch: pytest.MonkeyPatch, run: Path, reports: Path, error: Exception
) -> None:
    monkeypatch.setattr(api, "pareto", raiser(error))

    message = fails(invoke("pareto", run), 4)

    (report,) = reports.iterdir()
    assert str(report) in message
    assert "and more" not in message
    assert "Traceback" in report.read_text()
    assert type(error).__name__ in report.read_text()


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
    ],
)
def test_trouble_of_the_machine_is_3(monkeypatch: pytest.MonkeyPatch, run: Path, error: Exception, text: str) -> None:
    monkeypatch.setattr(api, "pareto", raiser(error))

    assert text in fails(invoke("pareto", run), 3)


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("No module named 'precision_search.x'", name="precision_search.x"), OSError(errno.EIO, "?")],
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
