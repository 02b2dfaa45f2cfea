"""A stricter share of validation samples costs no speed that it needn't: it finds what laxer searches find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from benchmarks.shares import SHARES as DEMO_SHARES
from benchmarks.shares import Found, read_recording, recorded_ground
from benchmarks.shares import searched as searched_again
from precision_search.config import Requirement, load_config
from precision_search.judging.trial import FlipRisk, Judge, Proposal, Trial
from precision_search.model.bundle import Bundle
from precision_search.precision.plan import Plan
from precision_search.strategies import make_strategy
from precision_search.strategies.base import NodeSpace, SearchSpace, StrategyContext
from precision_search.strategies.pareto import choose_winner, is_acceptable
from tests.conftest import ROOT
from tests.search_models import Oracle, estimate, every_key, node_space, space

SHARES = (0.9, 0.95, 0.97, 0.98, 0.99, 1.0)
PROJECTION = "decoder.2/MatMul"

RECORDING = ROOT / "tests/data/shares/demo.json"
RECORD = "python -m benchmarks.shares --record tests/data/shares/demo.json"


@dataclass(frozen=True, slots=True)
class World:
    """What a search is about, and the truth about every plan."""

    space: SearchSpace
    nodes: NodeSpace
    judge: Judge


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Nodes that are damage, nodes that seem so, and flips on calibration and validation samples that are pure luck.

    How lucky plans are as a rule depends on how many nodes are low, so that calmer plans are better but not each time.
    """
    of = space()
    keys = sorted(every_key(of) - of.fixed)
    few = st.lists(st.sampled_from(keys), unique=True, max_size=6)
    needed = frozenset(draw(few))
    hard = {key: draw(st.sampled_from([0.7, 2.0])) for key in draw(few)}
    roles = sorted(set(node_space(of).roles.values()))
    noise = {role: draw(st.sampled_from([0.1, 0.5, 1.0, 3.0, 8.0])) for role in roles}
    projection = draw(st.sampled_from([(), (PROJECTION,)]))
    salt, luck, flips = draw(st.integers(0, 10**6)), draw(st.integers(0, len(SHARES))), draw(st.integers(0, 5))
    oracle = Oracle(of, frozenset(), needed_keys=needed)

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        plan = proposal.plan
        found = oracle(proposal, trial_id)
        if found.verdict != "stable" or found.is_fp32:
            return found
        first, second, third = (drawn(plan, salt + number) for number in range(3))
        if first < flips / 10:
            return replace(found, verdict="mismatch", exact_match=0.99, validation_match=None, flip_risk=None)
        calm = len(plan.fp32) / len(keys)
        place = int(min(max(calm * len(SHARES) + (second - 0.5) * 2 * luck, 0), len(SHARES) - 1))
        return replace(found, validation_match=SHARES[place], flip_risk=FlipRisk(third, 0.0, 2 * third))

    return World(of, node_space(of, hard, noise, projection), judge)


def drawn(plan: Plan, salt: int) -> float:
    """A number from 0 to 1 that depends on the plan and the salt alone."""
    return (int(plan.digest[:12], 16) * 2654435761 + salt * 97_003) % 1_000_003 / 1_000_003


def searched(name: str, world: World, share: float, max_trials: int = 1000) -> list[Trial]:
    """Every plan that a search for that share judges."""
    where = StrategyContext(world.space, 0, max_trials, estimate, lambda: world.nodes, min_validation_match=share)
    strategy, trials = make_strategy(name, where), list[Trial]()
    while (proposal := strategy.propose()) is not None and len(trials) < max_trials:
        trials.append(world.judge(proposal, len(trials)))
        strategy.observe(trials[-1])
    return trials


def assert_no_slower(stricter: Sequence[Trial], laxer: Sequence[Trial], share: float) -> None:
    """Within two percent the winner is no slower than any plan that the laxer search judged and that would do."""
    winner = choose_winner(stricter, Requirement(share)).trial
    assert winner is not None and winner.latency is not None
    for trial in laxer:
        if is_acceptable(trial, share):
            assert trial.latency is not None
            assert winner.latency.p50_ms <= 1.02 * trial.latency.p50_ms


@pytest.mark.parametrize("name", ["nodes", "op-types"])
@settings(max_examples=25, deadline=None)
@given(world=worlds(), laxer=st.sampled_from(SHARES), stricter=st.sampled_from(SHARES))
def test_no_laxer_search_judges_a_faster_plan_that_would_do(
    name: str, world: World, laxer: float, stricter: float
) -> None:
    laxer, stricter = sorted((laxer, stricter))
    lax, strict = (searched(name, world, share, 120) for share in (laxer, stricter))
    event(f"{name}: {len(strict) - len(lax)} more plans")
    assert_no_slower(strict, lax, stricter)


@pytest.fixture(scope="module")
def demo_searches(demo_bundle: Bundle) -> dict[tuple[float, int], list[Trial]]:
    """The searches of the demo for four shares with three seeds, on verdicts that were recorded."""
    recording = read_recording(RECORDING)
    ground = recorded_ground(load_config(ROOT / "configs/demo.toml"), demo_bundle, recording)

    def judge(proposal: Proposal) -> Found:
        found = recording.plans.get(proposal.plan.digest)
        if found is None:
            pytest.fail(f"a plan of stage {proposal.stage} is not recorded: run `{RECORD}`")
        return found

    return {(share, seed): searched_again(ground, share, seed, judge) for share in DEMO_SHARES for seed in range(3)}


def test_on_the_demo_no_laxer_search_judges_a_faster_plan_that_would_do(
    demo_searches: dict[tuple[float, int], list[Trial]],
) -> None:
    for (share, seed), strict in demo_searches.items():
        for laxer in DEMO_SHARES:
            if laxer < share:
                assert_no_slower(strict, demo_searches[laxer, seed], share)


def test_on_the_demo_a_stricter_share_asks_for_few_more_plans(
    demo_searches: dict[tuple[float, int], list[Trial]],
) -> None:
    counts = [len(demo_searches[share, 0]) for share in DEMO_SHARES]
    assert counts == sorted(counts)
    assert counts[-1] <= 2 * counts[1] + 2


def test_a_seed_changes_no_node_search(demo_searches: dict[tuple[float, int], list[Trial]]) -> None:
    for (share, _), trials in demo_searches.items():
        assert trials == demo_searches[share, 0]
