"""Three ways to generate greedily with one checkpoint: rows of token ids in, rows of token ids out, end included."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from precision_search import Seq2SeqGenerator
from precision_search.errors import MissingPackageError
from precision_search.model.bundle import open_bundle
from precision_search.model.generation_config import read_generation_settings
from precision_search.model.samples import batches

OURS, REFERENCE, OTHER = "precision-search", "transformers", "CTranslate2"
ENGINES = (OURS, REFERENCE, OTHER)

Rows = Sequence[Sequence[int]]
Generate = Callable[[Rows], list[list[int]]]


def make_engines(checkpoint: Path, cache: Path, work: Path, limit: int, threads: int) -> dict[str, Generate]:
    """All three on one checkpoint.

    Args:
        checkpoint: directory with safetensors and a tokenizer.
        cache: of ONNX exports.
        work: for CTranslate2's own form of the model.
        limit: most new tokens.
        threads: for each.

    Raises:
        MissingPackageError: CTranslate2 is not installed.
    """
    return {
        OURS: _ours(checkpoint, cache, limit, threads),
        REFERENCE: _transformers(checkpoint, limit, threads),
        OTHER: _ctranslate2(checkpoint, work, limit, threads),
    }


def _ours(checkpoint: Path, cache: Path, limit: int, threads: int) -> Generate:
    directory = open_bundle(str(checkpoint), cache).path
    generator = Seq2SeqGenerator.from_pretrained(directory, device="cpu", threads=threads)
    return lambda rows: [list(ids) for ids in generator.generate(rows, max_new_tokens=limit).ids]


def _transformers(checkpoint: Path, limit: int, threads: int) -> Generate:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(threads)
    settings = read_generation_settings(checkpoint, limit)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def generate(rows: Rows) -> list[list[int]]:
        batch = batches(rows, len(rows), settings.pad_token_id)[0]
        ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids, attention_mask=mask, num_beams=1, do_sample=False, max_length=None, max_new_tokens=limit
            )
        return [_to_end(row, settings.eos_token_ids) for row in found[:, 1:].tolist()]

    return generate


def _ctranslate2(checkpoint: Path, work: Path, limit: int, threads: int) -> Generate:
    try:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise MissingPackageError(
            "CTranslate2 is not installed", why=str(error), fix="pip install ctranslate2"
        ) from error
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        target = str(Path(folder) / "ctranslate2")
        TransformersConverter(str(checkpoint)).convert(target)
        translator = ctranslate2.Translator(
            target, device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads
        )
        names = _names(Path(target))
    numbers = {name: number for number, name in enumerate(names)}

    def generate(rows: Rows) -> list[list[int]]:
        found = translator.translate_batch(
            [[names[token] for token in row] for row in rows],
            beam_size=1,
            max_decoding_length=limit,
            return_end_token=True,
        )
        return [[numbers[name] for name in each.hypotheses[0]] for each in found]

    return generate


def _names(model: Path) -> list[str]:
    """The tokens of a converted model, by id."""
    return [str(name) for name in json.loads((model / "shared_vocabulary.json").read_text())]


def _to_end(row: list[int], ends: Sequence[int]) -> list[int]:
    return next((row[: position + 1] for position, token in enumerate(row) if token in ends), row)
