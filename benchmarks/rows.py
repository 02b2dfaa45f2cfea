"""What the search benchmark keeps of a method on a model, where it keeps it, and what it holds the rows against."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from precision_search.judging.trial import FlipRisk, Trial
from precision_search.records.codec import from_json, to_json
from precision_search.strategies.pareto import is_acceptable

NODES, OP_TYPES, EXHAUSTIVE, RANDOM = "nodes", "op-types", "exhaustive", "random"
BISECTION, THRESHOLD = "bisection", "threshold"
METHODS = (NODES, OP_TYPES, EXHAUSTIVE, RANDOM, BISECTION, THRESHOLD)

WITHIN = 1.02
"""How much slower the node search may be than the fastest plan with no more flip risk."""
SHARE_OF_BISECTION = 1 / 3
"""Of the evaluations of segment bisection, what the node search may use."""

MISSING = "-"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Label:
    """Which row this is going to be: see `Row`."""

    settings: str
    scale: str


@dataclass(frozen=True, slots=True)
class Point:
    """An acceptable plan as the front sees it: estimated milliseconds, expected flips in 1,000 tokens."""

    ms: float
    risk: float


@dataclass(frozen=True, slots=True)
class Row:
    """What one method came to on one model.

    Attributes:
        settings: hash of the config that it ran under.
        scale: of the residual stream, as `scaled.scale_name` gives it.
        method: one of `METHODS`.
        evaluations: plans screened or judged until the final one was, fp32 left out.
        seconds: from the first plan on, until the final one was judged.
        all_evaluations: until the method ended.
        all_seconds: until the method ended.
        verdict: of the final plan.
        acceptable: whether that is stable and keeps enough validation samples.
        fp32_nodes: of the final plan, over the three graphs.
        casts: that it adds over the three graphs.
        ms: estimated latency of the workload.
        speedup: against fp32.
        flip_risk: None where the plan is not stable.
        calibration: share of the calibration samples with the reference's tokens.
        validation: the same, None where the plan is not stable.
        test: the same, on samples that chose nothing.
        points: the acceptable plans among all that it judged for real.
        note: what else to know, or empty.
    """

    settings: str
    scale: str
    method: str
    evaluations: int
    seconds: float
    all_evaluations: int
    all_seconds: float
    verdict: str
    acceptable: bool
    fp32_nodes: int
    casts: int | None
    ms: float | None
    speedup: float | None
    flip_risk: FlipRisk | None
    calibration: float
    validation: float | None
    test: float | None
    points: tuple[Point, ...]
    note: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table, without its scale."""
        risk = self.flip_risk
        return (
            self.method,
            _so_far(self.evaluations, self.all_evaluations),
            _so_far(round(self.seconds), round(self.all_seconds)),
            str(self.fp32_nodes),
            _text(self.casts, "d"),
            MISSING if self.ms is None or self.speedup is None else f"{self.ms:.2f} ({self.speedup:.2f}x)",
            MISSING if risk is None else f"{risk.value:.2f} ({risk.low:.2f} to {risk.high:.2f})",
            f"{self.calibration:.0%}",
            _text(self.validation, ".0%"),
            _text(self.test, ".1%"),
            self.verdict if self.acceptable or self.verdict != "stable" else "stable, but not on validation",
        )


HEADER = (
    "method",
    "evaluations",
    "seconds",
    "fp32 nodes",
    "casts",
    "estimated ms",
    "flip risk",
    "calibration",
    "validation",
    "test",
    "verdict",
)


@dataclass(frozen=True, slots=True)
class Target:
    """A target held against the rows of one scale: what is asked, the numbers, and `met`, `missed` or `not known`."""

    scale: str
    asked: str
    numbers: str
    result: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        return self.scale, self.asked, self.numbers, self.result


def points_of(trials: Sequence[Trial], min_exact_match: float) -> tuple[Point, ...]:
    """The acceptable plans; one whose flip risk is not known is left out."""
    return tuple(
        Point(trial.latency.p50_ms, trial.flip_risk.value)
        for trial in trials
        if is_acceptable(trial, min_exact_match) and trial.latency is not None and trial.flip_risk is not None
    )


