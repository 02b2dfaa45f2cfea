"""The judge makes a trial of a plan: the verdict of screen and confirm run, its cost, and why it was rejected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import pytest

from precision_search.errors import DeviceMemoryError, InputError
from precision_search.judging import judge as module
from precision_search.judging.confirm import ConfirmResult
from precision_search.judging.damage import DamagedNode, DamageFinder
from precision_search.judging.judge import JudgeSettings, PlanJudge
from precision_search.judging.noise import DAMAGE_NOISE
from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.screen import Parting
from precision_search.judging.trial import LANDMARKS, Divergence, FlipRisk, Proposal, Trial, TrialLatency
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GraphName
from precision_search.precision.blocklist import blocklist_of_plan, plan_of_blocklist
from precision_search.precision.convert import convert
from precision_search.precision.low import LowDtype
from precision_search.precision.plan import Plan, pinned_keys
from precision_search.precision.weights import WeightCache
from precision_search.records.trials import trial_from_line, trial_to_line
from precision_search.run.loop import guarded
from precision_search.runtime import teacher_forcing as forced
from precision_search.runtime.batch_limit import BatchLimit
from precision_search.runtime.session import SessionSettings, run_session
from tests.plans import NORMS, SETTINGS, WO, keeping, lowering, sample_rows

Rows = tuple[tuple[int, ...], ...]
CALIBRATION, VALIDATION = 12, 10
LATENCY = TrialLatency(2.0, 1.0, 3.0, 1.5, "estimated", "none")
FIRST_POW = "encoder.block.0.layer.0.layer_norm/Pow"


class SeenLatency:
    """Says the same of all graphs and keeps what it was asked about."""

    def __init__(self) -> None:
        self.seen: list[Mapping[GraphName, ir.Model]] = []

    def latency(self, models: Mapping[GraphName, ir.Model], variant: str) -> TrialLatency:
        self.seen.append(models)
        return LATENCY


@dataclasses.dataclass(frozen=True, slots=True)
class Court:
    """A judge of the demo on a few samples."""

    bundle: Bundle
    calibration: SampleRows
    validation: SampleRows
    latency: SeenLatency
    judge: PlanJudge

    def again(self) -> PlanJudge:
        """A judge with a history of its own and no validation set."""
        return make_judge(self.bundle, self.calibration, None, self.latency)


def make_judge(
    bundle: Bundle,
    calibration: SampleRows,
    validation: SampleRows | None,
    latency: SeenLatency,
    dtype: LowDtype = "float16",
) -> PlanJudge:
    settings, weights = JudgeSettings(SETTINGS, batch_size=4, seed=0), WeightCache()
    return PlanJudge(bundle, calibration, validation, dtype=dtype, latency=latency, weights=weights, settings=settings)


@pytest.fixture(scope="module")
def court(demo_bundle: Bundle, demo_ids: Rows) -> Court:
    calibration = sample_rows(demo_bundle, demo_ids[:CALIBRATION])
    validation = sample_rows(demo_bundle, demo_ids[-VALIDATION:])
    latency = SeenLatency()
    return Court(
        demo_bundle, calibration, validation, latency, make_judge(demo_bundle, calibration, validation, latency)
    )


@pytest.fixture(scope="module")
def careful(court: Court) -> Plan:
    return keeping(court.bundle, NORMS, WO)


@pytest.fixture(scope="module")
def stable(court: Court, careful: Plan) -> Trial:
    return court.judge(Proposal(careful, "joined", parent=3), 7)


@pytest.fixture(scope="module")
def rejected(court: Court) -> Trial:
    return court.judge(Proposal(keeping(court.bundle), "encoder", parent=None), 8)


def test_a_stable_plan_has_everything_a_table_needs(court: Court, careful: Plan, stable: Trial) -> None:
    assert (stable.id, stable.parent, stable.stage) == (7, 3, "joined")
    assert stable.plan.plan == careful
    assert stable.plan.op_types == blocklist_of_plan(careful, court.bundle.graphs).op_types
    assert (stable.verdict, stable.verdict_source) == ("stable", "emulated")
    assert (stable.exact_match, stable.first_divergence, stable.message) == (1.0, None, None)
    assert stable.min_margin is not None
    assert stable.min_margin > 0
    assert stable.validation_match is not None
    assert stable.validation_match >= 0.8
    assert stable.flip_risk is not None
    assert 0 <= stable.flip_risk.low <= stable.flip_risk.value <= stable.flip_risk.high
    assert (stable.latency, stable.screened) == (LATENCY, CALIBRATION)
    assert stable.seconds > 0
    assert trial_from_line(trial_to_line(stable), "here") == stable


def test_nodes_casts_and_bytes_are_those_of_the_converted_graphs(court: Court, careful: Plan, stable: Trial) -> None:
    graphs = court.bundle.graphs
    models = convert(graphs, careful).models
    keys = [node.key for graph in graphs.values() for node in graph.compute]
    casts = {name: sum(node.op_type == "Cast" for node in model.graph) for name, model in models.items()}
    before = sum(node.op_type == "Cast" for graph in graphs.values() for node in graph.model.graph)
    tensors = [v.const_value for m in models.values() for v in m.graph.initializers.values()]

    assert len(keys) > len(set(keys))  # a decision for the decoder counts in both of its graphs
    assert stable.fp32_nodes == sum(key in careful.fp32 for key in keys)
    assert stable.low_nodes == len(keys) - stable.fp32_nodes > 0
    assert (stable.fp32_decisions, stable.decisions) == (len(careful.fp32), len(set(keys)))
    assert stable.casts == sum(casts.values()) - before > 0
    assert stable.size_bytes == sum(tensor.nbytes for tensor in tensors if tensor is not None)
    court.latency.seen.clear()
    court.judge(Proposal(careful, "joined"), 7)
    (seen,) = court.latency.seen
    assert [node.name for model in seen.values() for node in model.graph] == [
        node.name for model in models.values() for node in model.graph
    ]


def test_low_weights_take_less_room(court: Court, stable: Trial, rejected: Trial) -> None:
    values = [value for model in court.bundle.models.values() for value in model.graph.initializers.values()]
    fp32 = sum(value.const_value.nbytes for value in values if value.const_value is not None)

    assert stable.size_bytes is not None
    assert rejected.size_bytes is not None
    assert 0.5 * fp32 <= rejected.size_bytes < stable.size_bytes < 0.6 * fp32


def test_a_rejected_plan_says_where_and_which_node(court: Court, rejected: Trial) -> None:
    fragile = court.calibration.reference.fragile_first[0]

    assert (rejected.verdict, rejected.exact_match) == ("mismatch", 0.0)
    assert rejected.first_divergence == Divergence(fragile, 0, FIRST_POW, None)
    assert (rejected.validation_match, rejected.flip_risk) == (None, None)
    assert rejected.latency is None  # a device would have to measure it, and nobody asks
    assert trial_from_line(trial_to_line(rejected), "here") == rejected


def test_a_non_finite_plan_has_no_smallest_margin(court: Court) -> None:
    trial = court.judge(Proposal(keeping(court.bundle, NORMS), "encoder"), 0)

    assert (trial.verdict, trial.min_margin, trial.flip_risk) == ("nonfinite", None, None)
    assert trial.first_divergence is not None
    assert trial.first_divergence.node == WO[0]


def test_fp32_is_stable_without_risk(court: Court) -> None:
    trial = court.judge(Proposal(lowering(court.bundle), "fp32"), 0)

    assert (trial.verdict, trial.exact_match, trial.validation_match) == ("stable", 1.0, 1.0)
    assert (trial.low_nodes, trial.casts, trial.is_fp32) == (0, 0, True)
    assert trial.flip_risk == FlipRisk(0.0, 0.0, 0.0)


def test_which_validation_samples_are_kept_is_for_generation_to_say(
    court: Court, careful: Plan, stable: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher forcing sees no cache and no token of the plan's own; what it says of margins is the flip risk."""
    free = court.judge.confirm(careful, court.validation)
    assert stable.validation_match == free.exact_match

    def generated(generator: object, samples: SampleRows, pad: int, **_: Any) -> ConfirmResult:
        lost = samples is court.validation
        return ConfirmResult(0.7 if lost else 1.0, lost, Parting(1, 0) if lost else None)

    monkeypatch.setattr(module, "confirm_with", generated)
    trial = court.judge(Proposal(careful, "joined"), 9)
    assert (trial.verdict, trial.exact_match, trial.validation_match) == ("stable", 1.0, 0.7)
    assert trial.flip_risk == stable.flip_risk


