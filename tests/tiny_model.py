"""A whole model small enough that a run of the command line takes seconds: a tiny T5 in ONNX, sentences, a config."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from precision_search.model.layout import graph_file
from tests.checkpoints import word_tokenizer
from tests.graphs import HEAD_WIDTH, HEADS, INNER, LAYERS, VOCABULARY, WIDTH, tiny_t5_protos

WORDS = tuple("abcdefghij")
LOUD = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
"""The weight that is scaled until its product, and with it the residual stream, leaves the range of fp16."""
LOUDNESS = np.float32(20_000)
MIN_EXACT_MATCH = 0.5
SIZES = {
    "model_type": "t5",
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": HEAD_WIDTH,
    "d_ff": INNER,
    "num_heads": HEADS,
    "num_layers": LAYERS,
    "tie_word_embeddings": True,
}


def write_tiny_model(directory: Path, seed: int = 0) -> Path:
    """The three graphs and the files beside them; another seed is another model."""
    directory.mkdir(parents=True)
    settings = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 6}
    for name, content in (("config.json", SIZES), ("generation_config.json", settings)):
        (directory / name).write_text(json.dumps(content))
    (directory / "tokenizer.json").write_text(word_tokenizer(*WORDS))
    for name, proto in tiny_t5_protos(seed).items():
        for weight in proto.graph.initializer:
            if weight.name == LOUD:
                weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * LOUDNESS, LOUD))
        onnx.save(proto, directory / graph_file(name))
    return directory


def write_sentences(path: Path, count: int, seed: int) -> Path:
    """Sentences of two to six words, one a line."""
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_tiny_config(folder: Path, strategy: str = "op-types", **search: object) -> Path:
    """A config with model and sentences of its own in `folder`; `search` are keys of that section."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_model(folder / "model")
    for number, (name, count) in enumerate((("calibration", 12), ("validation", 12), ("test", 8))):
        write_sentences(folder / f"{name}.txt", count, number)
    lines = [
        "[model]",
        'path = "./model"',
        f"cache = {json.dumps(str(folder / 'cache'))}",
        *("[calibration]", 'path = "calibration.txt"'),
        *("[validation]", 'path = "validation.txt"', f"min_exact_match = {MIN_EXACT_MATCH}"),
        *("[test]", 'path = "test.txt"'),
        *("[device]", 'kind = "cpu"', "threads = 1"),
        *("[workload]", "batch = 4096", "source_length = 128", "target_length = 128"),
        *("[search]", f'strategy = "{strategy}"'),
        *(f"{key} = {json.dumps(value)}" for key, value in search.items()),
    ]
    path = folder / "tiny.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


PAD_SIZE = np.float32(65_504)
"""What the encoder's embedding of padding holds: the largest number of fp16."""
LEAKY_MASK = np.float32(-3)
"""What the encoder adds to the scores of padding where it is to look there, too."""


def write_padding_model(directory: Path, *, breaks: bool = True, leaks: bool = False, seed: int = 0) -> Path:
    """A tiny model that fp16 breaks in padded rows only: at padding the residual stream leaves fp16's range.

    Attention weighs padding with 0, which hides finite values there and not NaN. Without `breaks` it is sound. If it
    `leaks`, padding has some weight, so that fp32 itself gives another token where the padding of a row decides.
    """
    write_tiny_model(directory, seed)
    for name, proto in tiny_t5_protos(seed).items():
        for weight in proto.graph.initializer:
            array = numpy_helper.to_array(weight).copy()
            if breaks and name == "encoder" and weight.name == "shared.weight":
                array[0] = PAD_SIZE
            if breaks and weight.name == "encoder.block.0.layer.0.SelfAttention.o.weight":
                array *= 60
            if leaks and name == "encoder" and weight.name == "minimum":
                array[...] = LEAKY_MASK
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
        onnx.save(proto, directory / graph_file(name))
    return directory