def make_row(
    label: Label,
    method: str,
    trial: Trial,
    *,
    evaluations: int,
    seconds: float,
    all_evaluations: int,
    all_seconds: float,
    test: float | None,
    min_exact_match: float,
    judged: Sequence[Trial],
    note: str = "",
) -> Row:
    """The row of a method whose final plan is `trial`; the arguments are `Row`'s."""
    latency = trial.latency
    return Row(
        settings=label.settings,
        scale=label.scale,
        method=method,
        evaluations=evaluations,
        seconds=seconds,
        all_evaluations=all_evaluations,
        all_seconds=all_seconds,
        verdict=trial.verdict,
        acceptable=is_acceptable(trial, min_exact_match),
        fp32_nodes=trial.fp32_nodes,
        casts=trial.casts,
        ms=None if latency is None else latency.p50_ms,
        speedup=None if latency is None else latency.speedup,
        flip_risk=trial.flip_risk,
        calibration=trial.exact_match,
        validation=trial.validation_match,
        test=test,
        points=points_of(judged, min_exact_match),
        note=note,
    )


def targets(scale: str, rows: Mapping[str, Row]) -> tuple[Target, ...]:
    """What is asked of the node search, held against the rows of one scale (by method)."""
    return (
        Target(scale, "no slower than the exhaustive optimum of op types", *_against_optimum(rows)),
        Target(scale, "at most 2% slower than any plan with no more flip risk", *_against_any(rows)),
        Target(scale, "at most a third of the evaluations of bisection", *_against_bisection(rows)),
    )


def _against_optimum(rows: Mapping[str, Row]) -> tuple[str, str]:
    nodes, optimum = rows.get(NODES), rows.get(EXHAUSTIVE)
    if nodes is None or optimum is None or optimum.ms is None or not optimum.acceptable:
        return MISSING, "not known"
    return f"{_text(nodes.ms, '.2f')} against {optimum.ms:.2f} ms", _met(_ms(nodes) <= optimum.ms)


def _against_any(rows: Mapping[str, Row]) -> tuple[str, str]:
    nodes = rows.get(NODES)
    if nodes is None:
        return MISSING, "not known"
    risk = math.inf if nodes.flip_risk is None else nodes.flip_risk.value
    others = [(point.ms, method) for method, row in rows.items() for point in row.points if point.risk <= risk]
    if not others:
        return "no method has such a plan", _met(nodes.acceptable)
    ms, method = min(others)
    return f"{_text(nodes.ms, '.2f')} against {ms:.2f} ms ({method})", _met(_ms(nodes) <= WITHIN * ms)


def _against_bisection(rows: Mapping[str, Row]) -> tuple[str, str]:
    nodes, bisection = rows.get(NODES), rows.get(BISECTION)
    if nodes is None or bisection is None:
        return MISSING, "not known"
    numbers = f"{_so_far(nodes.evaluations, nodes.all_evaluations)} against {bisection.all_evaluations}"
    return numbers, _met(nodes.acceptable and nodes.evaluations <= SHARE_OF_BISECTION * bisection.all_evaluations)


def _ms(row: Row) -> float:
    return row.ms if row.acceptable and row.ms is not None else math.inf


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _so_far(until_final: int, until_end: int) -> str:
    return str(until_final) if until_final == until_end else f"{until_final} of {until_end}"


def _text(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def read_records(path: Path, kind: type[T]) -> list[T]:
    """The records of a file of JSON lines, none if it is not there; a line cut off at the end does not count."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    return [from_json(kind, json.loads(line), str(path)) for line in lines[:-1]]


def add_record(path: Path, record: object) -> None:
    """Adds a line; half a line that a killed run left is cut off before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    path.write_text(whole + json.dumps(to_json(record), allow_nan=False) + "\n")
