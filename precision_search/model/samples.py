"""Sentences in, token batches out: sample files, their encoding, and right-padded batches.

In: a file of sentences and the checkpoint's tokenizer. Out: `SampleSet` with a content hash, token ids for each
sample, and `TokenBatch` arrays. Nothing here prints: what a person should hear is collected as warnings.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from precision_search.errors import InputError
from precision_search.model.sample_files import Sample, has_columns, read_samples
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


def load_samples(path: Path, name: str, column: str | None = None) -> SampleSet:
    """Reads the samples of a file in any form of `sample_files.FORMS`, or of text with one a line.

    Args:
        path: the file.
        name: the role of the set.
        column: what holds the sentences in a file with columns (see `sample_files.read_samples`).

    Raises:
        InputError: it is empty, or see `sample_files.read_samples`.
        MissingPackageError: nothing is installed that reads its form.
    """
    samples = read_samples(path, name, column)
    if not samples:
        raise InputError(
            f"{name} file {path} is empty",
            why="it holds no line with text",
            fix="put one source sentence on each line; about a hundred make a verdict worth something",
        )
    return sample_set(name, path, samples, tuple(_sample_warnings(samples, path, name, column)))


def sample_set(name: str, path: Path, samples: tuple[Sample, ...], warnings: tuple[str, ...] = ()) -> SampleSet:
    """A set of samples, with their hash."""
    canonical = json.dumps([[sample.text, sample.target] for sample in samples], ensure_ascii=False)
    return SampleSet(name, path, samples, hashlib.sha256(canonical.encode()).hexdigest(), warnings)


def write_samples(samples: SampleSet, path: Path) -> None:
    """Writes a set as JSON Lines, which hold any text; `load_samples` reads an equal one back.

    Raises:
        OSError: it cannot be written.
    """
    rows = ({"input": each.text} | ({} if each.target is None else {"target": each.target}) for each in samples.samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


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
        warnings = (f"{samples.name} file {samples.path}: {lines} cut to {limit} tokens, {whose}",)
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


def _sample_warnings(samples: tuple[Sample, ...], path: Path, name: str, column: str | None) -> Iterator[str]:
    if column is not None and not has_columns(path):
        yield f"{name} file {path} is read line by line: it has no columns, and so none called {column}"
    repeated = len(samples) - len({sample.text for sample in samples})
    if repeated:
        yield f"{name} file {path}: {repeated} of {len(samples)} samples repeat others and prove nothing new"
    if not has_columns(path) and all(sample.text.lstrip().startswith('{"') for sample in samples):
        yield f"{name} file {path}: every line looks like JSON but is read as text; rename it to {path.stem}.jsonl"


def _listed(lines: list[int]) -> str:
    shown = ", ".join(str(line) for line in lines[:_SHOWN_LINES])
    more = f" and {len(lines) - _SHOWN_LINES} more" if len(lines) > _SHOWN_LINES else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more} {'are' if len(lines) > 1 else 'is'}"
