"""The generator benchmark times and counts as it says. What it finds is in docs/benchmarks.md."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.engines import OTHER, OURS, REFERENCE, Rows
from benchmarks.generator import BATCHES, Timed, measure, report, table_rows
from benchmarks.random_t5 import LENGTHS, random_rows

BATCH: Rows = [[3, 1], [4, 1]]


def test_engines_take_turns_and_the_first_run_does_not_count() -> None:
    turns: list[str] = []
    ticks = itertools.count()

    def engine(name: str, tokens: list[list[int]]) -> object:
        def generate(_: Rows) -> list[list[int]]:
            turns.append(name)
            for _tick in range(len(name)):  # takes as many seconds as its name has letters, and one for the clock
                next(ticks)
            return tokens

        return generate

    engines = {
        OURS: engine(OURS, [[5, 1], [6, 6, 1]]),
        REFERENCE: engine(REFERENCE, [[5, 1], [6, 1]]),
        OTHER: engine(OTHER, [[5, 1], [6, 1]]),
    }

    timed = measure(engines, [BATCH, BATCH], 2, clock=lambda: float(next(ticks)), pause=0.0)  # type: ignore[arg-type]

    order = [OURS, REFERENCE, OTHER, OURS, REFERENCE, OTHER, OTHER, REFERENCE, OURS]
    assert turns[:18:2] == turns[1:18:2] == order
    assert timed[OURS].tokens == 10
    assert timed[OURS].seconds == (2 * len(OURS) + 1.0,) * 4
    assert (timed[OURS].same_rows, timed[OTHER].same_rows, timed[OTHER].rows) == (2, 4, 4)
    assert timed[OURS].by_round == pytest.approx([10 / (2 * len(OURS) + 1)] * 2)


def test_the_table_gives_rates_and_how_many_times_those_of_transformers() -> None:
    timed = {
        OURS: Timed(100, 3, 4, (1.0, 1.0, 2.0, 2.0, 1.0, 1.0)),
        REFERENCE: Timed(100, 4, 4, (4.0, 4.0, 4.0, 4.0, 5.0, 5.0)),
    }

    rows = table_rows("demo", 8, timed)

    assert rows == [
        ("demo", "8", OURS, "100", "4.00 (2.00 to 5.00)", "3 of 4"),
        ("demo", "8", REFERENCE, "25", "1", "4 of 4"),
    ]
    text = report("Machine: none.", rows, 2, 3)
    assert "at least 2" in text
    assert "| demo | 8 | precision-search | 100 | 4.00 (2.00 to 5.00) | 3 of 4 |" in text


def test_random_sources_are_of_the_stated_lengths_and_end() -> None:
    rows = random_rows(max(BATCHES), 100)
    assert rows == random_rows(max(BATCHES), 100)
    assert {len(row) for row in rows} <= set(range(LENGTHS[0], LENGTHS[1] + 1))
    assert all(row[-1] == 1 and 1 not in row[:-1] and max(row) < 100 for row in rows)
