"""Why a node has its precision: the reason is the search's own, and every compute node has one."""

from __future__ import annotations

from dataclasses import replace

from precision_search.published.reasons import node_reasons
from tests.output_models import DAMAGED, PINNED, keeping, node_record, run_nodes, small_run
from tests.search_models import trial

NODES = run_nodes()
ADD = "encoder.block.0.x/Add"
POW = "encoder.block.1.x/Pow"


def test_every_node_has_a_reason_under_every_plan() -> None:
    keys = {node.key for node in NODES.nodes}
    for judged in small_run():
        reasons = node_reasons(NODES, judged)
        assert reasons.keys() == keys
        assert all(reasons.values())


def test_what_the_ranges_say_is_told_with_its_numbers() -> None:
    reasons = node_reasons(NODES, trial(0, plan=keeping((), (), DAMAGED)))
    assert reasons[DAMAGED] == (
        "largest value 9.686e+04 on 100 samples, float16 holds 65504: beyond the range with the safety factor 2"
    )
    assert reasons[ADD] == "largest value 812.5 on 100 samples, float16 holds 65504: within range"
    assert reasons[PINNED[0]] == "index arithmetic: in fp32 in every plan"


def test_a_low_node_beyond_the_range_says_that_it_was_tried() -> None:
    assert "tried and stable all the same" in node_reasons(NODES, trial(0, plan=keeping((), ())))[DAMAGED]


def test_the_reasons_of_a_search_at_node_level() -> None:
    kept = keeping((), (), ADD, POW, "encoder.block.0.x/Mul", "decoder.block.0.x/MatMul", DAMAGED)
    judged = trial(
        0,
        plan=kept,
        expected_ms=3.0,
        kept_for={"culprit": (ADD,), "noise": (POW,), "projection": ("decoder.block.0.x/MatMul",)},
    )
    reasons = node_reasons(NODES, judged)
    assert reasons[ADD] == "in float16, alone or together with others, it damages the model"
    assert reasons[POW] == "its rounding would flip more near-ties than its time is worth"
    assert reasons["decoder.block.0.x/MatMul"] == "it makes the logits, and logits in float16 tie"
    assert reasons["encoder.block.0.x/Mul"] == "the casts around it would cost more than it saves (minimum cut)"
    assert "beyond the range" in reasons[DAMAGED]


def test_op_types_blocklists_and_fp32_have_reasons_of_their_own() -> None:
    whole = node_reasons(NODES, trial(0, plan=keeping(("Pow",), (), ADD)))
    assert whole[POW] == "the plan keeps every Pow of the encoder in fp32"
    assert whole[ADD] == "the plan keeps it in fp32"
    given = node_reasons(NODES, trial(0, stage="given", plan=keeping(("Pow",), (), ADD)))
    assert given[POW] == given[ADD] == "the given blocklist keeps it in fp32"
    assert node_reasons(NODES, small_run()[0])[POW] == "this plan is fp32 itself"


def test_what_was_not_measured_or_was_forced_is_said() -> None:
    unknown = replace(NODES, nodes=(node_record(ADD, largest_output=None), node_record(POW, forced_low=True)))
    reasons = node_reasons(unknown, trial(0, plan=keeping((), ())))
    assert reasons == {ADD: "the plan makes it low", POW: "search.force_low"}
    beyond = replace(NODES, nodes=(node_record(ADD, largest_output=None, beyond_range=True),))
    assert "largest value not finite" in node_reasons(beyond, trial(0, plan=keeping((), (), ADD)))[ADD]
