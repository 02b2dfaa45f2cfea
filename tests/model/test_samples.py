"""Proves that sample files are read, hashed, encoded and batched as documented, and that bad ones are named."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.errors import InputError
from precision_search.model.samples import Sample, SampleSet, Tokenizer, batches, encode, load_samples, load_tokenizer
from tests.conftest import ROOT

DEMO = ROOT / "artifacts" / "models" / "t5-debian-en-de"
# No line ends inside and something to see: what a line of a text file can hold.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0\ufeff"), min_size=1).filter(str.strip)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DEMO)


def write(directory: Path, content: str | bytes, name: str = "samples.txt") -> Path:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(samples: SampleSet) -> list[str]:
    return [sample.text for sample in samples.samples]


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load_samples(path, "calibration")
    error = caught.value
    assert error.what and error.why and error.fix
    assert f"calibration file {path}" in error.what
    return error


@pytest.mark.parametrize(("name", "count"), [("calibration", 100), ("validation", 100), ("test", 200)])
def test_the_demo_s_sets_load_without_warnings(name: str, count: int) -> None:
    samples = load_samples(ROOT / "configs" / "demo" / f"{name}.txt", name)
    assert (samples.name, len(samples.samples), samples.warnings) == (name, count, ())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_text_is_one_source_a_line_and_blank_lines_are_skipped(tmp_path: Path, end: str, mark: str) -> None:
    path = write(tmp_path, mark + end.join(["one", "", "  ", " two\u2028three ", "four"]))
    samples = load_samples(path, "calibration")
    assert texts(samples) == ["one", " two\u2028three ", "four"]
    assert [sample.line for sample in samples.samples] == [1, 4, 5]
    assert all(sample.target is None for sample in samples.samples)


def test_jsonl_takes_input_and_target_and_ignores_the_rest(tmp_path: Path) -> None:
    content = '{"input": "one", "target": "eins", "id": 7}\n\n{"target": null, "input": "two\\nlines"}\n'
    samples = load_samples(write(tmp_path, content, "samples.JSONL"), "test")
    assert samples.samples == (Sample("one", "eins"), Sample("two\nlines", None))
    assert [sample.line for sample in samples.samples] == [1, 3]


@settings(max_examples=40, deadline=None)
@given(lines=st.lists(TEXTS, min_size=1, max_size=5))
def test_text_and_jsonl_of_the_same_sentences_read_and_hash_the_same(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("samples")
    plain = load_samples(write(directory, "\n".join(lines)), "a")
    jsonl = "\n".join(json.dumps({"input": line}) for line in lines)
    other = load_samples(write(directory, jsonl, "other.jsonl"), "b")
    assert texts(plain) == texts(other) == lines
    assert plain.content_hash == other.content_hash


def test_the_hash_changes_with_texts_targets_and_order_and_not_with_layout(tmp_path: Path) -> None:
    def digest(content: str) -> str:
        return load_samples(write(tmp_path, content, "samples.jsonl"), "a").content_hash

    one, two, with_target = '{"input": "1"}', '{"input": "2"}', '{"input": "1", "target": "2"}'
    distinct = [digest(c) for c in (one, two, with_target, f"{one}\n{two}", f"{two}\n{one}", f"{one}\n{one}")]
    assert len(set(distinct)) == len(distinct)
    assert digest(f'\n{{"x": 0, "input":"1"}}\n\n{two}\n') == digest(f"{one}\n{two}")
    assert len(distinct[0]) == 64 and int(distinct[0], 16) >= 0


def test_repeated_samples_and_json_read_as_text_are_warned_of(tmp_path: Path) -> None:
    assert load_samples(write(tmp_path, "a\nb\na\na\n"), "x").warnings == (
        f"x file {tmp_path / 'samples.txt'}: 2 of 4 samples repeat others and prove nothing new",
    )
    (warning,) = load_samples(write(tmp_path, '{"input": "a"}\n{"input": "b"}\n'), "x").warnings
    assert "rename it to samples.jsonl" in warning


def test_missing_directory_and_unreadable_files_are_told_apart(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.txt").what
    assert "is a directory" in refusal(tmp_path).what
    assert "cannot be read" in refusal(write(tmp_path, "a") / "below").what


@pytest.mark.parametrize("content", ["", "\n \n\t\n", "\ufeff"])
@pytest.mark.parametrize("name", ["samples.txt", "samples.jsonl"])
def test_a_file_without_text_is_empty(tmp_path: Path, content: str, name: str) -> None:
    assert "is empty" in refusal(write(tmp_path, content, name)).what


def test_binary_and_utf16_files_are_recognised(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, b"\x89PNG\r\n\x1a\n\x00\x00"))
    assert "is binary" in error.what and "offset 8" in error.why
    error = refusal(write(tmp_path, "sentence".encode("utf-16")))
    assert "is UTF-16" in error.what and "iconv -f UTF-16" in error.fix


def test_another_encoding_is_placed_by_byte_and_line(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, b"plain\ncaf\xe9\n"))
    assert "is not UTF-8" in error.what
    assert "byte 0xe9 at offset 9 (line 2)" in error.why and "mixes" not in error.why
    assert "ISO-8859-1" in error.fix


def test_mixed_encodings_are_said_to_be_mixed(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, b"\xef\xbb\xbfcaf\xc3\xa9\ncaf\xe9\n"))
    assert "byte 0xe9 at offset 12 (line 2)" in error.why and "mixes encodings" in error.why
    assert "line 2" in error.fix


@pytest.mark.parametrize("name", ["samples.txt", "samples.jsonl"])
@pytest.mark.parametrize(
    ("content", "what", "told"),
    [
        ("Grüße\n".encode() + b"caf\xe9\nGr\xfc\xdfe\n", "not UTF-8", ("line 2) is not valid there", "grep -naxv")),
        (b"one\r\ncaf\xe9\r\n" + "Grüße".encode(), "not UTF-8", ("line 2) is not valid there", "convert line 2")),
        (b"one\rtwo\rcaf\xe9\r", "not UTF-8", ("line 3)", "iconv -f ISO-8859-1")),
        (b"fine\nhalf a pair: \xed\xa0\x80\n", "not UTF-8", ("byte 0xed at offset 18 (line 2)", "iconv")),
        ("a\nb".encode("utf-16"), "is UTF-16", ("line 1 begins with the mark of UTF-16", "iconv -f UTF-16 -t UTF-8")),
        ("a\nb".encode("utf-32"), "is UTF-32", ("line 1 begins with the mark of UTF-32", "iconv -f UTF-32 -t UTF-8")),
        ("a\nb".encode("utf-16-le"), "is binary", ("offset 1 (line 1)", "iconv -f UTF-16LE")),
        ("a\nb".encode("utf-16-be"), "is binary", ("offset 0 (line 1)", "iconv -f UTF-16BE")),
        (b"a text\nof two lines \0 and a NUL\n", "is binary", ("(line 2), which text never has", "in UTF-8")),
    ],
    ids=["latin-1-lines", "crlf", "cr", "surrogate", "utf-16", "utf-32", "utf-16le", "utf-16be", "nul"],
)
def test_the_first_line_that_is_no_utf8_is_named_with_how_to_convert(
    tmp_path: Path, name: str, content: bytes, what: str, told: tuple[str, str]
) -> None:
    error = refusal(write(tmp_path, content, name))
    assert what in error.what
    assert told[0] in error.why
    assert told[1] in error.fix


def test_lines_in_another_encoding_are_counted(tmp_path: Path) -> None:
    assert "2 of its lines are something else" in refusal(write(tmp_path, b"\xc3\xa9\n\xe9\nplain\n\xe9\n")).why


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "column"),
        ("plain text", "column"),
        ("[1]", "not an object"),
        ("3", "not an object"),
        ("{}", "no `input`"),
        ('{"input": 3}', "no `input`"),
        ('{"input": " "}', "no `input`"),
        ('{"input": "a", "target": 3}', "`target` is 3"),
        ('{"input": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "more than 100 arrays"),
    ],
    ids=["cut", "text", "list", "number", "empty", "wrong-type", "blank", "bad-target", "surrogate", "nested"],
)
def test_a_bad_json_line_is_named_by_number(tmp_path: Path, line: str, why: str) -> None:
    error = refusal(write(tmp_path, f'{{"input": "fine"}}\n\n{line}\n', "samples.jsonl"))
    assert "line 3" in error.what
    assert why in error.why


def test_encoding_puts_the_prefix_first_and_eos_last(tmp_path: Path, tokenizer: Tokenizer) -> None:
    samples = load_samples(write(tmp_path, "a package\nanother one\n"), "calibration")
    encoded = encode(samples, tokenizer, "translate: ", None)
    assert encoded.ids == (tokenizer.encode("translate: a package"), tokenizer.encode("translate: another one"))
    assert (encoded.truncated, encoded.warnings) == ((), ())


def test_a_long_line_is_cut_as_transformers_cuts_it_and_said(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = "the data files of this package " * 40
    path = write(tmp_path, f"short\n\n{long}\n")
    encoded = encode(load_samples(path, "calibration"), tokenizer, "", None)

    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(DEMO)(["short", long], truncation=True)["input_ids"]
    assert [list(ids) for ids in encoded.ids] == theirs
    assert len(encoded.ids[1]) == tokenizer.model_max_length and encoded.ids[1][-1] == tokenizer.eos_id
    assert encoded.truncated == (1,)
    assert encoded.warnings == (f"calibration file {path}: line 3 is cut to 128 tokens, the model's limit",)


def test_many_cut_lines_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    samples = load_samples(write(tmp_path, "".join(f"package number {n}\n" for n in range(10))), "test")
    encoded = encode(samples, tokenizer, "", 2)
    assert all(len(ids) == 2 and ids[-1] == tokenizer.eos_id for ids in encoded.ids)
    (warning,) = encoded.warnings
    assert "lines 1, 2, 3, 4, 5, 6, 7, 8 and 2 more are cut to 2 tokens, the configured max_length" in warning


ENCODED = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=7), min_size=1, max_size=9)


@given(encoded=ENCODED, batch_size=st.integers(1, 5), data=st.data())
def test_batches_hold_every_sample_once_in_order_padded_on_the_right(
    encoded: list[list[int]], batch_size: int, data: st.DataObject
) -> None:
    order = data.draw(st.none() | st.permutations(range(len(encoded))))
    made = batches(encoded, batch_size, 0, order)
    assert [index for batch in made for index in batch.indices] == list(order or range(len(encoded)))
    assert all(len(batch.indices) == batch_size for batch in made[:-1]) and len(made[-1].indices) <= batch_size
    for batch in made:
        assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
        longest = max(len(encoded[index]) for index in batch.indices)
        assert batch.input_ids.shape == batch.attention_mask.shape == (len(batch.indices), longest)
        for index, ids, mask in zip(batch.indices, batch.input_ids, batch.attention_mask, strict=True):
            length = len(encoded[index])
            assert ids[:length].tolist() == encoded[index] and not ids[length:].any()
            assert mask.tolist() == [1] * length + [0] * (longest - length)


def test_batches_of_a_part_and_of_nothing() -> None:
    (batch,) = batches([(5, 1), (6, 7, 1), (8, 1)], 4, 9, order=[2, 1])
    assert batch.indices == (2, 1)
    assert batch.input_ids.tolist() == [[8, 1, 9], [6, 7, 1]]
    assert batches([(5, 1)], 4, 0, order=[]) == ()
