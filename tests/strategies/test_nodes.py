"""The node search against judges that know the truth; what every strategy promises is in test_strategies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.config import Requirement
from precision_search.judging.noise import DAMAGE_NOISE
from precision_search.judging.trial import FlipRisk, Judge, Proposal, Trial
from precision_search.precision.plan import Plan
from precision_search.records.trials import TrialLog
from precision_search.run.loop import Budget, SearchOutcome, run_search
from precision_search.strategies.base import NodeSpace, SearchSpace, StrategyContext
from precision_search.strategies.nodes import BEYOND, NodeSearch
from precision_search.strategies.pareto import choose_winner
from tests.search_models import Oracle, estimate, every_key, node_space, saving, space

INF = float("inf")


def context(of: SearchSpace, nodes: NodeSpace, min_match: float = 0.0) -> StrategyContext:
    return StrategyContext(of, 0, 1000, estimate, lambda: nodes, min_validation_match=min_match)


def search(where: StrategyContext, judge: Judge, log: Path) -> SearchOutcome:
    return run_search(NodeSearch(where), judge, TrialLog(log), Budget(where.max_trials))


def stages(outcome: SearchOutcome) -> list[str]:
    return [trial.stage for trial in outcome.trials]


def winner(outcome: SearchOutcome, min_match: float = 0.0) -> Trial:
    trial = choose_winner(outcome.trials, Requirement(min_match)).trial
    assert trial is not None
    return trial


def test_without_damage_the_cut_is_the_answer(tmp_path: Path) -> None:
    of = space()
    hard = {"encoder.0/MatMul": 2.0, "decoder.2/Add": 1.5}
    outcome = search(
        context(of, node_space(of, hard)), Oracle(of, frozenset(), needed_keys=frozenset(hard)), tmp_path / "log"
    )
    assert stages(outcome)[:4] == ["fp32", "all-low", "classic", "cut"]
    assert set(stages(outcome)[4:]) <= {"front"}
    assert winner(outcome).plan.nodes == tuple(sorted({"encoder.bias/Log", *hard}))
    assert len(outcome.trials) <= 4 + BEYOND


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_what_breaks_is_found_whatever_it_is(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    of = space()
    keys = sorted(every_key(of))
    bad = frozenset(data.draw(st.lists(st.sampled_from(keys), unique=True, max_size=6)))
    hard = dict.fromkeys(data.draw(st.lists(st.sampled_from(sorted(bad)), unique=True)), 2.0) if bad else {}
    oracle = Oracle(of, frozenset(), needed_keys=bad)
    outcome = search(context(of, node_space(of, hard)), oracle, tmp_path_factory.mktemp("run") / "log")
    assert winner(outcome).plan.nodes == tuple(sorted(bad | of.fixed))
    assert len(set(oracle.judged)) == len(oracle.judged)


def test_a_culprit_is_found_in_few_trials(tmp_path: Path) -> None:
    of = space()
    bad = frozenset({"decoder.1/Relu"})
    outcome = search(context(of, node_space(of)), Oracle(of, frozenset(), needed_keys=bad), tmp_path / "log")
    assert stages(outcome).count("culprit") <= 9
    assert winner(outcome).kept_for == {"culprit": ("decoder.1/Relu",)}
    assert winner(outcome).plan.nodes == ("decoder.1/Relu", "encoder.bias/Log")


def test_a_role_that_alone_is_damage_is_pinned_at_once_and_its_harmless_nodes_released(tmp_path: Path) -> None:
    of = space()
    bad = frozenset({"decoder.1/Relu"})
    nodes = node_space(of, noise={"decoder.*/Relu": INF})
    outcome = search(context(of, nodes), Oracle(of, frozenset(), needed_keys=bad), tmp_path / "log")
    assert "culprit" not in stages(outcome)
    assert winner(outcome).stage == "release"
    assert winner(outcome).plan.nodes == ("decoder.1/Relu", "encoder.bias/Log")


def test_pins_that_fit_into_the_range_are_tried_in_the_end_and_others_never(tmp_path: Path) -> None:
    of = space()
    hard = {"encoder.0/MatMul": 0.7, "encoder.1/MatMul": 0.9, "encoder.2/MatMul": 1.2, "decoder.0/Add": 0.6}
    bad = frozenset({"encoder.1/MatMul", "encoder.2/MatMul"})
    outcome = search(context(of, node_space(of, hard)), Oracle(of, frozenset(), needed_keys=bad), tmp_path / "log")
    assert winner(outcome).stage == "release"
    assert winner(outcome).plan.nodes == tuple(sorted(bad | of.fixed))
    for trial in outcome.trials:
        assert trial.stage in {"all-low", "classic"} or "encoder.2/MatMul" in trial.plan.nodes


def noisy(of: SearchSpace, noise: Mapping[str, float], limit: float) -> Judge:
    """A judge for which low nodes make noise that adds up as squares, and a plan flips tokens from a limit on."""
    oracle, roles = Oracle(of, frozenset()), node_space(of).roles

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        low = [key for key in roles if key not in proposal.plan.fp32]
        total = sum(noise[roles[key]] ** 2 / 3 for key in low) ** 0.5
        found = replace(oracle(proposal, trial_id), noise=total, flip_risk=FlipRisk(total, 0.0, total))
        if total > limit:
            return replace(found, verdict="mismatch", exact_match=0.9, flip_risk=None, validation_match=None)
        return found

    return judge


@pytest.mark.parametrize("limit", [1.0, 3.0, 8.0, 16.0])
def test_noise_is_lowered_where_it_is_cheap(tmp_path: Path, limit: float) -> None:
    of = space()
    noise = {role: 1.0 + index for index, role in enumerate(sorted(set(node_space(of).roles.values())))}
    outcome = search(context(of, node_space(of, noise=noise)), noisy(of, noise, limit), tmp_path / "log")
    best = winner(outcome)
    assert not best.is_fp32
    assert set(best.kept_for) <= {"noise"}
    assert set(best.kept_for.get("noise", ())) <= best.plan.plan.fp32
    assert bool(best.kept_for) == (limit < sum(size**2 for size in noise.values()) ** 0.5)
    # No plan that keeps whole roles of three nodes is more than a few percent faster within the limit.
    fastest = fastest_within(of, noise, limit)
    assert estimate(best.plan.plan) <= 1.03 * fastest
    assert len(outcome.trials) <= 40


def fastest_within(of: SearchSpace, noise: Mapping[str, float], limit: float) -> float:
    """The least latency over all subsets of roles kept in fp32."""
    members: dict[str, list[str]] = {}
    for key, role in node_space(of).roles.items():
        members.setdefault(role, []).append(key)
    best = INF
    for mask in range(2 ** len(members)):
        kept = [role for index, role in enumerate(sorted(members)) if mask >> index & 1]
        if sum(noise[role] ** 2 for role in members if role not in kept) ** 0.5 <= limit:
            keys = frozenset(key for role in kept for key in members[role])
            best = min(best, node_space(of).place(keys, {})[1])
    return best


def test_the_projection_comes_first_and_alone_where_it_is_what_flips(tmp_path: Path) -> None:
    """Low logits tie: that is no variance that adds up with others, so the curve alone would come to it late."""
    of = space()
    projection = "decoder.2/MatMul"
    hard = {"encoder.0/Pow": 2.0}
    nodes = node_space(of, hard, noise={"decoder.*/MatMul": 0.1}, projection=[projection])

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        found = Oracle(of, frozenset())(proposal, trial_id)
        return replace(found, validation_match=1.0 if projection in proposal.plan.fp32 else 0.9)

    outcome = search(context(of, nodes, 0.98), judge, tmp_path / "log")
    assert stages(outcome)[3:5] == ["cut", "projection"]
    assert winner(outcome, 0.98).plan.nodes == tuple(sorted({"encoder.bias/Log", projection, *hard}))
    assert winner(outcome, 0.98).stage == "projection"
    assert winner(outcome, 0.98).kept_for == {"projection": (projection,)}
    assert set(stages(outcome)[5:]) <= {"calm", "front"}


def test_noise_is_measured_only_where_it_is_needed() -> None:
    of = space()
    asked: list[str] = []
    base = node_space(of, {"encoder.0/Pow": 2.0})

    def noise(roles: frozenset[str]) -> Mapping[str, float]:
        asked.extend(roles)
        return base.noise(roles)

    strategy, oracle = NodeSearch(context(of, replace(base, noise=noise))), Oracle(of, frozenset())
    for number, stage in enumerate(["fp32", "all-low", "classic", "cut"]):
        proposal = strategy.propose()
        assert proposal is not None and proposal.stage == stage
        strategy.observe(oracle(proposal, number))
    assert asked == []  # the cut's plan is good, and what follows is for the Pareto table
    strategy.propose()
    assert set(asked) == set(base.roles.values())


def test_a_plan_that_loses_validation_samples_is_calmed(tmp_path: Path) -> None:
    of = space()
    noise = dict.fromkeys(node_space(of).roles.values(), 1.0)
    strict = noisy(of, noise, 100.0)

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        found = strict(proposal, trial_id)
        share = 1.0 if found.noise is not None and found.noise <= 2.0 else 0.95
        return replace(found, validation_match=share)

    outcome = search(context(of, node_space(of, noise=noise), 0.98), judge, tmp_path / "log")
    assert winner(outcome, 0.98).validation_match == 1.0
    assert not winner(outcome, 0.98).is_fp32


def test_a_stricter_share_ends_with_what_a_laxer_one_finds_cheaply(tmp_path: Path) -> None:
    """The cut keeps 98%, and all without a pin that fits: a search for 99% must not calm the cut until that is lost."""
    of = space()
    beyond, fits, projection = "encoder.0/Mul", "encoder.0/MatMul", "decoder.2/MatMul"
    noise = {role: 1.0 + number / 10 for number, role in enumerate(sorted(set(node_space(of).roles.values())))}
    quiet = noisy(of, noise, 100.0)

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        found, kept = quiet(proposal, trial_id), proposal.plan.fp32
        if beyond not in kept:
            return replace(found, verdict="nonfinite", exact_match=0.0, noise=None, validation_match=None)
        lucky = fits not in kept and projection not in kept
        return replace(found, validation_match=1.0 if lucky or (found.noise or 0.0) <= 2.0 else 0.98)

    nodes = node_space(of, {fits: 0.7, beyond: 2.0}, noise, [projection])
    lax, strict = (search(context(of, nodes, share), judge, tmp_path / f"{share}") for share in (0.97, 0.99))
    assert winner(lax, 0.97).stage == "release" and winner(lax, 0.97).validation_match == 1.0
    assert winner(strict, 0.99).plan == winner(lax, 0.97).plan
    assert len(strict.trials) <= len(lax.trials) + 2


def test_damage_by_what_is_forced_low_is_blamed_on_nobody(tmp_path: Path) -> None:
    of = space(forced_low=frozenset({"decoder.0/Relu"}))
    oracle = Oracle(of, frozenset(), needed_keys=frozenset({"decoder.0/Relu"}))
    outcome = search(context(of, node_space(of)), oracle, tmp_path / "log")
    assert stages(outcome) == ["forced-low", "all-low", "classic"]


def test_finite_damage_by_one_role_is_blamed_on_it_and_not_on_noise(tmp_path: Path) -> None:
    of = space()
    role = "decoder.*/Relu"
    bad = frozenset(key for key, each in node_space(of).roles.items() if each == role)
    oracle = Oracle(of, frozenset())

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        found = oracle(proposal, trial_id)
        if bad <= proposal.plan.fp32:
            return found
        return replace(found, verdict="mismatch", exact_match=0.0, noise=2 * DAMAGE_NOISE, validation_match=None)

    outcome = search(context(of, node_space(of, {"encoder.0/Pow": 2.0}, {role: INF})), judge, tmp_path / "log")
    cuts = [trial for trial in outcome.trials if trial.stage == "cut"]
    assert [trial.verdict for trial in cuts] == ["mismatch", "stable"]
    assert cuts[1].parent == cuts[0].id
    assert winner(outcome).id == cuts[1].id
    assert winner(outcome).kept_for == {"culprit": tuple(sorted(bad))}


def test_roles_that_the_curve_moves_together_are_tried_apart(tmp_path: Path) -> None:
    """Three roles go to fp32 together though one would do; of the two others one saves too little to be asked about."""
    of = space()
    loud, quiet, cheap, *rest = sorted(set(node_space(of).roles.values()))
    noise = {loud: 1.0, quiet: 0.3, cheap: 0.3} | dict.fromkeys(rest, 0.1)
    base = node_space(of, noise=noise)
    together = [key for key, role in base.roles.items() if role in (loud, quiet, cheap)]

    def ms(plan: Plan) -> float:
        return estimate(plan) - sum(0.9999 * saving(key) for key in plan.fp32 if base.roles.get(key) == cheap)

    def place(fp32: frozenset[str], price_ms: Mapping[str, float]) -> tuple[Plan, float]:
        dear = {key for key, price in price_ms.items() if price >= saving(key)} - set(together)
        if sum(price_ms.get(key, 0.0) for key in together) >= sum(saving(key) for key in together) * 2 / 3:
            dear |= set(together)
        plan = Plan("float16", "base", of.fixed | fp32 | dear)
        return plan, ms(plan)

    where = replace(context(of, replace(base, place=place)), estimate=ms)
    outcome = search(where, noisy(of, noise, 0.9), tmp_path / "log")
    calmed = [trial for trial in outcome.trials if trial.stage == "calm" and trial.verdict == "stable"]
    best = min(calmed, key=lambda trial: ms(trial.plan.plan))
    kept = {base.roles[key] for key in best.plan.nodes if key in base.roles}
    assert kept == {loud, cheap}
    front = [trial for trial in outcome.trials if trial.stage == "front"]
    assert front and {trial.parent for trial in front} == {best.id}


def test_a_projection_that_does_not_help_is_let_go_again(tmp_path: Path) -> None:
    of = space()
    projection = "decoder.2/MatMul"
    noise = dict.fromkeys(node_space(of).roles.values(), 1.0) | {"decoder.*/MatMul": 0.01}
    nodes = node_space(of, {"encoder.0/Pow": 2.0}, noise, [projection])
    outcome = search(context(of, nodes), noisy(of, noise, 2.0), tmp_path / "log")
    assert "projection" in stages(outcome)
    assert projection not in winner(outcome).plan.nodes


def test_damage_that_nothing_explains_ends_with_fp32(tmp_path: Path) -> None:
    of = space()

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        found = Oracle(of, frozenset())(proposal, trial_id)
        return found if found.is_fp32 else replace(found, verdict="mismatch", exact_match=0.0, noise=DAMAGE_NOISE)

    outcome = search(context(of, node_space(of)), judge, tmp_path / "log")
    assert outcome.stopped == "done"
    assert winner(outcome).stage == "fp32"


def test_where_low_precision_saves_nothing_there_is_nothing_to_judge(tmp_path: Path) -> None:
    of = space()
    fp32 = of.plan_of(frozenset(of.choices))
    nodes = replace(node_space(of), place=lambda pins, price: (fp32, estimate(fp32)))
    outcome = search(context(of, nodes), Oracle(of, frozenset()), tmp_path / "log")
    assert stages(outcome) == ["fp32", "all-low", "classic"]


def test_what_was_released_is_the_first_to_go_on_the_calm_side(tmp_path: Path) -> None:
    """A released node was damage or beyond the safety factor: nobody knows its noise, so it must not count as none."""
    of = space()
    hard = {"encoder.0/MatMul": 0.7}
    outcome = search(context(of, node_space(of, hard)), Oracle(of, frozenset()), tmp_path / "log")
    assert winner(outcome).plan.nodes == ("encoder.bias/Log",)
    front = [trial for trial in outcome.trials if trial.stage == "front"]
    assert front
    assert all("encoder.0/MatMul" in trial.plan.nodes for trial in front)


def test_noise_that_adds_up_to_damage_is_nobodys_fault(tmp_path: Path) -> None:
    of = space()
    noise = dict.fromkeys(node_space(of).roles.values(), 60.0)
    loud = noisy(of, noise, 300.0)

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        found = loud(proposal, trial_id)
        return replace(found, noise=2.4 * (found.noise or 0.0))

    outcome = search(context(of, node_space(of, {"encoder.0/Pow": 2.0}, noise)), judge, tmp_path / "log")
    cut = next(trial for trial in outcome.trials if trial.stage == "cut")
    assert cut.noise is not None and cut.noise > DAMAGE_NOISE
    assert "culprit" not in stages(outcome)
    assert not winner(outcome).is_fp32


def test_without_flip_risk_no_plans_are_spent_on_the_front(tmp_path: Path) -> None:
    of = space()

    def judge(proposal: Proposal, trial_id: int) -> Trial:
        return replace(Oracle(of, frozenset())(proposal, trial_id), flip_risk=None, validation_match=None)

    outcome = search(context(of, node_space(of, {"encoder.0/Pow": 2.0})), judge, tmp_path / "log")
    assert stages(outcome) == ["fp32", "all-low", "classic", "cut"]
