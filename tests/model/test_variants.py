"""Variants are the graphs after rewrites: the base graphs stay, and what other graphs rely on must not change."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from precision_search.errors import InputError, InternalError
from precision_search.model import variants
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.graph import BASE_VARIANT, GraphName
from precision_search.model.variants import VARIANTS, Variant, variant_names, with_variants
from precision_search.precision.plan import all_compute_keys
from tests.tiny_model import write_tiny_model
from tests.toy_variant import NEW, TOY, register_toy


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(str(write_tiny_model(tmp_path / "model")), tmp_path / "cache")


def test_the_base_graphs_are_all_there_is() -> None:
    assert variant_names() == (BASE_VARIANT,)


def test_another_variant_leaves_the_base_graphs_as_they_are(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    register_toy(monkeypatch)
    before = all_compute_keys(bundle.graphs)

    found = with_variants(bundle)

    assert found.variant_names == (BASE_VARIANT, TOY)
    assert found.graphs_of(BASE_VARIANT) is bundle.graphs
    assert all_compute_keys(bundle.graphs) == before
    new = all_compute_keys(found.graphs_of(TOY)) - before
    assert new
    assert all(key.endswith(NEW) for key in new)
    assert found.content_hash == bundle.content_hash
    assert with_variants(bundle, [BASE_VARIANT]).variant_names == (BASE_VARIANT,)


def test_an_unknown_variant_is_named_with_those_that_there_are(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="there is no graph variant 'toy'") as caught:
        with_variants(bundle, [TOY])

    assert caught.value.why == "this version knows 'base'"
    assert caught.value.exit_code == 2


def test_a_rewrite_must_not_change_what_a_graph_gives(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(name: GraphName, model: ir.Model) -> None:
        model.graph.outputs[0].name = "other"

    monkeypatch.setattr(variants, "VARIANTS", (*VARIANTS, Variant("broken", (rename,))))
    with pytest.raises(InternalError, match="the graph variant 'broken' has another encoder") as caught:
        with_variants(bundle)

    assert "inputs or outputs" in caught.value.why
    assert caught.value.exit_code == 4
