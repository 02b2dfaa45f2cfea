"""`Seq2SeqGenerator` through the public door: tokens of transformers, batches that equal single rows, hand-over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_search import PrecisionSearchError, Seq2SeqGenerator, Step
from precision_search.device.cuda import GEMM_VARIABLE
from precision_search.errors import InputError, UsageError
from precision_search.model.bundle import Bundle, open_bundle, oracle_tokens
from precision_search.model.hf_files import copy_hf_files
from precision_search.model.layout import graph_file
from precision_search.model.onnx_files import write_model
from precision_search.model.samples import encode, load_samples
from precision_search.model.tokenizer import load_tokenizer
from precision_search.precision.convert import convert
from precision_search.precision.emulate import widen
from precision_search.precision.plan import Plan, pinned_keys
from precision_search.precision.weights import WeightCache
from precision_search.published.load import FACTS_FILE, load_published
from precision_search.published.seq2seq import Generated, _as_judged
from precision_search.runtime.backends import resolve_device
from precision_search.runtime.generator import Generator
from precision_search.runtime.reference import NEAR_TIE, first_difference
from precision_search.runtime.session import SessionSettings
from tests.conftest import DEMO_DATA, DEMO_MODEL
from tests.tiny_model import LOUD, write_tiny_model
from tests.warm import torch_command

SENTENCES = ["a b c", "d", "e f g h a b c d j", "i j"]
Load = Callable[..., Seq2SeqGenerator]


@pytest.fixture(scope="module")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=3)


@pytest.fixture(scope="module")
def tiny(tiny_directory: Path) -> Seq2SeqGenerator:
    return Seq2SeqGenerator.from_pretrained(tiny_directory, device="cpu", threads=1)


@pytest.fixture
def changed(tiny_directory: Path, tmp_path: Path) -> Load:
    """Loads a copy of the tiny model with other keys in one of its JSON files."""

    def load(file: str = "generation_config.json", **keys: object) -> Seq2SeqGenerator:
        copy = tmp_path / "copy"
        shutil.copytree(tiny_directory, copy, dirs_exist_ok=True)
        path = copy / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(content | keys))
        return Seq2SeqGenerator.from_pretrained(copy, device="cpu", threads=1)

    return load


@pytest.fixture(scope="module")
def demo(demo_bundle: Bundle) -> Seq2SeqGenerator:
    return Seq2SeqGenerator.from_pretrained(demo_bundle.path, device="cpu")


def demo_sentences() -> list[str]:
    return [sample.text for sample in load_samples(DEMO_DATA / "test.txt", "test").samples]


def differing(got: Generated, wanted: Sequence[Sequence[int]]) -> list[tuple[int, int, float]]:
    """Row, first differing position and its margin, for rows whose tokens are not those wanted."""
    assert got.margins is not None
    found = []
    for row, (ours, theirs) in enumerate(zip(got.ids, wanted, strict=True)):
        if list(ours) != list(theirs):
            position = min(first_difference(ours, theirs), len(ours) - 1)
            found.append((row, position, float(got.margins[row][position])))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8, 200])
def test_demo_tokens_are_those_of_transformers(
    demo: Seq2SeqGenerator, demo_bundle: Bundle, export_cache: Path, batch: int
) -> None:
    """On all 200 test sentences; only where two logits are closer than fp32 can tell may the two differ."""
    texts = demo_sentences()
    rows = encode(load_samples(DEMO_DATA / "test.txt", "test"), load_tokenizer(DEMO_MODEL), "", None).ids
    wanted = oracle_tokens(demo_bundle, rows, export_cache)
    texts, wanted = (texts[:40], wanted[:40]) if batch == 1 else (texts, wanted)
    ties: list[tuple[int, int, float]] = []
    for start in range(0, len(texts), batch):
        out = demo.generate(texts[start : start + batch], with_margins=True)
        assert not any(out.nonfinite)
        ties += differing(out, wanted[start : start + batch])
    assert [tie for tie in ties if not tie[2] < NEAR_TIE] == []
    assert len(ties) <= 1, f"near-ties, not errors, but more than this text has ever shown: {ties}"


def test_a_plain_fp32_model_runs_with_all_optimizations(demo: Seq2SeqGenerator) -> None:
    assert (demo.device, demo.optimization_level) == ("cpu", "all")


def test_texts_are_those_of_the_tokenizer(demo: Seq2SeqGenerator) -> None:
    texts = demo_sentences()[:5]
    out = demo.generate(texts)
    tokenizer = load_tokenizer(DEMO_MODEL)
    assert out.texts == tuple(tokenizer.decode(ids) for ids in out.ids)
    assert [demo.decode(ids) for ids in out.ids] == list(out.texts)
    assert demo.generate([tokenizer.encode(text) for text in texts]).ids == out.ids
    assert demo.generate([text[1:] for text in texts[:1]], prefix=texts[0][0]).ids == out.ids[:1]


@pytest.mark.slow
def test_a_batch_of_mixed_lengths_equals_sentences_one_by_one(demo: Seq2SeqGenerator) -> None:
    """Rows leave the batch as they end, so that this also holds each row's place in a batch that shrinks."""
    texts = demo_sentences()[:48]
    together = demo.generate(texts, with_margins=True)
    alone = [demo.generate([text]).ids[0] for text in texts]
    assert len({len(ids) for ids in alone}) > 10
    assert [tie for tie in differing(together, alone) if not tie[2] < NEAR_TIE] == []
    assert together.margins is not None
    assert [len(margins) for margins in together.margins] == [len(ids) for ids in together.ids]
    assert all(np.isfinite(margins).all() for margins in together.margins)


