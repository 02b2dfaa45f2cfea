"""What a plan keeps, in words: short, true, and the same for the same plan."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.records.kept_in_fp32 import kept_text
from tests.output_models import OP_TYPES, PINNED, fp32_trial, keeping
from tests.search_models import trial


def words(encoder: Sequence[str], decoder: Sequence[str], *nodes: str) -> str:
    plan = trial(1, plan=keeping(encoder, decoder, *nodes))
    return kept_text([fp32_trial(), plan], PINNED)(plan)


@pytest.mark.parametrize(
    ("encoder", "decoder", "expected"),
    [
        ((), (), "nothing"),
        (("Pow",), ("Pow",), "both: Pow"),
        (("Pow",), (), "enc: Pow"),
        ((), ("Pow", "Add"), "dec: Add Pow"),
        (("MatMul", "Pow"), ("Add", "Pow"), "both: Pow; enc: MatMul; dec: Add"),
        (OP_TYPES, (), "enc: everything"),
        (OP_TYPES, ("Pow",), "enc: everything; dec: Pow"),
        (OP_TYPES[1:], ("Pow",), "enc: all but Add; dec: Pow"),
        (OP_TYPES[2:], OP_TYPES[2:], "both: all but Add Gather"),
        (OP_TYPES, OP_TYPES, "both: everything"),
    ],
)
def test_op_types(encoder: tuple[str, ...], decoder: tuple[str, ...], expected: str) -> None:
    assert words(encoder, decoder) == expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (("encoder.block.0.layer.0/MatMul",), "enc: +1 node"),
        (("lm_head/MatMul",), "dec: +lm_head/MatMul"),
        (("encoder.a/MatMul", "encoder.a/MatMul.1"), "enc: +2 nodes"),
        (("lm_head/MatMul", "decoder.a/Add"), "dec: +2 nodes"),
        (("encoder.a/MatMul", "decoder.a/MatMul"), "enc: +encoder.a/MatMul; dec: +decoder.a/MatMul"),
    ],
)
def test_single_nodes_are_counted(nodes: tuple[str, ...], expected: str) -> None:
    assert words((), (), *nodes) == expected


def test_a_node_counts_only_beside_the_op_types_that_are_kept_whole() -> None:
    assert (
        words(("MatMul",), ("Pow",), "encoder.a/MatMul.3", "decoder.a/MatMul")
        == "enc: MatMul; dec: Pow +decoder.a/MatMul"
    )


def many(family: str, count: int) -> list[str]:
    return [f"{family}.block.{n}.y/Add" for n in range(count)]


def test_a_family_with_many_single_nodes_is_counted() -> None:
    whole = 2 * len(OP_TYPES) + 1  # what fp32 keeps of each family, its pinned node among them
    assert words((), (), *many("encoder", 9)) == "enc: +9 nodes"
    assert words((), (), *many("encoder", 10)) == f"enc: 11 of {whole} nodes"
    assert words(("Pow",), ("Pow",), *many("encoder", 10)) == f"enc: 13 of {whole} nodes; dec: Pow"
    both = words(OP_TYPES[3:], ("Pow",), *many("encoder", 10), *many("decoder", 12))
    assert both == f"enc: 23 of {whole} nodes; dec: 15 of {whole} nodes"


def test_without_the_fp32_trial_nobody_knows_of_how_many() -> None:
    plan = trial(1, plan=keeping((), (), *many("encoder", 10)))
    assert kept_text([plan], PINNED)(plan) == "enc: 11 nodes"


def test_pinned_nodes_are_not_told_beside_op_types() -> None:
    plan = trial(1, plan=keeping((), ()))
    assert kept_text([plan], PINNED)(plan) == "nothing"
    assert kept_text([plan])(plan) == "enc: +1 node; dec: +1 node"


def test_without_the_fp32_trial_nothing_is_called_everything() -> None:
    plan = trial(1, plan=keeping(OP_TYPES, OP_TYPES))
    assert kept_text([plan], PINNED)(plan) == "both: " + " ".join(OP_TYPES)


def test_fp32_keeps_everything() -> None:
    assert kept_text([])(fp32_trial()) == "everything"


subsets = st.frozensets(st.sampled_from(OP_TYPES)).map(sorted)


@given(subsets, subsets, subsets, subsets)
def test_different_plans_read_differently(
    encoder: list[str], decoder: list[str], other_encoder: list[str], other_decoder: list[str]
) -> None:
    same = (encoder, decoder) == (other_encoder, other_decoder)
    assert (words(encoder, decoder) == words(other_encoder, other_decoder)) is same
