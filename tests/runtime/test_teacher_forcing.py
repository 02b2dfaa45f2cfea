"""Teacher forcing lays out sources and labels as the reference had them, and its margins are those of the logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.model.bundle import Bundle
from precision_search.model.generation_config import GenerationSettings
from precision_search.runtime.backends import create_session
from precision_search.runtime.teacher_forcing import (
    ForcedBatch,
    ForcedDecoder,
    ForcedEncoder,
    by_target_length,
    encoder_is_finite,
    forced_batches,
)
from tests.plans import SETTINGS

START, PAD, LIMIT = 7, 9, 6
PLAIN = GenerationSettings(START, (1,), PAD, LIMIT, None, None)
Tokens = tuple[int, ...]

ids = st.lists(st.integers(1, 20), min_size=1, max_size=LIMIT).map(tuple)


@st.composite
def sets_with_order(draw: st.DrawFn) -> tuple[list[Tokens], list[Tokens], list[int] | None]:
    size = draw(st.integers(1, 7))
    rows = draw(st.lists(ids, min_size=size, max_size=size))
    tokens = draw(st.lists(ids, min_size=size, max_size=size))
    some = st.permutations(range(size)).flatmap(lambda p: st.integers(1, size).map(lambda n: p[:n]))
    return rows, tokens, draw(st.none() | some)


@given(sets_with_order(), st.integers(1, 8))
def test_every_sample_comes_once_in_the_given_order_with_its_own_tokens(
    data: tuple[list[Tokens], list[Tokens], list[int] | None], batch_size: int
) -> None:
    rows, tokens, order = data

    found = forced_batches(rows, tokens, PLAIN, batch_size, order)

    wanted = list(range(len(rows))) if order is None else order
    assert [index for batch in found for index in batch.source.indices] == wanted
    assert all(len(batch.source.indices) == batch_size for batch in found[:-1])
    for batch in found:
        assert batch.labels.dtype == batch.decoder_input_ids.dtype == np.int64
        for row, index in enumerate(batch.source.indices):
            assert tuple(batch.labels[row, batch.valid[row]]) == tokens[index]
            assert batch.valid[row].tolist() == [i < len(tokens[index]) for i in range(batch.labels.shape[1])]
            assert tuple(batch.source.input_ids[row, batch.source.attention_mask[row] == 1]) == rows[index]
            # What the decoder reads is the start token and then what it should have said one step before.
            assert batch.decoder_input_ids[row, 0] == START
            assert batch.decoder_input_ids[row, 1:].tolist() == batch.labels[row, :-1].tolist()


@given(st.lists(ids, max_size=8))
def test_the_order_of_least_padding_is_by_target_and_stable(tokens: list[Tokens]) -> None:
    assert by_target_length(tokens) == tuple(sorted(range(len(tokens)), key=lambda index: (len(tokens[index]), index)))


def test_what_pads_labels_is_a_token_of_the_vocabulary() -> None:
    """The margin head gathers by label: an id such as -100 would read out of bounds."""
    batch = forced_batches([(3,), (3,)], [(4, 5, 1), (1,)], PLAIN, 2)[0]

    assert batch.labels.tolist() == [[4, 5, 1], [1, PAD, PAD]]


def test_a_forced_first_token_is_not_judged() -> None:
    settings = dataclasses.replace(PLAIN, forced_bos_token_id=4)

    batch = forced_batches([(3,), (3,)], [(4, 5, 1), (4,)], settings, 2)[0]

    assert batch.valid.tolist() == [[False, True, True], [False, False, False]]
    assert batch.labels[0].tolist() == [4, 5, 1]


def test_only_a_last_token_at_the_limit_is_forced() -> None:
    """Before the limit an end token was the model's own choice."""
    settings = dataclasses.replace(PLAIN, forced_eos_token_id=1)
    full = tuple(range(2, 2 + LIMIT - 1))

    batch = forced_batches([(3,), (3,)], [(*full, 1), (4, 1)], settings, 2)[0]

    assert batch.valid.tolist() == [[True] * (LIMIT - 1) + [False], [True, True] + [False] * (LIMIT - 2)]


