"""Heads against numpy, on graphs that hand their input through as logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from precision_search.errors import InputError
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.onnx_files import OLDEST_OPSET
from precision_search.runtime import head
from precision_search.runtime.backends import create_session
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.token_rules import forbidden_tokens, phase_of

V = 7
PAD, EOS = 0, 1
GREEDY = GenerationSettings(PAD, (EOS,), PAD, 8, None, None)
DTYPES = [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16]
FMAX = float(np.finfo(np.float32).max)


def passing_model(
    dtype: ir.DataType = ir.DataType.FLOAT,
    *,
    opset: int = 20,
    positions: int | str = "t",
    size: int | str = V,
    output: str = "logits",
) -> ir.Model:
    """`output = cast(given)`, and one more output as a decoder has its cache."""
    ids = ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["b", positions]))
    shape = ir.Shape(["b", positions, size])
    given_ = ir.Value(name="given", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
    cast = ir.node("Cast", [given_], {"to": int(dtype)}, name="cast")
    logits = cast.outputs[0]
    logits.name, logits.type, logits.shape = output, ir.TensorType(dtype), shape
    keep = ir.node("Identity", [ids], name="keep")
    present = keep.outputs[0]
    present.name, present.type, present.shape = "present.0.decoder.key", ids.type, ids.shape
    graph = ir.Graph([ids, given_], [logits, present], nodes=[cast, keep], opset_imports={"": opset}, name="passing")
    return ir.Model(graph, ir_version=9)


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return run_session(create_session(model, SessionSettings(threads=1)), feeds)


def run_session(session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # numpy has no bfloat16, so ONNX Runtime cannot hand it over
    names = [output.name for output in session.get_outputs() if output.type != "tensor(bfloat16)"]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def token_step(
    rows: Any, finished: list[bool] | None = None, generation: GenerationSettings = GREEDY, **options: Any
) -> dict[str, np.ndarray]:
    """One step of the token head on logits [B, V]."""
    logits = np.array(rows, np.float32)[:, None, :]
    feeds: dict[str, np.ndarray] = {
        "input_ids": np.zeros((len(logits), 1), np.int64),
        "given": logits,
        head.FINISHED_IN: np.array(finished or [False] * len(logits))[:, None],
    }
    if "forced" in options:
        feeds[head.FORCED_TOKEN] = np.array([options.pop("forced")], np.int64)
    if "phase" in options:
        feeds[head.TOKEN_PHASE] = np.array([options.pop("phase")], np.int64)
    dtype = options.pop("dtype", ir.DataType.FLOAT)
    return run(head.with_token_head(passing_model(dtype, positions=1), generation, **options), feeds)


def one_hot(*winners: int) -> np.ndarray:
    return np.eye(V, dtype=np.float32)[list(winners)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_lowest_of_the_best_wins(dtype: ir.DataType) -> None:
    out = token_step([[0, 3, 5, 5, 1, 5, 0], [-1, -2, -3, -4, -1, -6, -7], [0, 0, 0, 0, 0, 0, 9]], dtype=dtype)
    assert out[head.NEXT_TOKEN].tolist() == [[2], [0], [6]]
    assert out[head.NEXT_TOKEN].dtype == np.int64


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 13])
def test_the_token_head_in_old_opsets(opset: int) -> None:
    feeds: dict[str, np.ndarray] = {
        "input_ids": np.zeros((2, 1), np.int64),
        "given": np.array([[[0, 3, 5, 9, 1, 4, 0]], [[-1, -2, -3, -4, 0, -6, -7]]], np.float32),
        head.FINISHED_IN: np.zeros((2, 1), np.bool_),
        head.TOKEN_PHASE: np.array([phase_of(RULES, 0)]),
    }
    out = run(head.with_token_head(passing_model(opset=opset), RULES, with_margin=True), feeds)
    allowed = np.where(forbidden_tokens(RULES, V)[phase_of(RULES, 0)], np.float32(-99), feeds["given"][:, 0])
    best = np.sort(allowed)[:, ::-1]
    assert out[head.NEXT_TOKEN][:, 0].tolist() == allowed.argmax(axis=1).tolist()
    assert out[head.MARGIN][:, 0, 0].tolist() == (best[:, 0] - best[:, 1]).tolist()


def test_finished_rows_give_pad_and_eos_finishes() -> None:
    out = token_step(one_hot(EOS, 3, EOS, 3), [False, False, True, True])
    assert out[head.NEXT_TOKEN].tolist() == [[EOS], [3], [PAD], [PAD]]
    assert out[head.FINISHED].tolist() == [[True], [False], [True], [True]]


@pytest.mark.parametrize(("eos", "finished"), [((), [False, False, False]), ((4, 5), [False, True, True])])
def test_any_number_of_eos_ids(eos: tuple[int, ...], finished: list[bool]) -> None:
    out = token_step(one_hot(EOS, 4, 5), generation=GenerationSettings(PAD, eos, PAD, 8, None, None))
    assert out[head.FINISHED][:, 0].tolist() == finished


def test_pad_that_is_also_chosen_does_not_finish() -> None:
    assert token_step(one_hot(PAD))[head.FINISHED].tolist() == [[False]]


@pytest.mark.parametrize(("forced", "tokens"), [(head.NOT_FORCED, [3, PAD]), (5, [5, PAD]), (0, [0, PAD])])
def test_forced_tokens_replace_the_choice_but_not_pad(forced: int, tokens: list[int]) -> None:
    generation = GenerationSettings(PAD, (EOS,), PAD, 8, None, EOS)
    out = token_step(one_hot(3, 3), [False, True], generation, forced=forced)
    assert out[head.NEXT_TOKEN][:, 0].tolist() == tokens


def test_nothing_to_force_means_no_input_for_it() -> None:
    model = head.with_token_head(passing_model(), GREEDY)
    assert head.FORCED_TOKEN not in [value.name for value in model.graph.inputs]


RULES = dataclasses.replace(
    GREEDY, eos_token_ids=(EOS, 2), suppressed_tokens=(6,), begin_suppressed_tokens=(3,), min_new_tokens=2
)


def test_no_rules_add_nothing_to_either_head() -> None:
    """An end token too early needs one to exist; nothing is what the settings of every model without rules cost."""
    endless = dataclasses.replace(GREEDY, eos_token_ids=(), min_new_tokens=3)
    heads = [head.with_token_head(passing_model(), endless), head.with_margin_head(passing_model(), generation=endless)]
    assert all(head.TOKEN_PHASE not in [value.name for value in model.graph.inputs] for model in heads)
    plain = head.with_margin_head(passing_model())
    assert ir.to_proto(heads[1]).SerializeToString() == ir.to_proto(plain).SerializeToString()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("step", "allowed"), [(0, [0, 4, 5]), (1, [0, 3, 4, 5]), (2, [0, 1, 2, 3, 4, 5])])
def test_what_a_rule_forbids_neither_wins_nor_comes_second(dtype: ir.DataType, step: int, allowed: list[int]) -> None:
    rows = np.random.default_rng(step).permuted(np.tile(np.arange(V, dtype=np.float32) ** 2, (30, 1)), axis=1)
    out = token_step(rows, generation=RULES, phase=phase_of(RULES, step), dtype=dtype, with_margin=True)
    left = rows[:, allowed]
    assert out[head.NEXT_TOKEN][:, 0].tolist() == [allowed[best] for best in left.argmax(axis=1)]
    assert out[head.MARGIN][:, 0, 0].tolist() == np.diff(np.sort(left)[:, -2:])[:, 0].tolist()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_forbidden_logit_that_is_not_finite_marks_its_row_all_the_same(bad: float) -> None:
    out = token_step([[0, 1, 2, 3, 4, 5, bad]], generation=RULES, phase=phase_of(RULES, 5), with_margin=True)
    assert np.isnan([out[head.FINITE_CHECK].item(), out[head.MARGIN].item()]).all()


def test_a_margin_against_nothing_is_infinite() -> None:
    """One token is left, and it wins whatever it is worth."""
    lonely = dataclasses.replace(GREEDY, suppressed_tokens=(0, 1, 2, 3, 5, 6))
    out = token_step([[9, 9, 9, 9, -9, 9, 9]], generation=lonely, phase=phase_of(lonely, 3), with_margin=True)
    assert (out[head.NEXT_TOKEN].item(), out[head.MARGIN].item()) == (4, np.inf)


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 17, 20])
def test_margin_head_knows_the_rules_of_each_position(opset: int) -> None:
    logits = np.random.default_rng(0).integers(-8, 8, (4, 3, V)).astype(np.float32)
    logits[3, 1, 6] = np.nan
    labels = np.array([[0, 3, 1], [4, 5, 2], [5, 0, 3], [4, 4, 4]])
    masks = forbidden_tokens(RULES, V)[[phase_of(RULES, step) for step in range(3)]]
    feeds = {
        "input_ids": labels,
        "given": logits,
        head.LABELS: labels,
        head.TOKEN_PHASE: np.array([phase_of(RULES, step) for step in range(3)]),
    }
    out = run(head.with_margin_head(passing_model(opset=opset), generation=RULES), feeds)
    expected = expected_margins(np.where(masks, np.float32(-99), logits), labels)
    expected[3, 1] = np.nan
    np.testing.assert_array_equal(out[head.MARGIN], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_value_that_is_not_finite_marks_its_row(bad: float, dtype: ir.DataType) -> None:
    rows = one_hot(2, 2)
    rows[1, 4] = bad
    out = token_step(rows, dtype=dtype, with_margin=True)
    assert out[head.FINITE_CHECK][0].item() == 0
    assert np.isnan(out[head.FINITE_CHECK][1].item())
    assert out[head.MARGIN][0].item() == 1
    assert np.isnan(out[head.MARGIN][1].item())
    assert 0 <= out[head.NEXT_TOKEN][1].item() < V


def test_huge_finite_values_are_finite() -> None:
    assert token_step([[FMAX] * V])[head.FINITE_CHECK].item() == 0


def test_the_last_of_several_positions_counts() -> None:
    logits = np.stack([one_hot(2, 3, 4), one_hot(5, 6, 3)])
    feeds = {
        "input_ids": np.zeros((2, 3), np.int64),
        "given": logits,
        head.FINISHED_IN: np.zeros((2, 1), np.bool_),
    }
    out = run(head.with_token_head(passing_model(), GREEDY, with_margin=True), feeds)
    assert out[head.NEXT_TOKEN].tolist() == [[4], [3]]
    assert out[head.MARGIN].shape == (2, 1, 1)


def test_token_margin_is_best_minus_second_best() -> None:
    out = token_step([[0, 3, 5.5, 5, 1, 2, 0], [4, 4, 0, 0, 0, 0, 0]], with_margin=True)
    assert out[head.MARGIN][:, 0, 0].tolist() == [0.5, 0.0]


def test_token_head_replaces_logits_and_keeps_the_rest() -> None:
    out = token_step(one_hot(2))
    assert set(out) == {"present.0.decoder.key", head.NEXT_TOKEN, head.FINISHED, head.FINITE_CHECK}


@cache
def margin_session() -> onnxruntime.InferenceSession:
    return create_session(head.with_margin_head(passing_model()), SessionSettings(threads=1))


def expected_margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Position by position, as the definition says it."""
    found = np.empty(labels.shape, np.float32)
    for place in np.ndindex(labels.shape):
        row, label = logits[place], labels[place]
        found[place] = row[label] - np.delete(row, label).max() if np.isfinite(row).all() else np.nan
    return found


