"""The trial log: what is written is read back, a cut-off end is repaired, anything else broken is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.errors import InputError, InternalError
from precision_search.judging.trial import Divergence, FlipRisk, PlanRecord, Trial, TrialLatency
from precision_search.precision.plan import Plan
from precision_search.records.trials import TrialLog, read_trials, trial_from_line, trial_to_line
from tests.search_models import DECISIONS, record, trial

finite = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0.0, 1.0)
counts = st.integers(0, 2**63 - 1)
trials = st.builds(
    Trial,
    id=st.integers(0, 10**6),
    parent=st.none() | st.integers(0, 10),
    stage=st.text(),
    plan=st.builds(
        PlanRecord.of,
        st.builds(Plan, st.sampled_from(["float16", "bfloat16"]), st.just("base"), st.frozensets(st.text())),
        st.fixed_dictionaries({"encoder": st.lists(st.text(), max_size=2), "decoder": st.just([])}),
    ),
    verdict=st.sampled_from(["nonfinite", "mismatch", "stable", "error"]),
    verdict_source=st.sampled_from(["emulated", "cuda"]),
    exact_match=shares,
    validation_match=st.none() | shares,
    min_margin=st.none() | finite,
    flip_risk=st.none() | st.builds(FlipRisk, finite, finite, finite),
    first_divergence=st.none() | st.builds(Divergence, counts, counts, st.none() | st.text(), st.none() | finite),
    latency=st.none()
    | st.builds(
        TrialLatency,
        *[finite] * 3,
        st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        st.sampled_from(["measured", "estimated"]),
        st.none() | st.text(),
        st.none() | finite,
        st.none() | finite,
    ),
    size_bytes=st.none() | counts,
    fp32_nodes=counts,
    low_nodes=counts,
    casts=st.none() | counts,
    seconds=finite,
    message=st.none() | st.text(),
    fp32_decisions=st.none() | st.integers(0, 2**63 - 1),
    decisions=st.none() | st.integers(0, 2**63 - 1),
)


@given(trials)
@settings(max_examples=60)
def test_a_line_gives_the_same_trial_back(original: Trial) -> None:
    line = trial_to_line(original)
    assert "\n" not in line
    assert trial_from_line(line, "here") == original


def test_the_keys_are_the_documented_ones() -> None:
    full = trial(first_divergence=Divergence(1, 2, "n", 0.5))
    data = json.loads(trial_to_line(full))
    assert ", ".join(data) == (
        "id, parent, stage, plan, verdict, verdict_source, exact_match, validation_match, min_margin, flip_risk, "
        "first_divergence, latency, size_bytes, fp32_nodes, low_nodes, casts, seconds, message, screened, noise, "
        "expected_ms, batch_size, kept_for, fp32_decisions, decisions, judged"
    )
    assert list(data["plan"]) == ["dtype", "variant", "op_types", "nodes"]
    assert list(data["plan"]["op_types"]) == ["encoder", "decoder"]
    assert list(data["flip_risk"]) == ["value", "low", "high"]
    assert list(data["first_divergence"]) == ["sample", "position", "node", "relative_error", "batch"]
    assert ", ".join(data["latency"]) == (
        "p50_ms, low_ms, high_ms, speedup, source, profile, speedup_low, speedup_high"
    )


def test_the_record_rebuilds_the_plan() -> None:
    plan = Plan("bfloat16", "base", frozenset({"b", "a"}))
    again = PlanRecord.of(plan, {"encoder": ("Add",)})
    assert again.nodes == ("a", "b")
    assert again.op_types == {"encoder": ("Add",), "decoder": ()}
    assert again.plan == plan


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null_or_are_refused(value: float) -> None:
    line = trial_to_line(trial(min_margin=value, first_divergence=Divergence(0, 0, "n", value)))
    assert trial_from_line(line, "here").min_margin is None
    assert json.loads(line)["first_divergence"]["relative_error"] is None
    with pytest.raises(InternalError, match="plan 3"):
        trial_to_line(trial(3, seconds=value))


def test_a_key_from_a_later_version_is_ignored() -> None:
    data = json.loads(trial_to_line(trial()))
    assert trial_from_line(json.dumps(data | {"colour": "red"}), "here") == trial()


def test_the_decisions_of_older_logs_are_counted(tmp_path: Path) -> None:
    """Plan 0 keeps every node of the base graphs; of another variant nobody knows."""
    fp32 = trial(0, plan=record("a", "b", "c"), low_nodes=0)
    other = replace(record("a"), variant="toy")
    log = [json.loads(trial_to_line(each)) for each in (fp32, trial(1, plan=record("a")), trial(2, plan=other))]
    newer = json.dumps(log[0] | {"id": 3, "plan": log[0]["plan"] | {"nodes": ["d"]}, "low_nodes": 2})
    lines = [json.dumps({key: each[key] for key in each if "decisions" not in key}) for each in log]
    path = tmp_path / "trials.jsonl"
    path.write_text("\n".join([*lines, newer]) + "\n")

    counts = [(each.fp32_decisions, each.decisions) for each in read_trials(path)]

    assert counts == [(3, 3), (1, 3), (1, None), (3, DECISIONS)]
    assert counts == [(each.fp32_decisions, each.decisions) for each in TrialLog(path).trials]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "fine"}, 'trial.verdict is "fine"'),
        ({"id": "0"}, 'trial.id is "0"'),
        ({"id": True}, "trial.id is true"),
        ({"exact_match": None}, "trial.exact_match is null"),
        ({"flip_risk": {"value": 1.0, "low": 0.0}}, "trial.flip_risk lacks 'high'"),
        ({"plan": []}, "trial.plan is \\[\\]"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], message: str) -> None:
    line = json.dumps(json.loads(trial_to_line(trial())) | change)
    with pytest.raises(InputError, match=message):
        trial_from_line(line, "line 1 of x")


def test_the_log_finds_and_counts_and_survives_reopening(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    log = TrialLog(path)
    assert read_trials(path) == ()
    log.append(trial(0))
    log.append(trial(1))
    again = TrialLog(path)
    for one in (log, again):
        assert one.trials == (trial(0), trial(1)) == read_trials(path)
        assert len(one) == one.next_id == 2
        assert one.find(Plan("float16", "base", frozenset({"node1"}))) == trial(1)
        assert one.find(Plan("bfloat16", "base", frozenset({"node1"}))) is None


def test_each_trial_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    for number in range(3):
        log.append(trial(number))
        assert len(read_trials(tmp_path / "trials.jsonl")) == number + 1


def test_a_plan_or_an_id_cannot_be_logged_twice(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    log.append(trial(0))
    for wrong in (trial(1, plan=record("node0")), trial(0, plan=record("other")), trial(2)):
        with pytest.raises(InternalError, match="does not fit the log"):
            log.append(wrong)
    assert len(read_trials(tmp_path / "trials.jsonl")) == 1


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_log_cut_anywhere_keeps_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lines = [(trial_to_line(trial(n, stage="überlang")) + "\n").encode() for n in range(3)]
    cut = data.draw(st.integers(0, sum(map(len, lines))))
    path = tmp_path_factory.mktemp("log") / "trials.jsonl"
    path.write_bytes(b"".join(lines)[:cut])
    # A line that lacks only its end is whole.
    ends = [len(b"".join(lines[: n + 1])) - 1 for n in range(3)]
    whole = sum(cut >= end for end in ends)
    assert len(read_trials(path)) == whole
    assert path.stat().st_size == cut
    log = TrialLog(path)
    assert len(log) == whole
    log.append(trial(whole, stage="after"))
    assert [t.id for t in read_trials(path)] == list(range(whole + 1))


@pytest.mark.parametrize("broken", [b'{"id": 0', b"", b"\xff\xfe", b"[]", b"{}"])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "trials.jsonl"
    good = [trial_to_line(trial(n)).encode() for n in range(2)]
    path.write_bytes(good[0] + b"\n" + broken + b"\n" + good[1] + b"\n")
    for read in (read_trials, TrialLog):
        with pytest.raises(InputError, match=r"line 2 of .*trials.jsonl"):
            read(path)


def test_a_repeated_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    line = trial_to_line(trial()) + "\n"
    path.write_text(line + line)
    with pytest.raises(InputError, match=r"line 2 of .* repeats line 1"):
        read_trials(path)


def test_a_missing_log_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the plan log"):
        read_trials(tmp_path / "none.jsonl")