def batch_of(mask: Sequence[Sequence[int]]) -> ForcedBatch:
    rows = [tuple(2 for count in row if count) for row in mask]
    return forced_batches(rows, [(1,)] * len(rows), PLAIN, len(rows))[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_only_padding_may_be_non_finite(bad: float) -> None:
    batch = batch_of([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    hidden = np.zeros((3, 3, 4), np.float32)
    hidden[1, 2, 3] = hidden[2, 1, 0] = bad
    assert encoder_is_finite(batch, hidden).tolist() == [True, True, True]

    hidden[0, 2, 1] = hidden[2, 0, 2] = bad
    assert encoder_is_finite(batch, hidden).tolist() == [False, True, False]


@pytest.fixture(scope="module")
def forced(demo_bundle: Bundle, demo_ids: tuple[Tokens, ...], demo_oracle_tokens: list[list[int]]) -> ForcedBatch:
    """Four demo samples of different lengths, with the tokens that transformers gives."""
    return forced_batches(demo_ids[:4], demo_oracle_tokens[:4], demo_bundle.generation, 4)[0]


@pytest.fixture(scope="module")
def encoder(demo_bundle: Bundle) -> ForcedEncoder:
    return ForcedEncoder(demo_bundle.graphs["encoder"].model, SETTINGS)


@pytest.fixture(scope="module")
def decoder(demo_bundle: Bundle) -> ForcedDecoder:
    return ForcedDecoder(demo_bundle.graphs["decoder"].model, SETTINGS)


def test_margins_are_those_of_the_plain_logits(
    demo_bundle: Bundle, forced: ForcedBatch, encoder: ForcedEncoder, decoder: ForcedDecoder
) -> None:
    hidden = encoder.encode(forced)
    plain = create_session(demo_bundle.graphs["decoder"].model, SETTINGS)
    feed = {
        "input_ids": forced.decoder_input_ids,
        "encoder_hidden_states": hidden,
        "encoder_attention_mask": forced.source.attention_mask,
    }
    logits = np.asarray(plain.run(["logits"], feed)[0])
    others = logits.copy()
    np.put_along_axis(others, forced.labels[..., None], -np.inf, axis=-1)
    wanted = np.take_along_axis(logits, forced.labels[..., None], axis=-1)[..., 0] - others.max(axis=-1)

    margins = decoder.margins(forced, hidden)

    assert margins.dtype == np.float32
    assert np.isnan(margins[~forced.valid]).all()
    assert not forced.valid.all()
    # A logit is a sum of 192 products below 32, which the head may add up in another order.
    np.testing.assert_allclose(margins[forced.valid], wanted[forced.valid], rtol=0, atol=1e-4)
    assert (margins[forced.valid] > 0).all()


def test_a_wrong_label_has_a_negative_margin_and_spoils_only_what_follows(
    forced: ForcedBatch, encoder: ForcedEncoder, decoder: ForcedDecoder
) -> None:
    labels = forced.labels.copy()
    labels[2, 1] += 1
    wrong = dataclasses.replace(forced, labels=labels)
    hidden = encoder.encode(forced)

    before, after = decoder.margins(forced, hidden), decoder.margins(wrong, hidden)

    assert after[2, 1] < 0
    before[2, 1] = after[2, 1]  # the prefix that the decoder reads is unchanged, so all else must be
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_encoder_output_gives_nan_in_its_row_only(
    forced: ForcedBatch, encoder: ForcedEncoder, decoder: ForcedDecoder, bad: float
) -> None:
    hidden = encoder.encode(forced)
    clean = decoder.margins(forced, hidden)
    hidden = hidden.copy()
    hidden[1, 0, 5] = bad

    margins = decoder.margins(forced, hidden)

    assert np.isnan(margins[1]).all()
    np.testing.assert_allclose(np.delete(margins, 1, axis=0), np.delete(clean, 1, axis=0), atol=1e-5)


def test_what_stands_at_masked_positions_changes_no_margin(
    forced: ForcedBatch, encoder: ForcedEncoder, decoder: ForcedDecoder
) -> None:
    hidden = encoder.encode(forced)
    garbage = np.where(forced.source.attention_mask[..., None] == 0, np.float32(1e4), hidden)
    assert (garbage != hidden).any()

    np.testing.assert_array_equal(decoder.margins(forced, garbage), decoder.margins(forced, hidden))


def test_giving_memory_back_changes_nothing(
    forced: ForcedBatch, encoder: ForcedEncoder, decoder: ForcedDecoder
) -> None:
    hidden = encoder.encode(forced)
    margins = decoder.margins(forced, hidden)

    for _ in range(2):
        np.testing.assert_array_equal(encoder.encode(forced, release=True), hidden)
        np.testing.assert_array_equal(decoder.margins(forced, hidden, release=True), margins)


def test_what_is_fed_beside_the_batch_reaches_the_graph(demo_bundle: Bundle, forced: ForcedBatch) -> None:
    model = demo_bundle.graphs["encoder"].model.clone()
    factor = ir.Value(name="factor", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    hidden = model.graph.outputs[0]
    product = ir.node("Mul", [hidden, factor], name="scaled")
    hidden.name, product.outputs[0].name = "plain", str(hidden.name)
    product.outputs[0].type, product.outputs[0].shape = hidden.type, hidden.shape
    model.graph.append(product)
    model.graph.inputs.append(factor)
    model.graph.outputs[0] = product.outputs[0]
    scaled = ForcedEncoder(model, SETTINGS)

    once, twice = (scaled.encode(forced, {"factor": np.array(number, np.float32)}) for number in (1, 2))

    np.testing.assert_array_equal(twice, 2 * once)
    assert (once != 0).any()
