"""One contract for every strategy in the table, then what each of them promises beyond it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from precision_search.config import STRATEGIES as CONFIG_NAMES
from precision_search.config import Requirement
from precision_search.errors import ConfigError
from precision_search.judging.noise import is_damaged
from precision_search.judging.trial import FlipRisk, Proposal, Trial
from precision_search.precision.plan import Plan
from precision_search.records.trials import TrialLog
from precision_search.run.loop import Budget, SearchOutcome, run_search
from precision_search.strategies import STRATEGIES, make_strategy
from precision_search.strategies.base import SearchSpace, Selection, StrategyContext
from precision_search.strategies.pareto import choose_winner
from precision_search.strategies.tpe import Sampler, violation
from tests.search_models import DECODER, ENCODER, Oracle, estimate, node_space, space, trial

NAMES = [strategy.name for strategy in STRATEGIES]
NEEDED: Selection = frozenset({("encoder", "MatMul"), ("encoder", "Pow"), ("decoder", "Softmax")})


def context(of: SearchSpace, max_trials: int = 600, seed: int = 0) -> StrategyContext:
    return StrategyContext(of, seed, max_trials, estimate, lambda: node_space(of))


def search(
    name: str, where: StrategyContext, oracle: Oracle, log: Path, stop_after: int | None = None
) -> SearchOutcome:
    """A whole run; `stop_after` kills it in that many trials, as a Ctrl-C in the judge would."""

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        if trial_id == stop_after:
            raise KeyboardInterrupt
        return oracle(proposal, trial_id)

    return run_search(make_strategy(name, where), judge, TrialLog(log), Budget(where.max_trials))


def plans(outcome: SearchOutcome) -> list[str]:
    return [trial.plan.plan.digest for trial in outcome.trials]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_table_and_the_config_name_the_same_strategies() -> None:
    assert sorted(NAMES) == sorted(CONFIG_NAMES)


def test_no_plan_is_proposed_twice(name: str) -> None:
    of = space(encoder=("Add", "MatMul"), decoder=("Relu",))
    strategy, oracle = make_strategy(name, context(of, 1000)), Oracle(of, frozenset())
    seen: list[Plan] = []
    while (proposal := strategy.propose()) is not None:
        seen.append(proposal.plan)
        strategy.observe(oracle(proposal, len(seen)))
    assert len(set(seen)) == len(seen) <= 8


def test_never_more_plans_come_than_it_says(name: str, tmp_path: Path) -> None:
    """The count is asked for after each plan, and where there is one it ends at what is left: nothing."""
    of = space(encoder=("Add", "MatMul"), decoder=("Relu", "Softmax"))
    strategy, oracle = make_strategy(name, context(of, 1000)), Oracle(of, frozenset({("encoder", "MatMul")}))
    said: list[int | None] = []
    while (proposal := strategy.propose()) is not None:
        said.append(strategy.remaining())
        strategy.observe(oracle(proposal, len(said)))
    came = range(len(said) - 1, -1, -1)
    assert all(most is None or most >= more for most, more in zip(said, came, strict=True))
    if name in ("exhaustive", "random"):
        assert said == list(came)


def test_everything_kept_comes_first_and_fixed_nodes_are_in_every_plan(name: str, tmp_path: Path) -> None:
    of = space(forced_low=frozenset({"decoder.0/Relu", "encoder.bias/Log"}))
    outcome = search(name, context(of), Oracle(of, NEEDED), tmp_path / "log")
    assert outcome.trials[0].stage == "forced-low"
    assert len(outcome.trials[0].plan.nodes) == 3 * (len(ENCODER) + len(DECODER))
    for each in outcome.trials:
        assert "encoder.bias/Log" in each.plan.nodes
        assert "decoder.0/Relu" not in each.plan.nodes


def test_the_same_seed_proposes_the_same(name: str, tmp_path: Path) -> None:
    of = space()
    runs = [search(name, context(of, seed=3), Oracle(of, NEEDED), tmp_path / str(n)) for n in range(2)]
    assert plans(runs[0]) == plans(runs[1])


def test_the_budget_is_kept(name: str, tmp_path: Path) -> None:
    of = space(encoder=("Add", "MatMul"), decoder=("Relu", "Softmax"))
    oracle = Oracle(of, frozenset())
    outcome = run_search(make_strategy(name, context(of, 16)), oracle, TrialLog(tmp_path / "log"), Budget(5))
    assert len(outcome.trials) == len(oracle.judged) == 5
    assert outcome.stopped == "max_trials"


@pytest.mark.parametrize("killed_after", [1, 7, 20])
def test_a_resumed_run_judges_nothing_twice_and_ends_the_same(name: str, tmp_path: Path, killed_after: int) -> None:
    of = space()
    budget = 512 if name == "exhaustive" else 60
    whole = search(name, context(of, budget), Oracle(of, NEEDED), tmp_path / "whole")
    oracle = Oracle(of, NEEDED)
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    where = context(of, budget)
    first = search(name, where, oracle, resumed / "log", stop_after=killed_after)
    assert (first.stopped, len(first.trials)) == ("interrupted", killed_after)
    second = search(name, where, oracle, resumed / "log")
    assert plans(second) == plans(whole) == oracle.judged
    assert choose_winner(second.trials, Requirement(0.0)).trial == choose_winner(whole.trials, Requirement(0.0)).trial


def test_every_trial_failing_is_survived(name: str, tmp_path: Path) -> None:
    of = space()
    everything = frozenset(of.choices)
    outcome = search(name, context(of, 512), Oracle(of, everything), tmp_path / "log")
    assert [t.stage for t in outcome.trials if t.verdict == "stable"] == ["fp32"]


def test_an_unknown_name_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no strategy 'best'"):
        make_strategy("best", context(space()))


# exhaustive


def test_exhaustive_judges_every_subset_fastest_first(tmp_path: Path) -> None:
    of = space(encoder=("Add", "MatMul"), decoder=("Relu",), hard={"encoder": frozenset({"MatMul"})})
    outcome = search("exhaustive", context(of, 8), Oracle(of, frozenset()), tmp_path / "log")
    assert len(set(plans(outcome))) == 8
    costs = [estimate(t.plan.plan) for t in outcome.trials[1:]]
    assert costs == sorted(costs)


def test_exhaustive_refuses_a_space_beyond_the_budget() -> None:
    with pytest.raises(ConfigError, match=r"judges 512 plans, search.max_trials is 511") as caught:
        make_strategy("exhaustive", context(space(), 511))
    assert "9 op types" in caught.value.why
    assert "512" in caught.value.fix


# random


def test_random_draws_each_subset_once_and_differs_by_seed(tmp_path: Path) -> None:
    of = space(encoder=("Add", "MatMul"), decoder=("Relu", "Softmax"))
    runs = [search("random", context(of, 99, seed=s), Oracle(of, frozenset()), tmp_path / str(s)) for s in range(2)]
    assert [len(run.trials) for run in runs] == [16, 16]
    assert plans(runs[0]) != plans(runs[1])
    assert [run.stopped for run in runs] == ["done", "done"]


# op types


def test_known_lists_come_first(tmp_path: Path) -> None:
    of = space(hard={"encoder": frozenset({"MatMul"}), "decoder": frozenset({"Add"})})
    outcome = search("op-types", context(of), Oracle(of, NEEDED), tmp_path / "log")
    assert [t.stage for t in outcome.trials[:4]] == ["fp32", "all-low", "classic", "ranges"]
    all_low, classic, ranges = (t.plan.plan for t in outcome.trials[1:4])
    assert all_low == of.plan_of(frozenset())
    assert classic == of.plan_of(
        frozenset({("encoder", "Pow"), ("encoder", "Softmax"), ("decoder", "Relu"), ("decoder", "Softmax")})
    )
    assert ranges == of.plan_of(frozenset({("encoder", "MatMul"), ("decoder", "Add")}))


@pytest.mark.parametrize("budget", [60, 600])
@pytest.mark.parametrize(
    "needed",
    [
        frozenset(),
        NEEDED,
        frozenset({("encoder", "Add")}),
        frozenset(("encoder", op) for op in ENCODER),
        frozenset({("decoder", "Relu"), ("encoder", "Mul")}),
    ],
)
def test_the_fastest_plan_is_found_as_exhaustive_search_finds_it(
    tmp_path: Path, needed: Selection, budget: int
) -> None:
    of = space(hard={"encoder": frozenset({"Pow"})})
    best = choose_winner(
        search("exhaustive", context(of), Oracle(of, needed), tmp_path / "all").trials, Requirement(0.0)
    ).trial
    outcome = search("op-types", context(of, budget), Oracle(of, needed), tmp_path / "log")
    found = choose_winner(outcome.trials, Requirement(0.0)).trial
    assert best is not None and found is not None
    assert found.plan == best.plan
    assert len(outcome.trials) <= budget


def test_families_are_tried_apart_then_joined(tmp_path: Path) -> None:
    of = space(hard={"encoder": frozenset({"Pow"})})
    outcome = search("op-types", context(of), Oracle(of, NEEDED), tmp_path / "log")
    stages = [t.stage for t in outcome.trials]
    assert list(dict.fromkeys(stages[4:])) == ["encoder", "decoder", "joined", "release"]
    every = {family: frozenset(k for keys in of.keys_of[family].values() for k in keys) for family in of.keys_of}
    hard = of.keys_of["encoder"]["Pow"]
    for each in outcome.trials[4:]:
        kept = frozenset(each.plan.nodes)
        assert hard <= kept or each.stage == "release"
        assert each.stage != "encoder" or every["decoder"] <= kept
        assert each.stage != "decoder" or every["encoder"] <= kept
        if each.stage == "joined":
            parent = outcome.trials[each.parent or 0]
            assert frozenset(parent.plan.nodes) & every["encoder"] == kept & every["encoder"]


def test_an_op_type_that_alone_is_damage_is_not_tried_low_again(tmp_path: Path) -> None:
    of = space()
    outcome = search("op-types", context(of), Oracle(of, NEEDED), tmp_path / "log")
    damaged = [t for t in outcome.trials if t.stage not in {"all-low", "classic", "ranges"} and is_damaged(t)]
    assert len(damaged) == len(NEEDED)


def test_a_suggestion_of_the_ranges_that_was_too_careful_is_released(tmp_path: Path) -> None:
    of = space(hard={"encoder": frozenset({"Pow", "Mul"})})
    outcome = search("op-types", context(of), Oracle(of, NEEDED), tmp_path / "log")
    winner = choose_winner(outcome.trials, Requirement(0.0)).trial
    assert winner is not None and winner.stage == "release"
    assert winner.plan.plan == of.plan_of(NEEDED)
    assert outcome.trials[winner.parent or 0].plan.plan == of.plan_of(NEEDED | {("encoder", "Mul")})


def test_a_joined_plan_that_cannot_improve_the_front_is_left_out(tmp_path: Path) -> None:
    of = space(encoder=("Add", "MatMul"), decoder=("Relu", "Softmax"))

    def same_risk(proposal: Proposal, trial_id: int) -> Trial:
        return replace(Oracle(of, frozenset())(proposal, trial_id), flip_risk=FlipRisk(1.0, 0.0, 1.0))

    outcome = run_search(make_strategy("op-types", context(of)), same_risk, TrialLog(tmp_path / "log"), Budget(600))
    # all-low is the fastest combination with no more risk than any other one: nothing is left to combine.
    assert [t.stage for t in outcome.trials].count("joined") == 0
    assert outcome.stopped == "done"


def test_a_large_space_is_sampled_within_the_budget(tmp_path: Path) -> None:
    many = tuple(f"Op{n}" for n in range(12))
    of = space(encoder=many, decoder=many)
    needed: Selection = frozenset({("encoder", "Op3"), ("decoder", "Op5"), ("decoder", "Op7")})
    outcome = search("op-types", context(of, 150), Oracle(of, needed), tmp_path / "log")
    stages = [t.stage for t in outcome.trials]
    # A third of what the landmarks leave, then three fifths of what the encoder leaves.
    landmarks = sum(stage not in {"encoder", "decoder", "joined"} for stage in stages)
    assert stages.count("encoder") == (150 - landmarks) // 3
    assert stages.count("decoder") == (150 - landmarks - stages.count("encoder")) * 3 // 5
    winner = choose_winner(outcome.trials, Requirement(0.0)).trial
    assert winner is not None and winner.plan.plan == of.plan_of(needed)


def test_the_sampler_hears_of_all_plans_on_one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device a hundred times as fast as its profile; every other plan has no time of its own."""
    of = space(encoder=tuple(f"Op{n}" for n in range(12)), decoder=("Relu",), fixed=frozenset())
    oracle, heard, add = Oracle(of, frozenset({("encoder", "Op3")})), dict[int, tuple[Trial, float]](), Sampler.add

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        found = oracle(proposal, trial_id)
        assert found.latency is not None
        timed = replace(found.latency, p50_ms=found.latency.p50_ms / 100, source="measured", profile=None)
        return replace(found, latency=timed if trial_id % 2 else None)

    def listen(sampler: Sampler, judged: Trial, selection: Selection, latency_ms: float) -> None:
        heard[judged.id] = judged, latency_ms
        add(sampler, judged, selection, latency_ms)

    monkeypatch.setattr(Sampler, "add", listen)
    run_search(make_strategy("op-types", context(of, 80)), judge, TrialLog(tmp_path / "log"), Budget(80))

    assert {number % 2 for number in heard} == {0, 1}
    for judged, latency_ms in heard.values():
        assert latency_ms == pytest.approx(estimate(judged.plan.plan))


