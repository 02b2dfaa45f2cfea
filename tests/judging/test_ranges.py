"""Ranges: what one fp32 pass reports of every compute node is what numpy finds in the values of that pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from precision_search.judging.ranges import NodeRange, hard_set, mask_threshold, measure_ranges
from precision_search.model.bundle import Bundle
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.graph import Graph, GraphName, NodeKind, float_inputs, is_float
from precision_search.precision.low import LowDtype, low_max, smallest_normal
from precision_search.precision.plan import pinned_keys
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.teacher_forcing import ForcedBatch, forced_batches
from tests.conftest import Rows
from tests.graphs import MASK, Arrays, Writer, run, tiny_t5

Graphs = Mapping[GraphName, Graph]
Ranges = Mapping[str, NodeRange]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SETTINGS = SessionSettings(threads=1)
GREEDY = GenerationSettings(0, (1,), 0, 8, None, None)
SOURCES = ((5, 7, 9, 1), (3, 1), (12, 11, 10, 4, 2, 1), (8, 1), (6, 6, 1))
TARGETS = ((4, 3, 1), (9, 1), (2, 2, 7, 1), (5, 1), (3, 8, 1))


@pytest.fixture(scope="module")
def tiny() -> Graphs:
    return tiny_t5(seed=3)


def batches(size: int) -> tuple[ForcedBatch, ...]:
    return forced_batches(SOURCES, TARGETS, GREEDY, size)


def measured(graphs: Graphs, dtype: LowDtype, size: int) -> Ranges:
    return measure_ranges(graphs["encoder"], graphs["decoder"], batches(size), dtype, SETTINGS)


def all_values(graph: Graph, feeds: Arrays) -> Arrays:
    """Every float value of a graph on one batch."""
    model = graph.model.clone()
    known = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(
        value for node in model.graph for value in node.outputs if is_float(value) and value.name not in known
    )
    return {**run(model, feeds), **feeds}


def passes(graphs: Graphs, size: int) -> list[dict[GraphName, Arrays]]:
    found: list[dict[GraphName, Arrays]] = []
    for batch in batches(size):
        source = {"input_ids": batch.source.input_ids, "attention_mask": batch.source.attention_mask}
        encoder = all_values(graphs["encoder"], source)
        forced = {
            "input_ids": batch.decoder_input_ids,
            "encoder_attention_mask": batch.source.attention_mask,
            "encoder_hidden_states": encoder["last_hidden_state"],
        }
        found.append({"encoder": encoder, "decoder": all_values(graphs["decoder"], forced)})
    return found


def largest(arrays: Sequence[np.ndarray]) -> float:
    """The largest magnitude that belongs to no mask."""
    sizes = np.concatenate([np.abs(array).ravel() for array in arrays]) if arrays else np.zeros(1)
    return float(np.max(sizes, where=sizes < 1e38, initial=0.0))


def expected(graphs: Graphs, name: GraphName, node: ir.Node, values: Sequence[Arrays]) -> tuple[float, float, float]:
    inputs = [str(value.name) for _, value in float_inputs(node) if not value.is_initializer()]
    outputs = [str(value.name) for value in node.outputs]
    inside = 0.0
    if node.op_type == "ReduceMean":
        inside = largest([each[inputs[0]].sum(axis=-1) for each in values])
    return (
        largest([each[value] for each in values for value in inputs]),
        largest([each[value] for each in values for value in outputs]),
        inside,
    )


@pytest.mark.parametrize("size", [5, 3, 1])
def test_numbers_are_those_that_numpy_finds(tiny: Graphs, size: int) -> None:
    ranges = measured(tiny, "float16", size)
    values = passes(tiny, size)
    names: tuple[GraphName, ...] = ("encoder", "decoder")
    assert set(ranges) == {node.key for name in names for node in tiny[name].compute}
    for name in names:
        for node in tiny[name].model.graph:
            facts = tiny[name].nodes[str(node.name)]
            if facts.kind is NodeKind.COMPUTE:
                found = ranges[facts.key]
                wanted = expected(tiny, name, node, [each[name] for each in values])
                got = (found.largest_input, found.largest_output, found.largest_inside)
                assert got == pytest.approx(wanted, rel=1e-5), facts.key
                assert found.op_type == node.op_type
                assert found.largest == max(got)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_underflow_is_the_share_of_small_numbers_in_the_first_batch(tiny: Graphs, dtype: LowDtype) -> None:
    ranges = measured(tiny, dtype, 2)
    values = passes(tiny, 2)[0]
    seen = 0
    for name in ("encoder", "decoder"):
        for node in tiny[name].model.graph:
            if tiny[name].nodes[str(node.name)].kind is NodeKind.COMPUTE:
                array = np.abs(values[name][str(node.outputs[0].name)])
                share = float(((array > 0) & (array < smallest_normal(dtype))).mean())
                assert ranges[str(node.name)].underflow == pytest.approx(share, abs=1e-6)
                seen += share > 0
    # What is too small for bfloat16 is too small for fp32; whether an Exp gives such numbers is the processor's affair.
    assert seen > 0 or dtype == "bfloat16"


def test_the_sum_inside_a_mean_counts(tiny: Graphs) -> None:
    ranges = measured(tiny, "float16", 5)
    means = [found for found in ranges.values() if found.op_type == "ReduceMean"]
    assert len(means) == 5 + 7
    assert all(found.largest == found.largest_inside > found.largest_output for found in means)
    assert all(found.largest_inside == 0 for found in ranges.values() if found.op_type != "ReduceMean")


def small(build: str) -> Graphs:
    """An encoder that computes `last_hidden_state` from float tokens, and a decoder that does nothing much."""
    write = Writer("encoder")
    ids, mask = write.input("input_ids", INT64, ("b", "s")), write.input("attention_mask", INT64, ("b", "s"))
    tokens = write.op("", "Cast", ids, to=FLOAT)
    numbers = write.op("", "Mul", tokens, write.weight("scale", 3.0))
    if build == "mask":
        real = write.op("", "Cast", mask, to=TensorProto.BOOL)
        hidden = write.op("", "Where", real, write.weight("zero", 0.0), write.weight("minimum", MASK))
        numbers = write.op("", "Softmax", write.op("", "Add", numbers, hidden), axis=-1)
    if build == "traced mask":
        real = write.op("", "Cast", mask, to=FLOAT)
        absent = write.op("", "Sub", write.weight("one", 1.0), real)
        hidden = write.op("", "Mul", absent, write.weight("minimum", MASK))
        numbers = write.op("", "Softmax", write.op("", "Add", numbers, hidden), axis=-1)
    if build == "infinite":
        numbers = write.op("", "Div", numbers, write.weight("zero", 0.0))
    write.op("", "Neg", numbers, output="last_hidden_state")
    write.output("last_hidden_state", FLOAT, ("b", "s"))
    other = Writer("decoder")
    for name in ("input_ids", "encoder_attention_mask"):
        other.input(name, INT64, ("b", f"{name}_length"))
    other.op("", "Neg", other.input("encoder_hidden_states", FLOAT, ("b", "s")), output="logits")
    other.output("logits", FLOAT, ("b", "s"))
    return {"encoder": write.graph(), "decoder": other.graph()}


@pytest.mark.parametrize("build", ["mask", "traced mask"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_masks_are_left_out_and_what_is_added_to_them_is_not(build: str, dtype: LowDtype) -> None:
    ranges = measured(small(build), dtype, 5)
    assert ranges["encoder/Mul"].largest == 36.0
    assert ranges["encoder/Add"].largest_input == 36.0
    assert ranges["encoder/Add"].largest_output == 36.0
    assert ranges["encoder/Softmax"].largest_input == 36.0
    assert 0 < ranges["encoder/Softmax"].largest_output <= 1
    if build == "traced mask":
        assert ranges["encoder/Mul.1"].largest_output == 0.0
    assert hard_set(ranges, dtype, 1.0) == {}


def test_the_threshold_of_masks_lies_below_the_smallest_mask_constant(tiny: Graphs) -> None:
    for dtype in ("float16", "bfloat16"):
        threshold = mask_threshold(tiny["encoder"], "float16" if dtype == "float16" else "bfloat16")
        assert 0.9 * -MASK < threshold < -MASK
    assert mask_threshold(small("plain")["encoder"], "float16") == np.inf


def test_what_is_infinite_or_no_number_belongs_to_the_hard_set() -> None:
    ranges = measured(small("infinite"), "bfloat16", 5)
    assert ranges["encoder/Div"].largest_output == np.inf
    assert {"encoder/Div", "encoder/Neg"} <= set(hard_set(ranges, "bfloat16", 1.0))


def test_the_hard_set_has_what_does_not_fit_with_a_safety_factor() -> None:
    def of(largest: float) -> NodeRange:
        return NodeRange("key", "Add", largest, 0.0, 0.0, 0.0)

    limit = low_max("float16")
    ranges = {"fits": of(limit / 2), "above": of(limit / 2 * 1.001), "nan": of(np.nan), "inf": of(np.inf)}
    found = hard_set(ranges, "float16", 2.0)
    assert list(found) == ["above", "nan", "inf"]
    assert found["above"] == limit / 2 * 1.001
    assert set(hard_set(ranges, "float16", 1.0)) == {"nan", "inf"}
    assert set(hard_set(ranges, "bfloat16", 1.0)) == {"nan", "inf"}


def test_the_demo_has_the_magnitudes_that_torch_gives(
    demo_bundle: Bundle, demo_ids: Rows, demo_oracle_tokens: list[list[int]]
) -> None:
    graphs = demo_bundle.graphs
    forced = forced_batches(demo_ids, demo_oracle_tokens, demo_bundle.generation, 50)
    ranges = measure_ranges(graphs["encoder"], graphs["decoder"], forced, "float16", SessionSettings(threads=1))
    wo = [ranges[f"encoder.block.{layer}.layer.1.DenseReluDense.wo/MatMul"].largest_output for layer in range(4)]
    # Forward hooks on transformers' own encoder, the sentences one by one; the last digits depend on summation order.
    assert wo == pytest.approx([96_854.74, 77_696.27, 75_099.34, 63_142.08], rel=1e-5)
    residual = max(ranges[f"encoder.block.{layer}.layer.1/Add"].largest_output for layer in range(4))
    assert 200_000 < residual < 230_000
    hard = hard_set(ranges, "float16", 1.0)
    assert {f"encoder.block.{layer}.layer.1.DenseReluDense.wo/MatMul" for layer in range(3)} <= set(hard)
    matmuls = {key for key in hard if key.endswith("/MatMul") and key.startswith("encoder")}
    assert matmuls == {f"encoder.block.{layer}.layer.1.DenseReluDense.wo/MatMul" for layer in range(3)}
    # The norms of the whole encoder: the squares overflow, and their sums.
    assert {"encoder.final_layer_norm/Pow", "encoder.final_layer_norm/ReduceMean"} <= set(hard)
    # The index arithmetic takes the logarithm of a distance of 0, where it then takes another branch.
    assert set(hard_set(ranges, "bfloat16", 1.0)) <= pinned_keys(graphs)
    assert all("Softmax" not in key for key in hard)
