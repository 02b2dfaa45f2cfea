"""The generator against transformers on the demo model, and against numpy on a toy model in every cache dtype."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from precision_search.errors import DeviceError, InputError
from precision_search.model.bundle import Bundle
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.graph import GraphName
from precision_search.runtime import decoding
from precision_search.runtime.backends import create_session
from precision_search.runtime.buffers import Buffer
from precision_search.runtime.cache import Cache, cache_tensors
from precision_search.runtime.generator import Generation, Generator
from precision_search.runtime.head import with_margin_head
from precision_search.runtime.session import SessionSettings
from tests.graphs import tiny_t5_protos
from tests.toy_bundle import VOCABULARY, Toy

PAD, EOS, START = 0, 1, 2
GREEDY = GenerationSettings(START, (EOS,), PAD, 12, None, None)
CPU = SessionSettings(threads=1)
DTYPES = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16]

Ids = npt.NDArray[np.int64]


def padded(rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    ids = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


def token_lists(generation: Generation) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(generation.tokens, generation.lengths, strict=True)]


def make(
    toy: Toy, generation: GenerationSettings = GREEDY, dtype: int = TensorProto.FLOAT, **options: Any
) -> Generator:
    return Generator(toy.models(dtype), generation, CPU, **options)


def check_against_numpy(
    generator: Generator, toy: Toy, rows: Sequence[list[int]], generation: GenerationSettings, limit: int
) -> None:
    out = generator.generate(*padded(rows), max_new_tokens=limit, with_margins=True)
    expected = [toy.greedy(row, generation, limit) for row in rows]
    longest = max(len(tokens) for tokens, _ in expected)
    assert token_lists(out) == [tokens for tokens, _ in expected]
    assert out.tokens.shape == (len(rows), longest)
    assert out.margins is not None
    for index, (tokens, margins) in enumerate(expected):
        assert (out.tokens[index, len(tokens) :] == PAD).all()
        np.testing.assert_array_equal(out.margins[index], margins + [np.inf] * (longest - len(tokens)))
    assert not out.nonfinite.any()


some_rows = st.lists(st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=6), min_size=1, max_size=5)
some_settings = st.builds(
    GenerationSettings,
    decoder_start_token_id=st.just(START),
    eos_token_ids=st.sampled_from([(EOS,), (EOS, 4, 7), ()]),
    pad_token_id=st.just(PAD),
    max_new_tokens=st.just(12),
    forced_bos_token_id=st.sampled_from([None, 5]),
    forced_eos_token_id=st.sampled_from([None, EOS]),
    suppressed_tokens=st.sampled_from([(), (3, 6)]),
    begin_suppressed_tokens=st.sampled_from([(), (4, 8, 9)]),
    min_new_tokens=st.sampled_from([0, 0, 1, 4, 20]),
)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=some_rows,
    generation=some_settings,
    limit=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    check_every=st.sampled_from([1, 4]),
)
def test_tokens_and_margins_equal_numpy(
    *, seed: int, rows: list[list[int]], generation: GenerationSettings, limit: int, dtype: int, check_every: int
) -> None:
    toy = Toy.random(seed)
    generator = make(toy, generation, dtype, check_every=check_every)
    check_against_numpy(generator, toy, rows, generation, limit)


def test_encoder_states_may_be_an_input_of_later_steps() -> None:
    toy = Toy.random(1)
    generator = Generator(toy.models(states_again=True), GREEDY, CPU)
    check_against_numpy(generator, toy, [[3, 4], [5]], GREEDY, 12)


def test_the_limit_is_the_generation_config_s_by_default() -> None:
    endless = dataclasses.replace(GREEDY, eos_token_ids=())
    out = make(Toy.random(0), endless).generate(*padded([[3], [4]]))
    assert out.tokens.shape == (2, 12)
    assert out.lengths.tolist() == [12, 12]
    assert out.margins is None


def test_a_batch_that_fits_allocates_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy.random(3)
    generator = make(toy)
    big = [[3, 4, 5], [6, 7], [8]]
    check_against_numpy(generator, toy, big, GREEDY, 12)
    made: list[Sequence[int]] = []
    real = onnxruntime.OrtValue.ortvalue_from_shape_and_type

    def spy(shape: Sequence[int], *args: Any) -> Any:
        made.append(shape)
        return real(shape, *args)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", spy)
    for rows in ([[9, 9]], big, [[3], [4]]):
        check_against_numpy(generator, toy, rows, GREEDY, 8)
    assert not made
    check_against_numpy(generator, toy, [*big, *big], GREEDY, 12)
    assert made


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_encoded_by_length_come_back_to_their_places(monkeypatch: pytest.MonkeyPatch, dtype: int) -> None:
    """Also where a larger batch has left other values behind."""
    monkeypatch.setattr(decoding, "_GROUP_POSITIONS", 4)
    runs: list[tuple[int, ...]] = []
    real = decoding.Encoder._encode

    def spy(self: decoding.Encoder, ids: Ids, *rest: Any) -> None:
        runs.append(ids.shape)
        real(self, ids, *rest)

    monkeypatch.setattr(decoding.Encoder, "_encode", spy)
    toy = Toy.random(6)
    generator = make(toy, dtype=dtype, leave_out_padding=True)
    for lengths in ([9, 1, 2, 9, 1, 5], [1, 6, 1, 2], [3, 3, 3], [7]):
        rows = [[3 + (index + place) % (VOCABULARY - 3) for place in range(n)] for index, n in enumerate(lengths)]
        check_against_numpy(generator, toy, rows, GREEDY, 12)
    assert runs == [(1, 9), (1, 9), (1, 5), (2, 2), (1, 1), (1, 6), (2, 2), (1, 1), (3, 3), (1, 7)]


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200))
def test_groups_of_like_length_hold_every_row_once_and_save_padding(lengths: list[int]) -> None:
    sizes = np.array(lengths)
    groups = decoding.like_lengths(sizes)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    if len(groups) > 1:
        assert sum(len(rows) * sizes[rows].max() for rows in groups) <= 7 / 8 * len(lengths) * sizes.max()
        assert all(sizes[left].min() >= sizes[right].max() for left, right in itertools.pairwise(groups))
        assert all(len(rows) * sizes[rows].max() >= 256 for rows in groups[:-1])


def test_a_value_that_is_not_finite_is_seen_in_rows_encoded_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_GROUP_POSITIONS", 1)
    toy = Toy.random(0)
    ids, mask = padded([[3], [4, 5, 6], [5]])
    toy.encoder[5] = np.nan
    out = make(toy, leave_out_padding=True).generate(ids, mask)
    np.testing.assert_array_equal(out.nonfinite, make(toy).generate(ids, mask).nonfinite)
    assert out.nonfinite.tolist() == [False, True, True]


def test_results_outlive_the_next_call() -> None:
    generator = make(Toy.random(4))
    first = generator.generate(*padded([[3, 4, 5]]), max_new_tokens=1, with_margins=True)
    kept = first.tokens.copy(), first.margins
    generator.generate(*padded([[8, 9]]), max_new_tokens=1, with_margins=True)
    np.testing.assert_array_equal(first.tokens, kept[0])
    np.testing.assert_array_equal(first.margins, kept[1])


def test_calls_from_several_threads_do_not_mix() -> None:
    toy = Toy.random(5)
    generator = make(toy)
    batches = [[[3 + index, 4], [5]] * (index + 1) for index in range(5)]
    found: dict[int, list[list[int]]] = {}

    def work(index: int) -> None:
        for _ in range(5):
            found[index] = token_lists(generator.generate(*padded(batches[index])))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, rows in enumerate(batches):
        assert found[index] == [toy.greedy(row, GREEDY, 12)[0] for row in rows]


def test_only_positions_that_count_make_a_row_nonfinite() -> None:
    toy = Toy.random(6)
    toy.encoder[10] = np.inf
    ids, mask = padded([[3, 10], [3, 4], [5, 6]])
    mask[0, 1] = 0
    out = make(toy).generate(ids, mask)
    assert out.nonfinite.tolist() == [False, False, False]
    mask[0, 1] = 1
    assert make(toy).generate(ids, mask).nonfinite.tolist() == [True, False, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_happens_after_the_end_does_not_count(dtype: int) -> None:
    toy = Toy.random(6)
    toy.decoder[EOS] = np.nan  # read only by the steps after a row's end
    rows = [[token] for token in range(3, VOCABULARY)]
    out = make(toy, dtype=dtype).generate(*padded(rows))
    assert len(set(out.lengths.tolist())) > 1
    assert not out.nonfinite.any()


def test_logits_that_are_not_finite_are_seen() -> None:
    toy = Toy.random(6)
    toy.decoder[START, 0] = np.inf
    out = make(toy).generate(*padded([[3], [4]]), with_margins=True)
    assert out.nonfinite.all()
    assert out.margins is not None
    assert np.isnan(out.margins[:, 0]).all()


class Binding:
    """Remembers the memory that each name is bound to."""

    def __init__(self) -> None:
        self.inputs: dict[str, range] = {}
        self.outputs: dict[str, range] = {}

    def bind_input(self, name: str, *place: Any) -> None:
        self.inputs[name] = self._extent(*place)

    def bind_output(self, name: str, *place: Any) -> None:
        self.outputs[name] = self._extent(*place)

    def _extent(self, device: str, device_id: int, dtype: int, shape: Sequence[int], address: int) -> range:
        return range(address, address + 4 * int(np.prod(shape)))


def test_a_step_reads_what_the_one_before_wrote_and_writes_elsewhere() -> None:
    models = Toy.random(0).models()
    cache = Cache(cache_tensors(models["decoder"], models["decoder_with_past"]), CPU)
    cache.reserve(2, 3, 6)
    binding: Any = Binding()
    cache.bind_cross_inputs(binding)
    for step in range(6):
        written = dict(binding.outputs)
        cache.bind_step(binding, step)
        if step:
            for kind in ("key", "value"):
                past = binding.inputs[f"past_key_values.0.decoder.{kind}"]
                assert past == written[f"present.0.decoder.{kind}"]
        extents = sorted((*binding.inputs.values(), *binding.outputs.values()), key=lambda extent: extent.start)
        assert all(left.stop <= right.start for left, right in itertools.pairwise(extents))


def test_a_graph_that_is_missing_is_named() -> None:
    models = Toy.random(0).models()
    del models["decoder_with_past"]
    with pytest.raises(InputError, match="'decoder_with_past' is missing"):
        Generator(models, GREEDY, CPU)


def test_an_unknown_input_is_named() -> None:
    models = Toy.random(0).models()
    models["decoder"] = models["decoder"].clone()
    models["decoder"].graph.inputs[2].name = "cross_mask"
    with pytest.raises(InputError, match="inputs of the graph 'decoder'") as caught:
        Generator(models, GREEDY, CPU)
    assert "cross_mask" in caught.value.why


def test_caches_of_different_dtypes_do_not_fit() -> None:
    toy = Toy.random(0)
    models = toy.models() | {"decoder": toy.models(TensorProto.FLOAT16)["decoder"]}
    with pytest.raises(InputError, match=r"past_key_values\.0\.decoder\.key") as caught:
        Generator(models, GREEDY, CPU)
    assert "FLOAT16" in caught.value.why


ONES = np.ones((2, 3), np.int64)


@pytest.mark.parametrize(
    ("ids", "mask", "limit", "match"),
    [
        (ONES.astype(np.int32), ONES, 4, "input_ids cannot"),
        (ONES, ONES.astype(np.float32), 4, "attention_mask cannot"),
        (ONES[0], ONES[0], 4, "input_ids cannot"),
        (ONES[:, :0], ONES[:, :0], 4, "input_ids cannot"),
        (ONES, ONES[:, :2], 4, "do not fit together"),
        (ONES - 2, ONES, 4, "negative id"),
        (ONES, ONES * 2, 4, "0 and 1"),
        (ONES, ONES, 0, "nothing to generate"),
        (ONES * VOCABULARY, ONES, 4, "failed to run"),
    ],
)
def test_bad_arguments_are_refused(ids: Any, mask: Any, limit: int, match: str) -> None:
    with pytest.raises(InputError, match=match):
        make(Toy.random(0)).generate(ids, mask, max_new_tokens=limit)


def test_a_device_without_memory_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="no memory for") as caught:
        Buffer(ir.DataType.FLOAT, CPU).reserve(2**60)
    assert "smaller batch" in caught.value.fix


@pytest.fixture(scope="module")
def demo_generator(demo_bundle: Bundle) -> Generator:
    return Generator(demo_bundle.models, demo_bundle.generation, SessionSettings(threads=1))


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_demo_tokens_equal_those_of_transformers(
    demo_generator: Generator,
    demo_ids: Sequence[Sequence[int]],
    demo_oracle_tokens: list[list[int]],
    batch: int,
) -> None:
    count = 5 if batch == 1 else 100
    found: list[list[int]] = []
    for start in range(0, count, batch):
        out = demo_generator.generate(*padded(demo_ids[start : start + batch]))
        assert not out.nonfinite.any()
        found += token_lists(out)
    assert found == [list(tokens) for tokens in demo_oracle_tokens[:count]]


def test_demo_margins_equal_those_under_teacher_forcing(
    demo_generator: Generator, demo_bundle: Bundle, demo_ids: Sequence[Sequence[int]]
) -> None:
    ids, mask = padded(demo_ids[:8])
    out = demo_generator.generate(ids, mask, with_margins=True)
    hidden = create_session(demo_bundle.models["encoder"], CPU).run(
        ["last_hidden_state"], {"input_ids": ids, "attention_mask": mask}
    )
    start = np.full((len(ids), 1), demo_bundle.generation.decoder_start_token_id)
    feeds = {
        "input_ids": np.concatenate([start, out.tokens[:, :-1]], axis=1),
        "encoder_hidden_states": hidden[0],
        "encoder_attention_mask": mask,
        "labels": out.tokens,
    }
    forced = create_session(with_margin_head(demo_bundle.models["decoder"]), CPU).run(["margin"], feeds)[0]
    assert out.margins is not None
    valid = np.isfinite(out.margins)
    assert valid.sum() == out.lengths.sum()
    np.testing.assert_allclose(out.margins[valid], forced[valid], atol=1e-3)


def lost_output(models: dict[GraphName, ir.Model], name: str) -> None:
    outputs = models["decoder"].graph.outputs
    outputs.remove(next(value for value in outputs if value.name == name))


def loose_shape(models: dict[GraphName, ir.Model], name: str) -> None:
    value = next(value for value in models["decoder_with_past"].graph.inputs if value.name == name)
    value.shape = ir.Shape([None, None, None, None])


def no_cache(models: dict[GraphName, ir.Model], _: str) -> None:
    inputs = models["decoder_with_past"].graph.inputs
    for value in [value for value in inputs if str(value.name).startswith("past_key_values")]:
        inputs.remove(value)


@pytest.mark.parametrize(
    ("spoil", "name", "why"),
    [
        (lost_output, "present.0.decoder.key", "but decoder does not give it"),
        (loose_shape, "past_key_values.0.decoder.key", "fixed heads and head size are needed"),
        (no_cache, "", "decoder_with_past has no such input"),
    ],
)
def test_decoder_graphs_whose_caches_do_not_fit_are_refused(spoil: Any, name: str, why: str) -> None:
    models = {key: ir.from_proto(proto) for key, proto in tiny_t5_protos().items()}
    spoil(models, name)
    with pytest.raises(InputError, match=r"do not fit together at 'past_key_values\.0") as caught:
        cache_tensors(models["decoder"], models["decoder_with_past"])
    assert why in caught.value.why
    assert "export the three graphs together" in caught.value.fix
