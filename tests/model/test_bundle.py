"""Opening models: a checkpoint is exported once and agrees with transformers; what does not fit is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from precision_search.config import GREEDY
from precision_search.errors import InputError
from precision_search.model import bundle as bundle_module
from precision_search.model import export_worker
from precision_search.model.bundle import Bundle, open_bundle, oracle_tokens
from precision_search.model.export_cache import HASHES
from precision_search.model.export_worker import ExportJob, GenerateJob, run_jobs
from precision_search.model.families import FAMILIES
from precision_search.model.graph import GRAPH_NAMES, GraphName, family_of
from precision_search.model.hf_files import copy_hf_files
from precision_search.model.layout import graph_file
from precision_search.model.onnx_files import read_model
from precision_search.precision.convert import convert
from precision_search.precision.dtypes import assign
from precision_search.precision.emulate import emulate, widen
from precision_search.precision.plan import Plan, pinned_keys
from precision_search.precision.weights import WeightCache
from precision_search.runtime.generator import Generator
from precision_search.runtime.reference import make_reference
from precision_search.runtime.session import SessionSettings
from tests.checkpoints import TOKENIZER, open_once, saved_checkpoints, trace
from tests.graphs import (
    HEAD_WIDTH,
    HEADS,
    INNER,
    LAYERS,
    VOCABULARY,
    WIDTH,
    run_t5,
    same,
    tiny_feeds,
    tiny_t5_protos,
)
from tests.told import Told

CPU = SessionSettings(threads=1)
Protos = dict[GraphName, onnx.ModelProto]
CONFIG: Mapping[str, Any] = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": HEAD_WIDTH,
    "d_ff": INNER,
    "num_heads": HEADS,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ROWS = ((5, 9, 33, 1), (7, 1), (12, 40, 41, 42, 13, 1), (60, 2, 1), (8, 8, 8, 8, 1))


def write_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the tiny T5's config."""
    path = tmp_path / "tiny"
    path.mkdir()
    write_config(path)
    return path


def write_graphs(folder: Path, protos: Protos | None = None) -> None:
    for name, proto in (protos or tiny_t5_protos()).items():
        onnx.save(proto, folder / graph_file(name))


def opened(folder: Path, **options: Any) -> Bundle:
    return open_bundle(str(folder), folder.parent / "cache", **options)


def refusal(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        opened(folder)
    assert caught.value.fix
    return caught.value


def no_worker(jobs: Sequence[object]) -> list[Mapping[str, Any]]:
    raise AssertionError(f"no worker may start, but {jobs} was asked for")


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[ExportJob | GenerateJob]:
    """The jobs that were asked for, none of which reached torch."""
    jobs: list[ExportJob | GenerateJob] = []
    monkeypatch.setattr(bundle_module, "run_jobs", lambda asked: stand_in(jobs, asked))
    return jobs


def stand_in(done: list[ExportJob | GenerateJob], jobs: Sequence[ExportJob | GenerateJob]) -> list[Mapping[str, Any]]:
    """Writes the tiny T5 instead of exporting, and gives each row of ids back as its tokens."""
    answers: list[Mapping[str, Any]] = []
    for job in jobs:
        done.append(job)
        if isinstance(job, ExportJob):
            onnx.save(tiny_t5_protos()[job.graph], job.target)
            answers.append({})
        else:
            answers.append({"tokens": [list(row) for row in job.rows]})
    return answers


# --- directories with ONNX files


def test_a_directory_with_onnx_files_only_has_no_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "run_jobs", no_worker)
    write_graphs(folder)
    bundle = opened(folder)
    assert bundle.checkpoint is None
    assert bundle.path == folder
    assert tuple(bundle.graphs) == GRAPH_NAMES
    assert bundle.config.num_decoder_layers == LAYERS
    assert bundle.generation.eos_token_ids == (1,)
    assert len(bundle.content_hash) == 64
    assert all(bundle.models[name] is graph.model for name, graph in bundle.graphs.items())
    with pytest.raises(ValueError, match="no oracle"):
        oracle_tokens(bundle, ROWS, folder.parent / "cache")


