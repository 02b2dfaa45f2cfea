"""What the tutorial prints of its run is exactly what the run that is kept here gives, on any processor."""

from __future__ import annotations

import re

import pytest

from precision_search.output.progress import trial_line
from precision_search.search.trials import read_trials
from tests.cli_models import invoke
from tests.conftest import ROOT
from tests.docs_pages.blocks import WIDTH, blocks
from tests.docs_pages.demo_run import KEPT, PAGE

TIME = re.compile(r"\d+\.\d\d s$")


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What the page's commands print, by the words that a command begins with."""
    page = [block for block in blocks((ROOT / PAGE).read_text()) if block.language == "console"]
    commands = [pair for block in page for pair in block.commands()]
    return {command.removeprefix("$ precision-search ").partition(" ")[0]: output for command, output in commands}


def without_spaces_at_ends(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def test_its_log_says_what_was_found_of_each_plan(printed: dict[str, str]) -> None:
    lines = [TIME.sub("", line.rpartition(", ")[0]) for line in printed["run"].splitlines() if line.startswith("plan ")]
    trials = read_trials(KEPT / "trials.jsonl")
    assert [line for line in lines if " (" in line.partition(":")[0]] == [TIME.sub("", trial_line(t)) for t in trials]


def test_its_table_is_that_of_pareto(printed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    table = without_spaces_at_ends(invoke("pareto", KEPT).stdout)

    assert len(table.splitlines()) > 30
    assert table in printed["run"]


def test_its_values_are_those_of_the_csv(printed: dict[str, str]) -> None:
    names, *rows = (line.split(",") for line in printed["pareto"].splitlines())

    header, *lines = (
        line.split(",") for line in invoke("pareto", KEPT, "--sort", "flip_risk", "--format", "csv").stdout.splitlines()
    )

    assert [[line[header.index(name)] for name in names] for line in lines[: len(rows)]] == rows
