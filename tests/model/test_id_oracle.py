"""Proves that token ids are held against transformers' once, and that what differs is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precision_search.errors import InputError
from precision_search.model import id_oracle
from precision_search.model.export_worker import EncodeJob
from precision_search.model.id_oracle import IdOracle
from precision_search.model.tokenizer import load_tokenizer, transformers_ids
from tests.conftest import ROOT
from tests.told import Told

DEMO = ROOT / "artifacts" / "models" / "t5-debian-en-de"
TEXTS = ("a package", "Debian </s> and <PERSON>")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EncodeJob]:
    """The jobs that were asked for; they are done here, as the child does them."""
    done: list[EncodeJob] = []

    def run(jobs: list[EncodeJob]) -> list[Any]:
        done.extend(jobs)
        return [json.loads(json.dumps(transformers_ids(Path(job.checkpoint), job.texts))) for job in jobs]

    monkeypatch.setattr(id_oracle, "run_jobs", run)
    return done


def oracle(model: Path, cache: Path, *texts: str) -> IdOracle:
    return IdOracle(model, texts or TEXTS, cache, "key")


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_equal_ids_are_asked_for_once(model: Path, tmp_path: Path, asked: list[EncodeJob]) -> None:
    told = Told()
    for _ in range(2):
        oracle(model, tmp_path).check(load_tokenizer(model), told)
    oracle(model, tmp_path, "other").check(load_tokenizer(model), told)

    assert [job.texts for job in asked] == [TEXTS, ("other",)]
    assert told.warnings == []


def test_an_answer_that_came_with_an_export_is_kept(model: Path, tmp_path: Path, asked: list[EncodeJob]) -> None:
    first = oracle(model, tmp_path)
    first.take(transformers_ids(model, TEXTS))
    first.check(load_tokenizer(model), Told())
    oracle(model, tmp_path).check(load_tokenizer(model), Told())

    assert asked == []


def test_other_ids_are_told_by_the_text(model: Path, tmp_path: Path, asked: list[EncodeJob]) -> None:
    ours = replace(load_tokenizer(model), _to_ids=lambda text: [37, 14] if text == "a package" else [9])

    with pytest.raises(InputError, match="does not give the ids that transformers gives") as caught:
        oracle(model, tmp_path, "a package", "Debian").check(ours, Told())
    assert "for 'Debian', from token 1 on it gives [9, 1], and AutoTokenizer [" in caught.value.why
    assert "save_pretrained" in caught.value.fix


def test_a_token_of_which_we_do_not_know_is_named(model: Path, tmp_path: Path, asked: list[EncodeJob]) -> None:
    tokenizer = load_tokenizer(model)
    known = {text: index for text, index in tokenizer.special.items() if text != "</s>"}

    with pytest.raises(InputError) as caught:
        oracle(model, tmp_path).check(replace(tokenizer, special=known), Told())
    assert caught.value.why == "for the token '</s>' it gives none, and AutoTokenizer 1"


def test_ids_that_end_sooner_are_told(model: Path, tmp_path: Path, asked: list[EncodeJob]) -> None:
    tokenizer = replace(load_tokenizer(model), ends_inputs=False, _to_ids=lambda text: [37, 14])

    with pytest.raises(InputError, match="does not give") as caught:
        oracle(model, tmp_path, "a package").check(tokenizer, Told())
    assert "from token 3 on it gives [], and AutoTokenizer [1]" in caught.value.why


def test_a_tokenizer_that_transformers_does_not_load_is_warned_of(
    model: Path, tmp_path: Path, asked: list[EncodeJob]
) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}
    content |= {"model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}, "normalizer": None}
    (model / "tokenizer.json").write_text(json.dumps(content))
    told = Told()

    oracle(model, tmp_path).check(load_tokenizer(model), told)
    (warning,) = told.warnings
    assert "cannot be compared with transformers'" in warning
