"""The Pareto table: order, marks, sections, sorting, and what is said of rejected plans."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.config import Requirement
from precision_search.errors import UsageError
from precision_search.judging.trial import Divergence, FlipRisk, Trial
from precision_search.records.pareto_table import COLUMNS, Row, pareto_table, rejection
from tests.output_models import DAMAGED, PINNED, small_run
from tests.search_models import latency, trial


def ids(rows: tuple[Row, ...]) -> list[int]:
    return [row.trial.id for row in rows]


def test_the_chosen_plan_comes_first_then_the_front_then_the_others() -> None:
    table = pareto_table(small_run(), Requirement(0.98), pinned=PINNED)
    assert ids(table.rows) == [3, 4, 0, 5]
    assert [row.chosen for row in table.rows] == [True, False, False, False]
    assert [row.on_front for row in table.rows] == [True, True, True, False]
    assert table.choice.trial == small_run()[3]
    assert [row.kept for row in table.rows] == [
        "both: Pow; enc: Add MatMul",
        "enc: everything; dec: MatMul Pow",
        "everything",
        "enc: everything; dec: MatMul Pow +1 node",
    ]


def test_rejected_landmarks_have_a_section_and_the_rest_is_counted() -> None:
    table = pareto_table(small_run(), Requirement(0.98))
    assert ids(table.rejected) == [1, 2]
    assert table.also_rejected == 1
    assert not any(row.on_front or row.chosen for row in table.rejected)


def test_the_chosen_plan_need_not_be_on_the_front() -> None:
    # The faster plan with less risk keeps too little of the validation samples.
    fast = trial(0, latency=latency(1.0), flip_risk=FlipRisk(0.1, 0.0, 0.2), validation_match=0.5)
    safe = trial(1, latency=latency(2.0), flip_risk=FlipRisk(0.5, 0.1, 1.0), validation_match=1.0)
    table = pareto_table([fast, safe], Requirement(0.98))
    assert [(row.trial.id, row.chosen, row.on_front) for row in table.rows] == [(1, True, False), (0, False, True)]


def test_a_plan_of_unknown_latency_comes_last() -> None:
    trials = [trial(0, latency=None, flip_risk=None), trial(1), trial(2, latency=latency(9.0))]
    assert ids(pareto_table(trials, Requirement(0.0)).rows) == [1, 2, 0]


def test_no_trials_make_an_empty_table() -> None:
    table = pareto_table([], Requirement(0.98))
    assert (table.rows, table.rejected, table.also_rejected) == ((), (), 0)
    assert table.choice.trial is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"verdict": "nonfinite", "first_divergence": Divergence(42, 0, DAMAGED, None)},
            f"nonfinite from token 1 of sample 43; first damaged node {DAMAGED}",
        ),
        (
            {"verdict": "mismatch", "first_divergence": Divergence(3, 7, DAMAGED, 12.25)},
            f"other tokens from token 8 of sample 4; first damaged node {DAMAGED} (relative error 12)",
        ),
        (
            {"verdict": "mismatch", "first_divergence": Divergence(3, 7, None, None)},
            "other tokens from token 8 of sample 4; no node stands out",
        ),
        ({"verdict": "mismatch"}, "mismatch"),
        (
            {"verdict": "error", "message": "no kernel\n  why: because"},
            "could not be judged: no kernel",
        ),
        ({"verdict": "error", "message": ""}, "could not be judged: no message"),
    ],
)
def test_rejections_say_where_and_which_node(changes: dict[str, object], expected: str) -> None:
    assert rejection(trial(1, **changes)) == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("id", [0, 3, 4, 5]),
        ("latency_ms", [3, 4, 5, 0]),
        ("speedup", [3, 4, 5, 0]),
        ("flip_risk_high", [0, 4, 3, 5]),
        ("validation_match", [3, 4, 0, 5]),
        ("casts", [0, 4, 3, 5]),
        ("size_bytes", [3, 4, 0, 5]),
        ("kept_fp32", [3, 4, 5, 0]),
    ],
)
def test_sorting_puts_the_best_first_and_the_unknown_last(column: str, expected: list[int]) -> None:
    table = pareto_table(small_run(), Requirement(0.98), pinned=PINNED).sorted_by(column)
    assert ids(table.rows) == expected
    assert sum(row.chosen for row in table.rows) == 1


def test_rejected_rows_are_sorted_too() -> None:
    assert ids(pareto_table(small_run(), Requirement(0.98)).sorted_by("exact_match").rejected) == [2, 1]


@pytest.mark.parametrize("column", [column.name for column in COLUMNS])
def test_every_column_can_be_sorted_by(column: str) -> None:
    table = pareto_table(small_run(), Requirement(0.98))
    assert sorted(ids(table.sorted_by(column).rows)) == sorted(ids(table.rows))


@pytest.mark.parametrize(("name", "near"), [("latency", "latency_ms"), ("speed", "speedup"), ("exact", "exact_match")])
def test_an_unknown_column_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean `{near}`") as caught:
        pareto_table(small_run(), Requirement(0.98)).sorted_by(name)
    assert caught.value.exit_code == 2


def test_shortening_keeps_the_front_and_fp32_and_counts_the_rest() -> None:
    others = [trial(10 + n, latency=latency(80.0 + n), flip_risk=FlipRisk(9.0, 8.0, 50.0)) for n in range(5)]
    table = pareto_table([*small_run(), *others], Requirement(0.98))
    short = table.shortened(2)
    assert ids(short.rows) == [3, 4, 0, 5, 10]
    assert short.left_out == 4
    assert short.shortened(2) == short
    assert table.shortened(100) == table


finite = st.floats(0.5, 100.0)
trials = st.lists(
    st.builds(
        lambda ms, risk, verdict, share: (ms, risk, verdict, share),
        finite,
        finite,
        st.sampled_from(["stable", "mismatch"]),
        st.sampled_from([0.9, 0.99, 1.0]),
    ),
    max_size=12,
).map(
    lambda found: [
        trial(
            n,
            latency=latency(ms, 50.0 / ms),
            flip_risk=FlipRisk(risk, 0.0, risk),
            verdict=verdict,
            validation_match=share,
            stage="all-low" if n % 3 == 0 else "joined",
        )
        for n, (ms, risk, verdict, share) in enumerate(found)
    ]
)


@given(trials, st.sampled_from([0.0, 0.95, 1.0]))
def test_every_stable_plan_is_shown_once_and_every_other_is_accounted_for(found: list[Trial], share: float) -> None:
    table = pareto_table(found, Requirement(share, "calmest"))
    stable = [one.id for one in found if one.verdict == "stable"]
    assert sorted(ids(table.rows)) == stable
    assert len(table.rejected) + table.also_rejected == len(found) - len(stable)
    if table.rows:
        assert table.rows[0].chosen
        assert any(row.on_front for row in table.rows)
