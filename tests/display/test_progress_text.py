"""How far a stage is, in words: honest about what is a guess, and whole parts at every width."""

from __future__ import annotations

from typing import Any

import pytest

from precision_search.config import Requirement
from precision_search.display.progress_text import Part, Tally, clock_time, duration, fitted
from precision_search.judging.trial import NOTHING_KNOWN, FlipRisk, SearchState
from precision_search.runtime.progress import Remaining
from precision_search.strategies.pareto import choose_winner, fastest_to_choose
from tests.search_models import latency, trial

SEARCHING = "searching, strategy nodes"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def said(tally: Tally, **options: Any) -> str:
    return ", ".join(part.text for part in tally.parts(**options))


def judged(tally: Tally, clock: Clock, count: int, seconds: float, last: SearchState = NOTHING_KNOWN) -> None:
    """Counts plans that took so long each."""
    for number in range(count):
        clock.now += seconds
        tally.add(trial(number, stage="calm"), last if number == count - 1 else NOTHING_KNOWN)


def test_nothing_is_said_before_anything_happened() -> None:
    assert said(Tally(Clock())) == ""


def test_plans_of_earlier_sessions_count_and_the_rate_is_of_this_one() -> None:
    clock = Clock()
    tally = Tally(clock)
    for number in range(40, 44):
        clock.now += 0.5
        tally.add(trial(number, stage="calm"), SearchState(20.04))

    assert said(tally) == "44 plans, stage calm, 2.0 a second, 20.0 screens/s"


def test_the_first_plan_which_builds_the_sessions_is_no_measure_of_the_rate() -> None:
    clock = Clock()
    tally = Tally(clock)
    clock.now += 60.0
    judged(tally, clock, 2, 0.5)
    assert "a second" not in said(tally)

    judged(tally, clock, 1, 0.5)
    assert "2.0 a second" in said(tally)


def test_slow_plans_are_told_in_seconds() -> None:
    clock = Clock()
    tally = Tally(clock)
    judged(tally, clock, 4, 12.0, SearchState(0.084))

    assert said(tally) == "4 plans, stage calm, 12.0 s each, 0.08 screens/s"


@pytest.mark.parametrize(
    ("best", "text"),
    [
        (trial(2, latency=latency(1.0, 1.5)), "best 1.50x est."),
        (trial(0, low_nodes=0, latency=latency(2.0, 1.0)), None),
        (trial(2, latency=None), None),
        (None, None),
    ],
)
def test_the_best_is_what_would_be_chosen_now_unless_it_is_fp32(best: Any, text: str | None) -> None:
    tally = Tally(Clock())
    tally.add(trial(3), SearchState(best=best))

    assert [part.text for part in tally.parts() if part.text.startswith("best")] == ([text] if text else [])


def test_the_number_does_not_fall_where_a_calmer_plan_becomes_the_best() -> None:
    """The last but two is 1.5% slower than the second; the last no slower in what is shown."""
    plans = [
        trial(0, low_nodes=0, latency=latency(10.0, 1.0), flip_risk=FlipRisk(0.0, 0.0, 0.0)),
        trial(1, latency=latency(6.25, 1.6), flip_risk=FlipRisk(4.0, 2.0, 6.0)),
        trial(2, latency=latency(5.0, 2.0), validation_match=0.9),
        trial(3, latency=latency(6.35, 1.575), flip_risk=FlipRisk(1.0, 0.5, 2.0)),
        trial(4, latency=latency(5.0, 2.0), flip_risk=FlipRisk(3.0, 1.0, 5.0)),
        trial(5, latency=latency(5.001, 1.9996), flip_risk=FlipRisk(1.0, 0.5, 2.0)),
    ]
    requirement, tally = Requirement(0.95), Tally(Clock())
    texts = []
    for count, last in enumerate(plans, 1):
        choice = choose_winner(plans[:count], requirement)
        fastest = fastest_to_choose(plans[:count], requirement)
        tally.add(last, SearchState(best=choice.trial, fastest=fastest))
        texts.append(next((part.text for part in tally.parts() if part.text.startswith("best")), None))

    assert texts == [
        None,
        "best 1.60x est.",
        "best 1.60x est.",
        "best ~1.60x est.",
        "best 2.00x est.",
        "best 2.00x est.",
    ]


@pytest.mark.parametrize(
    ("remaining", "text"),
    [
        (Remaining(100), "up to ~3:20 left"),
        (Remaining(100, 3000.0), "up to ~3:20 left"),
        (Remaining(100, 90.0), "up to 1:30 left"),
        (Remaining(0), "up to ~0:00 left"),
    ],
)
def test_time_left_is_an_upper_bound_and_a_guess_unless_the_time_limit_is_nearer(
    remaining: Remaining, text: str
) -> None:
    clock = Clock()
    tally = Tally(clock)
    judged(tally, clock, 5, 2.0, SearchState(remaining=remaining))

    assert said(tally).endswith(text)
    assert "left" not in said(tally, ended=True)


