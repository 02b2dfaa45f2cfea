"""Sentences in, token batches out: sample files, their encoding, and right-padded batches.

In: a text or JSONL file and the checkpoint's tokenizer. Out: `SampleSet` with a content hash, token ids for each
sample, and `TokenBatch` arrays. Nothing here prints: what a person should hear is collected as warnings.
"""

import codecs
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from precision_search.errors import InputError, counted
from precision_search.files import parse_json, read_file, reason
from precision_search.model.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "EncodedSamples",
    "Sample",
    "SampleSet",
    "TokenBatch",
    "Tokenizer",
    "batches",
    "encode",
    "load_samples",
    "load_tokenizer",
]

_SHOWN_LINES = 8
_TABLES = (".csv", ".tsv", ".tab", ".psv")
_NO_TEXT = (
    *(".parquet", ".arrow", ".feather", ".avro", ".orc", ".xlsx", ".xls", ".ods", ".docx", ".doc", ".odt", ".pdf"),
    *(".sqlite", ".db", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".html", ".xml", ".tmx", ".xliff", ".yaml", ".yml"),
    *(".json", ".toml", ".zip", ".gz", ".bz2", ".xz", ".zst", ".tar"),
)
"""Suffixes of files whose lines are no sentences, even where they are text."""
_WIDE = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""Encodings that a byte order mark gives away."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A source sentence, its reference translation if the file has one, and the line it stands on (from 1)."""

    text: str
    target: str | None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class SampleSet:
    """The samples of a file. `content_hash` (sha256, hex) covers texts and targets in order, not file format or name.

    `name` is the role of the set: "calibration", "validation" or "test".
    """

    name: str
    path: Path
    samples: tuple[Sample, ...]
    content_hash: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EncodedSamples:
    """Token ids of each sample, in the order of the set, end token last; and what was cut to make them fit."""

    ids: tuple[tuple[int, ...], ...]
    truncated: tuple[int, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """A right-padded batch: `indices` into the encoded samples [B], `input_ids` and `attention_mask` int64 [B, S]."""

    indices: tuple[int, ...]
    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]


