"""Proves that weights which are not the config's, adapters and quantized checkpoints are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_search.errors import InputError
from precision_search.model.bundle import open_bundle
from precision_search.model.families import FAMILIES
from precision_search.model.generation_config import read_model_config
from precision_search.model.stored_weights import ADAPTER_FILES, check_weights, refuse_surplus
from tests.tiny_model import write_tiny_model

SIZES = {"vocab_size": 48, "d_model": 10, "d_kv": 3, "d_ff": 20, "num_heads": 2, "num_layers": 1}
EXPECTED = {
    "shared.weight": (48, 10),
    "encoder.block.0.layer.0.SelfAttention.q.weight": (6, 10),
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": (10, 20),
    "encoder.final_layer_norm.weight": (10,),
}


def checkpoint(folder: Path, weights: dict[str, Any], **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", **SIZES, **settings}))
    save_file(weights, folder / "model.safetensors")
    return folder


def whole(**changed: Any) -> dict[str, Any]:
    return {name: np.zeros(shape, np.float32) for name, shape in EXPECTED.items()} | changed


def refusal(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        check_weights(folder, EXPECTED, read_model_config(folder), FAMILIES["t5"])
    return caught.value


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_of_the_config_s_sizes_are_taken(tmp_path: Path, dtype: type) -> None:
    weights: dict[str, Any] = {name: np.zeros(shape, dtype) for name, shape in EXPECTED.items()}
    folder = checkpoint(tmp_path / "model", {**weights, "position_ids": np.zeros(3, np.int64)})

    check_weights(folder, EXPECTED, read_model_config(folder), FAMILIES["t5"])


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("shared.weight", (32, 10), "shared.weight is 32 x 10 there, and 48 x 10 by vocab_size"),
        ("shared.weight", (48, 8), "48 x 8 there, and 48 x 10 by d_model"),
        ("shared.weight", (8, 8), "8 x 8 there, and 48 x 10 by vocab_size and d_model"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", (7, 10), "7 x 10 there, and 6 x 10 by num_heads x d_kv"),
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", (10, 21), "by d_ff"),
        ("encoder.final_layer_norm.weight", (), "a single number there, and 10 by config.json"),
    ],
)
def test_another_shape_is_told_with_both_and_the_key(
    tmp_path: Path, name: str, shape: tuple[int, ...], why: str
) -> None:
    error = refusal(checkpoint(tmp_path / "model", whole(**{name: np.zeros(shape, np.float32)})))

    assert "config.json does not describe its weights" in error.what
    assert why in error.why


def test_whole_numbers_are_quantized_weights(tmp_path: Path) -> None:
    weights = whole(**{"shared.weight": np.zeros((48, 10), np.int8)})

    error = refusal(checkpoint(tmp_path / "model", weights))
    assert "is quantized" in error.what
    assert error.why == "the numbers of its weight shared.weight are I8"


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    folder = checkpoint(tmp_path / "model", whole())
    (folder / "model.safetensors").write_bytes(content)

    if len(content) == 16:  # a header without tensors
        check_weights(folder, EXPECTED, read_model_config(folder), FAMILIES["t5"])
    else:
        assert "model.safetensors is broken" in refusal(folder).what


def test_an_untied_head_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Transformers reports nothing missing, and takes the embedding."""
    folder = checkpoint(tmp_path / "model", whole(), tie_word_embeddings=False)

    with pytest.raises(InputError, match=r"has no lm_head\.weight"):
        check_weights(folder, {**EXPECTED, "lm_head.weight": (48, 10)}, read_model_config(folder), FAMILIES["t5"])


def test_surplus_weights_are_named(tmp_path: Path) -> None:
    refuse_surplus(tmp_path, [])
    with pytest.raises(InputError, match="no place for") as caught:
        refuse_surplus(tmp_path, ["a", "b", "c", "d", "e"])
    assert caught.value.why.startswith("a, b, c and 2 more would be left out")


@pytest.mark.parametrize("name", ADAPTER_FILES)
@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_is_refused_beside_weights_or_instead_of_them(tmp_path: Path, name: str, alone: bool) -> None:
    folder = tmp_path / "model"
    if alone:
        folder.mkdir()
    else:
        checkpoint(folder, whole())
    (folder / name).write_text("{}")

    with pytest.raises(InputError, match="holds an adapter") as caught:
        open_bundle(str(folder), tmp_path / "cache")
    assert name in caught.value.why
    assert "merge_and_unload" in caught.value.fix


def test_an_adapter_beside_graphs_is_not_looked_at(tmp_path: Path) -> None:
    """The graphs are the model."""
    folder = write_tiny_model(tmp_path / "model")
    (folder / ADAPTER_FILES[0]).write_text("{}")

    assert open_bundle(str(folder), tmp_path / "cache").checkpoint is None


@pytest.mark.parametrize(
    ("config", "told"),
    [({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"), ({"bits": 4}, "no quant_method")],
)
def test_a_quantized_checkpoint_is_refused_with_its_method(tmp_path: Path, config: object, told: str) -> None:
    folder = checkpoint(tmp_path / "model", whole(), quantization_config=config)

    with pytest.raises(InputError, match="is quantized") as caught:
        open_bundle(str(folder), tmp_path / "cache")
    assert told in caught.value.what