@pytest.mark.parametrize("budget", [12, 30])
def test_a_small_budget_is_shared_between_the_families(tmp_path: Path, budget: int) -> None:
    many = tuple(f"Op{n}" for n in range(8))
    of = space(encoder=many, decoder=many)
    outcome = search("op-types", context(of, budget), Oracle(of, frozenset({("encoder", "Op1")})), tmp_path / "log")
    stages = [t.stage for t in outcome.trials]
    left = budget - sum(stage not in {"encoder", "decoder", "joined"} for stage in stages)
    assert stages.count("encoder") == left // 3
    assert stages.count("decoder") == (left - left // 3) * 3 // 5
    assert "joined" in stages
    assert len(stages) <= budget


def test_the_sampler_repeats_itself_and_learns() -> None:
    choices = [("encoder", f"Op{n}") for n in range(8)]

    def suggestions() -> list[Selection]:
        sampler = Sampler(choices, seed=1)  # type: ignore[arg-type]
        found = []
        for number in range(40):
            wish = sampler.suggest(number)
            found.append(wish)
            good = ("encoder", "Op0") in wish
            verdict = trial(number, verdict="stable" if good else "nonfinite", exact_match=float(good))
            sampler.add(verdict, wish, float(len(wish)))
        return found

    found = suggestions()
    assert found == suggestions()
    assert sum(("encoder", "Op0") in wish for wish in found[20:]) >= 15


@pytest.mark.parametrize(
    ("verdict", "exact_match", "far"),
    [
        ("stable", 1.0, 0.0),
        ("mismatch", 0.9, 0.1),
        ("mismatch", 0.0, 1.0),
        ("mismatch", 1.0, 0.001),
        ("nonfinite", 0.0, 2.0),
        ("error", 0.0, 2.0),
    ],
)
def test_the_violation_says_how_far_from_stable(verdict: str, exact_match: float, far: float) -> None:
    assert violation(trial(verdict=verdict, exact_match=exact_match)) == pytest.approx(far)
