"""Proves that our tokenizer is transformers' without importing it, and that a missing or broken one is named."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.errors import InputError
from precision_search.model.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import ROOT

DEMO = ROOT / "artifacts" / "models" / "t5-debian-en-de"
SENTENCES = (ROOT / "configs" / "demo" / "calibration.txt").read_text(encoding="utf-8").splitlines()
ODD = (
    "",
    " ",
    "a  b\tc",
    "</s> in text",
    "<pad><unk>",
    "naïve café ﬁne",
    "日本語",
    "🙂",
    "x" * 300,
    "\u2028",
    "don't .",
    "1 , 2",
)
NO_LIMIT = 1000000000000000019884624838656


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO)


def copy(directory: Path, **changes: object) -> Path:
    """The demo's tokenizer with other settings; a change to None removes the key."""
    shutil.copy(DEMO / "tokenizer.json", directory)
    content = json.loads((DEMO / "tokenizer_config.json").read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(kept))
    return directory


def refusal(directory: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load_tokenizer(directory)
    assert caught.value.what and caught.value.why and caught.value.fix
    return caught.value


def test_ids_equal_those_of_transformers_and_end_with_eos(ours: Tokenizer, theirs: Any) -> None:
    for text in [*SENTENCES, *ODD]:
        ids = ours.encode(text)
        assert list(ids) == theirs(text)["input_ids"], text
        assert ids[-1] == ours.eos_id


def test_text_equals_that_of_transformers(ours: Tokenizer, theirs: Any) -> None:
    for text in [*SENTENCES, *ODD]:
        ids = ours.encode(text)
        padded = [0, *ids, ours.pad_id, ours.pad_id, 2]
        assert ours.decode(padded) == theirs.decode(padded, skip_special_tokens=True)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 4095), max_size=20))
def test_any_ids_decode_as_in_transformers(ours: Tokenizer, theirs: Any, ids: list[int]) -> None:
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_ids_and_limit_come_from_the_files(ours: Tokenizer, theirs: Any) -> None:
    assert (ours.pad_id, ours.eos_id, ours.model_max_length) == (0, 1, 128)
    assert (ours.pad_id, ours.eos_id, ours.model_max_length) == (
        theirs.pad_token_id,
        theirs.eos_token_id,
        theirs.model_max_length,
    )


@pytest.mark.parametrize(("given_limit", "limit"), [(None, 512), (NO_LIMIT, 512), (64, 64), ("64", 512), (1e30, 512)])
def test_an_absent_or_absurd_limit_becomes_512(tmp_path: Path, given_limit: object, limit: int) -> None:
    assert load_tokenizer(copy(tmp_path, model_max_length=given_limit)).model_max_length == limit


