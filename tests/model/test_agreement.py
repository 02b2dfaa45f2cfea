"""Proves that a config that is not that of the graphs is refused by its key, before anything is made of its sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from precision_search.errors import InputError
from precision_search.model.bundle import open_bundle
from tests.graphs import HEAD_WIDTH, HEADS, INNER, LAYERS, VOCABULARY, WIDTH
from tests.tiny_model import SIZES, write_tiny_model


def opened(folder: Path, **settings: object) -> InputError | None:
    """What opening the tiny model with other settings says."""
    model = write_tiny_model(folder / "model")
    (model / "config.json").write_text(json.dumps({**SIZES, **settings}))
    try:
        open_bundle(str(model), folder / "cache")
    except InputError as error:
        return error
    return None


def test_the_config_of_the_graphs_is_taken(tmp_path: Path) -> None:
    assert opened(tmp_path) is None


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("vocab_size", VOCABULARY - 6, f"the embedding of encoder has {VOCABULARY}"),
        ("d_model", 7, f"has {WIDTH}"),
        ("d_kv", HEAD_WIDTH + 1, f"has {HEAD_WIDTH}"),
        ("num_heads", HEADS * 2, f"has {HEADS}"),
        ("d_ff", 999, f"the widest product of encoder has {INNER}"),
        ("d_ff", WIDTH, f"the widest product of encoder has {INNER}"),
        ("d_ff", VOCABULARY, f"the widest product of encoder has {INNER}"),
        ("num_layers", LAYERS + 5, f"the softmaxes of encoder are {LAYERS}"),
    ],
)
def test_another_size_is_told_with_its_key_and_both_values(tmp_path: Path, key: str, value: int, told: str) -> None:
    error = opened(tmp_path, **{"num_decoder_layers": LAYERS, key: value})

    assert error is not None
    assert "config.json is not the config of the graphs" in error.what
    assert f"it says {key} = {value}" in error.why
    assert told in error.why


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_layers", 10**9),
        ("num_layers", 10**6),
        ("num_layers", 0),
        ("num_layers", -1),
        ("num_layers", 2.5),
        ("num_layers", "x"),
        ("num_layers", None),
        ("num_layers", True),
        ("vocab_size", 10**12),
        ("vocab_size", 1e300),
        ("vocab_size", []),
        ("d_model", 10**18),
        ("num_decoder_layers", 10**9),
        ("tie_word_embeddings", "maybe"),
        ("scale_decoder_outputs", 1),
    ],
)
def test_sizes_that_no_model_has_are_refused_at_once(tmp_path: Path, key: str, value: object) -> None:
    error = opened(tmp_path, **{key: value})

    assert error is not None
    assert key in error.why


def test_what_the_graphs_do_not_need_is_not_looked_at(tmp_path: Path) -> None:
    assert opened(tmp_path, dropout_rate="x") is None


def test_a_decoder_of_other_depth_is_told_by_its_caches(tmp_path: Path) -> None:
    error = opened(tmp_path, num_layers=LAYERS, num_decoder_layers=LAYERS + 1)

    assert error is not None
    assert f"present.{LAYERS}." in error.why
