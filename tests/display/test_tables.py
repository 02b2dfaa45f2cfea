"""The table as text: whole at every width, honest about estimates, and readable by programs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from precision_search.config import Requirement
from precision_search.display.tables import render_rich, to_json, to_markdown
from precision_search.judging.trial import Trial, TrialLatency
from precision_search.records.pareto_table import COLUMNS, ParetoTable, pareto_table, to_csv
from precision_search.records.wording import share
from tests.output_models import DAMAGED, PINNED, small_run
from tests.search_models import trial

WIDTHS = [60, 80, 120, 200]


def table(trials: tuple[Trial, ...] | None = None) -> ParetoTable:
    return pareto_table(small_run() if trials is None else trials, Requirement(0.98), pinned=PINNED)


def rendered(shown: ParetoTable, width: int, **options: Any) -> str:
    from rich.console import Console

    stream = io.StringIO()
    render_rich(shown, Console(file=stream, width=width, **options))
    return stream.getvalue()


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_too_long_and_nothing_is_cut(width: int) -> None:
    text = rendered(table(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for cell in ("55.4", "60.1", "78.3", "70.4", "1.41x", "1.00x", "all-low", "classic"):
        assert cell in text.split()
    for word in ("everything", "Add", "MatMul"):
        assert word in text.replace(";", " ").split()


@pytest.mark.parametrize("width", WIDTHS)
def test_estimates_are_called_so(width: int) -> None:
    text = rendered(table(), width)
    assert "(estimated," in text
    assert "t4)" in text
    assert "(est.)" in text
    assert "measured" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_every_column_is_shown_or_named_as_left_out(width: int) -> None:
    text = rendered(table(), width)
    headers = ["exact match", "validation match", "flip risk", "smallest margin", "size MB", "casts", "verdict"]
    top, _, bottom = text.partition("> chosen")
    left_out = " ".join(bottom.partition("left out at this width:")[2].partition("rejected landmarks")[0].split())
    for header in headers:
        shown = all(word in top.split() for word in header.split())
        assert shown is not (header in left_out)
    assert (width == 200) is ("left out" not in text)


def test_wider_shows_more() -> None:
    cells = [rendered(table(), width).partition("> chosen")[0] for width in WIDTHS]
    counts = [len(squeezed(text.partition("──")[0])) for text in cells]
    assert counts == sorted(counts)
    assert "1.2 [0.3, 2.1]" in cells[1]
    assert "204" in cells[2].split()


@pytest.mark.parametrize("width", WIDTHS)
def test_marks_and_their_meaning(width: int) -> None:
    lines = rendered(table(), width).splitlines()
    marks = {line.split()[1]: line.split()[0] for line in lines if line.startswith((">*", "* "))}
    assert marks["3"] == ">*"
    assert {marks["4"], marks["0"]} == {"*"}
    text = " ".join(" ".join(lines).split())
    assert "> chosen: plan 3, the fastest stable plan" in text
    assert "* on the Pareto front" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_rejected_landmarks_come_below_with_the_damaged_node(width: int) -> None:
    below = rendered(table(), width).partition("rejected landmarks")[2]
    # At narrow widths a node key is folded; what remains when a neighbouring column is empty is still one word.
    assert DAMAGED in squeezed(below)
    assert "1 more plan rejected" in below


def test_wide_rejections_read_as_sentences() -> None:
    text = rendered(table(), 200)
    assert f"nonfinite from token 1 of sample 43; first damaged node {DAMAGED}" in text
    assert f"other tokens from token 1 of sample 43; first damaged node {DAMAGED} (relative error 12)" in text


def test_brackets_are_no_markup_and_colour_is_optional() -> None:
    plain = rendered(table(), 120)
    assert "[0.3, 2.1]" in plain
    assert "\x1b" not in plain
    assert "\x1b" in rendered(table(), 120, force_terminal=True, color_system="standard", no_color=False)


def test_measured_and_mixed_sources_are_told_apart() -> None:
    measured = tuple(
        replace(one, latency=one.latency and replace(one.latency, source="measured", profile=None))
        for one in small_run()
    )
    text = rendered(table(measured), 120)
    assert "(measured)" in text
    assert "est." not in text
    assert "estimated" not in text
    mixed = (*measured, trial(7, latency=TrialLatency(90.0, 90.0, 90.0, 0.9, "estimated", "l4")))
    text = rendered(table(mixed), 120)
    assert "90.0 est. l4" in text
    assert "55.4 meas." in text
    assert "0.90x est." in text


def test_where_fp32_wins_it_is_said() -> None:
    slow = trial(1, latency=TrialLatency(99.0, 99.0, 99.0, 0.8, "estimated", "t4"))
    text = " ".join(rendered(table((small_run()[0], slow)), 120).split())
    assert "it is not faster than fp32, so fp32 is what gets published" in text


def test_where_only_fp32_is_stable_no_requirement_is_said_to_be_missed() -> None:
    fp32, broken = small_run()[0], trial(1, verdict="mismatch")
    text = " ".join(rendered(table((fp32, broken)), 120).split())
    assert "> chosen: fp32, no plan other than fp32 is stable" in text
    assert "requirement" not in text
    missed = " ".join(rendered(table((fp32, trial(1, validation_match=0.1))), 120).split())
    assert "the requirement is not met: validation.min_exact_match" in missed


def test_an_empty_table_says_so() -> None:
    assert "no plan is stable" in rendered(table(()), 60)
    assert "No plan is stable." in to_markdown(table(()))
    assert json.loads(to_json(table(()))) == {
        "choice": {
            "id": None,
            "reason": "no plan other than fp32 was judged",
            "faster": False,
            "requirements_met": False,
        },
        "rows": [],
    }


def test_left_out_rows_are_counted() -> None:
    assert "1 more stable plan not shown" in rendered(table().shortened(0), 120)


def test_json_and_csv_hold_every_row_and_column() -> None:
    names = [column.name for column in COLUMNS]
    rows = json.loads(to_json(table()))["rows"]
    assert [list(row) for row in rows] == [names] * 6
    assert [row["id"] for row in rows] == [3, 4, 0, 5, 1, 2]
    assert rows[0]["flip_risk_high"] == 2.15
    assert {row["latency_source"] for row in rows} == {"estimated"}
    found = list(csv.DictReader(io.StringIO(to_csv(table()))))
    assert list(found[0]) == names
    for row, line in zip(rows, found, strict=True):
        expected = {
            name: "" if value is None else str(value).lower() if value in (True, False) else str(value)
            for name, value in row.items()
        }
        assert {name: line[name] for name in ("id", "speedup", "casts", "kept_fp32", "reason", "min_margin")} == {
            name: expected[name] for name in ("id", "speedup", "casts", "kept_fp32", "reason", "min_margin")
        }


def test_markdown_tables_have_as_many_cells_as_columns() -> None:
    odd = trial(8, stage="all-low", verdict="error", message="a | b\nc")
    text = to_markdown(table((*small_run(), odd)))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(block) for block in blocks] == [2 + 4, 2 + 3]
    for block in blocks:
        counts = {line.replace("\\|", "").count("|") for line in block}
        assert len(counts) == 1
    assert "latency ms (estimated, t4)" in blocks[0][0]
    assert r"a \| b" in blocks[1][-1]


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100%"), (0.99999, "99.9%"), (0.98, "98.0%"), (0.29, "29.0%"), (0.0, "0.0%"), (None, "-")]
)
def test_only_a_perfect_share_reads_as_perfect(value: float | None, text: str) -> None:
    assert share(value) == text
