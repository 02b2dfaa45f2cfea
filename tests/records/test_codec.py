"""The codec: what is written is read back, and what does not fit is refused by its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.records.codec import from_json, to_json


@dataclass(frozen=True, slots=True)
class Leaf:
    number: float
    maybe: float | None


@dataclass(frozen=True, slots=True)
class Newer:
    number: float
    added: tuple[int, ...] = (7,)


@dataclass(frozen=True, slots=True)
class Tree:
    flag: bool
    count: int
    word: Literal["a", "b"]
    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, Leaf]
    inner: Leaf | None


finite = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.builds(Leaf, finite, st.none() | finite)
trees = st.builds(
    Tree,
    st.booleans(),
    st.integers(),
    st.sampled_from(["a", "b"]),
    st.lists(leaves, max_size=3).map(tuple),
    st.dictionaries(st.text(), leaves, max_size=3),
    st.none() | leaves,
)
TREE = Tree(True, 1, "a", (Leaf(1.0, None),), {"x": Leaf(2.0, 3.0)}, None)


@given(trees)
def test_what_is_written_is_read_back(tree: Tree) -> None:
    assert from_json(Tree, json.loads(json.dumps(to_json(tree), allow_nan=False)), "tree") == tree


def test_whole_numbers_are_read_as_floats_where_floats_belong() -> None:
    leaf = from_json(Leaf, {"number": 1, "maybe": 2}, "leaf")
    assert isinstance(leaf.number, float)
    assert isinstance(leaf.maybe, float)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_an_optional_number_may_be_unknown(value: float) -> None:
    assert to_json(Leaf(1.0, value)) == {"number": 1.0, "maybe": None}
    with pytest.raises(ValueError, match="JSON compliant"):
        json.dumps(to_json(Leaf(value, None)), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flag": 1}, "tree.flag is 1"),
        ({"count": True}, "tree.count is true"),
        ({"count": 1.5}, "tree.count is 1.5"),
        ({"word": "c"}, 'tree.word is "c"'),
        ({"leaves": {}}, "tree.leaves is {}"),
        ({"leaves": [{"number": None, "maybe": 1}]}, "tree.leaves.number is null"),
        ({"by_name": {"x": 3}}, "tree.by_name.x is 3"),
        ({"inner": {"maybe": None}}, "tree.inner lacks 'number'"),
        ({"inner": {"number": 10**400, "maybe": None}}, "tree.inner.number is 1000"),
        ({"inner": {"number": math.nan, "maybe": None}}, "tree.inner.number is NaN"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(change: dict[str, Any], message: str) -> None:
    data = to_json(TREE)
    assert isinstance(data, dict)
    with pytest.raises(ValueError, match="^" + message):
        from_json(Tree, data | change, "tree")


def test_an_unknown_key_is_ignored() -> None:
    assert from_json(Leaf, {"number": 1.0, "maybe": None, "colour": "red"}, "leaf") == Leaf(1.0, None)


def test_what_an_older_version_did_not_write_has_its_default() -> None:
    assert from_json(Newer, {"number": 1.0}, "newer") == Newer(1.0)
