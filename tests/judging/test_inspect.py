"""Inspection counts decisions, not nodes, and says which can be low, which cannot and why."""

from __future__ import annotations

import pytest

from precision_search.judging.inspect import GroupFacts, InspectReport, inspect_bundle, measure
from precision_search.judging.ranges import NodeRange
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GRAPH_NAMES, NodeKind, compute_keys_by_op_type
from precision_search.runtime.session import SessionSettings
from tests.conftest import Rows


def by_name(groups: tuple[GroupFacts, ...], family: str) -> dict[str, GroupFacts]:
    return {group.name: group for group in groups if group.family == family}


@pytest.fixture(scope="module")
def measured(demo_bundle: Bundle, demo_ids: Rows) -> InspectReport:
    rows = demo_ids[:6]
    ranges = measure(demo_bundle, rows, 3, "float16", SessionSettings(threads=1))
    return inspect_bundle(demo_bundle, "float16", name="demo", ranges=ranges, samples=len(rows))


def test_graphs_are_counted_by_kind(demo_bundle: Bundle) -> None:
    report = inspect_bundle(demo_bundle, "float16", name="demo")

    assert [graph.name for graph in report.graphs] == list(GRAPH_NAMES)
    for facts in report.graphs:
        nodes = demo_bundle.graphs[facts.name].nodes
        assert facts.nodes == len(nodes) == facts.compute + facts.movement + facts.other
        assert facts.compute == sum(node.kind is NodeKind.COMPUTE for node in nodes.values())
        assert facts.weight_bytes > 10_000_000
    assert (report.name, report.samples, report.largest_number) == ("demo", None, 65504.0)


def test_a_computation_in_both_decoder_graphs_is_one_decision(demo_bundle: Bundle) -> None:
    report = inspect_bundle(demo_bundle, "float16", name="demo")

    keys = [node.key for node in report.nodes]
    assert len(keys) == len(set(keys)) < sum(graph.compute for graph in report.graphs)
    for family in ("encoder", "decoder"):
        expected = {op: len(keys) for op, keys in compute_keys_by_op_type(demo_bundle.graphs, family).items()}
        assert {name: group.nodes for name, group in by_name(report.op_types, family).items()} == expected
        assert sum(group.nodes for group in by_name(report.roles, family).values()) == sum(expected.values())


def test_index_arithmetic_is_pinned_and_the_rest_of_its_op_type_is_not(demo_bundle: Bundle) -> None:
    encoder = by_name(inspect_bundle(demo_bundle, "float16", name="demo").op_types, "encoder")

    assert (encoder["Log"].searchable, encoder["Log"].why) == (0, "index arithmetic")
    assert 0 < encoder["Mul"].searchable < encoder["Mul"].nodes
    assert encoder["Mul"].why == "index arithmetic"
    assert (encoder["Softmax"].searchable, encoder["Softmax"].why) == (4, None)


def test_an_op_type_without_a_kernel_for_the_dtype_is_pinned(demo_bundle: Bundle) -> None:
    encoder = by_name(inspect_bundle(demo_bundle, "bfloat16", name="demo").op_types, "encoder")

    assert encoder["Reciprocal"].searchable == 0
    assert encoder["Reciprocal"].why == "CUDA has no bfloat16 kernel for Reciprocal"
    assert encoder["Sqrt"].why is None


def test_roles_hold_one_node_a_layer(demo_bundle: Bundle) -> None:
    roles = by_name(inspect_bundle(demo_bundle, "float16", name="demo").roles, "encoder")

    assert roles["encoder.block.*.layer.1.DenseReluDense.wo/MatMul"].nodes == 4
    assert roles["encoder.final_layer_norm/Pow"].nodes == 1


def test_without_data_nothing_is_said_of_ranges(demo_bundle: Bundle) -> None:
    report = inspect_bundle(demo_bundle, "float16", name="demo")

    assert report.worst(3) == ()
    assert {group.largest for group in report.op_types} == {group.beyond_range for group in report.op_types} == {None}


def test_ranges_name_what_does_not_fit_the_worst_first(measured: InspectReport) -> None:
    encoder = by_name(measured.op_types, "encoder")

    assert encoder["Pow"].beyond_range == encoder["Pow"].nodes
    assert encoder["Pow"].largest is not None
    assert encoder["Pow"].largest > 65504
    assert encoder["Relu"].beyond_range == 0
    assert (encoder["Log"].beyond_range, encoder["Log"].largest) == (None, None)  # pinned: need not fit
    first, second = measured.worst(2)
    assert first.key == "encoder.final_layer_norm/ReduceMean"
    assert first.beyond_range
    assert first.range is not None
    assert second.range is not None
    assert first.range.largest >= second.range.largest
    assert measured.samples == 6


def test_the_safety_factor_moves_the_limit(demo_bundle: Bundle) -> None:
    key = "encoder.block.0.layer.0.SelfAttention/Softmax"
    ranges = {key: NodeRange(key, "Softmax", 20000.0, 1.0, 0.0, 0.0)}

    def beyond(safety: float) -> int | None:
        report = inspect_bundle(demo_bundle, "float16", name="demo", ranges=ranges, safety=safety)
        return by_name(report.op_types, "encoder")["Softmax"].beyond_range

    assert (beyond(2.0), beyond(4.0)) == (0, 1)


def test_a_value_that_is_not_a_number_is_the_worst(demo_bundle: Bundle) -> None:
    broken, large = "encoder.block.0.layer.0.SelfAttention/Softmax", "encoder.final_layer_norm/Pow"
    ranges = {
        large: NodeRange(large, "Pow", 1e30, 1e30, 0.0, 0.0),
        broken: NodeRange(broken, "Softmax", float("nan"), 1.0, 0.0, 0.0),
    }

    report = inspect_bundle(demo_bundle, "float16", name="demo", ranges=ranges, samples=1)

    assert [node.key for node in report.worst(2)] == [broken, large]
    assert report.worst(1)[0].beyond_range
