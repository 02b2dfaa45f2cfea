"""The page of errors is what the source says, and a whole run notices errors that no test made happen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from precision_search.errors import PrecisionSearchError
from tests.conftest import ROOT
from tests.error_catalogue import PAGE, Lines, Site, page, sites
from tests.error_log.sitecustomize import VARIABLE
from tests.every_error import UNTESTED, find_problems


def test_the_page_is_what_the_source_says() -> None:
    """Written with `python -m tests.error_catalogue`."""
    assert PAGE.read_text() == page()


def test_every_error_says_what_and_most_say_why_and_how_to_go_on() -> None:
    found = sites()
    assert len(found) > 200
    assert all(site.what for site in found)
    for kind in ("UsageError", "ConfigError", "InputError", "OutputExistsError", "EnvironmentProblemError"):
        assert [str(site) for site in found if site.kind == kind and not site.fix] == []


def test_messages_are_told_with_readable_placeholders() -> None:
    text = PAGE.read_text()
    for line in (
        "| config {path} is a directory | a TOML file is expected | name a file in it | `toml_tables` |",
        "| {path} is not a readable ONNX file | its graph has no nodes | export it again | `model.onnx_files` |",
        "| {path} is not the record of a run |",
        "## InternalError: exit code 4",
    ):
        assert line in text


HERE, THERE = Lines("precision_search/a.py", 3, 5), Lines("precision_search/a.py", 9, 9)


def problems(*lines: str, untested: tuple[str, str] | None = None) -> list[str]:
    catalogue = (Site("InputError", "one", "", "", HERE, None), Site("InputError", "two", "", "", HERE, THERE))
    log = "".join(f"/x/precision_search/{line}\n" for line in lines)
    return find_problems(log, catalogue, {untested: "why"} if untested else {})


def test_what_no_test_made_happen_is_listed() -> None:
    assert len(problems()) == 2
    assert problems("a.py:3\t/y/tests/test_a.py:7") == ["precision_search/a.py:9: InputError: two"]
    assert problems("a.py:5\t/x/precision_search/a.py:9") == []
    assert len(problems("a.py:6\t/x/precision_search/a.py:9", "b.py:3\t<string>:1")) == 2


def test_an_exception_from_the_rule_is_one_only_while_it_is_needed() -> None:
    assert problems("a.py:3\t/y/b.py:7", untested=("a", "two")) == []
    (problem,) = problems("a.py:5\t/x/precision_search/a.py:9", untested=("a", "two"))
    assert "tested or gone" in problem
    assert all(reason for reason in UNTESTED.values())


def test_child_processes_note_their_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "log"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests/error_log'}:{ROOT}")
    command = [sys.executable, "-m", "precision_search", "pareto", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "precision_search/cli/support.py:" in line
    assert issubclass(PrecisionSearchError, Exception)
