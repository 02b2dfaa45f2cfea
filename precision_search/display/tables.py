"""The Pareto table as text: for a terminal of any width, as JSON, CSV and Markdown.

In: a `ParetoTable`. Out: text. An estimate is called one wherever it is shown; columns that do not fit are named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precision_search.errors import counted
from precision_search.printable import printable, printable_json
from precision_search.records.markdown import escape
from precision_search.records.pareto_table import ParetoTable, Row
from precision_search.records.wording import ABBREVIATED, UNKNOWN, milliseconds, number, part_of, share

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CHOSEN, FRONT = ">", "*"
GAP = 2


@dataclass(frozen=True, slots=True)
class _Shown:
    """A column for people.

    Attributes:
        header: may break at spaces.
        text: the cell of a row.
        rank: importance; 0 is never left out, the highest goes first.
        is_text: left-aligned and broken into lines where it is too long, down to `least` characters.
        least: see there.
    """

    header: str
    text: Callable[[Row], str]
    rank: int = 0
    is_text: bool = False
    least: int = 0


def render_rich(table: ParetoTable, console: Console) -> None:
    """Prints the table to a console, whatever its width and with or without colour."""
    from rich.text import Text

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=False)

    if table.rows:
        hidden = _print_table(table.rows, _main_columns(table), console)
        for line in _legend(table):
            say(line)
        if hidden:
            say(f"left out at this width: {', '.join(hidden)}", "dim")
    else:
        say("no plan is stable")
    if table.rejected:
        say("\nrejected landmarks", "bold")
        _print_table(table.rejected, _rejected_columns(table), console)
    if table.also_rejected:
        say(f"{counted(table.also_rejected, 'more plan')} rejected", "dim")


def to_json(table: ParetoTable) -> str:
    """The table as a JSON object: `choice` and `rows`, the rejected ones last, with the names of the columns."""
    rows = [{column.name: column.value(row) for column in table.columns} for row in (*table.rows, *table.rejected)]
    trial = table.choice.trial
    choice = {
        "id": trial and trial.id,
        "reason": table.choice.reason,
        "faster": table.choice.faster,
        "requirements_met": table.choice.requirements_met,
    }
    return printable_json(json.dumps({"choice": choice, "rows": rows}, indent=2)) + "\n"


def to_markdown(table: ParetoTable) -> str:
    """The table as GitHub-flavoured Markdown."""
    parts = []
    if table.rows:
        parts += [
            _markdown_table(table.rows, _main_columns(table)),
            "\n".join(f"- {escape(x)}" for x in _legend(table)),
        ]
    else:
        parts.append("No plan is stable.")
    if table.rejected:
        parts += ["Rejected landmarks:", _markdown_table(table.rejected, _rejected_columns(table))]
    return "\n\n".join(parts) + "\n"


def _main_columns(table: ParetoTable) -> tuple[_Shown, ...]:
    source = _one_source(table)
    return (
        _Shown("", _mark),
        _Shown("id", lambda row: str(row.trial.id)),
        _Shown("stays in fp32", lambda row: row.kept, is_text=True, least=16),
        _Shown("latency ms" if source is None else f"latency ms ({source})", lambda row: _latency(row, source), 1),
        _Shown("interval ms" if source is None else f"interval ms ({source})", _interval, 10),
        _Shown(_speedup_header(source), lambda row: _speedup(row, source), 1),
        _Shown("exact match", lambda row: share(row.trial.exact_match), 2),
        _Shown("validation match", lambda row: share(row.trial.validation_match), 4),
        _Shown("flip risk", _flip_risk, 3),
        _Shown("smallest margin", lambda row: number(row.trial.min_margin), 7),
        _Shown("size MB", _size, 5),
        _Shown("nodes in fp32", lambda row: part_of(row.trial.fp32_decisions, row.trial.decisions), 5),
        _Shown("casts", lambda row: number(row.trial.casts), 6),
        _Shown("verdict", lambda row: f"{row.trial.verdict} ({row.trial.verdict_source})", 8),
        _Shown("stage", lambda row: row.trial.stage, 9),
    )


def _rejected_columns(table: ParetoTable) -> tuple[_Shown, ...]:
    return (
        _Shown("id", lambda row: str(row.trial.id)),
        _Shown("stage", lambda row: row.trial.stage),
        _Shown("stays in fp32", lambda row: row.kept, 2, is_text=True, least=16),
        _Shown("exact match", lambda row: share(row.trial.exact_match), 1),
        _Shown("why", lambda row: row.reason, is_text=True, least=24),
    )


def _legend(table: ParetoTable) -> list[str]:
    lines = []
    trial, choice = table.choice.trial, table.choice
    if trial is not None:
        instead = "" if choice.faster or trial.is_fp32 else ", so fp32 is what gets published"
        chosen = "fp32" if trial.is_fp32 and not choice.requirements_met else f"plan {trial.id}"
        lines.append(f"{CHOSEN} chosen: {chosen}, {choice.reason}{instead}")
        if not choice.requirements_met and not choice.only_fp32:
            lines.append("  the requirement is not met: validation.min_exact_match")
    lines.append(f"{FRONT} on the Pareto front of latency and flip risk (flips expected in 1,000 unseen tokens, 90%)")
    if table.generation is not None:
        lines.append(table.generation)
    if table.left_out:
        lines.append(f"{counted(table.left_out, 'more stable plan')} not shown")
    return lines


def _one_source(table: ParetoTable) -> str | None:
    """Where all latencies are from, for the header; None where the rows must say it each, or know none."""
    sources = {
        row.trial.latency.source + (f", {row.trial.latency.profile}" if row.trial.latency.profile else "")
        for row in table.rows
        if row.trial.latency is not None
    }
    return sources.pop() if len(sources) == 1 else None


def _mark(row: Row) -> str:
    return CHOSEN * row.chosen + FRONT * row.on_front


def _latency(row: Row, source: str | None) -> str:
    latency = row.trial.latency
    if latency is None:
        return UNKNOWN
    own = "" if source else f" {ABBREVIATED[latency.source]}" + (f" {latency.profile}" if latency.profile else "")
    return f"{milliseconds(latency.p50_ms)}{own}"


def _interval(row: Row) -> str:
    latency = row.trial.latency
    return UNKNOWN if latency is None else f"{milliseconds(latency.low_ms)} to {milliseconds(latency.high_ms)}"


def _speedup_header(source: str | None) -> str:
    return "speedup (est.)" if source and source.startswith("estimated") else "speedup"


def _speedup(row: Row, source: str | None) -> str:
    latency = row.trial.latency
    if latency is None:
        return UNKNOWN
    return f"{latency.speedup:.2f}x" + ("" if source else f" {ABBREVIATED[latency.source]}")


def _flip_risk(row: Row) -> str:
    risk = row.trial.flip_risk
    return UNKNOWN if risk is None else f"{number(risk.value)} [{number(risk.low)}, {number(risk.high)}]"


def _size(row: Row) -> str:
    return UNKNOWN if row.trial.size_bytes is None else f"{row.trial.size_bytes / 1e6:.1f}"


def _print_table(rows: Sequence[Row], columns: Sequence[_Shown], console: Console) -> list[str]:
    """Prints as many of the columns as fit, the important ones first; returns the headers of the others."""
    shown = [_Cells(column, tuple(printable(column.text(row)) for row in rows)) for column in columns]
    left_out = []
    while _width([cells.least for cells in shown]) > console.width and any(cells.column.rank for cells in shown):
        last = max(shown, key=lambda cells: cells.column.rank)
        shown.remove(last)
        left_out.append(last.column.header)
    console.print(_rich_table(rows, shown, console.width))
    return left_out[::-1]


@dataclass(frozen=True, slots=True)
class _Cells:
    """A column with the text of its cells."""

    column: _Shown
    texts: tuple[str, ...]

    @property
    def longest(self) -> int:
        return max(map(len, self.texts))

    @property
    def least(self) -> int:
        """The width it needs with its header broken into words, and its cells where they may be."""
        cells = min(self.longest, self.column.least) if self.column.is_text else self.longest
        return max([cells, *map(len, self.column.header.split())])


def _rich_table(rows: Sequence[Row], shown: Sequence[_Cells], width: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, GAP - 1, 0, 0), header_style="bold")
    for cells, column_width in zip(shown, _widths(shown, width), strict=True):
        is_text = cells.column.is_text or not cells.column.header
        # Text, not str: a str would be read as console markup, and "[0.3, 2.1]" is none.
        table.add_column(
            Text(cells.column.header), justify="left" if is_text else "right", overflow="fold", width=column_width
        )
    for place, row in enumerate(rows):
        table.add_row(*(Text(cells.texts[place]) for cells in shown), style="bold" if row.chosen else "")
    return table


def _widths(shown: Sequence[_Cells], width: int) -> list[int]:
    """What each column gets: all it could use where there is room, else the rest is shared among those that want it."""
    wanted = [max(cells.longest, len(cells.column.header)) for cells in shown]
    if _width(wanted) <= width:
        return wanted
    widths = [cells.least for cells in shown]
    missing = [cells.longest - got if cells.column.is_text else 0 for cells, got in zip(shown, widths, strict=True)]
    spare = width - _width(widths)
    share = min(1.0, max(0, spare) / max(1, sum(missing)))
    return [got + int(share * max(0, lacks)) for got, lacks in zip(widths, missing, strict=True)]


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _markdown_table(rows: Sequence[Row], columns: Sequence[_Shown]) -> str:
    lines = [[column.header for column in columns], [":--" if column.is_text else "--:" for column in columns]]
    lines += [[escape(column.text(row)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