def load_samples(path: Path, name: str) -> SampleSet:
    """Reads samples: one source a line, or for a `.jsonl` file one JSON object a line (`input`, optional `target`).

    Blank lines are skipped, other JSON keys ignored, a byte order mark and any line ends are tolerated. Raises
    InputError for a file that is missing, no regular file, a table or another format by its suffix, empty, binary, not
    UTF-8, or has a bad JSON line.
    """
    _refuse_other_forms(path, name)
    lines = _lines(_read_text(path, name))
    parse = _json_sample if path.suffix.lower() == ".jsonl" else _text_sample
    samples = tuple(parse(text, line, f"{name} file {path}") for line, text in lines)
    if not samples:
        raise InputError(
            f"{name} file {path} is empty",
            why="it holds no line with text",
            fix="put one source sentence on each line; about a hundred make a verdict worth something",
        )
    canonical = json.dumps([[sample.text, sample.target] for sample in samples], ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return SampleSet(name, path, samples, digest, tuple(_sample_warnings(samples, path, name)))


def encode(samples: SampleSet, tokenizer: Tokenizer, prefix: str, max_length: int | None) -> EncodedSamples:
    """Encodes `prefix` + text of every sample to at most `max_length` tokens (None: the tokenizer's limit).

    A longer one is cut and keeps its end token last, as transformers' truncation does; a warning names the lines.
    """
    limit = tokenizer.model_max_length if max_length is None else max_length
    encoded = [tokenizer.encode(prefix + sample.text) for sample in samples.samples]
    truncated = tuple(index for index, ids in enumerate(encoded) if len(ids) > limit)
    for index in truncated:
        encoded[index] = (*encoded[index][: limit - 1], encoded[index][-1])
    warnings: tuple[str, ...] = ()
    if truncated:
        lines = _listed([samples.samples[index].line for index in truncated])
        whose = "the model's limit" if max_length is None else "the configured max_length"
        warnings = (f"{samples.name} file {samples.path}: {lines} cut to {counted(limit, 'token')}, {whose}",)
    return EncodedSamples(tuple(encoded), truncated, warnings)


def batches(
    encoded: Sequence[Sequence[int]],
    batch_size: int,
    pad_id: int,
    order: Sequence[int] | None = None,
    *,
    width: int = 0,
) -> tuple[TokenBatch, ...]:
    """Groups `encoded` into batches of at most `batch_size`, each padded on the right to its own longest sample.

    `order` lists the indices to take, in that order; None is all of them as they stand. A batch narrower than `width`
    is padded to it, as it would be beside a row that long.
    """
    indices = range(len(encoded)) if order is None else order
    groups = [tuple(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    return tuple(_batch(encoded, group, pad_id, width) for group in groups)


def _batch(encoded: Sequence[Sequence[int]], indices: tuple[int, ...], pad_id: int, width: int) -> TokenBatch:
    shape = (len(indices), max(width, *(len(encoded[index]) for index in indices)))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for row, index in enumerate(indices):
        input_ids[row, : len(encoded[index])] = encoded[index]
        attention_mask[row, : len(encoded[index])] = 1
    return TokenBatch(indices, input_ids, attention_mask)


def _read_text(path: Path, name: str) -> str:
    try:
        data = read_file(path)
    except FileNotFoundError as error:
        why = f"there is no such file, seen from {Path.cwd()}"
        fix = f"check {name}.path in the config" if name != "data" else "check the path"
        raise InputError(f"{name} file {path} does not exist", why=why, fix=fix) from error
    except IsADirectoryError as error:
        fix = "name a file in it, text with one sentence a line or .jsonl"
        raise InputError(f"{name} file {path} is a directory", why="a file is expected", fix=fix) from error
    except OSError as error:
        fix = "check path and permissions"
        raise InputError(f"{name} file {path} cannot be read", why=reason(error), fix=fix) from error
    if wide := next((each for mark, each in _WIDE if data.startswith(mark)), None):
        fix = f"iconv -f {wide} -t UTF-8 {path} > converted.txt"
        raise InputError(f"{name} file {path} is {wide}", why=f"line 1 begins with the mark of {wide}", fix=fix)
    if b"\0" in data:
        raise _with_nul(data, path, name)
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_utf8(data, error.start, path, name) from error


def _refuse_other_forms(path: Path, name: str) -> None:
    """A table's header is no sentence, and nor is a row of it."""
    suffix = path.suffix.lower()
    if suffix in (*_TABLES, *_NO_TEXT) and path.is_file():
        what = "a table, of which one column holds the sentences" if suffix in _TABLES else f"a {suffix} file"
        raise InputError(
            f"{name} file {path} is no list of sentences",
            why=f"by its name it is {what}",
            fix='write the sentences into a .txt file, one a line, or a .jsonl file with {"input": "..."} on each line',
        )


def _with_nul(data: bytes, path: Path, name: str) -> InputError:
    offset = data.index(0)
    why = f"it has a NUL byte at offset {offset} (line {_line(data, offset)}), which text never has"
    fix = "give a text or JSONL file in UTF-8"
    if data.count(0) * 3 > len(data):  # every second byte of Latin letters
        wide = "UTF-16BE" if offset % 2 == 0 else "UTF-16LE"
        fix += f"; convert it, if it is UTF-16: iconv -f {wide} -t UTF-8 {path} > converted.txt"
    return InputError(f"{name} file {path} is binary", why=why, fix=fix)


def _not_utf8(data: bytes, offset: int, path: Path, name: str) -> InputError:
    line = _line(data, offset)
    why = f"byte 0x{data[offset]:02x} at offset {offset} (line {line}) is not valid there"
    if any(not each.isascii() for each in _lines_of(data) if _is_utf8(each)):
        bad = sum(not _is_utf8(each) for each in _lines_of(data))
        why += f"; other lines are UTF-8, so the file mixes encodings: {bad} of its lines are something else"
        fix = f"convert line {line} and any like it to UTF-8; `grep -naxv '.*' {path}` lists them in a UTF-8 locale"
    else:
        fix = f"convert it, if it is Latin-1: iconv -f ISO-8859-1 -t UTF-8 {path} > converted.txt"
    return InputError(f"{name} file {path} is not UTF-8", why=why, fix=fix)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _lines_of(data: bytes) -> list[bytes]:
    return data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def _line(data: bytes, offset: int) -> int:
    return len(_lines_of(data[:offset]))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines(): it also breaks at U+2028 and the like, which sentences and JSON strings may contain.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if line.strip():
            yield number, line


def _text_sample(text: str, line: int, _file: str) -> Sample:
    return Sample(text, None, line)


def _json_sample(text: str, line: int, file: str) -> Sample:
    fix = 'write one object a line: {"input": "...", "target": "..."}; target is optional'
    try:
        content = parse_json(text)
    except ValueError as error:
        raise InputError(f"{file}, line {line}, is not JSON", why=str(error), fix=fix) from error
    source = content.get("input") if isinstance(content, dict) else None
    target = content.get("target") if isinstance(content, dict) else None
    if not isinstance(source, str) or not source.strip():
        why = "it has no `input` with text" if isinstance(content, dict) else "it is not an object"
        raise InputError(f"{file}, line {line}, is no sample", why=why, fix=fix)
    if target is not None and not isinstance(target, str):
        raise InputError(f"{file}, line {line}, is no sample", why=f"its `target` is {target!r:.60}, no text", fix=fix)
    try:
        (source + (target or "")).encode()
    except UnicodeEncodeError as error:
        why = f"it escapes half a surrogate pair ({error.object[error.start]!r})"
        raise InputError(f"{file}, line {line}, is no text", why=why, fix="escape both halves") from error
    return Sample(source, target, line)


def _sample_warnings(samples: tuple[Sample, ...], path: Path, name: str) -> Iterator[str]:
    repeated = len(samples) - len({sample.text for sample in samples})
    if repeated:
        verbs = "repeats others and proves" if repeated == 1 else "repeat others and prove"
        yield f"{name} file {path}: {repeated} of {counted(len(samples), 'sample')} {verbs} nothing new"
    if path.suffix.lower() != ".jsonl" and all(sample.text.lstrip().startswith('{"') for sample in samples):
        yield f"{name} file {path}: every line looks like JSON but is read as text; rename it to {path.stem}.jsonl"


def _listed(lines: list[int]) -> str:
    shown = ", ".join(str(line) for line in lines[:_SHOWN_LINES])
    more = f" and {len(lines) - _SHOWN_LINES} more" if len(lines) > _SHOWN_LINES else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more} {'are' if len(lines) > 1 else 'is'}"
