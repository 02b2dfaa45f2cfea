"""`nodes.json`: every compute node once, what is known of it, and read back as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from precision_search.errors import InputError
from precision_search.judging.ranges import NodeRange
from precision_search.precision.plan import all_compute_keys
from precision_search.records.nodes_json import NODES_FILE, describe_nodes, read_nodes
from precision_search.records.run_files import write_json_atomically
from tests.graphs import tiny_t5
from tests.output_models import node_record, run_nodes


def test_every_compute_node_is_told_once_with_the_graphs_that_hold_it() -> None:
    graphs = tiny_t5()
    first, second, third, *_ = keys = list(dict.fromkeys(node.key for g in graphs.values() for node in g.compute))
    ranges = {
        first: NodeRange(first, "Gather", 1.0, 40_000.0, 0.0, 0.25),
        second: NodeRange(second, "Pow", float("nan"), 3.0, 2.0, 0.0),
    }
    found = describe_nodes(
        graphs,
        ranges,
        "float16",
        range_safety=2.0,
        samples=7,
        fixed={second: "search.keep_fp32"},
        forced_low={second, third},
    )
    assert [node.key for node in found.nodes] == keys
    assert set(keys) == all_compute_keys(graphs)
    by_key = {node.key: node for node in found.nodes}
    for key, node in by_key.items():
        assert node.graphs == tuple(name for name, graph in graphs.items() if key in {n.key for n in graph.compute})
        assert node.family == ("encoder" if "encoder" in node.graphs else "decoder")
    assert by_key[first].beyond_range
    assert by_key[first].largest == 40_000.0
    assert (by_key[second].fixed, by_key[second].forced_low) == ("search.keep_fp32", False)
    assert by_key[third].forced_low
    assert by_key[third].largest is None
    assert (found.largest_number, found.smallest_normal, found.samples) == (65504.0, 2.0**-14, 7)


def test_the_file_is_read_back_and_what_is_not_finite_is_unknown(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / NODES_FILE, run_nodes())
    assert read_nodes(tmp_path) == run_nodes()
    infinite = node_record("encoder/Add", largest_inside=float("inf"))
    write_json_atomically(tmp_path / NODES_FILE, {**json.loads((tmp_path / NODES_FILE).read_text()), "nodes": ()})
    assert read_nodes(tmp_path).nodes == ()
    write_json_atomically(tmp_path / "node.json", infinite)
    assert json.loads((tmp_path / "node.json").read_text())["largest_inside"] is None


@pytest.mark.parametrize("content", [None, b"{}", b'{"schema_version": 99}', b"\xff"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / NODES_FILE).write_bytes(content)
    with pytest.raises(InputError, match=NODES_FILE) as caught:
        read_nodes(tmp_path)
    assert caught.value.exit_code == 2
    assert caught.value.fix
