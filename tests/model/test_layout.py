"""The layout is the one place that knows what graphs, files and tensors are called, and it says what exporters do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import precision_search
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.layout import SEQ2SEQ, graph_file
from tests.graphs import LAYERS, tiny_t5_protos

PACKAGE = Path(precision_search.__file__).parent
LAYOUT = PACKAGE / "model/layout.py"
GRAPH = PACKAGE / "model/graph.py"
"""Has the type of graph names."""

NAMES = {
    *(each.name for graph in SEQ2SEQ.graphs for each in graph.inputs),
    *(graph.output for graph in SEQ2SEQ.graphs),
    *SEQ2SEQ.foreign,
    SEQ2SEQ.past,
}
# A name that is a word of English, such as `logits`, counts where it is the whole literal.
PARTS = [rf"{name}" if "_" in name else rf"(?:\A{name}\Z)" for name in sorted(NAMES)]
SPELLED = re.compile(rf"(?<!\w)(?:{'|'.join(PARTS)})(?!\w)|(?<!\w){SEQ2SEQ.present}\.\w|_model\.onnx")
GRAPH_LITERAL = re.compile(rf"(?<!\w){SEQ2SEQ.decoder_with_past.name}(?!\w)")


def literals(path: Path) -> Iterator[ast.Constant]:
    """String literals of a module, those of f-strings among them, docstrings aside."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node


def spelled(path: Path, pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.value!r}"
        for node in literals(path)
        if pattern.search(str(node.value))
    ]


def test_no_other_module_spells_a_tensor_or_a_file() -> None:
    assert spelled(LAYOUT, SPELLED)
    others = [path for path in sorted(PACKAGE.rglob("*.py")) if path != LAYOUT]
    assert [found for path in others for found in spelled(path, SPELLED)] == []


def test_no_other_module_spells_the_graph_of_later_steps() -> None:
    others = [path for path in sorted(PACKAGE.rglob("*.py")) if path not in (LAYOUT, GRAPH)]
    assert [found for path in others for found in spelled(path, GRAPH_LITERAL)] == []


@pytest.mark.parametrize("text", ["input_ids", "past_key_values.0.decoder.key", "present.0", "encoder_model.onnx"])
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert SPELLED.search(f"give its {text}, please")
    assert SPELLED.search("logits")
    assert not SPELLED.search("decoder_input_identity, logits, at present.")


def test_graphs_and_files_are_those_of_optimum() -> None:
    assert tuple(graph.name for graph in SEQ2SEQ.graphs) == GRAPH_NAMES
    assert [graph_file(name) for name in GRAPH_NAMES] == [
        "encoder_model.onnx",
        "decoder_model.onnx",
        "decoder_with_past_model.onnx",
    ]
    assert SEQ2SEQ.files == "encoder_model.onnx, decoder_model.onnx and decoder_with_past_model.onnx"


def test_names_are_those_of_an_export() -> None:
    for name, proto in tiny_t5_protos().items():
        graph = SEQ2SEQ.graph(name)
        assert set(SEQ2SEQ.input_names(graph, LAYERS)) == {value.name for value in proto.graph.input}
        assert set(SEQ2SEQ.output_names(graph, LAYERS)) == {value.name for value in proto.graph.output}


def test_caches_feed_the_next_step() -> None:
    first, later = SEQ2SEQ.decoder, SEQ2SEQ.decoder_with_past
    links = SEQ2SEQ.caches(2)
    assert [link.past.removeprefix("past_key_values.") for link in links[:4]] == [
        "0.decoder.key",
        "0.decoder.value",
        "0.encoder.key",
        "0.encoder.value",
    ]
    assert {link.past for link in links} <= set(SEQ2SEQ.input_names(later, 2))
    assert {link.present for link in links} <= set(SEQ2SEQ.output_names(first, 2))
    written_later = {link.present for link in links} & set(SEQ2SEQ.output_names(later, 2))
    assert written_later == {link.present for link in links if link.is_self}
    assert [SEQ2SEQ.cache_link(link.past) for link in links] == list(links)


@pytest.mark.parametrize(
    "name", ["past_key_values.0.decoder", "past_key_values.x.decoder.key", "input_ids", "present.0"]
)
def test_other_inputs_are_no_caches(name: str) -> None:
    assert SEQ2SEQ.cache_link(name) is None


def test_how_often_graphs_run() -> None:
    runs = {graph.name: list(graph.pasts(4)) for graph in SEQ2SEQ.graphs}
    assert runs == {"encoder": [0], "decoder": [0], "decoder_with_past": [1, 2, 3]}
    assert list(SEQ2SEQ.decoder_with_past.pasts(1)) == []


def test_a_graph_is_fed_what_it_takes() -> None:
    ids, mask, tokens, states = (np.array([number]) for number in range(4))
    everything = {"source_ids": ids, "source_mask": mask, "decoder_ids": tokens, "encoder_states": states}
    found = {graph.name: {k: int(v[0]) for k, v in graph.feed(everything).items()} for graph in SEQ2SEQ.graphs}  # type: ignore[arg-type]
    step = {"input_ids": 2, "encoder_hidden_states": 3, "encoder_attention_mask": 1}
    assert found == {
        "encoder": {"input_ids": 0, "attention_mask": 1},
        "decoder": step,
        "decoder_with_past": step,
    }


def test_axes_are_told_from_the_names_of_all_inputs() -> None:
    assert SEQ2SEQ.axes(["input_ids", "attention_mask", "extra"]) == {
        "input_ids": ("batch", "source"),
        "attention_mask": ("batch", "source"),
    }
    assert SEQ2SEQ.axes(["input_ids", "encoder_attention_mask", "past_key_values.0.encoder.key", "cache_position"]) == {
        "input_ids": ("batch", "target"),
        "encoder_attention_mask": ("batch", "source"),
        "past_key_values.0.encoder.key": ("batch", None, "source", None),
        "cache_position": ("target",),
    }
