"""What tutorial and README print of their run is exactly what the run that is kept here gives, on any processor."""

from __future__ import annotations

import re

import pytest

from precision_search.display.reporters import trial_line
from precision_search.records.trials import read_trials
from tests.cli_models import invoke
from tests.conftest import ROOT
from tests.docs_pages.alike import WIDTH
from tests.docs_pages.blocks import blocks
from tests.docs_pages.demo_run import KEPT, PAGE

README_WIDTH = 160
TIME = re.compile(r"\d+\.\d\d s$")


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What the page's commands print, by the words that a command begins with."""
    page = [block for block in blocks((ROOT / PAGE).read_text()) if block.language == "console"]
    commands = [pair for block in page for pair in block.commands()]
    return {command.removeprefix("$ precision-search ").partition(" ")[0]: output for command, output in commands}


def test_its_log_says_what_was_found_of_each_plan(printed: dict[str, str]) -> None:
    lines = [TIME.sub("", line.rpartition(", ")[0]) for line in printed["run"].splitlines() if line.startswith("plan ")]
    trials = read_trials(KEPT / "trials.jsonl")
    assert [line for line in lines if " (" in line.partition(":")[0]] == [TIME.sub("", trial_line(t)) for t in trials]


def table(monkeypatch: pytest.MonkeyPatch, width: int) -> str:
    """The kept run's table, without what a terminal does not show at the ends of lines."""
    monkeypatch.setenv("COLUMNS", str(width))
    lines = invoke("pareto", KEPT).stdout.splitlines()
    assert len(lines) > 20
    return "".join(f"{line.rstrip()}\n" for line in lines)


def test_its_table_is_that_of_pareto(printed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(monkeypatch, WIDTH) in printed["run"]


def test_so_is_that_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(monkeypatch, README_WIDTH) in (ROOT / "README.md").read_text()


def test_its_values_are_those_of_the_csv(printed: dict[str, str]) -> None:
    names, *rows = (line.split(",") for line in printed["pareto"].splitlines())

    header, *lines = (
        line.split(",") for line in invoke("pareto", KEPT, "--sort", "flip_risk", "--format", "csv").stdout.splitlines()
    )

    assert [[line[header.index(name)] for name in names] for line in lines[: len(rows)]] == rows
