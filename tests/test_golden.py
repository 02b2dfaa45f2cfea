"""The tool that compares golden files: it sees what changed, and nothing that a clock, a path or a version changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from tests.golden.comparing import compare_folders, differences
from tests.golden.hashes import of_graph
from tests.golden.volatile import MARK, settled, settled_progress, settled_text


def test_equal_values_have_no_difference() -> None:
    value = {"plans": [{"id": 0, "margin": 0.1, "parent": None}], "names": ["a", "b"]}
    assert list(differences(value, json.loads(json.dumps(value)))) == []


@pytest.mark.parametrize(
    ("golden", "now", "said"),
    [
        ({"a": 1.0}, {"a": 1.0 + 1e-11}, "a: was 1.0, now 1.00000000001"),
        ({"a": 0.0}, {"a": 1e-300}, "a: was 0.0, now 1e-300"),
        ({"a": 1}, {"a": 1.0}, "a: was 1, now 1.0"),
        ({"a": 1}, {"a": True}, "a: was 1, now true"),
        ({"a": None}, {"a": 0}, "a: was null, now 0"),
        ({"a": 1}, {}, "a: is missing, was 1"),
        ({}, {"a": 1}, "a: is new, 1"),
        ([{"id": 1}, {"id": 2}], [{"id": 2}, {"id": 1}], "[0].id: was 1, now 2"),
        (["x"], ["x", "y"], ": has 2 items, had 1"),
        ({"a": {"b": ["x"]}}, {"a": {"b": ["z"]}}, 'a.b[0]: was "x", now "z"'),
    ],
)
def test_a_difference_is_told_with_its_path(golden: object, now: object, said: str) -> None:
    assert next(differences(golden, now)) == said


def test_long_texts_are_shown_where_they_part() -> None:
    [said] = differences({"a": 500 * "x" + "old"}, {"a": 500 * "x" + "new"})
    assert said == f'a: was ..."{40 * "x"}old", now ..."{40 * "x"}new"'


def test_floats_may_differ_in_their_last_bits_only() -> None:
    assert list(differences([0.1, 3.0], [0.1 * (1 + 5e-13), 3.0 * (1 - 5e-13)])) == []
    assert len(list(differences([0.1, 3.0], [0.1 * (1 + 5e-12), 3.0 * (1 - 5e-12)]))) == 2


def test_folders_differ_by_subjects_and_by_what_is_in_them(tmp_path: Path) -> None:
    for folder, subjects in {"old": {"run": 1, "gone": 2}, "new": {"run": 3, "more": 4}}.items():
        home = tmp_path / folder / "tiny-nodes"
        home.mkdir(parents=True)
        for name, value in subjects.items():
            (home / f"{name}.json").write_text(json.dumps({"value": value}))
    assert list(compare_folders(tmp_path / "old", tmp_path / "new", "tiny")) == [
        "tiny-nodes/gone.json: is missing",
        "tiny-nodes/more.json: is new",
        "tiny-nodes/run.json: value: was 1, now 3",
    ]
    assert list(compare_folders(tmp_path / "old", tmp_path / "old")) == []


def test_a_folder_without_golden_files_is_a_difference(tmp_path: Path) -> None:
    assert list(compare_folders(tmp_path, tmp_path)) == [f"{tmp_path}: holds no golden files"]


def test_what_is_left_out_leaves_its_key() -> None:
    record = {
        "seconds": 1.5,
        "finished": None,
        "screen": {"full_ms": 3.0},
        "versions": {"numpy": "2"},
        "seed": 0,
        "best": {"value": 0.25},
    }
    assert settled("demo/run", record) == {
        "seconds": MARK,
        "finished": None,
        "screen": {"full_ms": MARK},
        "versions": {"numpy": MARK},
        "seed": 0,
        "best": {"value": 0.25},
    }


def test_a_long_list_of_names_becomes_a_hash_that_knows_their_order() -> None:
    names = [f"node {number}" for number in range(100)]
    found = settled("demo/trials", names)
    assert isinstance(found, dict)
    assert found["count"] == 100
    assert found != settled("demo/trials", names[::-1])
    assert settled("demo/trials", names[:3]) == names[:3]


def test_progress_loses_clocks_and_reminders_and_nothing_else() -> None:
    said = """\
[0.3 s] searching, strategy nodes
plan 0 (fp32): stable, 1.00x estimated, flip risk 0, 2.39 s, 0.86 screens/s
[61.0 s] searching, strategy nodes: 1 plan, stage fp32, up to ~3:02 left
plan 1 (all-low): rejected, nonfinite from token 1 of sample 16, 0.22 s
warning: one thing
[62.5 s] writing the model
"""
    assert settled_progress("demo/progress", said) == [
        "[- s] searching, strategy nodes",
        "plan 0 (fp32): stable, 1.00x estimated, flip risk 0, - s",
        "plan 1 (all-low): rejected, nonfinite from token 1 of sample 16, - s",
        "warning: one thing",
        "[- s] writing the model",
    ]


def test_the_page_loses_times_and_keeps_numbers() -> None:
    page = '<td class="number">7</td>\n<td class="number">2.18</td>\n<td class="reason" dir="auto"></td>'
    assert settled_text("demo/page", page) == page.replace("2.18", MARK)
    facts = "<dt>time</dt><dd><bdi>20.8 s</bdi></dd>\n<dt>seed</dt><dd><bdi>0</bdi></dd>"
    assert settled_text("demo/page", facts) == facts.replace("20.8 s", MARK)
    assert settled_text("demo/card", facts) == facts


def test_a_graph_with_another_version_differs_in_its_bytes_only(tmp_path: Path) -> None:
    found = [
        _hashes(tmp_path / "a.onnx", "Relu", "1"),
        _hashes(tmp_path / "b.onnx", "Relu", "2"),
        _hashes(tmp_path / "c.onnx", "Neg", "1"),
    ]
    said = [{line.split(":")[0] for line in differences(found[0], other)} for other in found[1:]]
    assert said == [{"file"}, {"file", "nodes", "without versions"}]


def _hashes(path: Path, op_type: str, version: str) -> dict[str, object]:
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node(op_type, ["x"], ["y"])], "graph", [next(ends)], [next(ends)])
    model = helper.make_model(graph, producer_name="precision-search", producer_version=version)
    helper.set_model_props(model, {"precision_search.tool_version": version})
    save(model, path)
    return of_graph(path)