def test_weights_beside_the_onnx_files_are_their_checkpoint(
    folder: Path, workers: list[ExportJob | GenerateJob]
) -> None:
    write_graphs(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert opened(folder).checkpoint == folder
    assert workers == []


def test_max_new_tokens_may_be_given(folder: Path) -> None:
    write_graphs(folder)
    assert opened(folder, max_new_tokens=7).generation.max_new_tokens == 7


@pytest.mark.parametrize("missing", GRAPH_NAMES)
def test_each_of_the_three_files_is_needed(folder: Path, missing: GraphName) -> None:
    write_graphs(folder)
    (folder / graph_file(missing)).unlink()
    error = refusal(folder)
    assert graph_file(missing) in error.fix
    if missing != "encoder":
        assert graph_file(missing) in error.what


def renamed(old: str, new: str, name: GraphName) -> Protos:
    protos = tiny_t5_protos()
    graph = protos[name].graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new if value.name == old else value.name
    for node in graph.node:
        node.input[:] = [new if each == old else each for each in node.input]
        node.output[:] = [new if each == old else each for each in node.output]
    return protos


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("encoder", "attention_mask", "mask"),
        ("decoder", "encoder_hidden_states", "states"),
        ("decoder", "present.1.encoder.value", "cross_value"),
        ("decoder_with_past", "past_key_values.0.decoder.key", "past_key_self_0"),
        ("decoder_with_past", "logits", "scores"),
    ],
)
def test_other_names_of_inputs_and_outputs_are_told(folder: Path, name: GraphName, old: str, new: str) -> None:
    write_graphs(folder, renamed(old, new, name))
    error = refusal(folder)
    assert f"{graph_file(name)} is not the {name} of the usual layout" in error.what
    assert old in error.why
    assert "optimum" in error.fix


def changed(name: GraphName, change: Callable[[onnx.GraphProto], None]) -> Protos:
    protos = tiny_t5_protos()
    change(protos[name].graph)
    return protos


def test_a_fixed_batch_size_is_told(folder: Path) -> None:
    def fix(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    write_graphs(folder, changed("decoder", fix))
    assert "input_ids has the fixed batch size 1" in refusal(folder).why


def test_token_ids_of_another_type_are_told(folder: Path) -> None:
    def narrow(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.elem_type = TensorProto.INT16

    write_graphs(folder, changed("encoder", narrow))
    assert "input_ids is INT16, not INT64" in refusal(folder).why


def test_encoder_states_as_an_input_of_later_steps_are_fine(folder: Path) -> None:
    def add(graph: onnx.GraphProto) -> None:
        states = onnx.helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, ["b", "s", WIDTH])
        graph.input.append(states)

    write_graphs(folder, changed("decoder_with_past", add))
    assert opened(folder).checkpoint is None


def test_a_mixed_graph_is_refused(folder: Path) -> None:
    write_graphs(folder)
    bundle = opened(folder)
    plan = Plan("float16", "base", pinned_keys(bundle.graphs))
    target = folder.parent / "mixed"
    shutil.copytree(folder, target)
    ir.save(convert(bundle.graphs, plan).models["encoder"], target / graph_file("encoder"))
    assert "encoder_model.onnx is not an fp32 graph" in refusal(target).what


def test_a_corrupt_graph_is_refused(folder: Path) -> None:
    write_graphs(folder)
    (folder / graph_file("decoder")).write_bytes(b"\x08\x07broken")
    assert "decoder_model.onnx is not a readable ONNX file" in refusal(folder).what


def test_decoders_with_different_weights_are_refused(folder: Path) -> None:
    protos = tiny_t5_protos()
    protos["decoder_with_past"] = tiny_t5_protos(seed=1)["decoder_with_past"]
    write_graphs(folder, protos)
    error = refusal(folder)
    assert "have no partner in decoder" in error.what
    assert "decoder.embed_tokens/Gather" in error.what


def test_decoders_without_names_and_with_different_weights_are_refused(folder: Path) -> None:
    """Without names of nodes and weights, a key is a count, which may match by chance."""
    protos = tiny_t5_protos()
    protos["decoder_with_past"] = tiny_t5_protos(seed=1)["decoder_with_past"]
    for proto in protos.values():
        for node in proto.graph.node:
            node.name = ""
        names = {value.name: f"w{index}" for index, value in enumerate(proto.graph.initializer)}
        for value in proto.graph.initializer:
            value.name = names[value.name]
        for node in proto.graph.node:
            node.input[:] = [names.get(each, each) for each in node.input]
    write_graphs(folder, protos)
    error = refusal(folder)
    assert "the first is decoder/" in error.what
    assert "exported differently" in error.why


def test_a_later_step_that_computes_more_is_refused(folder: Path) -> None:
    def add(graph: onnx.GraphProto) -> None:
        graph.node.insert(0, onnx.helper.make_node("Neg", ["past_key_values.0.encoder.key"], ["more"], "/extra/Neg"))

    protos = changed("decoder_with_past", add)
    write_graphs(folder, protos)
    assert "the first is decoder.extra/Neg" in refusal(folder).what


def stored_outside(protos: Protos, folder: Path, location: str) -> None:
    for name, proto in protos.items():
        onnx.save_model(
            proto, folder / graph_file(name), save_as_external_data=True, location=location, size_threshold=0
        )


def test_the_content_hash_covers_weights_wherever_they_are(folder: Path) -> None:
    stored_outside({"encoder": tiny_t5_protos()["encoder"]}, folder, "heavy.bin")
    for name in ("decoder", "decoder_with_past"):
        onnx.save(tiny_t5_protos()[name], folder / graph_file(name))
    first = opened(folder).content_hash
    copied = folder.parent / "copied"
    shutil.copytree(folder, copied)
    assert opened(copied).content_hash == first
    (copied / "notes.txt").write_text("no part of the model")
    (copied / "encoder_model.onnx.old").write_text("nor this")
    assert opened(copied).content_hash == first
    content = bytearray((copied / "heavy.bin").read_bytes())
    content[-1] ^= 1
    (copied / "heavy.bin").write_bytes(content)
    assert opened(copied).content_hash != first


def test_weights_in_a_file_of_another_name_run_and_convert(folder: Path) -> None:
    inside = {name: ir.from_proto(proto) for name, proto in tiny_t5_protos().items()}
    for name, proto in tiny_t5_protos().items():
        onnx.save_model(
            proto, folder / graph_file(name), save_as_external_data=True, location=f"{name}.bin", size_threshold=0
        )
    bundle = opened(folder)
    feeds = tiny_feeds()
    found, expected = run_t5(bundle.models, feeds), run_t5(inside, feeds)
    assert all(same(found[name], expected[name]) for name in expected)
    low = convert(bundle.graphs, Plan("float16", "base", pinned_keys(bundle.graphs)))
    assert np.isfinite(
        run_t5({n: widen(m, WeightCache()) for n, m in low.models.items()}, feeds)["decoder"]["logits"]
    ).all()


# --- what is no model


def test_a_directory_without_a_model_says_what_it_found(folder: Path) -> None:
    error = refusal(folder)
    assert "holds neither ONNX graphs nor model.safetensors" in error.what
    assert "config.json" in error.why


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refusal(tmp_path / "empty").why


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    error = refusal(folder)
    assert "pytorch_model.bin" in error.why
    assert "safetensors" in error.fix


def test_another_kind_of_model_is_refused(folder: Path) -> None:
    write_graphs(folder)
    write_config(folder, model_type="bert", architectures=["BertForMaskedLM"])
    assert "BertForMaskedLM" in refusal(folder).why


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere", "~/models/t5", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model directory") as caught:
        open_bundle(source, tmp_path)
    assert "hub id" in caught.value.fix


