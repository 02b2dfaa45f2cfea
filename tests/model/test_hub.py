"""From a Hub on this machine: of a repository that holds only ONNX, what is needed is fetched, and it opens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from precision_search.errors import InputError
from precision_search.model.bundle import open_bundle
from precision_search.model.hub import download
from tests.graphs import tiny_t5_protos
from tests.hub_server import hub
from tests.other_layouts import merged_files, plain_files, write_configs, write_graphs
from tests.told import Told

SCRIPT = """
import json, sys
from pathlib import Path
from precision_search.errors import InputError
from precision_search.model.bundle import open_bundle
from precision_search.model.hub import download
from precision_search.reporting import NOBODY

answers = []
for source in json.loads(sys.argv[1]):
    try:
        if source.startswith("checkpoints/"):
            folder, opened = download(source, NOBODY), None
        else:
            opened = open_bundle(source, Path(sys.argv[2]))
            folder = opened.path
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        answers.append([files, opened and opened.content_hash])
    except InputError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
CONFIGS = ["config.json", "generation_config.json"]
MERGED = ["onnx/decoder_model_merged.onnx", "onnx/encoder_model.onnx"]


def filled(folder: Path) -> Path:
    """Repositories: merged decoders as transformers.js has them, graphs with weights outside, and a checkpoint."""
    merged, outside = write_configs(folder / "some/merged"), write_configs(folder / "some/outside")
    write_graphs(merged / "onnx", merged_files())
    write_graphs(outside / "onnx", plain_files(tiny_t5_protos()), "_data[1]")
    for repository in (merged, outside, write_configs(folder / "checkpoints/t5"), folder / "some/quantized"):
        (repository / "onnx").mkdir(parents=True, exist_ok=True)
        for name in ("onnx/encoder_model_quantized.onnx", "onnx/decoder_model_fp16.onnx", "pytorch_model.bin", "x.py"):
            (repository / name).write_bytes(b"not needed")
    (folder / "checkpoints/t5/model.safetensors").write_bytes(b"weights")
    (merged / "other").mkdir()
    (merged / "other/model.safetensors").write_bytes(b"of another model")
    write_configs(folder / "some/quantized")
    (write_configs(folder / "some/pickles") / "pytorch_model.bin").write_bytes(b"not needed")
    return folder


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process that has this Hub makes of each id; first with it, then without."""
    folder = tmp_path_factory.mktemp("hub")
    sources = ["some/merged", "some/outside", "some/quantized", "some/pickles", "checkpoints/t5", "some/nothing"]
    environment = {
        **os.environ,
        **{name: str(folder / name) for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")},
        **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        "no_proxy": "127.0.0.1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    with hub(filled(folder / "repositories")) as endpoint:
        command = [sys.executable, "-c", SCRIPT, json.dumps([*sources]), str(folder / "cache")]
        environment["HF_ENDPOINT"] = endpoint
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = dict(zip(sources, json.loads(done.stdout), strict=True))
    environment["HF_HUB_OFFLINE"] = "1"
    command[3] = json.dumps(["some/outside"])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    plain = write_configs(folder / "plain")
    write_graphs(plain / "onnx", plain_files(tiny_t5_protos()), "_data[1]")
    hashed = open_bundle(str(plain), folder / "cache").content_hash
    return {**found, "offline": json.loads(done.stdout)[0], "hash": hashed}


def test_only_what_is_needed_is_fetched(answers: dict[str, Any]) -> None:
    assert answers["some/merged"][0] == sorted([*CONFIGS, *MERGED])
    names = [f"onnx/{name}{end}" for name in plain_files(tiny_t5_protos()) for end in ("", "_data[1]")]
    assert answers["some/outside"] == [sorted([*CONFIGS, *names]), answers["hash"]]


def test_what_was_fetched_opens_without_the_hub(answers: dict[str, Any]) -> None:
    assert answers["offline"] == answers["some/outside"]


def test_a_repository_with_a_checkpoint_gives_that(answers: dict[str, Any]) -> None:
    assert answers["checkpoints/t5"][0] == [*CONFIGS, "model.safetensors"]


def test_a_repository_without_a_model_says_so(answers: dict[str, Any]) -> None:
    assert "some/quantized holds a model of transformers.js without its fp32 graphs" in answers["some/quantized"]
    assert "holds neither ONNX graphs nor model.safetensors" in answers["some/pickles"]
    assert "cannot be fetched from the hub" in answers["some/nothing"]


def test_a_broken_graph_of_the_hub_is_refused_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    for name in plain_files(tiny_t5_protos()):
        (tmp_path / name).write_bytes(b"broken")
    found = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in plain_files(tiny_t5_protos())])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: found)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(InputError, match="is not a readable ONNX file"):
        download("some/broken", Told())


def test_a_hub_that_gives_no_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache has is taken; where it has nothing, the reason is the silence."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def silent(*_: object, timeout: float) -> None:
        raise TimeoutError(f"no answer for {timeout} s")

    def cached(source: str, *, local_files_only: bool, **_: object) -> str:
        assert local_files_only
        if source == "some/other":
            raise LocalEntryNotFoundError("not in the cache")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", silent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert download("some/model", Told()) == tmp_path
    with pytest.raises(InputError, match="cannot be fetched from the hub") as caught:
        download("some/other", Told())
    assert "no answer for 10 s" in str(caught.value.why)
