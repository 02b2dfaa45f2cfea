"""External data lie beside the ONNX file, also in a cache of the Hub where all files are links; nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from precision_search.errors import InputError
from precision_search.model.bundle import open_bundle
from precision_search.model.external_data import data_file
from precision_search.model.onnx_files import data_files, read_model
from precision_search.published.load import load_published
from tests.graphs import run_t5, same, tiny_feeds, tiny_t5_protos
from tests.model.test_onnx_files import WEIGHT, refusal, saved_external
from tests.other_layouts import as_in_hub_cache, plain_files, write_configs, write_graphs
from tests.tiny_model import write_tiny_model


@pytest.mark.parametrize("folder", ["", "onnx"])
def test_a_directory_of_the_hub_cache_opens_like_the_model_itself(tmp_path: Path, folder: str) -> None:
    plain = write_configs(tmp_path / "plain")
    write_graphs(plain / folder, plain_files(tiny_t5_protos()), "_data")
    snapshot = as_in_hub_cache(plain, tmp_path / "hub")
    bundle = open_bundle(str(snapshot), tmp_path / "cache")
    assert bundle.content_hash == open_bundle(str(plain), tmp_path / "cache").content_hash
    weights = bundle.graphs["decoder"].model.graph.initializers["lm_head.weight"]
    assert isinstance(weights.const_value, ir.Tensor | ir.ExternalTensor)
    expected = run_t5({name: ir.from_proto(proto) for name, proto in tiny_t5_protos().items()}, tiny_feeds())
    found = run_t5(bundle.models, tiny_feeds())
    assert all(same(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("external", "least"), [("", 0), (".data", 0), (".data", 100)])
def test_a_published_model_of_the_hub_cache_loads_like_the_model_itself(
    tmp_path: Path, external: str, least: int
) -> None:
    plain = write_tiny_model(tmp_path / "plain")
    write_graphs(plain, plain_files(tiny_t5_protos()), external, least)
    found = load_published(as_in_hub_cache(plain, tmp_path / "hub"))
    assert same(
        run_t5(found.graphs, tiny_feeds())["decoder"], run_t5(load_published(plain).graphs, tiny_feeds())["decoder"]
    )


def test_large_weights_behind_links_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precision_search.model.onnx_files.SMALL_TENSOR_BYTES", 0)
    (tmp_path / "plain").mkdir()
    saved_external(tmp_path / "plain")
    snapshot = as_in_hub_cache(tmp_path / "plain", tmp_path / "hub")
    tensor = read_model(snapshot / "encoder_model.onnx").graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert np.array_equal(tensor.numpy(), WEIGHT)


def test_a_link_to_an_onnx_file_finds_the_data_beside_that_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").mkdir()
    real = saved_external(tmp_path / "real")
    link = tmp_path / "linked/encoder_model.onnx"
    link.symlink_to(real)
    assert data_files(link) == [tmp_path / "real/weights.bin"]
    tensor = read_model(link).graph.initializers["w"].const_value
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), WEIGHT)
    (tmp_path / "linked/weights.bin").write_bytes(WEIGHT.tobytes()[::-1])
    assert data_file(link, "weights.bin") == tmp_path / "linked/weights.bin"


@pytest.mark.parametrize("location", ["../weights.bin", "../../blobs/weights.bin", "out/weights.bin", "link.bin"])
def test_links_of_the_hub_cache_lead_to_its_blobs_only(tmp_path: Path, location: str) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    saved_external(plain, location)
    snapshot = as_in_hub_cache(plain, tmp_path / "hub")
    for place in (snapshot.parent, snapshot.parent.parent / "blobs", tmp_path):
        (place / "weights.bin").write_bytes(WEIGHT.tobytes())
    (snapshot / "out").symlink_to(tmp_path)
    (snapshot / "link.bin").symlink_to(tmp_path / "weights.bin")
    error = refusal(snapshot / "encoder_model.onnx")
    assert "outside its folder" in error.what
    assert location in error.why


def test_a_blob_that_is_gone_is_told(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    saved_external(plain)
    snapshot = as_in_hub_cache(plain, tmp_path / "hub")
    (snapshot / "weights.bin").resolve().unlink()
    with pytest.raises(InputError, match=r"needs the file weights\.bin"):
        read_model(snapshot / "encoder_model.onnx")
