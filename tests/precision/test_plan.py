"""Plans and blocklists: a plan's name, the round trip between the two, and what a wrong blocklist is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.errors import InputError
from precision_search.model.bundle import Bundle
from precision_search.model.graph import Graph, GraphName, Node, NodeKind, compute_keys_by_op_type, role_of
from precision_search.precision import blocklist as blocklist_module
from precision_search.precision.blocklist import (
    Blocklist,
    blocklist_from_json,
    blocklist_of_plan,
    match_keys,
    plan_of_blocklist,
    role_pattern,
)
from precision_search.precision.low import LOW_DTYPES
from precision_search.precision.plan import Plan, all_compute_keys, pinned_keys
from tests.graphs import CHOICES, Choice, tiny_t5

Graphs = Mapping[GraphName, Graph]
PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
SQRTS = "decoder.block.0.layer.0.layer_norm/Sqrt"


@pytest.fixture(scope="module")
def tiny() -> Graphs:
    return tiny_t5()


LONG = "a" * 20_000


def refusal(data: Any, graphs: Graphs | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        blocklist = blocklist_from_json(data, "my.json")
        if graphs is not None:
            plan_of_blocklist(blocklist, graphs, "my.json")
    assert "my.json" in caught.value.what
    assert caught.value.fix
    return caught.value


def resolved(graphs: Graphs, **data: Any) -> Plan:
    return plan_of_blocklist(blocklist_from_json(data, "my.json"), graphs)


@given(keys=st.lists(st.text(max_size=8), unique=True, max_size=8), seed=st.randoms())
def test_a_digest_does_not_depend_on_the_order_of_keys(keys: list[str], seed: Any) -> None:
    shuffled = list(keys)
    seed.shuffle(shuffled)
    first, second = (Plan("float16", "base", frozenset(each)) for each in (keys, shuffled))
    assert first.digest == second.digest
    assert len(first.digest) == 12
    assert set(first.digest) <= set("0123456789abcdef")


def test_a_digest_is_the_same_in_every_process() -> None:
    assert Plan("float16", "base", frozenset(("b", "a"))).digest == "d5b0eb7d939a"


def test_digests_tell_plans_apart() -> None:
    plans = [
        Plan("float16", "base", frozenset()),
        Plan("bfloat16", "base", frozenset()),
        Plan("float16", "other", frozenset()),
        Plan("float16", "base", frozenset(("a", "b"))),
        Plan("float16", "base", frozenset(("a",))),
        Plan("float16", "base", frozenset(("ab",))),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)
    assert len(set(plans)) == len(plans)


def random_nested_plan(graphs: Graphs, seed: int) -> Plan:
    """A plan as searches make them: whole op types, whole roles and single nodes."""
    rng = np.random.default_rng(seed)
    fp32 = set(pinned_keys(graphs))
    for family in ("encoder", "decoder"):
        for keys in compute_keys_by_op_type(graphs, family).values():
            fp32 |= keys if rng.random() < 0.3 else set()
    nodes = sorted({node.key: node for graph in graphs.values() for node in graph.compute}.items())
    roles = {role for role in sorted({node.role for _, node in nodes}) if rng.random() < 0.3}
    fp32 |= {key for key, node in nodes if node.role in roles or rng.random() < 0.02}
    fp32 -= {key for key, node in nodes if rng.random() < 0.03 and node.pinned is None}
    return Plan("bfloat16", "base", frozenset(fp32))


@PROPERTY
@given(choice=CHOICES)
def test_a_random_plan_of_the_demo_survives_as_a_blocklist(demo_bundle: Bundle, choice: Choice) -> None:
    assert_round_trip(choice.plan(demo_bundle.graphs), demo_bundle.graphs)


@PROPERTY
@given(seed=st.integers(0, 2**32 - 1))
def test_a_structured_plan_of_the_demo_survives_as_a_blocklist(demo_bundle: Bundle, seed: int) -> None:
    assert_round_trip(random_nested_plan(demo_bundle.graphs, seed), demo_bundle.graphs)


def assert_round_trip(plan: Plan, graphs: Graphs) -> None:
    blocklist = blocklist_of_plan(plan, graphs)
    assert plan_of_blocklist(blocklist, graphs) == plan
    written = json.loads(json.dumps(blocklist.to_json()))
    assert plan_of_blocklist(blocklist_from_json(written, "x"), graphs) == plan
    assert blocklist_from_json(written, "x").to_json() == written
    # Canonical: what stands for the same plan reads the same, and reading it again changes nothing.
    one_by_one = {name: [node.key for node in graphs[name].compute if node.key in plan.fp32] for name in graphs}
    assert blocklist_of_plan(resolved(graphs, dtype=plan.dtype, nodes=one_by_one), graphs) == blocklist
    assert blocklist_of_plan(plan_of_blocklist(blocklist, graphs), graphs) == blocklist
    # The shortest reading: nothing is said twice, and pinned nodes are not said at all.
    said = {key for names in blocklist.nodes.values() for key in names}
    by_op_types = resolved(graphs, dtype=plan.dtype, op_types=written["op_types"])
    by_patterns = resolved(graphs, dtype=plan.dtype, patterns=written["patterns"])
    assert not said & (by_op_types.fp32 | by_patterns.fp32)
    assert not said & pinned_keys(graphs)


def test_nothing_and_everything_in_fp32_read_short(demo_bundle: Bundle) -> None:
    graphs = demo_bundle.graphs
    pinned = pinned_keys(graphs)
    nothing = blocklist_of_plan(Plan("float16", "base", pinned), graphs).to_json()
    assert nothing["op_types"] == {"encoder": [], "decoder": []}
    assert nothing["patterns"] == []
    assert not any(nothing["nodes"].values())
    everything = blocklist_of_plan(Plan("float16", "base", all_compute_keys(graphs)), graphs)
    assert everything.patterns == ()
    assert not any(everything.nodes.values())
    assert "MatMul" in everything.op_types["encoder"]
    # A type whose nodes are all pinned is no choice and is not told.
    assert "Log" not in everything.op_types["encoder"]


def test_a_role_kept_in_every_layer_reads_as_a_pattern(demo_bundle: Bundle) -> None:
    graphs = demo_bundle.graphs
    wo = {f"encoder.block.{layer}.layer.1.DenseReluDense.wo/MatMul" for layer in range(4)}
    plan = Plan("float16", "base", pinned_keys(graphs) | wo)
    blocklist = blocklist_of_plan(plan, graphs)
    assert blocklist.patterns == (r"encoder.block.\d+.layer.1.DenseReluDense.wo/MatMul",)
    assert not any(blocklist.nodes.values())
    three = blocklist_of_plan(Plan("float16", "base", plan.fp32 - {min(wo)}), graphs)
    assert three.patterns == ()
    assert three.nodes["encoder"] == tuple(sorted(wo))[1:]


def plan_keeping(graphs: Graphs, *patterns: str) -> Plan:
    kept = (match_keys(pattern, all_compute_keys(graphs), "") for pattern in patterns)
    return Plan("float16", "base", pinned_keys(graphs).union(*kept))


def test_roles_of_one_module_read_as_one_pattern(demo_bundle: Bundle) -> None:
    graphs = demo_bundle.graphs
    plan = plan_keeping(graphs, r"encoder\..*layer\.0\.layer_norm/(Pow|Mul|Mul\.1)", r"encoder\..*layer\.0/Add")
    blocklist = blocklist_of_plan(plan, graphs)
    assert blocklist.patterns == (
        r"encoder.block.\d+.layer.0.layer_norm/(Mul|Mul.1|Pow)",
        r"encoder.block.\d+.layer.0/Add",
    )
    assert_round_trip(plan, graphs)


def test_names_that_take_too_long_as_patterns_are_escaped(tiny: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_keeping(tiny, r"encoder\..*layer\.0\.layer_norm/(Pow|Mul|Mul\.1)")
    with monkeypatch.context() as patch:
        patch.setattr(blocklist_module, "time_limit", lambda: 0.0)
        blocklist = blocklist_of_plan(plan, tiny)
    assert blocklist.patterns == tuple(
        rf"encoder\.block\.\d+\.layer\.0\.layer_norm/{name}" for name in ("Mul", r"Mul\.1", "Pow")
    )
    assert plan_of_blocklist(blocklist, tiny) == plan


def test_a_role_that_one_decoder_graph_alone_holds_is_told_there(demo_bundle: Bundle) -> None:
    """Keys and values of the cross-attention are computed in the first step only."""
    graphs = demo_bundle.graphs
    layers = r"decoder\.block\.{}\.layer\.1\.EncDecAttention\.k/MatMul"
    whole = plan_keeping(graphs, layers.format(r"\d+"))
    assert blocklist_of_plan(whole, graphs).patterns == (r"decoder.block.\d+.layer.1.EncDecAttention.k/MatMul",)
    single = plan_keeping(graphs, layers.format(2))
    nodes = blocklist_of_plan(single, graphs).nodes
    assert nodes["decoder"] == ("decoder.block.2.layer.1.EncDecAttention.k/MatMul",)
    assert nodes["encoder"] == nodes["decoder_with_past"] == ()
    for plan in (whole, single):
        assert_round_trip(plan, graphs)


def test_a_role_that_both_decoder_graphs_share_is_told_once(demo_bundle: Bundle) -> None:
    graphs = demo_bundle.graphs
    plan = plan_keeping(graphs, r"decoder\.block\.\d+\.layer\.2\.DenseReluDense\.wo/MatMul")
    blocklist = blocklist_of_plan(plan, graphs)
    assert blocklist.patterns == (r"decoder.block.\d+.layer.2.DenseReluDense.wo/MatMul",)
    assert not any(blocklist.nodes.values())
    assert_round_trip(plan, graphs)


@pytest.mark.parametrize(
    ("others", "pattern"),
    [
        (("c/Add",), r"encoder.block.\d+.a/Add"),
        (("encoder.block.0xa/Add",), r"encoder\.block\.\d+\.a/Add"),
        (("encoderXblock.0.a/Add",), r"encoder\.block\.\d+\.a/Add"),
    ],
)
def test_dots_are_escaped_only_where_they_would_match_other_nodes(
    tiny: Graphs, others: tuple[str, ...], pattern: str
) -> None:
    kept = ("encoder.block.0.a/Add", "encoder.block.1.a/Add")
    keys = (*kept, *others, "encoder.b/Add")
    nodes = {key: Node(key, "Add", NodeKind.COMPUTE, role_of(key), None) for key in keys}
    graphs: Graphs = {"encoder": replace(tiny["encoder"], nodes=nodes)}
    plan = Plan("float16", "base", frozenset(kept))
    assert blocklist_of_plan(plan, graphs).patterns == (pattern,)
    assert_round_trip(plan, graphs)


def test_keys_that_mean_something_to_regular_expressions_survive(tiny: Graphs) -> None:
    kept = ("encoder.block.0.a(b/Add", "encoder.block.1.a(b/Add")
    nodes = {key: Node(key, "Add", NodeKind.COMPUTE, role_of(key), None) for key in (*kept, "encoder.c/Add")}
    assert_round_trip(Plan("float16", "base", frozenset(kept)), {"encoder": replace(tiny["encoder"], nodes=nodes)})


def test_a_role_pattern_matches_its_role_only() -> None:
    keys = frozenset({"a.block.0.x/Add", "a.block.11.x/Add", "a.block.1.x/Add.1", "aXblock.1.x/Add", "b.block.0.x/Add"})
    matched = match_keys(role_pattern("a.block.*.x/Add"), keys, "")
    assert matched == {"a.block.0.x/Add", "a.block.11.x/Add"}


def test_op_types_patterns_and_nodes_add_up(tiny: Graphs) -> None:
    plan = resolved(tiny, op_types={"encoder": ["Softmax"]}, patterns=[r".*layer_norm/Pow"], nodes={"decoder": [SQRTS]})
    assert plan.dtype == "float16"
    encoder = compute_keys_by_op_type(tiny, "encoder")
    expected = encoder["Softmax"] | {key for key in all_compute_keys(tiny) if key.endswith("layer_norm/Pow")}
    assert plan.fp32 == expected | {SQRTS} | pinned_keys(tiny)


def test_an_empty_blocklist_keeps_what_can_never_be_low(tiny: Graphs) -> None:
    assert resolved(tiny).fp32 == pinned_keys(tiny) != frozenset()


def test_a_node_of_both_decoder_graphs_is_one_decision(tiny: Graphs) -> None:
    first = resolved(tiny, nodes={"decoder": [SQRTS]})
    assert first == resolved(tiny, nodes={"decoder_with_past": [SQRTS]})
    assert set(blocklist_of_plan(first, tiny).nodes["decoder_with_past"]) == {SQRTS}


@pytest.mark.parametrize(
    ("data", "word", "suggestion"),
    [
        ({"op_types": {"encoder": ["SoftMax"]}}, "'SoftMax' (encoder)", "Softmax"),
        ({"op_types": {"decoder": ["ReducMean"]}}, "'ReducMean' (decoder)", "ReduceMean"),
        ({"patterns": [r"decoder.block.0.layer.0.layernorm/Sqrt"]}, "it matches no node key", SQRTS),
        ({"nodes": {"decoder": [SQRTS.lower()]}}, SQRTS.lower(), SQRTS),
        ({"nodes": {"encoder": [SQRTS]}}, f"'{SQRTS}' (encoder)", "encoder.block.0.layer.0.layer_norm/Sqrt"),
        ({"dtype": "flaot16"}, "'flaot16'", "float16"),
        ({"dtype": "fp16"}, "'fp16'", "float16"),
        ({"dtype": "bfloat"}, "'bfloat'", "bfloat16"),
        ({"variant": "bases"}, "'bases'", "base"),
    ],
)
def test_what_is_unknown_is_told_with_the_nearest_known(tiny: Graphs, data: Any, word: str, suggestion: str) -> None:
    error = refusal(data, tiny)
    assert word in error.what
    assert f"did you mean `{suggestion}`?" in error.fix


@pytest.mark.parametrize("dtype", ["int8", "", None, 16, ["float16"], {"float16": 1}])
def test_any_other_dtype_is_refused(dtype: Any) -> None:
    error = refusal({"dtype": dtype})
    assert repr(dtype) in error.what
    assert all(known in error.fix for known in LOW_DTYPES)


@pytest.mark.parametrize(
    "data",
    [
        {LONG: []},
        {"dtype": LONG},
        {"dtype": [LONG] * 1000},
        {"variant": LONG},
        {"op_types": {"encoder": [LONG]}},
        {"op_types": {LONG: []}},
        {"patterns": [LONG]},
        {"nodes": {"encoder": [LONG]}},
    ],
)
def test_values_are_cut_where_they_are_shown(tiny: Graphs, data: Any) -> None:
    error = refusal(data, tiny)
    assert "a" * 100 in error.what
    assert len(str(error)) < 1500


def test_data_movement_is_no_choice(tiny: Graphs) -> None:
    assert "Transpose" in refusal({"op_types": {"encoder": ["Transpose"]}}, tiny).what


def test_a_broken_pattern_is_told(tiny: Graphs) -> None:
    assert "not a regular expression" in refusal({"patterns": ["*("]}, tiny).what


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ([], "not a blocklist"),
        ("float16", "not a blocklist"),
        (None, "not a blocklist"),
        ({"optypes": {}}, "'optypes'"),
        ({"op_types": ["Add"]}, "op_types is not an object"),
        ({"op_types": {"encoders": []}}, "'encoders'"),
        ({"op_types": {"encoder": "Add"}}, "op_types.encoder is not a list of strings"),
        ({"op_types": {"encoder": [1]}}, "op_types.encoder is not a list of strings"),
        ({"nodes": {"decoder_past": []}}, "'decoder_past'"),
        ({"nodes": None}, "nodes is not an object"),
        ({"patterns": "a"}, "patterns is not a list of strings"),
    ],
)
def test_data_of_another_form_are_refused(data: Any, what: str) -> None:
    assert what in refusal(data).what


def test_an_empty_object_is_a_blocklist() -> None:
    blocklist = blocklist_from_json({}, "x")
    assert blocklist == Blocklist(
        dtype="float16",
        variant="base",
        op_types={"encoder": (), "decoder": ()},
        patterns=(),
        nodes={"encoder": (), "decoder": (), "decoder_with_past": ()},
    )
