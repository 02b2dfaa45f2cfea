"""What is copied beside the graphs tells nothing private, and all else byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from precision_search.model.hf_files import copy_hf_files, without_private
from tests.conftest import DEMO_MODEL

TOKEN = "hf_" + "a1B2" * 8


def test_files_without_anything_private_are_copied_byte_by_byte(tmp_path: Path) -> None:
    copy_hf_files(DEMO_MODEL, tmp_path)
    copied = {path.name for path in tmp_path.iterdir()}
    assert copied == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert all((tmp_path / name).read_bytes() == (DEMO_MODEL / name).read_bytes() for name in copied)


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
