"""Exports and tokens in the cache: used as they were written, or made again, once, and said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from precision_search.errors import EnvironmentProblemError
from precision_search.model import bundle as bundle_module
from precision_search.model import export_cache
from precision_search.model.bundle import open_bundle
from precision_search.model.export_cache import HASHES, WORK, kept_answer, kept_export
from precision_search.model.export_worker import EncodeJob, ExportJob, Job
from precision_search.model.layout import graph_file
from precision_search.model.tokenizer import load_tokenizer
from tests.cli_models import fails, invoke
from tests.tiny_model import write_tiny_config, write_tiny_model
from tests.told import Told

GRAPH = "decoder_with_past_model.onnx"


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path: Path) -> None:
    """One bit in the middle, which in a graph is one of a weight."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def deleted(path: Path) -> None:
    path.unlink()


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES = (emptied, truncated, flipped, deleted, replaced_by_a_folder)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were asked for, which stand-ins did."""
    donor = write_tiny_model(tmp_path / "donor")
    done: list[Job] = []

    def work(jobs: Sequence[Job]) -> list[Mapping[str, Any]]:
        done.extend(jobs)
        answers: list[Mapping[str, Any]] = []
        for job in jobs:
            if isinstance(job, ExportJob):
                shutil.copyfile(donor / graph_file(job.graph), job.target)
                answers.append({})
            elif isinstance(job, EncodeJob):
                answers.append({"added": {}, "ids": [list(load_tokenizer(donor).encode(text)) for text in job.texts]})
            else:
                answers.append({"tokens": [[5, 1] for _ in job.rows]})
        return answers

    monkeypatch.setattr(bundle_module, "run_jobs", work)
    return done


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Looks like a checkpoint until its weights are read."""
    folder = write_tiny_model(tmp_path / "checkpoint")
    for path in folder.glob("*.onnx"):
        path.unlink()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((GRAPH, change) for change in CHANGES),
        *((name, flipped) for name in ("tokenizer.json", "config.json", HASHES)),
        (HASHES, deleted),
    ],
    ids=lambda given: given if isinstance(given, str) else given.__name__,
)
def test_a_broken_export_is_made_again_once_and_said(
    checkpoint: Path, tmp_path: Path, asked: list[object], name: str, change: Callable[[Path], None]
) -> None:
    whole = open_bundle(str(checkpoint), tmp_path / "cache")
    before = content(whole.path)
    change(whole.path / name)
    told = Told()
    again = open_bundle(str(checkpoint), tmp_path / "cache", reporter=told)
    assert (again.path, again.content_hash, content(again.path)) == (whole.path, whole.content_hash, before)
    assert len(asked) == 6
    (warning,) = told.warnings
    assert str(whole.path / name) in warning
    assert warning.endswith("the model is exported again")
    assert [path.name for path in whole.path.parent.iterdir()] == [whole.path.name]
    open_bundle(str(checkpoint), tmp_path / "cache", reporter=told)
    assert (len(asked), len(told.warnings)) == (6, 1)


def test_a_file_that_no_export_wrote_is_not_used(checkpoint: Path, tmp_path: Path, asked: list[object]) -> None:
    entry = open_bundle(str(checkpoint), tmp_path / "cache").path
    (entry / ".DS_Store").write_bytes(b"what systems leave is no part of it")
    open_bundle(str(checkpoint), tmp_path / "cache")
    assert len(asked) == 3
    (entry / "special_tokens_map.json").write_text("{}")
    told = Told()
    open_bundle(str(checkpoint), tmp_path / "cache", reporter=told)
    assert len(asked) == 6
    assert f"{entry / 'special_tokens_map.json'} was not written by the export" in told.warnings[0]


