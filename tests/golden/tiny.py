"""A tiny T5 with random weights and sentences for it, made without a line of the package: its insides may move.

Out: a checkpoint as `save_pretrained` leaves it, three sample files and configs. One weight is loud enough to push the
residual stream out of the range of fp16, so that plans are rejected too.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

WORDS = tuple("abcdefghijklmnopqrst")
SETS = (("calibration", 24), ("validation", 24), ("test", 16))
"""Sample files and how many sentences each has."""

_SAVE = """
import sys
import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

sizes = dict(vocab_size=23, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2, relative_attention_num_buckets=8)
config = T5Config(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes)
model = T5ForConditionalGeneration(config)
rng = np.random.default_rng(7)
with torch.no_grad():
    for name, weight in sorted(model.named_parameters()):
        if weight.dim() > 1:
            weight.copy_(torch.from_numpy(rng.normal(scale=0.5, size=tuple(weight.shape)).astype(np.float32)))
    model.encoder.block[0].layer[1].DenseReluDense.wo.weight.mul_(20_000)
model.generation_config.max_new_tokens = 8
model.save_pretrained(sys.argv[1])
"""


def write_checkpoint(target: Path) -> None:
    """Writes the checkpoint, the same bytes every time; torch stays in a child process."""
    done = subprocess.run([sys.executable, "-c", _SAVE, str(target)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the tiny checkpoint cannot be made:\n{done.stderr[-2000:]}")
    (target / "tokenizer.json").write_text(_tokenizer())


def write_samples(folder: Path) -> None:
    """Writes the sample files: sentences of two to eight words, one a line."""
    for number, (name, count) in enumerate(SETS):
        rng = random.Random(number)
        lines = (" ".join(rng.choices(WORDS, k=rng.randint(2, 8))) for _ in range(count))
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def write_config(path: Path, model: str, strategy: str, max_trials: int) -> None:
    """Writes a config beside the sample files; `model` is seen from there."""
    lines = [
        *("[model]", f"path = {json.dumps(model)}"),
        *("[calibration]", 'path = "calibration.txt"'),
        *("[validation]", 'path = "validation.txt"', "min_exact_match = 0.5"),
        *("[test]", 'path = "test.txt"'),
        *("[device]", 'kind = "cpu"', "threads = 1"),
        *("[workload]", "batch = 4096", "source_length = 128", "target_length = 128"),
        *("[search]", f"strategy = {json.dumps(strategy)}", f"max_trials = {max_trials}"),
    ]
    path.write_text("\n".join(lines) + "\n")


def _tokenizer() -> str:
    """A tokenizer that knows these words."""
    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        }
    )