@pytest.mark.parametrize("option", ["leave_out_finished", "leave_out_padding"])
def test_leaving_out_what_does_not_count_changes_nothing(
    demo_bundle: Bundle, demo_ids: Sequence[Sequence[int]], option: str
) -> None:
    ids = np.zeros((40, max(len(row) for row in demo_ids[:40])), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(demo_ids[:40]):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    whole, left = (
        Generator(demo_bundle.models, demo_bundle.generation, SessionSettings(threads=1), **options).generate(
            ids, mask, with_margins=True
        )
        for options in ({}, {option: True})
    )
    np.testing.assert_array_equal(whole.tokens, left.tokens)
    np.testing.assert_array_equal(whole.lengths, left.lengths)
    assert whole.margins is not None
    assert left.margins is not None
    np.testing.assert_allclose(whole.margins, left.margins, atol=1e-3)


def test_the_limit_cuts_rows_and_says_so(demo: Seq2SeqGenerator) -> None:
    texts = demo_sentences()[:6]
    whole = demo.generate(texts)
    assert whole.finished == tuple(ids[-1] == 1 for ids in whole.ids)
    limit = sorted(len(ids) for ids in whole.ids)[2]
    cut = demo.generate(texts, max_new_tokens=limit)
    assert cut.ids == tuple(ids[:limit] for ids in whole.ids)
    assert cut.finished == tuple(len(ids) <= limit for ids in whole.ids)
    assert len(set(cut.finished)) == 2


def test_any_of_several_end_tokens_ends_a_row(tiny: Seq2SeqGenerator, changed: Load) -> None:
    plain = tiny.generate(SENTENCES)
    other = plain.ids[0][1]
    out = changed(eos_token_id=[1, other]).generate(SENTENCES)
    wanted = []
    for ids in plain.ids:
        stops = [position for position, token in enumerate(ids) if token in (1, other)]
        wanted.append(ids[: stops[0] + 1] if stops else ids)
    assert list(out.ids) == wanted
    assert other in {ids[-1] for ids in out.ids}


def test_first_and_last_tokens_can_be_forced(changed: Load) -> None:
    out = changed(forced_bos_token_id=5, forced_eos_token_id=1).generate(SENTENCES, max_new_tokens=4, with_margins=True)
    assert all(ids[0] == 5 for ids in out.ids)
    assert all(ids[-1] == 1 for ids in out.ids)
    assert out.margins is not None
    assert all(np.isinf(margins[0]) for margins in out.margins)
    assert all(row_and_position[1] > 0 for row_and_position in out.near_ties)


def test_near_ties_are_named(tiny: Seq2SeqGenerator) -> None:
    out = tiny.generate(SENTENCES, with_margins=True)
    assert out.margins is not None
    close = Generated(
        out.texts, out.ids, out.finished, out.nonfinite, (*out.margins[:3], out.margins[3] * 0), out.tokens
    )
    assert [row for row, _ in close.near_ties if row == 3] == [3] * len(out.ids[3])
    with pytest.raises(UsageError, match="near-ties are not known"):
        _ = tiny.generate(SENTENCES).near_ties


def test_each_step_is_streamed(demo: Seq2SeqGenerator) -> None:
    texts = demo_sentences()[:20]
    steps: list[Step] = []
    out = demo.generate(texts, on_step=steps.append)
    assert [step.index for step in steps] == list(range(out.tokens.shape[1]))
    np.testing.assert_array_equal(np.stack([step.tokens for step in steps], axis=1), np.from_dlpack(out.tokens))
    for row, ids in enumerate(out.ids):
        assert [bool(step.finished[row]) for step in steps] == [
            n + 1 >= len(ids) and out.finished[row] for n in range(len(steps))
        ]
    assert len(set(out.finished)) == 2


def test_threads_share_one_generator(demo: Seq2SeqGenerator) -> None:
    texts = demo_sentences()
    batches = [texts[start : start + size] for start, size in ((0, 1), (1, 7), (8, 3), (11, 12))]
    wanted = [demo.generate(batch).ids for batch in batches]
    got: dict[tuple[int, int], Any] = {}

    def work(thread: int) -> None:
        for turn in range(3):
            batch = (thread + turn) % len(batches)
            try:
                got[thread, turn] = batch, demo.generate(batches[batch], with_margins=turn == 1).ids
            except PrecisionSearchError as error:  # shown by the comparison below, not lost in a thread
                got[thread, turn] = batch, error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 12
    assert all(ids == wanted[batch] for batch, ids in got.values())


def written_low(bundle: Bundle, directory: Path, **settings: object) -> Path:
    """The bundle in fp16 except what cannot be, and what a run would say of it."""
    directory.mkdir()
    plan = Plan("float16", "base", pinned_keys(bundle.graphs) | {LOUD.replace(".weight", "/MatMul")})
    for name, model in convert(bundle.graphs, plan).models.items():
        write_model(model, directory / graph_file(name))
    copy_hf_files(bundle.path, directory)
    (directory / FACTS_FILE).write_text(json.dumps({"settings": settings}))
    return directory


def test_low_graphs_run_widened_on_a_cpu(tiny_directory: Path, tmp_path: Path) -> None:
    """The plain CPU path would give fp32's tokens: the weight that breaks this model in fp16 stays unseen there."""
    bundle = open_bundle(str(tiny_directory), tmp_path / "cache")
    low = written_low(bundle, tmp_path / "low", optimization_level="basic")
    rows = [load_tokenizer(low).encode(text) for text in SENTENCES]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    weights = WeightCache()
    graphs = {name: widen(graph, weights) for name, graph in load_published(low).graphs.items()}
    wanted = Generator(graphs, bundle.generation, SessionSettings(threads=1)).generate(ids, mask)

    out = Seq2SeqGenerator.from_pretrained(low, device="cpu", threads=1).generate(SENTENCES)

    assert [list(row) for row in out.ids] == [
        row[:length].tolist() for row, length in zip(wanted.tokens, wanted.lengths, strict=True)
    ]
    assert list(out.nonfinite) == wanted.nonfinite.tolist()
    fp32 = Seq2SeqGenerator.from_pretrained(tiny_directory, device="cpu", threads=1).generate(SENTENCES)
    assert (out.ids, out.nonfinite) != (fp32.ids, fp32.nonfinite)


def test_the_settings_of_the_verdict_are_applied(tiny_directory: Path, tmp_path: Path, changed: Load) -> None:
    judged = {"optimization_level": "disabled", "use_tf32": True}
    generator = changed(FACTS_FILE, settings=judged)
    assert generator.optimization_level == "disabled"
    assert generator._settings.use_tf32
    bundle = open_bundle(str(tiny_directory), tmp_path / "cache")
    low = written_low(bundle, tmp_path / "low")
    assert Seq2SeqGenerator.from_pretrained(low, device="cpu").optimization_level == "basic"
    assert not Seq2SeqGenerator.from_pretrained(low, device="cpu")._settings.use_tf32


def test_gemm_options_are_those_of_the_verdict_else_those_of_the_process(
    tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(str(tiny_directory), tmp_path / "cache")
    judged = load_published(written_low(bundle, tmp_path / "judged", gemm_options="0"))
    unsaid = load_published(written_low(bundle, tmp_path / "unsaid"))
    settings = SessionSettings(device="cuda")
    monkeypatch.setenv(GEMM_VARIABLE, "4")
    assert [_as_judged(model, settings)[1].gemm_options for model in (judged, unsaid)] == [0, 4]
    monkeypatch.delenv(GEMM_VARIABLE)
    assert [_as_judged(model, settings)[1].gemm_options for model in (judged, unsaid)] == [0, 2]
    assert GEMM_VARIABLE not in os.environ  # set when a session is made on CUDA


@pytest.mark.parametrize(
    ("key", "value"), [("num_beams", 4), ("do_sample", True), ("no_repeat_ngram_size", 3), ("repetition_penalty", 1.2)]
)
def test_what_is_not_greedy_is_refused_by_name(changed: Load, key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"asks for {key}") as caught:
        changed(**{key: value})
    assert key in caught.value.fix


HARMLESS: tuple[dict[str, object], ...] = (
    {"temperature": 0.3, "top_k": 5, "top_p": 0.5, "typical_p": 0.9, "min_p": 0.1, "epsilon_cutoff": 0.1},
    {"length_penalty": 2.0, "early_stopping": True, "low_memory": True, "num_beams": 1, "do_sample": False},
    {"min_length": 1, "min_new_tokens": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
    {"suppress_tokens": [], "begin_suppress_tokens": [], "guidance_scale": 1.0, "renormalize_logits": False},
    {"max_length": 9, "max_new_tokens": None},
    {"max_length": 9, "max_new_tokens": 5},
    {"eos_token_id": [1, 3, 4], "remove_invalid_values": True, "num_assistant_tokens": 3},
    {"forced_bos_token_id": 7, "forced_eos_token_id": 1, "max_new_tokens": 6},
    {"forced_bos_token_id": 7, "forced_eos_token_id": 1, "max_new_tokens": 1},
    {"bad_words_ids": [[5], [1]], "suppress_tokens": [7, 20, 21], "max_new_tokens": 8},
    {"begin_suppress_tokens": [1, 3, 5, 7, 9, 11], "min_length": 7, "max_new_tokens": 9},
    {"forced_bos_token_id": 7, "begin_suppress_tokens": [3, 5, 9], "min_new_tokens": 5, "min_length": 90},
    {"forced_eos_token_id": 1, "min_new_tokens": 90, "max_new_tokens": 9, "suppress_tokens": [0, 2]},
    {"cache_implementation": "dynamic", "use_cache": True, "output_scores": True, "return_dict_in_generate": False},
)
"""What generation configs hold that greedy decoding either does or ignores."""


@pytest.mark.slow
def test_what_a_generation_config_may_hold_means_what_transformers_says(
    demo: Seq2SeqGenerator, demo_bundle: Bundle, tmp_path: Path
) -> None:
    texts = demo_sentences()[:6]
    rows = [load_tokenizer(DEMO_MODEL).encode(text) for text in texts]
    base = json.loads((demo_bundle.path / "generation_config.json").read_text())
    configs = [{**base, **keys} for keys in HARMLESS]
    code = """
import json, sys, torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig
rows, configs = json.load(sys.stdin)
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
found = []
for config in configs:
    model.generation_config = GenerationConfig.from_dict(config)
    found.append([model.generate(torch.tensor([row]))[0, 1:].tolist() for row in rows])
print(json.dumps(found))
"""
    done = subprocess.run(
        [*torch_command(), "-c", code, str(DEMO_MODEL)],
        input=json.dumps([rows, configs]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for number, (config, wanted) in enumerate(zip(configs, json.loads(done.stdout.splitlines()[-1]), strict=True)):
        directory = tmp_path / str(number)
        shutil.copytree(demo_bundle.path, directory)
        (directory / "generation_config.json").write_text(json.dumps(config))
        out = Seq2SeqGenerator.from_pretrained(directory, device="cpu", threads=1).generate(texts, with_margins=True)
        assert [tie for tie in differing(out, wanted) if not tie[2] < NEAR_TIE] == [], HARMLESS[number]


def test_directories_that_are_no_model_say_what_is_missing(tiny_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a model directory") as caught:
        Seq2SeqGenerator.from_pretrained(tmp_path / "nowhere")
    assert "no such directory" in caught.value.why
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not a model directory"):
        Seq2SeqGenerator.from_pretrained(tmp_path / "empty")
    for missing in (graph_file("decoder"), "tokenizer.json", "config.json"):
        copy = tmp_path / missing
        shutil.copytree(tiny_directory, copy)
        (copy / missing).unlink()
        with pytest.raises(InputError) as caught:
            Seq2SeqGenerator.from_pretrained(copy, device="cpu")
        assert missing in str(caught.value)


def test_a_checkpoint_is_told_from_a_published_model() -> None:
    with pytest.raises(InputError, match="is a checkpoint, not a published model") as caught:
        Seq2SeqGenerator.from_pretrained(DEMO_MODEL)
    assert "precision-search run" in caught.value.fix


def test_unknown_devices_are_refused(tiny_directory: Path) -> None:
    with pytest.raises(UsageError, match="no device 'gpu'"):
        Seq2SeqGenerator.from_pretrained(tiny_directory, device="gpu")  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_cuda_device_gives_the_tokens_of_the_cpu(demo_bundle: Bundle, demo: Seq2SeqGenerator) -> None:
    if resolve_device("auto", warn=print) == "cpu":
        pytest.skip("no CUDA device starts here")
    texts = demo_sentences()[:50]
    out = Seq2SeqGenerator.from_pretrained(demo_bundle.path, device="cuda").generate(texts, with_margins=True)
    assert [tie for tie in differing(out, demo.generate(texts).ids) if not tie[2] < NEAR_TIE] == []
    assert out.tokens.__dlpack_device__() == (2, 0)  # kDLCUDA
    np.testing.assert_array_equal(out.tokens.ort_value.numpy()[0, : len(out.ids[0])], out.ids[0])


def test_a_model_may_pad_with_its_end_token(changed: Load) -> None:
    assert changed(pad_token_id=1).generate([[3, 4, 1], [5, 1]]).ids
