"""The Pareto table: which judged plans are shown, in which order, and what is said of each.

In: trials and the choice among them. Out: a `ParetoTable`, which `display.tables` writes for people and for programs.
It is made of these alone, so that a run and a later look at its directory show the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from precision_search.config import Requirement
from precision_search.errors import UsageError, did_you_mean, first_line
from precision_search.judging.trial import LANDMARKS, Trial
from precision_search.printable import printable
from precision_search.records.kept_in_fp32 import kept_text
from precision_search.strategies.pareto import Choice, choose_winner, is_acceptable, pareto_front

SHOWN_OTHERS = 10
"""Stable plans beside the front that a table shows unless asked for all."""

Value = str | int | float | bool | None

_FORMULA = ("=", "+", "-", "@", "\t", "\n")
"""How a text begins that a spreadsheet would compute, perhaps after it has cut away blanks."""


@dataclass(frozen=True, slots=True)
class Row:
    """One judged plan.

    Attributes:
        trial: the plan and its verdict.
        kept: what stays in fp32, in a few words.
        on_front: whether no other stable plan is better in latency and flip risk.
        chosen: whether it is the run's choice.
        reason: why it was rejected; empty for a stable plan.
        acceptable: whether it keeps what a winner must keep.
    """

    trial: Trial
    kept: str
    on_front: bool = False
    chosen: bool = False
    reason: str = ""
    acceptable: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """One value of a row, under the name that programs and `--sort` use.

    Attributes:
        name: with the unit where it has one.
        value: what a row holds; None where unknown.
        best_is_high: whether sorting puts the largest first.
    """

    name: str
    value: Callable[[Row], Value]
    best_is_high: bool = False


def _at(path: str) -> Callable[[Row], Value]:
    """Reads a value behind several attributes; None as soon as one of them is."""

    def value(row: Row) -> Value:
        found: Any = row
        for name in path.split("."):
            found = None if found is None else getattr(found, name)
        return cast(Value, found)

    return value


COLUMNS: tuple[Column, ...] = (
    Column("id", _at("trial.id")),
    Column("stage", _at("trial.stage")),
    Column("chosen", _at("chosen"), best_is_high=True),
    Column("front", _at("on_front"), best_is_high=True),
    Column("kept_fp32", _at("kept")),
    Column("verdict", _at("trial.verdict")),
    Column("verdict_source", _at("trial.verdict_source")),
    Column("exact_match", _at("trial.exact_match"), best_is_high=True),
    Column("validation_match", _at("trial.validation_match"), best_is_high=True),
    Column("min_margin", _at("trial.min_margin"), best_is_high=True),
    Column("flip_risk", _at("trial.flip_risk.value")),
    Column("flip_risk_low", _at("trial.flip_risk.low")),
    Column("flip_risk_high", _at("trial.flip_risk.high")),
    Column("latency_ms", _at("trial.latency.p50_ms")),
    Column("latency_low_ms", _at("trial.latency.low_ms")),
    Column("latency_high_ms", _at("trial.latency.high_ms")),
    Column("latency_source", _at("trial.latency.source")),
    Column("latency_profile", _at("trial.latency.profile")),
    Column("speedup", _at("trial.latency.speedup"), best_is_high=True),
    Column("size_bytes", _at("trial.size_bytes")),
    Column("casts", _at("trial.casts")),
    Column("fp32_nodes", _at("trial.fp32_nodes")),
    Column("low_nodes", _at("trial.low_nodes")),
    Column("fp32_decisions", _at("trial.fp32_decisions")),
    Column("decisions", _at("trial.decisions")),
    Column("seconds", _at("trial.seconds")),
    Column("reason", _at("reason")),
)


@dataclass(frozen=True, slots=True)
class ParetoTable:
    """The table of a run.

    Attributes:
        rows: the stable plans: the chosen one, the rest of the front, then the others, each from the fastest.
        rejected: the landmarks that are not stable, or all such plans, as they were judged.
        columns: what programs get of each row.
        choice: the chosen plan and why.
        left_out: stable plans that `shortened` left out.
        also_rejected: rejected plans that are not shown because they are no landmarks.
        generation: that tokens are those of greedy decoding by choice; None where the checkpoint asks for nothing else.
    """

    rows: tuple[Row, ...]
    rejected: tuple[Row, ...]
    columns: tuple[Column, ...]
    choice: Choice
    left_out: int
    also_rejected: int
    generation: str | None = None

    def sorted_by(self, name: str) -> ParetoTable:
        """The table with its rows by one column, the best first and unknown values last; equal ones keep their order.

        Raises:
            UsageError: there is no such column; the nearest is named.
        """
        column = next((column for column in self.columns if column.name == name), None)
        if column is None:
            names = [column.name for column in self.columns]
            raise UsageError(
                f"the table has no column {name!r}",
                why=f"its columns are {', '.join(names)}",
                fix=did_you_mean(name, names, cutoff=0.4) or "take one of these",
            )
        return replace(self, rows=_sorted(self.rows, column), rejected=_sorted(self.rejected, column))

    def shortened(self, others: int = SHOWN_OTHERS) -> ParetoTable:
        """The table with at most so many stable plans beside the chosen one, the front and fp32."""
        kept: list[Row] = []
        for row in self.rows:
            needed = row.chosen or row.on_front or row.trial.is_fp32
            if needed or others > 0:
                kept.append(row)
            others -= not needed
        return replace(self, rows=tuple(kept), left_out=self.left_out + len(self.rows) - len(kept))


def pareto_table(
    trials: Sequence[Trial],
    requirement: Requirement,
    *,
    choice: Choice | None = None,
    pinned: Collection[str] = (),
    every: bool = False,
    generation: str | None = None,
) -> ParetoTable:
    """Makes the table of judged plans.

    Args:
        trials: in the order they were judged.
        requirement: what a winner must keep.
        choice: the chosen one of them; None chooses now.
        pinned: node keys that no plan can make low (index arithmetic), which are not worth a word of their own.
        every: whether rejected plans that are no landmarks are rows too.
        generation: what a run says of greedy decoding by choice (see `GenerationInfo.text`).
    """
    text = kept_text(trials, pinned)
    choice = choose_winner(trials, requirement) if choice is None else choice
    front = pareto_front(trials)
    on_front = {trial.id for trial in front}
    stable = [trial for trial in trials if trial.verdict == "stable"]
    chosen = [] if choice.trial is None else [choice.trial]
    first = {trial.id for trial in chosen} | on_front
    others = sorted((trial for trial in stable if trial.id not in first), key=_speed)
    ordered = [*chosen, *(trial for trial in front if trial not in chosen), *others]
    rejected = [trial for trial in trials if trial.verdict != "stable"]
    shown = [trial for trial in rejected if every or trial.stage in LANDMARKS]
    return ParetoTable(
        rows=tuple(
            Row(
                trial,
                text(trial),
                trial.id in on_front,
                trial in chosen,
                acceptable=is_acceptable(trial, requirement.share),
            )
            for trial in ordered
        ),
        rejected=tuple(Row(trial, text(trial), reason=rejection(trial)) for trial in shown),
        columns=COLUMNS,
        choice=choice,
        left_out=0,
        also_rejected=len(rejected) - len(shown),
        generation=generation,
    )


def rejection(trial: Trial) -> str:
    """Why a plan was rejected, with the place where it first parts from the reference; both counted from 1."""
    if trial.verdict == "error":
        return f"could not be judged: {first_line(trial.message or 'no message')}"
    where = trial.first_divergence
    if where is None:
        return trial.verdict
    verb = "nonfinite" if trial.verdict == "nonfinite" else "other tokens"
    how = {"padded": " with padding", "alone": " in a batch of its own", None: ""}[where.batch]
    place = f"{verb} from token {where.position + 1} of sample {where.sample + 1}{how}"
    if where.node is None:
        return f"{place}; no node stands out"
    error = "" if where.relative_error is None else f" (relative error {where.relative_error:.2g})"
    return f"{place}; first damaged node {where.node}{error}"


def _speed(trial: Trial) -> tuple[bool, float, int]:
    return trial.latency is None, 0.0 if trial.latency is None else -trial.latency.speedup, trial.id


def _sorted(rows: Sequence[Row], column: Column) -> tuple[Row, ...]:
    known = [row for row in rows if column.value(row) is not None]
    unknown = [row for row in rows if column.value(row) is None]
    return (*sorted(known, key=lambda row: cast(Any, column.value(row)), reverse=column.best_is_high), *unknown)


def to_csv(table: ParetoTable) -> str:
    """The table as CSV with a header line, the rejected rows last; unknown values are empty.

    Text that a spreadsheet would take for a formula begins with an apostrophe, which spreadsheets do not show; numbers
    stay numbers. Control characters are spelled out.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(column.name for column in table.columns)
    for row in (*table.rows, *table.rejected):
        values = (column.value(row) for column in table.columns)
        writer.writerow(_cell(value) for value in values)
    return stream.getvalue()


def _cell(value: Value) -> str | int | float | None:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