values = st.one_of(
    st.sampled_from([0.0, 1.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3e4]),
    st.floats(-1e4, 1e4, width=32),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), batch=st.integers(1, 3), positions=st.integers(1, 4))
def test_margin_head_equals_its_definition(data: st.DataObject, batch: int, positions: int) -> None:
    logits = data.draw(hnp.arrays(np.float32, (batch, positions, V), elements=values))
    labels = data.draw(hnp.arrays(np.int64, (batch, positions), elements=st.integers(0, V - 1)))
    feeds = {"input_ids": np.zeros_like(labels), "given": logits, head.LABELS: labels}
    out = run_session(margin_session(), feeds)
    np.testing.assert_array_equal(out[head.MARGIN], expected_margins(logits, labels))


@pytest.mark.parametrize(
    ("dtype", "opset"),
    [*((dtype, opset) for dtype in DTYPES for opset in (17, 18, 20)), (ir.DataType.FLOAT16, OLDEST_OPSET)],
)
def test_margin_head_in_each_dtype_and_opset(dtype: ir.DataType, opset: int) -> None:
    logits = np.random.default_rng(0).integers(-8, 8, (2, 3, V)).astype(np.float32)
    labels = np.array([[0, 1, 6], [3, 3, 2]])
    feeds = {"input_ids": labels, "given": logits, head.LABELS: labels}
    out = run(head.with_margin_head(passing_model(dtype, opset=opset)), feeds)
    assert list(out) == [head.MARGIN]
    assert out[head.MARGIN].dtype == np.float32
    np.testing.assert_array_equal(out[head.MARGIN], expected_margins(logits, labels))


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_head_marks_positions(dtype: ir.DataType) -> None:
    hidden = np.zeros((2, 3, V), np.float32)
    hidden[0, 1, 2], hidden[1, 2, 0] = np.inf, np.nan
    model = head.with_finite_head(passing_model(dtype, output=head.HIDDEN))
    out = run(model, {"input_ids": np.zeros((2, 3), np.int64), "given": hidden})
    assert model.graph.outputs[0].name == head.HIDDEN
    assert np.isnan(out[head.FINITE_CHECK])[:, :, 0].tolist() == [[False, True, False], [False, False, True]]


