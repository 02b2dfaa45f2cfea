"""The front against brute force, and the winner's rules one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.config import Requirement
from precision_search.judging.trial import FlipRisk, TrialLatency
from precision_search.strategies.pareto import ALIKE, choose_winner, fastest_to_choose, front, pareto_front
from tests.search_models import latency, trial

coordinate = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf]) | st.floats(0, 10)
FP32 = trial(0, low_nodes=0, latency=latency(10.0, 1.0), flip_risk=FlipRisk(0.0, 0.0, 0.0), casts=0)


def risk(high: float) -> FlipRisk:
    return FlipRisk(high / 2, 0.0, high)


def dominated(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    return any(o[0] <= point[0] and o[1] <= point[1] and o != point for o in points)


@given(st.lists(st.tuples(coordinate, coordinate), max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    assert front(points) == tuple(i for i, point in enumerate(points) if not dominated(point, points))


def test_the_front_of_trials_holds_stable_ones_fastest_first() -> None:
    slow = trial(1, latency=latency(9.0), flip_risk=risk(1.0))
    fast = trial(2, latency=latency(5.0), flip_risk=risk(3.0))
    beaten = trial(3, latency=latency(9.5), flip_risk=risk(1.5))
    wrong = trial(4, latency=latency(1.0), flip_risk=risk(0.1), verdict="mismatch")
    assert pareto_front([slow, fast, beaten, wrong]) == (fast, slow)


def test_the_fastest_stable_plan_wins() -> None:
    choice = choose_winner(
        [FP32, trial(1, latency=latency(5.0)), trial(2, latency=latency(4.0)), trial(3, latency=latency(6.0))],
        Requirement(0.99),
    )
    assert choice.trial is not None and choice.trial.id == 2
    assert choice.faster


@pytest.mark.parametrize("verdict", ["nonfinite", "mismatch", "error"])
def test_a_plan_that_is_not_stable_never_wins(verdict: str) -> None:
    choice = choose_winner([FP32, trial(1, latency=latency(1.0), verdict=verdict), trial(2)], Requirement(0.99))
    assert choice.trial is not None and choice.trial.id == 2


def test_validation_is_a_condition_and_its_absence_is_none() -> None:
    forgetful = trial(1, latency=latency(1.0), validation_match=0.98)
    assert choose_winner([forgetful, trial(2, validation_match=0.99)], Requirement(0.99)).trial == trial(
        2, validation_match=0.99
    )
    unchecked = trial(3, latency=latency(0.5), validation_match=None)
    assert choose_winner([forgetful, unchecked], Requirement(0.99)).trial == unchecked


def test_where_none_keeps_validation_on_miss_decides_and_the_reason_says_so() -> None:
    fast = trial(1, latency=latency(1.0), validation_match=0.5, flip_risk=risk(9.0))
    safe = trial(2, latency=latency(3.0), validation_match=0.9, flip_risk=risk(2.0))
    near = trial(3, latency=latency(2.0), validation_match=0.95, flip_risk=risk(3.0))
    unknown = trial(4, latency=latency(0.5), validation_match=0.5, flip_risk=None)
    trials = [FP32, fast, safe, near, unknown]

    choice = choose_winner(trials, Requirement(0.99, "calmest"))
    assert (choice.trial, choice.faster, choice.requirements_met) == (safe, True, False)
    assert "least flip risk" in choice.reason and "99.0%" in choice.reason and "90.0%" in choice.reason

    choice = choose_winner(trials, Requirement(0.99))
    assert (choice.trial, choice.faster, choice.requirements_met) == (FP32, False, False)
    assert choice.reason == "no plan keeps 99.0% of the validation samples; the nearest is plan 3 with 95.0%"

    for on_miss in ("fp32", "calmest"):
        choice = choose_winner(trials, Requirement(0.9, on_miss))
        assert (choice.trial, choice.faster, choice.requirements_met) == (near, True, True)


def test_where_nothing_is_required_it_is_met() -> None:
    assert choose_winner([FP32], Requirement()).requirements_met
    assert choose_winner([FP32, trial(1, verdict="mismatch")], Requirement()).requirements_met
    assert not choose_winner([FP32, trial(1, verdict="mismatch")], Requirement(0.5)).requirements_met


def test_where_only_fp32_is_stable_that_is_what_is_said_and_not_that_plans_keep_too_little() -> None:
    for requirement in (Requirement(), Requirement(0.5)):
        choice = choose_winner([FP32, trial(1, verdict="mismatch")], requirement)
        assert choice.only_fp32
        assert choice.why_fp32 == " (fp32: no plan other than fp32 is stable)"
    choice = choose_winner([FP32, trial(1, validation_match=0.4)], Requirement(0.5))
    assert not choice.only_fp32
    assert choice.why_fp32 == " (fp32: no plan keeps what is required)"


def test_within_two_percent_of_the_fastest_the_least_flip_risk_wins_and_the_reason_says_so() -> None:
    fastest = trial(1, latency=latency(5.0), flip_risk=risk(3.0))
    calmer = trial(2, latency=latency(5.09), flip_risk=risk(2.0))
    calmest = trial(3, latency=latency(5.11), flip_risk=risk(1.0))
    forgetful = trial(4, latency=latency(5.05), flip_risk=risk(0.5), validation_match=0.98)
    choice = choose_winner([FP32, fastest, calmer, calmest, forgetful], Requirement(0.99))
    assert choice.trial == calmer
    assert choice.reason == (
        "the one with the least flip risk within 2% of the fastest stable plan that keeps at least 99.0% of the "
        "validation samples"
    )
    assert "least flip risk" not in choose_winner([FP32, fastest, calmest], Requirement(0.99)).reason


def test_a_plan_that_may_not_be_faster_does_not_win_by_its_flip_risk() -> None:
    surely = trial(1, latency=timed(1.2, 1.19, 1.21), flip_risk=risk(3.0))
    perhaps = trial(2, latency=timed(1.2, 0.9, 1.5), flip_risk=risk(1.0))
    assert choose_winner([FP32, surely, perhaps], Requirement(0.0)).trial == surely


def test_ties_go_to_less_risk_then_fewer_casts_then_the_first() -> None:
    trials = [
        trial(1, flip_risk=risk(3.0), casts=0),
        trial(2, flip_risk=risk(2.0), casts=9),
        trial(4, flip_risk=risk(2.0), casts=8),
        trial(3, flip_risk=risk(2.0), casts=8),
        trial(5, flip_risk=risk(2.0), casts=None),
    ]
    winner = choose_winner(trials, Requirement(0.0)).trial
    assert winner is not None and winner.id == 3


@pytest.mark.parametrize("speedup", [0.8, 1.0])
def test_a_winner_that_is_no_faster_than_fp32_is_said_to_be_so(speedup: float) -> None:
    choice = choose_winner([FP32, trial(1, latency=latency(11.0, speedup))], Requirement(0.99))
    assert choice.trial is not None and choice.trial.id == 1
    assert not choice.faster
    assert "not faster than fp32" in choice.reason


def test_plans_timed_at_different_moments_are_compared_by_their_speedups() -> None:
    while_cool = trial(1, latency=latency(5.0, 1.2), flip_risk=risk(1.0))
    while_hot = trial(2, latency=latency(5.5, 1.4), flip_risk=risk(1.0))
    assert choose_winner([FP32, while_cool, while_hot], Requirement(0.99)).trial == while_hot
    assert pareto_front([while_cool, while_hot]) == (while_hot,)


def test_a_winner_of_unknown_latency_is_not_called_faster() -> None:
    assert not choose_winner([trial(1, latency=None)], Requirement(0.99)).faster


def test_without_another_stable_plan_fp32_is_chosen() -> None:
    choice = choose_winner([FP32, trial(1, verdict="mismatch")], Requirement(0.99))
    assert choice.trial == FP32
    assert not choice.faster
    assert choose_winner([], Requirement(0.99)).trial is None


def test_less_than_a_percent_is_not_faster() -> None:
    for speedup, faster in ((1.0099, False), (1.01, True)):
        choice = choose_winner([FP32, trial(1, latency=latency(10.0 / speedup, speedup))], Requirement(0.0))
        assert choice.faster is faster
        assert ("not faster than fp32" in choice.reason) is not faster


def timed(speedup: float, low: float, high: float) -> TrialLatency:
    return replace(latency(10.0 / speedup, speedup), speedup_low=low, speedup_high=high)


@pytest.mark.parametrize(
    ("found", "faster", "reason"),
    [
        (timed(1.05, 1.0, 1.1), False, "its times vary too much to say that it is faster than fp32"),
        (timed(1.05, 1.0001, 1.1), True, "of the validation samples"),
        (timed(1.005, 1.004, 1.006), False, "it is not faster than fp32"),
    ],
)
def test_a_speedup_counts_where_its_interval_is_above_one(found: TrialLatency, faster: bool, reason: str) -> None:
    choice = choose_winner([FP32, trial(1, latency=found)], Requirement(0.0))
    assert choice.trial is not None and choice.trial.id == 1
    assert choice.faster is faster
    assert choice.reason.endswith(reason)


@given(
    st.lists(
        st.tuples(
            st.sampled_from((0.99, 1.0, 1.05, 1.5, 1.51, 1.53, 1.54, 1.56, 2.0)),
            st.sampled_from((None, 0.9, 1.001)),
            st.floats(0.0, 9.0),
            st.sampled_from((0.9, 1.0)),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_while_plans_are_judged_the_fastest_never_slows_down_and_the_winner_stays_near(
    plans: list[tuple[float, float | None, float, float, bool]],
) -> None:
    """A winner that is published: where none is, there is no fastest to choose either."""
    trials = [trial(0, low_nodes=0, latency=latency(10.0, 1.0))]
    before = 0.0
    for speedup, low, risk, kept, stable in plans:
        found = replace(latency(10 / speedup, speedup), speedup_low=low)
        changes = {"latency": found, "flip_risk": FlipRisk(risk, risk, risk), "validation_match": kept}
        trials.append(trial(len(trials), verdict="stable" if stable else "mismatch", **changes))

        winner, fastest = choose_winner(trials, Requirement(0.98)), fastest_to_choose(trials, Requirement(0.98))

        assert winner.faster == (fastest is not None)
        if winner.faster:
            assert winner.trial is not None and winner.trial.latency is not None
            assert fastest is not None and fastest.latency is not None
            assert before <= fastest.latency.speedup
            assert fastest.latency.speedup / ALIKE <= winner.trial.latency.speedup <= fastest.latency.speedup
            before = fastest.latency.speedup


def test_a_plan_known_to_be_faster_goes_before_one_that_may_be() -> None:
    perhaps, surely = trial(1, latency=timed(1.3, 0.9, 1.7)), trial(2, latency=timed(1.2, 1.19, 1.21))
    choice = choose_winner([FP32, perhaps, surely], Requirement(0.0))
    assert choice.trial == surely
    assert choice.faster
    assert choice.reason.endswith("of those known to be faster than fp32")
