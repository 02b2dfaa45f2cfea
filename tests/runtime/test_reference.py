"""The reference is what transformers generates, its margins order samples by how easily they flip, and a difference
from the checkpoint is excused only where fp32 itself cannot tell."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.errors import InputError
from precision_search.model.bundle import Bundle
from precision_search.model.generation_config import GenerationSettings, ModelConfig
from precision_search.model.graph import GRAPH_NAMES, Graph
from precision_search.runtime.generator import Generation, Generator
from precision_search.runtime.reference import (
    NEAR_TIE,
    ParityDifference,
    Reference,
    compare_with_oracle,
    generate_all,
    make_reference,
)
from precision_search.runtime.session import SessionSettings
from tests.plans import SETTINGS
from tests.toy_bundle import VOCABULARY, Toy

Rows = tuple[tuple[int, ...], ...]

PAD, EOS, START, LIMIT = 0, 1, 2, 8
GREEDY = GenerationSettings(START, (EOS,), PAD, LIMIT, None, None)
CPU = SessionSettings(threads=1)
SIZES = ModelConfig("t5", VOCABULARY, 4, 4, 4, 1, 1, 1, True, True)


@pytest.fixture(scope="module")
def generator(demo_bundle: Bundle) -> Generator:
    return Generator(demo_bundle.models, demo_bundle.generation, SETTINGS)


@pytest.fixture(scope="module")
def demo_reference(demo_bundle: Bundle, generator: Generator, demo_ids: Rows) -> Reference:
    return make_reference(demo_bundle, generator, demo_ids, 32, SETTINGS)


def test_the_demo_generates_what_transformers_does(
    demo_reference: Reference, demo_oracle_tokens: list[list[int]]
) -> None:
    assert len(demo_oracle_tokens) == 100
    assert [list(tokens) for tokens in demo_reference.tokens] == demo_oracle_tokens
    assert compare_with_oracle(demo_reference, demo_oracle_tokens) == ()


def test_the_demo_has_a_positive_margin_for_every_token(demo_reference: Reference) -> None:
    assert [len(margins) for margins in demo_reference.margins] == [len(tokens) for tokens in demo_reference.tokens]
    assert min(margins.min() for margins in demo_reference.margins) > 0
    assert all(margins.dtype == np.float32 for margins in demo_reference.margins)


def test_margins_by_forcing_are_those_met_while_generating(
    demo_bundle: Bundle, generator: Generator, demo_reference: Reference, demo_ids: Rows
) -> None:
    """The decoder without past, given the prefix, and the one with past, step by step, are one model."""
    shape = (8, max(len(row) for row in demo_ids[:8]))
    input_ids, mask = np.full(shape, demo_bundle.generation.pad_token_id, np.int64), np.zeros(shape, np.int64)
    for row, ids in enumerate(demo_ids[:8]):
        input_ids[row, : len(ids)], mask[row, : len(ids)] = ids, 1

    out = generator.generate(input_ids, mask, with_margins=True)

    assert out.margins is not None
    for row, margins in enumerate(demo_reference.margins[:8]):
        np.testing.assert_allclose(out.margins[row, : len(margins)], margins, rtol=0, atol=NEAR_TIE / 10)


# The order of samples.

some_margins = st.lists(
    st.lists(st.just(float("nan")) | st.floats(-4, 4, width=32), max_size=5).map(lambda m: np.array(m, np.float32)),
    max_size=8,
)


@given(some_margins)
def test_the_most_fragile_sample_comes_first(margins: list[npt.NDArray[np.float32]]) -> None:
    reference = Reference(((),) * len(margins), tuple(margins))
    smallest = [min((float(m) for m in row if not np.isnan(m)), default=np.inf) for row in margins]

    assert reference.smallest.tolist() == smallest
    assert reference.fragile_first == tuple(sorted(range(len(margins)), key=lambda index: smallest[index]))


# Generating in batches.


class Echo:
    """A generator that says the source backwards and finds fault with rows that hold a 13."""

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []

    def generate(self, input_ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> Generation:
        lengths = mask.sum(axis=1)
        self.lengths.append(lengths.tolist())
        tokens = np.zeros_like(input_ids)
        for row, length in enumerate(lengths):
            tokens[row, :length] = input_ids[row, :length][::-1]
        return Generation(tokens, lengths, (input_ids == 13).any(axis=1), None)


@given(st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=6).map(tuple), min_size=1), st.integers(1, 5))
def test_batching_by_length_gives_every_row_its_own_tokens_back(rows: list[tuple[int, ...]], size: int) -> None:
    echo = Echo()

    tokens, nonfinite = generate_all(cast(Generator, echo), rows, PAD, size)

    assert tokens == tuple(row[::-1] for row in rows)
    assert nonfinite.tolist() == [13 in row for row in rows]
    lengths = [length for batch in echo.lengths for length in batch]
    assert lengths == sorted(lengths)
    assert max(len(batch) for batch in echo.lengths) <= size


# The toy model, of which numpy knows everything.


def bundle_of(toy: Toy, later: Toy | None = None, generation: GenerationSettings = GREEDY) -> Bundle:
    models = toy.models()
    if later is not None:
        models["decoder_with_past"] = later.models()["decoder_with_past"]
    graphs = {name: Graph(name, models[name], {}) for name in GRAPH_NAMES}
    return Bundle(Path("toy"), graphs, "", SIZES, generation, None)


def reference_of(bundle: Bundle, rows: Sequence[tuple[int, ...]], batch_size: int = 3) -> Reference:
    generator = Generator(bundle.models, bundle.generation, CPU)
    return make_reference(bundle, generator, rows, batch_size, CPU)


toy_rows = st.lists(st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=5).map(tuple), min_size=1, max_size=5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), toy_rows, st.none() | st.integers(3, 10), st.none() | st.just(EOS))
def test_tokens_and_margins_are_exactly_those_of_numpy(
    seed: int, rows: list[tuple[int, ...]], bos: int | None, eos: int | None
) -> None:
    """Ties among them, which have a margin of 0, and forced tokens, which have none."""
    toy = Toy.random(seed)
    generation = dataclasses.replace(GREEDY, forced_bos_token_id=bos, forced_eos_token_id=eos)

    reference = reference_of(bundle_of(toy, generation=generation), rows)

    for row, tokens, margins in zip(rows, reference.tokens, reference.margins, strict=True):
        wanted_tokens, wanted_margins = toy.greedy(list(row), generation, LIMIT)
        assert list(tokens) == wanted_tokens
        finite = np.where(np.isinf(wanted_margins), np.nan, wanted_margins)
        np.testing.assert_array_equal(margins, finite)


def test_a_model_that_is_not_finite_in_fp32_is_refused_with_its_sample() -> None:
    toy = Toy.random(0)
    toy.encoder[9] = np.inf

    with pytest.raises(InputError, match=re.escape("non-finite logits on sample 3")) as caught:
        reference_of(bundle_of(toy), [(3, 4), (5,), (9, 3), (4,)])

    assert caught.value.fix


def test_decoders_that_disagree_are_refused() -> None:
    """Otherwise fp32 itself would fail its screen, and every plan with it, for no reason that anybody could see."""
    first, later = Toy.random(27), Toy.random(28)
    assert first.greedy([3], GREEDY, LIMIT)[0] == [EOS]  # its only token is the first decoder's

    with pytest.raises(InputError, match=r"decoder and decoder_with_past disagree on token [2-9] of sample 2"):
        reference_of(bundle_of(first, later), [(3,), (4, 5, 6, 7)])


# Parity with the checkpoint.


def reference(tokens: Sequence[int], margins: Sequence[float]) -> Reference:
    return Reference((tuple(tokens),), (np.array(margins, np.float32),))


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ([5, 6, 7, 1], [5, 8, 7, 1], (1, 6, 8, 0.25)),
        ([5, 6, 7, 1], [8, 6, 7, 1], (0, 5, 8, 0.5)),
        ([5, 6, 1], [5, 6, 7, 1], (2, 1, 7, 0.125)),
        ([5, 6, 7, 1], [5, 6], (2, 7, None, 0.125)),
        ([5, 6], [5, 6, 7], (2, None, 7, None)),
        ([5, 6], [], (0, 5, None, 0.5)),
    ],
)
def test_the_first_difference_is_named(
    ours: list[int], theirs: list[int], found: tuple[int, int | None, int | None, float | None]
) -> None:
    margins = [0.5, 0.25, 0.125, 0.0625][: len(ours)]

    assert compare_with_oracle(reference(ours, margins), [theirs]) == (ParityDifference(0, *found),)


def test_only_samples_that_differ_are_listed() -> None:
    many = Reference(((5, 1), (6, 1), (7, 1)), (np.ones(2, np.float32),) * 3)

    found = compare_with_oracle(many, [[5, 1], [9, 1], [7, 1]])

    assert [difference.sample for difference in found] == [1]
    with pytest.raises(ValueError, match="shorter"):
        compare_with_oracle(many, [[5, 1], [9, 1]])


@pytest.mark.parametrize(
    ("margin", "excused"),
    [(NEAR_TIE / 2, True), (0.0, True), (-NEAR_TIE / 2, True), (NEAR_TIE, False), (0.3, False), (-0.3, False)],
)
def test_only_a_margin_close_to_zero_excuses_a_difference(margin: float, excused: bool) -> None:
    """A token that clearly loses is no near-tie: whoever chose it has another model."""
    found = compare_with_oracle(reference([5, 1], [margin, 1.0]), [[6, 1]])

    assert found[0].near_tie is excused


def test_a_forced_token_or_an_early_end_is_no_near_tie() -> None:
    forced = compare_with_oracle(reference([5, 1], [float("nan"), 1.0]), [[6, 1]])
    ended = compare_with_oracle(reference([5], [1.0]), [[5, 6]])

    assert not forced[0].near_tie
    assert not ended[0].near_tie
