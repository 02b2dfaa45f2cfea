"""What is copied beside the graphs tells nothing private, and all else byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from precision_search.model.hf_files import copy_hf_files
from precision_search.model.tokenizer import load_tokenizer
from precision_search.private import without_private
from tests.conftest import DEMO_MODEL

TOKEN = "hf_" + "a1B2" * 8


def test_files_without_anything_private_are_copied_byte_by_byte(tmp_path: Path) -> None:
    copy_hf_files(DEMO_MODEL, tmp_path)
    copied = {path.name for path in tmp_path.iterdir()}
    assert copied == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    for name in copied - {"tokenizer_config.json"}:
        assert (tmp_path / name).read_bytes() == (DEMO_MODEL / name).read_bytes()


def test_special_tokens_get_the_name_that_transformers_4_knows_too(tmp_path: Path) -> None:
    """The tokenizer itself stays the same; that transformers 4 loads it is tried in `test_around_optimum`."""
    copy_hf_files(DEMO_MODEL, tmp_path)
    before, after = (json.loads((at / "tokenizer_config.json").read_text()) for at in (DEMO_MODEL, tmp_path))
    assert after == {
        "additional_special_tokens": before.pop("extra_special_tokens"),
        **before,
    }
    ours, theirs = load_tokenizer(tmp_path), load_tokenizer(DEMO_MODEL)
    for text in ("Avahi GTK+ utilities", "<pad> and </s> in a text"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode([0, *ours.encode(text), 1, 2]) == theirs.decode([0, *ours.encode(text), 1, 2])


@pytest.mark.parametrize(
    "settings",
    [
        {"extra_special_tokens": {"image_token": "<image>"}},
        {"extra_special_tokens": ["<a>"], "additional_special_tokens": ["<b>"]},
        {"model_max_length": 64},
    ],
)
def test_tokenizer_configs_that_both_versions_read_stay(tmp_path: Path, settings: dict[str, Any]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    copy_hf_files(source, target)
    assert (target / "tokenizer_config.json").read_bytes() == (source / "tokenizer_config.json").read_bytes()


@pytest.mark.parametrize(
    "private",
    [
        {"_name_or_path": "/home/alice/t5"},
        {"name_or_path": "C:\\models\\t5"},
        {"tokenizer_file": "~/t5/tokenizer.json"},
        {"cache_dir": "file:///mnt/cache"},
        {"vocab_file": "\\\\server\\share\\spiece.model"},
        {"use_auth_token": TOKEN},
        {"token": "anything"},
        {"api_key": "anything"},
        {"aws_secret_access": "anything"},
        {"note": f"pushed with {TOKEN}"},
        {"inner": {"_name_or_path": "/home/alice/t5"}},
        {"list": [{"hub_token": "anything"}]},
        {"base_model": "/home/alice/x"},
        {"dataset_paths": ["/home/alice/x"]},
        {"output_dir_root": "/alice"},
        {"note": "trained at /home/alice/run"},
        {"init_inputs": ["a", "/home/alice/m"]},
        {"extra": [TOKEN]},
        {"auth_token": {"k": "anything"}},
        {"eos_token": TOKEN},
    ],
)
def test_places_and_secrets_are_left_out(tmp_path: Path, private: dict[str, Any]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (source / name).write_text(json.dumps({"d_model": 8, "ä": "ö", **private}))
    copy_hf_files(source, target)
    for name in ("config.json", "tokenizer_config.json"):
        text = (target / name).read_text()
        assert not any(word in text for word in ("alice", "models", "~/t5", "mnt", "server", TOKEN, "anything"))
        assert {"d_model": 8, "ä": "ö"}.items() <= json.loads(text).items()


def test_what_only_looks_private_stays(tmp_path: Path) -> None:
    public = {
        "_name_or_path": "google-t5/t5-small",
        "pad_token": "<pad>",
        "eos_token": "/",
        "use_auth_token": True,
        "token": "",
        "extra_ids": 100,
        "added_tokens_decoder": {"5": {"content": "/usr"}},
        "tokenizer_file": "tokenizer.json",
        "prefix": "/translate",
        "extra_special_tokens": ["/a/b", "</s>"],
        "chat_template": "{{ '/a/b' }}",
        "url": "https://example.org/a/b",
        "dtype": "and/or/both",
    }
    assert without_private(public) == public


def test_a_vocabulary_is_never_touched(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "tokenizer.json").write_text(json.dumps({"vocab": {"file": 1, "token": "/home"}, "path": "/home"}))
    (source / "config.json").write_text("{no json")
    copy_hf_files(source, target)
    for name in ("tokenizer.json", "config.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
