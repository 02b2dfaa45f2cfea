"""The study of a run: one Optuna trial for each judged plan, whatever proposed it, in a file that others can read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from precision_search.judging.trial import PlanRecord, Proposal, Trial, TrialLatency
from precision_search.precision.plan import Plan
from precision_search.records.optuna_journal import STUDY_FILE, STUDY_NAME, StudyFile, part_of
from precision_search.records.trials import TrialLog
from precision_search.run.loop import Budget, run_search
from precision_search.strategies import STRATEGIES, make_strategy
from precision_search.strategies.base import Strategy, StrategyContext
from precision_search.strategies.given import GivenPlan
from precision_search.strategies.scale import fp32_plan
from tests.search_models import Oracle, estimate, node_space, space, trial

SPACE = space(encoder=("Add", "MatMul"), decoder=("Relu", "Softmax"))
NAMES = ("encoder/Add", "encoder/MatMul", "decoder/Relu", "decoder/Softmax")
GIVEN = Plan("float16", "base", frozenset({"encoder.0/Add", "decoder.0/Relu", "decoder.1/Relu", "decoder.2/Relu"}))


def study_of(directory: Path) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(directory / STUDY_FILE)))
    return optuna.load_study(study_name=STUDY_NAME, storage=storage)


def strategy_named(name: str) -> Strategy:
    return (
        GivenPlan(GIVEN)
        if name == "given"
        else make_strategy(name, StrategyContext(SPACE, 0, 30, estimate, lambda: node_space(SPACE)))
    )


@pytest.mark.parametrize("name", [*(strategy.name for strategy in STRATEGIES), "given"])
def test_every_judged_plan_of_any_strategy_is_a_trial_of_the_study(name: str, tmp_path: Path) -> None:
    study_file = StudyFile(tmp_path, [SPACE], estimate)
    outcome = run_search(
        strategy_named(name),
        Oracle(SPACE, frozenset({("encoder", "MatMul")})),
        TrialLog(tmp_path / "log"),
        Budget(30),
        baseline=Proposal(SPACE.plan_of(frozenset(SPACE.choices)), "fp32"),
        on_trial=lambda trial, remaining: study_file.add(trial),
    )
    found = study_of(tmp_path).trials
    fp32_ms = estimate(SPACE.plan_of(frozenset(SPACE.choices)))
    assert [t.user_attrs["id"] for t in found] == [t.id for t in outcome.trials] != []
    for stored, judged in zip(found, outcome.trials, strict=True):
        assert tuple(stored.params) == NAMES
        for family, op in SPACE.choices:
            kept = [key in judged.plan.nodes for key in SPACE.keys_of[family][op]]
            expected = "fp32" if all(kept) else "mixed" if any(kept) else "low"
            assert stored.params[f"{family}/{op}"] == expected
        assert (stored.constraints["stable"] <= 0) == (judged.verdict == "stable")
        assert judged.latency is not None
        assert stored.values[0] == pytest.approx(fp32_ms / judged.latency.speedup)
        assert stored.user_attrs["plan"] == judged.plan.plan.digest
        assert stored.user_attrs["latency_source"] == "estimated"


def test_a_plan_of_single_nodes_is_mixed_where_it_is() -> None:
    keys = SPACE.keys_of
    assert part_of(keys["encoder"]["Add"], GIVEN) == "mixed"
    assert part_of(keys["decoder"]["Relu"], GIVEN) == "fp32"
    assert part_of(keys["encoder"]["MatMul"], GIVEN) == "low"


def test_values_are_latency_and_the_upper_end_of_flip_risk(tmp_path: Path) -> None:
    study_file = StudyFile(tmp_path, [SPACE], lambda plan: 7.5)
    plan = PlanRecord.of(GIVEN, {})
    study_file.add(trial(0, plan=plan))
    study_file.add(trial(1, plan=plan, verdict="nonfinite", exact_match=0.0, latency=None, flip_risk=None))
    stable, rejected = study_of(tmp_path).trials
    assert stable.values == [0.75, 2.0]  # ten times as fast as fp32
    assert rejected.values == [7.5, 1000.0]
    assert rejected.user_attrs["verdict"] == "nonfinite"
    assert [direction.name for direction in study_of(tmp_path).directions] == ["MINIMIZE", "MINIMIZE"]
    assert study_of(tmp_path).metric_names == ["latency, ms", "flip risk, upper end"]


def test_a_dashboard_learns_what_is_not_stable_and_how_long_judging_took(tmp_path: Path) -> None:
    study_file = StudyFile(tmp_path, [SPACE], lambda plan: 7.5)
    study_file.add(trial(0, plan=PlanRecord.of(GIVEN, {}), seconds=2.5))
    study_file.add(trial(1, plan=PlanRecord.of(GIVEN, {}), verdict="mismatch", exact_match=0.25))
    stable, rejected = study_of(tmp_path).trials
    assert stable.duration.total_seconds() == 2.5
    assert [t.system_attrs["constraints"] for t in (stable, rejected)] == [[0.0], [0.75]]
    assert [t.user_attrs["exact_match"] for t in (stable, rejected)] == [1.0, 0.25]


def test_timed_and_rejected_plans_are_on_one_scale(tmp_path: Path) -> None:
    """A device a hundred times as fast as the profile says: a rejected plan with a cheaper estimate stays cheaper."""
    study_file = StudyFile(tmp_path, [SPACE], estimate)
    plans = [SPACE.plan_of(frozenset(chosen)) for chosen in (SPACE.choices, SPACE.choices[:1], ())]
    fp32, some, none = (estimate(plan) for plan in plans)
    measured = [TrialLatency(ms / 100, ms / 100, ms / 100, fp32 / ms, "measured", None) for ms in (fp32, some)]
    for number, (plan, found) in enumerate(zip(plans, [*measured, None], strict=True)):
        study_file.add(trial(number, plan=PlanRecord.of(plan, {}), latency=found))

    assert [stored.values[0] for stored in study_of(tmp_path).trials] == pytest.approx([fp32, some, none])
    assert fp32 > some > none


def test_what_is_forced_low_is_fp32_in_fp32(tmp_path: Path) -> None:
    forced = space(encoder=("Add",), decoder=("Relu",), forced_low=frozenset({"encoder.0/Add"}))

    assert fp32_plan(forced).fp32 == forced.fixed | forced.keys_of["encoder"]["Add"] | forced.keys_of["decoder"]["Relu"]


def test_a_session_writes_the_file_anew_whatever_a_kill_left_of_it(tmp_path: Path) -> None:
    first = StudyFile(tmp_path, [SPACE], estimate)
    trials: list[Trial] = [trial(n, plan=PlanRecord.of(GIVEN, {})) for n in range(3)]
    for each in trials[:2]:
        first.add(each)
    path = tmp_path / STUDY_FILE
    path.write_bytes(path.read_bytes()[:-20])
    path.with_name(f"{STUDY_FILE}.lock").write_text("")
    second = StudyFile(tmp_path, [SPACE], estimate)
    for each in trials:
        second.add(each)
    assert [t.user_attrs["id"] for t in study_of(tmp_path).trials] == [0, 1, 2]


def test_nothing_imports_optuna_before_a_plan_is_judged() -> None:
    code = "import sys; import precision_search.api; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