def test_without_a_validation_set_there_is_no_flip_risk(court: Court, careful: Plan) -> None:
    trial = court.again()(Proposal(careful, "joined"), 0)

    assert (trial.verdict, trial.validation_match, trial.flip_risk) == ("stable", None, None)


# The confirm run decides in the end.


@pytest.mark.parametrize(("nonfinite", "verdict"), [(False, "mismatch"), (True, "nonfinite")])
def test_what_the_confirm_run_finds_outweighs_the_screen(
    court: Court, careful: Plan, monkeypatch: pytest.MonkeyPatch, nonfinite: bool, verdict: str
) -> None:
    found = ConfirmResult(0.75, nonfinite, Parting(4, 2))
    monkeypatch.setattr(module, "confirm_with", lambda *args, **options: found)

    trial = court.judge(Proposal(careful, "joined"), 0)

    assert (trial.verdict, trial.exact_match) == (verdict, 0.75)
    assert (trial.validation_match, trial.flip_risk) == (None, None)
    assert trial.first_divergence == Divergence(4, 2, None, None)  # rounding alone: no node stands out


def test_near_ties_are_blamed_on_no_node(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding the logits ties some token of the demo; no node is to blame, however far its values are off."""
    monkeypatch.setattr(DamageFinder, "find", lambda *_: DamagedNode("some/Node", 0.3))
    monkeypatch.setattr(module, "confirm_with", lambda *_, **__: ConfirmResult(0.75, False, Parting(4, 2)))

    trial = court.judge(Proposal(lowering(court.bundle, {"lm_head/Mul"}), "joined"), 0)

    assert trial.first_divergence == Divergence(4, 2, None, None)
    assert trial.noise is not None and trial.noise < DAMAGE_NOISE


def test_what_the_screen_rejects_is_not_generated(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> ConfirmResult:
        raise AssertionError("generating costs more than the screen")

    monkeypatch.setattr(module, "confirm_with", never)

    assert court.judge(Proposal(keeping(court.bundle), "encoder"), 0).verdict == "mismatch"


def test_the_error_of_a_damaged_node_is_told(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DamageFinder, "find", lambda *_: DamagedNode("some/Node", 0.5))

    trial = court.judge(Proposal(keeping(court.bundle), "encoder"), 0)

    assert trial.first_divergence is not None
    assert (trial.first_divergence.node, trial.first_divergence.relative_error) == ("some/Node", 0.5)


# Landmarks and statistics.


def test_a_rejected_plan_is_screened_to_the_end_and_timed_only_as_a_landmark(court: Court) -> None:
    judge, norms = court.again(), keeping(court.bundle, NORMS)

    judge(Proposal(lowering(court.bundle), "fp32"), 0)
    landmark = judge(Proposal(norms, "classic"), 1)
    rejected = judge(Proposal(norms, "encoder"), 2)

    counted = judge.statistics
    assert [len(kind) for kind in (counted.fp32, counted.full, counted.rejected, counted.build)] == [1, 1, 1, 3]
    seconds = [*counted.fp32, *counted.full, *counted.rejected, *counted.build]
    assert all(each > 0 for each in seconds)
    assert counted.per_second == pytest.approx(3 / sum(seconds))
    assert (landmark.verdict, landmark.first_divergence) == (rejected.verdict, rejected.first_divergence)
    assert landmark.latency == LATENCY  # people ask how fast the known lists would have been
    assert (landmark.screened, rejected.screened) == (len(court.calibration.rows), 4)
    assert frozenset({"fp32", "all-low", "classic", "ranges", "forced-low", "given"}) == LANDMARKS


def test_a_full_screen_whose_encoder_was_remembered_is_counted_apart(court: Court, careful: Plan) -> None:
    judge = court.again()

    for _ in range(2):
        judge(Proposal(careful, "joined"), 0)

    assert (len(judge.statistics.full), len(judge.statistics.remembered)) == (1, 1)


# What goes wrong.


def test_a_plan_that_cannot_be_built_becomes_an_error_trial(court: Court) -> None:
    """CUDA has no bfloat16 Reciprocal: a plan that asks for it is that plan's problem, not the run's."""
    unfit = Plan("bfloat16", "base", pinned_keys(court.bundle.graphs))
    proposal = Proposal(unfit, "given", parent=2)
    judge = make_judge(court.bundle, court.calibration, None, court.latency, "bfloat16")
    with pytest.raises(InputError, match="Reciprocal"):
        judge(proposal, 5)

    trial = guarded(judge, judge.record, judge.node_counts, judge.source)(proposal, 5)

    assert (trial.id, trial.parent, trial.verdict) == (5, 2, "error")
    assert trial.message is not None
    assert "Reciprocal" in trial.message
    assert trial.plan.plan == unfit
    counts = judge.node_counts(unfit)
    assert (trial.fp32_nodes, trial.low_nodes) == (counts.fp32_nodes, counts.low_nodes)
    assert judge(Proposal(lowering(court.bundle, (), "bfloat16"), "fp32"), 6).verdict == "stable"  # the judge goes on


def test_a_recorded_plan_reads_back(court: Court, careful: Plan) -> None:
    record = court.judge.record(careful)

    assert record.plan == careful
    blocklist = blocklist_of_plan(careful, court.bundle.graphs)
    assert plan_of_blocklist(blocklist, court.bundle.graphs) == careful


def test_judging_leaves_the_bundle_as_it_was(court: Court, careful: Plan) -> None:
    before = {name: facts(model) for name, model in court.bundle.models.items()}

    for plan in (careful, keeping(court.bundle)):
        court.judge(Proposal(plan, "joined"), 0)

    assert {name: facts(model) for name, model in court.bundle.models.items()} == before


def facts(model: ir.Model) -> list[object]:
    values = [value for node in model.graph for value in node.outputs]
    return [
        [(node.name, node.op_type, [v and v.name for v in node.inputs]) for node in model.graph],
        [dict(node.metadata_props) for node in model.graph],
        [(value.name, value.dtype, str(value.shape)) for value in (*model.graph.inputs, *values)],
        [value.name for value in model.graph.outputs],
        {name: id(value.const_value) for name, value in model.graph.initializers.items()},
    ]


def test_a_batch_that_does_not_fit_is_halved_and_the_plan_judged_all_the_same(
    court: Court, careful: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device for two samples at once, stood in for by sessions that refuse more."""
    wanted = court.judge(Proposal(careful, "encoder"), 0)

    def small(session: Any, outputs: Any, feed: Any, **options: Any) -> Any:
        if len(feed["input_ids"]) > 2:
            raise DeviceMemoryError("A graph ran out of memory.")
        return run_session(session, outputs, feed, **options)

    monkeypatch.setattr(forced, "run_session", small)
    said: list[str] = []
    settings = JudgeSettings(SETTINGS, 8, 0, BatchLimit(said.append))
    judge = PlanJudge(
        court.bundle,
        court.calibration,
        court.validation,
        dtype="float16",
        latency=court.latency,
        weights=WeightCache(),
        settings=settings,
    )
    first, again = judge(Proposal(careful, "encoder"), 0), judge(Proposal(careful, "encoder"), 1)
    assert said == [f"out of memory with {n} samples at once, going on with {n // 2}" for n in (8, 4)]
    assert (wanted.batch_size, first.batch_size, again.batch_size) == (4, 2, 2)
    for trial in (first, again):
        assert (trial.verdict, trial.exact_match) == (wanted.verdict, wanted.exact_match)
        assert trial.validation_match == wanted.validation_match
        assert trial.min_margin == pytest.approx(wanted.min_margin, abs=1e-3)


def test_no_memory_to_look_for_the_culprit_leaves_the_verdict(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise DeviceMemoryError("A graph ran out of memory.")

    judge = court.again()
    monkeypatch.setattr(judge._variants["base"].damage, "find", full)
    trial = judge(Proposal(keeping(court.bundle), "encoder"), 0)
    assert trial.verdict in {"mismatch", "nonfinite"}
    assert trial.first_divergence is not None and trial.first_divergence.node is None


def test_the_verdict_says_where_it_comes_from(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    assert court.judge.source == "emulated"
    monkeypatch.setattr(module, "Screener", lambda *_, **__: None)
    settings = JudgeSettings(SessionSettings(device="cuda"), 4, 0)

    on_device = PlanJudge(
        court.bundle,
        court.calibration,
        None,
        dtype="float16",
        latency=court.latency,
        weights=WeightCache(),
        settings=settings,
    )

    assert on_device.source == "cuda"