def test_time_left_runs_down_between_plans_and_not_below_nothing() -> None:
    clock = Clock()
    tally = Tally(clock)
    judged(tally, clock, 5, 2.0, SearchState(remaining=Remaining(10)))

    clock.now += 5.0
    assert "up to ~0:15 left" in said(tally)
    clock.now += 500.0
    assert "up to ~0:00 left" in said(tally)


def test_work_within_a_search_does_not_stand_in_for_the_time_left() -> None:
    clock = Clock()
    tally = Tally(clock)
    judged(tally, clock, 5, 2.0, SearchState(remaining=Remaining(100)))
    tally.progress(0, 50, "roles")
    clock.now += 10.0
    tally.progress(25, 50, "roles")

    assert said(tally).endswith("25 of 50 roles, up to ~3:10 left")


def test_without_a_rate_only_a_time_limit_says_how_long() -> None:
    tally = Tally(Clock())
    tally.add(trial(0), SearchState(remaining=Remaining(100)))
    assert "left" not in said(tally)

    tally.add(trial(1), SearchState(remaining=Remaining(100, 30.0)))
    assert "up to 0:30 left" in said(tally)


def test_work_says_what_is_done_and_guesses_the_rest() -> None:
    clock = Clock()
    tally = Tally(clock)
    clock.now += 50.0  # opening a model is no work on samples
    tally.progress(0, 100, "samples")
    assert said(tally) == "0 of 100 samples"

    clock.now += 3.0
    tally.progress(60, 100, "samples")
    assert said(tally) == "60 of 100 samples, ~0:02 left"
    clock.now += 1.0
    assert said(tally) == "60 of 100 samples, ~0:01 left"
    tally.progress(100, 100, "samples")
    assert said(tally) == "100 of 100 samples"
    assert said(tally, ended=True) == ""


def test_work_that_begins_anew_is_timed_anew() -> None:
    clock = Clock()
    tally = Tally(clock)
    tally.progress(0, 100, "samples")
    clock.now += 50.0
    tally.progress(32, 100, "samples")
    tally.progress(0, 100, "samples")
    clock.now += 1.0
    tally.progress(50, 100, "samples")

    assert said(tally) == "50 of 100 samples, ~0:01 left"


def test_work_within_a_search_is_told_until_the_next_plan() -> None:
    tally = Tally(Clock())
    tally.add(trial(3, stage="cut"), NOTHING_KNOWN)
    tally.progress(12, 37, "roles")
    assert said(tally) == "4 plans, stage cut, 12 of 37 roles"
    tally.progress(37, 37, "roles")
    assert said(tally) == "4 plans, stage cut"
    tally.progress(0, 2, "roles")
    assert said(tally) == "4 plans, stage cut, 0 of 2 roles"

    tally.add(trial(4, stage="cut"), NOTHING_KNOWN)
    assert said(tally) == "5 plans, stage cut"


def whole() -> list[Part]:
    clock = Clock()
    tally = Tally(clock)
    best = trial(7, latency=latency(1.0, 1.54))
    for number in range(112):
        clock.now += 0.5
        tally.add(trial(number, stage="release"), SearchState(20.1, best, Remaining(1700)))
    return tally.parts()


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (59, "searching: 112 plans, best 1.54x est., up to ~14:10 left"),
        (79, "searching: 112 plans, 20.1 screens/s, best 1.54x est., up to ~14:10 left"),
        (
            119,
            "searching, strategy nodes: 112 plans, stage release, 20.1 screens/s, best 1.54x est., "
            "up to ~14:10 left (56.0 s)",
        ),
        (
            199,
            "searching, strategy nodes: 112 plans, stage release, 2.0 a second, 20.1 screens/s, best 1.54x est., "
            "up to ~14:10 left (56.0 s)",
        ),
    ],
)
def test_what_matters_least_is_left_out_first_and_whole(width: int, text: str) -> None:
    assert fitted(SEARCHING, whole(), width, "56.0 s") == text


def test_where_not_both_have_room_the_best_stays_and_the_time_left_goes() -> None:
    assert fitted(SEARCHING, whole(), 50) == "searching: 112 plans, best 1.54x est."


@pytest.mark.parametrize("width", range(1, 200))
def test_no_line_is_too_long(width: int) -> None:
    line = fitted(SEARCHING, whole(), width, "56.0 s")

    assert 0 < len(line) <= width


def test_a_title_too_long_for_the_line_is_cut_visibly() -> None:
    assert fitted("generating the reference", [], 15) == "generating t..."


@pytest.mark.parametrize(
    ("seconds", "left", "took"),
    [(0.04, "0:00", "0.0 s"), (59.94, "1:00", "59.9 s"), (250.4, "4:10", "4:10"), (3723.0, "1:02:03", "1:02:03")],
)
def test_times_are_readable_at_any_length(seconds: float, left: str, took: str) -> None:
    assert (clock_time(seconds), duration(seconds)) == (left, took)
    assert clock_time(-seconds) == "0:00"
