"""Proves that the prefixes of a model's tasks are named where none is given, and never used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from precision_search.model.prefixes import known_prefixes, prefix_hint
from precision_search.model.samples import Sample, SampleSet, sample_set

TASKS = {
    "summarization": {"prefix": "summarize: ", "num_beams": 4},
    "translation_en_to_de": {"prefix": "translate English to German: "},
    "other": {"max_length": 3},
}


def model(folder: Path, tasks: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"task_specific_params": tasks}))
    return folder


def sentences(*texts: str, name: str = "calibration") -> SampleSet:
    return sample_set(name, Path("data.txt"), tuple(Sample(text, None) for text in texts))


def test_prefixes_are_named_where_none_is_given(tmp_path: Path) -> None:
    hint = prefix_hint(model(tmp_path, TASKS), "", sentences("Hello"))

    assert hint is not None
    assert '"summarize: ", "translate English to German: "' in hint
    assert "calibration.prefix" in hint
    assert "--prefix if" in str(prefix_hint(tmp_path, "", sentences("Hello", name="data")))


def test_nothing_is_said_where_a_prefix_is_there(tmp_path: Path) -> None:
    model(tmp_path, TASKS)

    assert prefix_hint(tmp_path, "translate: ", sentences("Hello")) is None
    assert prefix_hint(tmp_path, "", sentences("Hello", "summarize: Hello")) is None


@pytest.mark.parametrize("tasks", [None, [], "x", {"a": 1}, {"a": {"prefix": 3}}, {"a": {"prefix": " "}}])
def test_strange_tasks_have_no_prefix(tmp_path: Path, tasks: object) -> None:
    assert known_prefixes(model(tmp_path, tasks)) == ()


def test_a_model_without_a_config_has_no_prefix(tmp_path: Path) -> None:
    assert known_prefixes(tmp_path) == ()


def test_many_and_long_prefixes_are_cut(tmp_path: Path) -> None:
    model(tmp_path, {str(number): {"prefix": f"{number}{'x' * 1000}"} for number in range(50)})

    hint = str(prefix_hint(tmp_path, "", sentences("Hello")))
    assert "and 44 more" in hint
    assert len(hint) < 800