def test_a_hub_id_is_fetched_without_pickles_or_said_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def fetch(repo: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((repo, allow_patterns))
        raise OSError("offline\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    told = Told()
    with pytest.raises(InputError, match="cannot be fetched from the hub") as caught:
        open_bundle("someone/tiny-t5", tmp_path, reporter=told)
    assert caught.value.why == "offline"
    assert told.stages == ["downloading someone/tiny-t5"]
    assert asked[0][0] == "someone/tiny-t5"
    assert "config.json" in asked[0][1]
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked[0][1])


# --- exports, with a stand-in for torch


@pytest.fixture
def checkpoint(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text(TOKENIZER)
    return folder


def test_a_checkpoint_is_exported_once(
    checkpoint: Path, workers: list[ExportJob | GenerateJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    first = opened(checkpoint, reporter=told)
    assert len(told.stages) == 1
    assert "exporting tiny" in told.stages[0]
    assert sorted(job.graph for job in workers if isinstance(job, ExportJob)) == sorted(GRAPH_NAMES)
    assert first.checkpoint == checkpoint
    assert checkpoint.parent / "cache" in first.path.parents
    assert {entry.name for entry in first.path.iterdir()} == {
        *map(graph_file, GRAPH_NAMES),
        "config.json",
        "tokenizer.json",
        HASHES,
    }
    assert [entry.name for entry in first.path.parent.iterdir()] == [first.path.name]
    monkeypatch.setattr(bundle_module, "run_jobs", no_worker)
    second = opened(checkpoint, reporter=told)
    assert (second.path, second.content_hash) == (first.path, first.content_hash)
    assert len(told.stages) == 1
    elsewhere = checkpoint.parent / "elsewhere"
    shutil.copytree(checkpoint, elsewhere)
    assert opened(elsewhere).path == first.path


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_another_checkpoint_is_another_export(
    checkpoint: Path, workers: list[ExportJob | GenerateJob], name: str
) -> None:
    first = opened(checkpoint)
    with (checkpoint / name).open("a") as stream:
        stream.write(" ")
    assert opened(checkpoint).path != first.path
    assert len(workers) == 6


def test_other_versions_export_anew(
    checkpoint: Path, workers: list[ExportJob | GenerateJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(checkpoint)
    monkeypatch.setattr(bundle_module, "EXPORT_VERSION", "next")
    opened(checkpoint)
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 99")
    opened(checkpoint)
    assert len(workers) == 9


def test_a_failing_export_leaves_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(jobs: Sequence[ExportJob]) -> list[Mapping[str, Any]]:
        onnx.save(tiny_t5_protos()[jobs[0].graph], jobs[0].target)
        raise InputError("cannot trace", why="because", fix="do this")

    monkeypatch.setattr(bundle_module, "run_jobs", fail)
    assert refusal(checkpoint).what == "cannot trace"
    assert list((checkpoint.parent / "cache" / "bundles").iterdir()) == []


def test_two_exports_of_one_checkpoint_at_once_do_no_harm(
    checkpoint: Path, workers: list[ExportJob | GenerateJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = opened(checkpoint).path
    aside = finished.with_name("aside")
    finished.rename(aside)

    def slowly(jobs: Sequence[ExportJob | GenerateJob]) -> list[Mapping[str, Any]]:
        answers = stand_in(workers, jobs)
        aside.rename(finished)  # the other run is done first
        return answers

    monkeypatch.setattr(bundle_module, "run_jobs", slowly)
    assert opened(checkpoint).path == finished
    assert [entry.name for entry in finished.parent.iterdir()] == [finished.name]
    assert len(workers) == 6


def test_a_generation_config_that_we_refuse_costs_no_export(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "run_jobs", no_worker)
    (checkpoint / "generation_config.json").write_text(json.dumps({"num_beams": 4}))
    assert "num_beams" in refusal(checkpoint).what


def test_the_oracle_is_asked_once(
    checkpoint: Path, workers: list[ExportJob | GenerateJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = checkpoint.parent / "cache"
    bundle = opened(checkpoint)
    tokens = oracle_tokens(bundle, ROWS, cache, batch_size=3)
    assert tokens == [list(row) for row in ROWS]
    job = workers[-1]
    assert isinstance(job, GenerateJob)
    assert (job.checkpoint, job.rows, job.batch_size) == (str(checkpoint), ROWS, 3)
    assert job.max_new_tokens == bundle.generation.max_new_tokens
    asked = len(workers)
    assert oracle_tokens(bundle, ROWS, cache, batch_size=3) == tokens
    assert len(workers) == asked
    assert [entry.suffix for entry in (cache / "oracle").iterdir()] == [".json"]
    oracle_tokens(bundle, ROWS[:2], cache, batch_size=3)
    oracle_tokens(opened(checkpoint, max_new_tokens=3), ROWS, cache, batch_size=3)
    assert len(workers) == asked + 2


def test_hugging_face_files_are_copied_as_far_as_they_are_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("config.json", "spiece.model", "model.safetensors", "README.md"):
        (source / name).write_text(name)
    copy_hf_files(source, target)
    assert {entry.name: entry.read_text() for entry in target.iterdir()} == {
        "config.json": "config.json",
        "spiece.model": "spiece.model",
    }


# --- exports with torch


@pytest.fixture(scope="session")
def checkpoints(export_cache: Path) -> Path:
    """Tiny checkpoints, kept between runs: they come from a seed, and their exports are found in the cache again."""
    return saved_checkpoints(export_cache)


def stored_dtypes(checkpoint: Path) -> set[str]:
    header = (checkpoint / "model.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    entries = json.loads(header[8 : 8 + length])
    return {entry["dtype"] for name, entry in entries.items() if name != "__metadata__"}


def generated(bundle: Bundle, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    generator = Generator(bundle.models, bundle.generation, CPU)
    found = generator.generate(ids, (ids != 0).astype(np.int64))
    return [row[:length].tolist() for row, length in zip(found.tokens, found.lengths, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [("t5-bfloat16", "BF16"), ("t5-v1_1", "F32"), ("mt5", "F32")])
def test_a_checkpoint_becomes_an_fp32_bundle_that_generates_as_transformers_does(
    checkpoints: Path, export_cache: Path, name: str, dtype: str
) -> None:
    """The T5 has a decoder deeper than its encoder (FINDINGS 15); v1.1 a gated GELU and a projection of its own."""
    assert stored_dtypes(checkpoints / name) == {dtype}
    bundle = open_once(checkpoints / name, export_cache, max_new_tokens=12)
    for graph in bundle.graphs.values():
        values = (*graph.model.graph.inputs, *(value for node in graph.model.graph for value in node.outputs))
        dtypes = {value.dtype for value in values}
        assert ir.DataType.FLOAT in dtypes
        assert not dtypes & {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
        pinned = [node for node in graph.compute if node.pinned]
        assert len(pinned) == 4
        assert {node.key.split("/")[0] for node in pinned} == {f"{family_of(graph.name)}.block.0.layer.0.SelfAttention"}
    expected = oracle_tokens(bundle, ROWS, export_cache)
    assert generated(bundle, ROWS) == expected
    assert len({token for row in expected for token in row}) > 4


RULES: Mapping[str, Any] = {
    "num_beams": 3,
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.7,
    "do_sample": True,
    "bad_words_ids": [[9], [1]],
    "begin_suppress_tokens": [*range(4, 40)],
    "min_length": 6,
    "forced_eos_token_id": 1,
    "max_new_tokens": 12,
}


@pytest.mark.slow
def test_greedy_by_choice_with_token_rules_is_what_transformers_does(
    checkpoints: Path, export_cache: Path, tmp_path: Path
) -> None:
    """All that is asked for beside greedy decoding gives way, on both sides; all rules hold, in every batch."""
    model = tmp_path / "model"
    shutil.copytree(open_once(checkpoints / "t5-v1_1", export_cache, max_new_tokens=12).path, model)
    shutil.copy(checkpoints / "t5-v1_1/model.safetensors", model)
    free = open_bundle(str(model), tmp_path, max_new_tokens=12)
    own = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**own, **RULES}))
    told = Told()
    bundle = open_bundle(str(model), tmp_path, overrides=GREEDY.overrides, reporter=told)
    asked = "num_beams 3, do_sample true, repetition_penalty 1.7, no_repeat_ngram_size 2"
    assert told.warnings == [f"greedy decoding by choice: the checkpoint asks for {asked}"]
    expected = oracle_tokens(bundle, ROWS, tmp_path, batch_size=3)
    for size in (1, 3, len(ROWS)):
        reference = make_reference(bundle, Generator(bundle.models, bundle.generation, CPU), ROWS, size, CPU)
        assert [list(tokens) for tokens in reference.tokens] == expected
    assert expected != generated(free, ROWS)
    assert all(len(tokens) >= 6 and 9 not in tokens and tokens[0] not in range(4, 40) for tokens in expected)


@pytest.fixture(scope="module")
def in_turn(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The encoders of two checkpoints, by name, exported by one child after the other, a fresh one as for people."""
    folder = tmp_path_factory.mktemp("encoders")
    found = {name: folder / f"{name}.onnx" for name in ("t5-float16", "t5-v1_1")}
    jobs = [ExportJob(str(checkpoints / name), FAMILIES["t5"], "encoder", str(path)) for name, path in found.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        patch.setattr(export_worker, "subprocess", subprocess)
        run_jobs(jobs)
    return found


@pytest.mark.slow
def test_an_export_is_the_same_bytes_whatever_its_child_did_before(
    checkpoints: Path, export_cache: Path, in_turn: dict[str, Path]
) -> None:
    cached = open_once(checkpoints / "t5-v1_1", export_cache).path / graph_file("encoder")
    assert in_turn["t5-v1_1"].read_bytes() == cached.read_bytes()


@pytest.mark.slow
def test_half_precision_weights_are_exported_as_the_fp32_numbers_they_are(
    checkpoints: Path, in_turn: dict[str, Path]
) -> None:
    from safetensors.numpy import load_file

    checkpoint = checkpoints / "t5-float16"
    assert stored_dtypes(checkpoint) == {"F16"}
    model = read_model(in_turn["t5-float16"])
    exported = [
        value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value is not None
    ]
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        if name.startswith("encoder.block") and weight.ndim > 1:
            wide = weight.astype(np.float32)
            turned = (array.shape == wide.T.shape and np.array_equal(array, wide.T) for array in exported)
            assert any(turned) or any(np.array_equal(array, wide) for array in exported), name


@pytest.mark.slow
def test_graphs_of_the_older_exporter_open_convert_and_generate_alike(
    checkpoints: Path, export_cache: Path, tmp_path: Path
) -> None:
    """They come without scopes, with Constant nodes, casts from fp32 to fp32 and weights under made-up names."""
    target = tmp_path / "traced"
    trace(checkpoints / "t5-bfloat16", target, export_cache)
    raw = onnx.load(target / graph_file("encoder"))
    assert {"Constant", "Cast"} <= {node.op_type for node in raw.graph.node}
    assert any(value.name.startswith("onnx::MatMul") for value in raw.graph.initializer)
    traced = open_bundle(str(target), tmp_path / "cache", max_new_tokens=12)
    assert traced.checkpoint is None
    exported = open_once(checkpoints / "t5-bfloat16", export_cache, max_new_tokens=12)
    assert generated(traced, ROWS) == generated(exported, ROWS)
    for name in GRAPH_NAMES:
        ours = {key for key in keys_of_matmuls(traced, name) if "SelfAttention/" not in key}
        assert ours >= {key for key in keys_of_matmuls(exported, name) if "DenseReluDense" in key}
        assert sum(node.pinned is not None for node in traced.graphs[name].compute) == 4

    plan = Plan("float16", "base", pinned_keys(traced.graphs))
    weights = WeightCache()
    low = convert(traced.graphs, plan, weights)
    # The position bias of the cross attention, zeros that a ConstantOfShape makes in fp32, in both decoder graphs.
    assert low.casts == 2
    rng = np.random.default_rng(0)
    feeds = {"ids": np.array([ROWS[2]]), "mask": np.ones((1, 6), np.int64), "tokens": rng.integers(2, 60, (1, 4))}
    emulated = {n: emulate(traced.graphs[n], plan, a, weights) for n, a in assign(traced.graphs, plan).items()}
    widened = {n: widen(model, weights) for n, model in low.models.items()}
    ours_run, theirs = run_t5(emulated, feeds), run_t5(widened, feeds)
    assert all(np.array_equal(ours_run[n]["logits"], theirs[n]["logits"]) for n in ("decoder", "decoder_with_past"))


def keys_of_matmuls(bundle: Bundle, name: GraphName) -> set[str]:
    return {node.key for node in bundle.graphs[name].compute if node.op_type == "MatMul"}


@pytest.mark.slow
def test_a_checkpoint_that_lacks_a_weight_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(checkpoints / "t5-v1_1", broken)
    weights = load_file(broken / "model.safetensors")
    del weights["decoder.block.0.layer.2.DenseReluDense.wo.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="is not whole") as caught:
        open_bundle(str(broken), tmp_path / "cache")
    assert "decoder.block.0.layer.2.DenseReluDense.wo.weight" in caught.value.why
    assert list((tmp_path / "cache" / "bundles").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stray", "settings", "told"),
    [
        ({"lm_head.bias": (64,)}, {}, "lm_head.bias would be left out"),
        ({}, {"num_decoder_layers": 1}, "decoder.block.1."),
        ({"lm_head.weight": (32, 32)}, {}, "by vocab_size"),
        ({}, {"d_ff": 40}, "by d_ff"),
    ],
)
def test_weights_that_the_config_does_not_describe_are_refused(
    checkpoints: Path, tmp_path: Path, stray: dict[str, tuple[int, ...]], settings: dict[str, Any], told: str
) -> None:
    from safetensors.numpy import load_file, save_file

    broken = shutil.copytree(checkpoints / "t5-float16", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights |= {name: np.zeros(shape, np.float32) for name, shape in stray.items()}
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, **settings}))

    with pytest.raises(InputError, match=r"no place for|does not describe its weights") as caught:
        open_bundle(str(broken), tmp_path / "cache")
    assert told in caught.value.why


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "what", "why"),
    [
        ({"d_model": 1_000_000}, "describes another model than its weights are", "weights or more"),
        ({"dropout_rate": "x"}, "cannot load the checkpoint", "dropout_rate"),
    ],
)
def test_a_config_that_is_not_that_of_the_weights_is_refused(
    checkpoints: Path, tmp_path: Path, settings: dict[str, Any], what: str, why: str
) -> None:
    broken = shutil.copytree(checkpoints / "t5-v1_1", tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, **settings}))

    with pytest.raises(InputError, match=what) as caught:
        open_bundle(str(broken), tmp_path / "cache")

    assert why in caught.value.why
