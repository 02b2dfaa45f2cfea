"""Proves that added tokens get the ids that transformers gives them, wherever a checkpoint's files name them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from precision_search.errors import InputError
from precision_search.model.added_tokens import MOST_EXTRA_IDS
from precision_search.model.tokenizer import load_tokenizer
from tests.conftest import ROOT

DEMO = ROOT / "artifacts" / "models" / "t5-debian-en-de"
PERSON = {"content": "<PERSON>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}
PLACE = {"content": "<place>", "special": False, "normalized": True, "single_word": True, "lstrip": True}
TEXTS = (
    "A Package: Grüße, ﬁne",
    "a package of <PERSON> in<place> and <place> x",
    "<extra_id_0> is <extra_id_99>",
    "plain </s> text <unk><pad>",
)
GENERIC = "PreTrainedTokenizerFast"
MAP = json.loads((DEMO / "tokenizer.json").read_text())["normalizer"]

Files = dict[str, Any]


def model(folder: Path, files: Files) -> Path:
    """The demo's tokenizer with other settings, and further files beside it; a setting of None is removed."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    for name, changes in files.items():
        path = folder / name
        content = (json.loads(path.read_text()) if path.exists() else {}) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def settings(**changes: Any) -> Files:
    return {"tokenizer_config.json": {"extra_special_tokens": None, **changes}}


CASES: dict[str, Files] = {
    "as it is": {},
    "decoder": settings(added_tokens_decoder={"4097": PLACE, "4096": PERSON}),
    "decoder, gaps": settings(added_tokens_decoder={"5000": PERSON}),
    "decoder, known": settings(added_tokens_decoder={"14": {"content": "▁package", "special": True}}),
    "extra": settings(extra_special_tokens=["<PERSON>", {**PLACE, "__type": "AddedToken"}]),
    "extra, older name": settings(additional_special_tokens=["<PERSON>", "<place>"]),
    "extra, by name": settings(extra_special_tokens={"person_token": "<PERSON>"}),
    "own key": settings(person_token="<PERSON>"),
    "map": {**settings(), "special_tokens_map.json": {"sep_token": "<PERSON>", "eos_token": {"content": "</s>"}}},
    "named, not special": settings(sep_token={**PLACE, "__type": "AddedToken"}),
    "added": {**settings(), "added_tokens.json": {"<place>": 4097, "<PERSON>": 4096}},
    "both": {
        **settings(),
        "special_tokens_map.json": {"extra_special_tokens": ["<PERSON>"]},
        "added_tokens.json": {"<PERSON>": 4096, "<place>": 4097},
    },
    "sentinels": settings(extra_ids=100),
    "sentinels by default": settings(extra_ids=None),
    "no sentinels": settings(extra_ids=0),
    "generic": settings(tokenizer_class=GENERIC, extra_ids=None, extra_special_tokens=["<PERSON>"]),
    "generic, without template": {
        **settings(tokenizer_class=GENERIC, extra_ids=None),
        "tokenizer.json": {"post_processor": None},
    },
    "lower case": {"tokenizer.json": {"normalizer": {"type": "Lowercase"}}},
    "lower case, then a map": {
        "tokenizer.json": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, MAP]}}
    },
    "lower case, generic": {
        **settings(tokenizer_class=GENERIC, extra_ids=None),
        "tokenizer.json": {"normalizer": {"type": "Lowercase"}},
    },
    "other steps": {
        "tokenizer.json": {"pre_tokenizer": {"type": "Whitespace"}, "decoder": {"type": "Fuse"}},
    },
    "class without template": {"tokenizer.json": {"post_processor": None}},
    "class in config": {**settings(tokenizer_class=None), "config.json": {"tokenizer_class": GENERIC}},
}


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    from transformers import AutoTokenizer

    directory = model(tmp_path / "model", CASES[case])
    theirs, ours = AutoTokenizer.from_pretrained(directory), load_tokenizer(directory)

    added = {text: index for text, index in theirs.get_added_vocab().items() if "reserved" not in text}
    assert {text: ours.special.get(text) for text in added} == added
    for text in TEXTS:
        assert list(ours.encode(text)) == theirs(text).input_ids
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text).input_ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (settings(added_tokens_decoder={"a": PERSON}), "names a broken token"),
        (settings(added_tokens_decoder=[1]), "names a broken token"),
        (settings(extra_special_tokens=[3]), "names a broken token"),
        (settings(extra_special_tokens=["x"] * (MOST_EXTRA_IDS + 1)), f"asks for {MOST_EXTRA_IDS + 4} added tokens"),
        (settings(extra_ids=10**9), "asks for 1000000000 extra ids"),
        (settings(extra_ids=-1), "asks for -1 extra ids"),
        (settings(extra_ids="many"), "asks for 'many' extra ids"),
        ({**settings(), "added_tokens.json": {"<PERSON>": "x"}}, ""),
    ],
)
def test_what_is_no_token_is_refused(tmp_path: Path, files: Files, message: str) -> None:
    directory = model(tmp_path / "model", files)
    if not message:
        assert "<PERSON>" not in load_tokenizer(directory).special
        return
    with pytest.raises(InputError) as caught:
        load_tokenizer(directory)
    assert message in caught.value.what