@pytest.mark.parametrize("text", ["{}", "[]", "7", '{"encoder_model.onnx": 7}', "[" * 100_000])
def test_hashes_that_say_nothing_are_not_believed(
    checkpoint: Path, tmp_path: Path, asked: list[object], text: str
) -> None:
    entry = open_bundle(str(checkpoint), tmp_path / "cache").path
    (entry / HASHES).write_text(text)
    told = Told()
    open_bundle(str(checkpoint), tmp_path / "cache", reporter=told)
    assert (len(asked), len(told.warnings)) == (6, 1)


def test_a_file_in_the_place_of_an_export_gives_way(checkpoint: Path, tmp_path: Path, asked: list[object]) -> None:
    entry = open_bundle(str(checkpoint), tmp_path / "cache").path
    shutil.rmtree(entry)
    entry.write_text("no folder")
    assert open_bundle(str(checkpoint), tmp_path / "cache").path.is_dir()
    assert len(asked) == 6


def test_the_command_line_says_it_and_goes_on(checkpoint: Path, tmp_path: Path, asked: list[object]) -> None:
    config = write_tiny_config(tmp_path / "run", max_trials=1)
    text = config.read_text().replace('"./model"', json.dumps(str(checkpoint)))
    config.write_text(text)
    cache = tmp_path / "run/cache"
    entry = open_bundle(str(checkpoint), cache).path
    flipped(entry / GRAPH)
    # The stand-in's tokens are nobody's, and parity says so: the warning about the cache comes before.
    message = fails(invoke("run", config, "--dry-run", "--quiet"), 1)
    assert f"warning: {entry / GRAPH} is broken: it is not what was written there" in message
    ids, tokens = sorted((cache / "oracle").iterdir(), key=lambda path: not path.name.startswith("ids-"))
    for stored in (ids, tokens):
        truncated(stored)
        message = fails(invoke("run", config, "--dry-run", "--quiet"), 1)
        assert f"warning: {stored} is broken: it is not what was written there" in message
        assert str(entry) not in message
    assert "is broken" not in fails(invoke("run", config, "--dry-run", "--quiet"), 1)


def write(folder: Path) -> None:
    (folder / "file").write_text("whole")


def test_what_another_process_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "bundles/key"
    told = Told()
    kept_export(target, write, told)
    truncated(target / "file")
    found = []

    def slowly(folder: Path) -> None:
        write(folder)
        kept_export(target, write, told)  # somebody else is faster
        found.append((target / "file").stat().st_ino)

    kept_export(target, slowly, told)
    assert found == [(target / "file").stat().st_ino]
    assert [path.name for path in target.parent.iterdir()] == ["key"]
    assert len(told.warnings) == 2


def test_a_failure_to_make_it_again_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "bundles/key"
    kept_export(target, write, Told())
    truncated(target / "file")

    def fail(folder: Path) -> None:
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_export(target, fail, Told())
    assert (target / "file").read_text() == "wh"
    assert not list(target.parent.glob(f"{WORK}*"))


def test_a_disk_that_keeps_nothing_is_an_error_and_no_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, made = export_cache._put, []

    def put_and_break(work: Path, target: Path) -> None:
        made.append(target)
        put(work, target)
        flipped(target / "file")

    monkeypatch.setattr(export_cache, "_put", put_and_break)
    target = tmp_path / "bundles/key"
    with pytest.raises(EnvironmentProblemError, match="does not keep what is written there") as caught:
        kept_export(target, write, Told())
    assert caught.value.what == f"the cache in {target.parent} does not keep what is written there"
    assert str(target / "file") in caught.value.why
    assert "`model.cache`" in caught.value.fix
    assert made == [target]


def test_tokens_that_cannot_be_kept_name_the_ways_out(tmp_path: Path) -> None:
    (tmp_path / "oracle").write_text("no folder")
    with pytest.raises(EnvironmentProblemError, match="cannot write") as caught:
        kept_answer(tmp_path / "oracle/key.json", lambda: [[1]], Told())
    assert "`model.cache`" in caught.value.fix
    assert "XDG_CACHE_HOME" in caught.value.fix
