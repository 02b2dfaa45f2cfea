"""Whatever the files beside a model hold, and files of sentences: reading them works, or ends with an error of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.numpy import save

from precision_search.errors import InputError
from precision_search.model.families import FAMILIES
from precision_search.model.generation_config import read_generation_settings, read_model_config
from precision_search.model.prefixes import known_prefixes
from precision_search.model.sample_files import FORMS
from precision_search.model.samples import load_samples
from precision_search.model.stored_weights import check_weights, refuse_adapter, refuse_quantized
from precision_search.model.tokenizer import load_tokenizer
from tests.checkpoints import word_tokenizer
from tests.tiny_model import SIZES

BOUNDED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8)

TOKENIZER = json.loads(word_tokenizer(*"abc"))
TOKENIZER |= {
    "normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": "a"},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": " +"}, "behavior": "Removed", "invert": False},
}
FILES: dict[str, dict[str, object]] = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": 3,
        "extra_special_tokens": ["<x>"],
        "added_tokens_decoder": {"9": {"content": "<y>", "special": True, "lstrip": False}},
        "model_max_length": 64,
    },
    "special_tokens_map.json": {"eos_token": {"content": "</s>"}},
    "added_tokens.json": {"<z>": 8},
    "config.json": {**SIZES, "task_specific_params": {"a": {"prefix": "p: "}}, "quantization_config": None},
    "generation_config.json": {"decoder_start_token_id": 0, "eos_token_id": [1], "bad_words_ids": [[3]]},
}
TABLES: dict[str, bytes] = {
    ".jsonl": b'{"input": "one", "target": "eins"}\n{"input": "two"}\n',
    ".csv": b'text,target\n"one, two",eins\nthree,"dr""ei"\n',
    ".tsv": b"source\ttarget\none\teins\n",
    ".tab": b"source\none\n",
    ".psv": b"id|text\n1|one\n",
    ".txt": "one\nzwölf\n".encode(),
}
WEIGHTS: dict[str, np.ndarray[Any, Any]] = {"shared.weight": np.ones((4, 2), np.float32), "b": np.ones(3, np.float16)}


def flipped(content: bytes, flips: list[tuple[float, int]]) -> bytes:
    changed = bytearray(content)
    for where, bits in flips:
        changed[int(where * len(changed))] ^= bits
    return bytes(changed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read_all(folder: Path) -> None:
    """Reads everything beside the weights, as opening a model does; errors of ours are one of two good ends."""
    known_prefixes(folder)
    for read in (
        lambda: refuse_adapter(folder),
        lambda: refuse_quantized(folder),
        lambda: read_model_config(folder),
        lambda: read_generation_settings(folder, None),
        lambda: load_tokenizer(folder).decode(load_tokenizer(folder).encode("a  bx <y>c<extra_id_0>")),
    ):
        try:
            read()
        except InputError as error:
            assert error.what and error.why and error.fix


@BOUNDED
@given(name=st.sampled_from(sorted(FILES)), flips=FLIPS)
def test_flipped_bytes_are_read_or_refused(folder: Path, name: str, flips: list[tuple[float, int]]) -> None:
    for each, content in FILES.items():
        data = json.dumps(content).encode()
        (folder / each).write_bytes(flipped(data, flips) if each == name else data)
    read_all(folder)


@BOUNDED
@given(name=st.sampled_from(sorted(FILES)), value=VALUES, data=st.data())
def test_any_value_under_any_key_is_read_or_refused(
    folder: Path, name: str, value: object, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(FILES[name])))
    for each, content in FILES.items():
        (folder / each).write_text(json.dumps(content | {key: value} if each == name else content))
    read_all(folder)


def test_the_files_that_are_changed_can_be_read(folder: Path) -> None:
    """Or the tests above would say little."""
    for name, content in FILES.items():
        (folder / name).write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder)
    assert {"<x>", "<y>"} <= tokenizer.special.keys()
    assert read_generation_settings(folder, None).suppressed_tokens == (3,)
    assert read_model_config(folder).d_model == SIZES["d_model"]


@BOUNDED
@given(suffix=st.sampled_from(sorted({*TABLES, *FORMS})), flips=FLIPS)
def test_flipped_sentences_are_read_or_refused(folder: Path, suffix: str, flips: list[tuple[float, int]]) -> None:
    path = folder / f"data{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": ["one", "two"], "id": [1, 2]}), path)
    content = TABLES.get(suffix) or path.read_bytes()
    path.write_bytes(flipped(content, flips))
    try:
        assert load_samples(path, "test").samples
    except InputError as error:
        assert str(path) in error.what


@BOUNDED
@given(content=st.binary(max_size=200), suffix=st.sampled_from(sorted({".txt", *FORMS})))
def test_any_bytes_are_sentences_or_refused(folder: Path, content: bytes, suffix: str) -> None:
    path = folder / f"data{suffix}"
    path.write_bytes(content)
    try:
        assert load_samples(path, "test").samples
    except InputError as error:
        assert str(path) in error.what


@BOUNDED
@given(flips=FLIPS)
def test_flipped_weights_are_read_or_refused(folder: Path, flips: list[tuple[float, int]]) -> None:
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "config.json").write_text(json.dumps(SIZES))
    (checkpoint / "model.safetensors").write_bytes(flipped(save(WEIGHTS), flips))
    expected = {name: tuple(array.shape) for name, array in WEIGHTS.items()}
    try:
        check_weights(checkpoint, expected, read_model_config(checkpoint), FAMILIES["t5"])
    except InputError as error:
        assert error.what and error.why and error.fix
