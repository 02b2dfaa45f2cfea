"""A T5 with random weights in the shape of t5-small: 60 million parameters to time, whatever they say."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

SHAPE = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_heads": 8,
    "num_layers": 6,
    "num_decoder_layers": 6,
}
"""The config.json of google-t5/t5-small."""

SEED = 5
LENGTHS = (8, 32)
"""Tokens of the shortest and the longest source."""


def write_random_t5(directory: Path) -> Path:
    """Writes the checkpoint with a tokenizer of made-up words, once."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    config = T5Config.from_dict({**SHAPE, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1})
    model = T5ForConditionalGeneration(config)
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        work = Path(folder) / "model"
        model.save_pretrained(work)
        (work / "tokenizer.json").write_text(json.dumps(_tokenizer(SHAPE["vocab_size"])))
        special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        (work / "tokenizer_config.json").write_text(json.dumps(settings))
        work.rename(directory)
    return directory


def random_rows(count: int, vocab_size: int) -> list[list[int]]:
    """Sources of random length and content, each with its end token."""
    rng = np.random.default_rng(SEED)
    lengths = rng.integers(*LENGTHS, count, endpoint=True)
    return [[*rng.integers(3, vocab_size, length - 1).tolist(), 1] for length in lengths]


def _tokenizer(size: int) -> dict[str, object]:
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(3, size))]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: id for id, word in enumerate(words)}, "unk_token": "<unk>"},
    }