HEADS = {
    "token": lambda model: head.with_token_head(model, GREEDY, with_margin=True),
    "margin": head.with_margin_head,
    "finite": head.with_finite_head,
}


@pytest.mark.parametrize("name", HEADS)
def test_the_input_model_is_left_as_it_was(name: str) -> None:
    model = passing_model(output=head.HIDDEN if name == "finite" else head.LOGITS)
    before = ir.to_proto(model).SerializeToString()
    HEADS[name](model)
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("name", HEADS)
def test_a_missing_output_is_named(name: str) -> None:
    with pytest.raises(InputError, match="no output named") as caught:
        HEADS[name](passing_model(output="scores"))
    assert "scores" in caught.value.why


@pytest.mark.parametrize("name", HEADS)
def test_an_unknown_size_is_an_error(name: str) -> None:
    output = head.HIDDEN if name == "finite" else head.LOGITS
    with pytest.raises(InputError, match="no known last dimension"):
        HEADS[name](passing_model(size="v", output=output))


def test_names_of_the_model_may_be_those_of_a_head() -> None:
    model = passing_model()
    zeros = ir.tensor(np.ones((V, 1), np.float32), name="token_head/zeros")
    ones = ir.Value(name="token_head/zeros", type=ir.TensorType(zeros.dtype), shape=ir.Shape([V, 1]), const_value=zeros)
    model.graph.register_initializer(ones)
    cast = model.graph[0]
    scaled = ir.node("Mul", [cast.inputs[0], ir.node("ReduceMax", [ones], {"keepdims": 0}, name="max").outputs[0]])
    scaled.outputs[0].name, scaled.inputs[1].name = head.MARGIN, head.FINISHED_IN  # type: ignore[union-attr]
    model.graph.insert_before(cast, [scaled.inputs[1].producer(), scaled])  # type: ignore[list-item, union-attr]
    cast.replace_input_with(0, scaled.outputs[0])
    feeds: dict[str, np.ndarray] = {
        "input_ids": np.zeros((1, 1), np.int64),
        "given": np.array([[[0, 3, 5, 9, 1, 4, 0]]], np.float32),
        head.FINISHED_IN: np.zeros((1, 1), np.bool_),
    }
    out = run(head.with_token_head(model, GREEDY, with_margin=True), feeds)
    assert (out[head.NEXT_TOKEN].item(), out[head.MARGIN].item(), out[head.FINITE_CHECK].item()) == (3, 4, 0)