def test_the_file_s_own_padding_and_truncation_are_not_applied(tmp_path: Path) -> None:
    content = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {**content["padding"], "strategy": {"Fixed": 50}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_tokenizer(tmp_path).encode(SENTENCES[0]) == load_tokenizer(DEMO).encode(SENTENCES[0])


def test_a_file_without_template_still_gets_the_end_token(tmp_path: Path) -> None:
    content = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_tokenizer(tmp_path).encode("a package") == load_tokenizer(DEMO).encode("a package")


def test_special_tokens_named_only_in_the_settings_are_left_out_of_text(tmp_path: Path, ours: Tokenizer) -> None:
    ids = ours.encode("a package")
    piece = "▁package"
    plain = load_tokenizer(copy(tmp_path))
    marked = load_tokenizer(copy(tmp_path, extra_special_tokens=[{"content": piece}, "not in the vocabulary"]))
    assert plain.decode(ids) == "a package"
    assert marked.decode(ids) == "a"


def test_special_tokens_may_be_objects_or_follow_from_t5_s_defaults(tmp_path: Path) -> None:
    objects = load_tokenizer(copy(tmp_path, eos_token={"content": "</s>"}, pad_token={"content": "<pad>"}))
    assert (objects.pad_id, objects.eos_id) == (0, 1)
    (tmp_path / "tokenizer_config.json").unlink()
    assert (load_tokenizer(tmp_path).pad_id, load_tokenizer(tmp_path).eos_id) == (0, 1)


def test_a_token_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    error = refusal(copy(tmp_path, eos_token="<end>"))
    assert "eos token" in error.what and "<end>" in error.why


@pytest.mark.parametrize("files", [(), ("tokenizer_config.json",)])
def test_a_missing_tokenizer_is_said_even_where_transformers_would_make_one_up(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    for file in files:
        shutil.copy(DEMO / file, tmp_path)
    error = refusal(tmp_path)
    assert "has no tokenizer" in error.what
    assert "tokenizer.json" in error.fix


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"\x00\xff"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    copy(tmp_path)
    (tmp_path / file).write_bytes(content)
    assert file in refusal(tmp_path).what


def test_a_tokenizer_without_a_json_goes_through_transformers(tmp_path: Path) -> None:
    settings_file = {"tokenizer_class": "ByT5Tokenizer", "model_max_length": 99, "extra_ids": 0}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_file))
    tokenizer = load_tokenizer(tmp_path)
    # ByT5 is bytes: each is its value plus the three special tokens (Xue et al. 2021).
    assert tokenizer.encode("Aé") == (0x41 + 3, 0xC3 + 3, 0xA9 + 3, 1)
    assert tokenizer.decode([0x41 + 3, 0xC3 + 3, 0xA9 + 3, 1, 0]) == "Aé"
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.model_max_length) == (0, 1, 99)


def test_what_transformers_cannot_load_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"not a sentencepiece model")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert "cannot be loaded" in refusal(tmp_path).what


def test_a_tokenizer_json_is_read_without_importing_transformers() -> None:
    code = (
        "import sys; from pathlib import Path; from precision_search.model.tokenizer import load_tokenizer;"
        f"load_tokenizer(Path({str(DEMO)!r})); print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_tokenizer_without_end_or_pad_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    def load(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(eos_token_id=1, pad_token_id=None)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    (tmp_path / "spiece.model").touch()
    with pytest.raises(InputError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.what == f"the tokenizer in {tmp_path} has no end or pad token"
    assert "a T5 needs both" in caught.value.why
    assert "tokenizer_config.json" in caught.value.fix
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("charsmap", ["AAAA", "BAAAAP////8A"])
def test_what_panics_in_rust_is_an_input_error(tmp_path: Path, charsmap: str) -> None:
    """One map panics when it is read, the other at the first text."""
    copy(tmp_path)
    content = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")

    with pytest.raises(InputError) as caught:
        load_tokenizer(tmp_path).encode("Grüße, ﬁne")
    assert str(tmp_path) in caught.value.what


def test_a_text_that_a_pattern_gives_up_on_is_an_input_error(tmp_path: Path) -> None:
    copy(tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    content = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    pattern = {"Regex": "(a+)+$|(a|aa)+c"}
    content["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Removed", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)

    with pytest.raises(InputError) as caught:
        tokenizer.encode("a" * 200 + "b")
    assert "fails at the text 'aaa" in caught.value.what


def test_ids_that_no_text_has_are_an_input_error(ours: Tokenizer) -> None:
    with pytest.raises(InputError, match="fails at token ids"):
        ours.decode([-1])


def test_a_keyboard_interrupt_is_no_input_error(ours: Tokenizer) -> None:
    def interrupted(text: str) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(ours, _to_ids=interrupted).encode("a")


def test_a_class_that_only_config_json_names_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "tokenizer_class": "ByT5Tokenizer"}')
    assert load_tokenizer(tmp_path).encode("A") == (0x41 + 3, 1)


def test_a_sentencepiece_file_alone_will_do(tmp_path: Path) -> None:
    """The library that trained it is the oracle."""
    import sentencepiece

    (tmp_path / "text.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=200,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenizer = load_tokenizer(tmp_path)

    for text in SENTENCES[:20]:
        assert tokenizer.encode(text) == (*oracle.encode(text), 1)
