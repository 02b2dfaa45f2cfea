"""Run directories: they appear whole or not at all, have one writer, and lose what a kill left half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from precision_search.config import load_config, to_toml
from precision_search.errors import EnvironmentProblemError, OutputExistsError, UsageError
from precision_search.records.run_directory import (
    check_run_directory,
    new_run_directory,
    replace_model,
    sole_writer,
    sweep_leftovers,
)
from precision_search.records.run_files import CONFIG_FILE, RUN_FILE, TRIALS_FILE


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_directory_appears_with_all_that_it_begins_with(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "mine"
    with new_run_directory(out) as work:
        (work / "run.json").write_text("{}")
        assert not out.exists()
    assert names(out) == ["run.json"]
    assert names(out.parent) == ["mine"]
    (out / "more").touch()  # with the rights of any directory
    assert out.stat().st_mode & 0o777 == tmp_path.joinpath("runs").stat().st_mode & 0o777


def test_a_failure_while_it_is_filled_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_run_directory(tmp_path / "out"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_directory_that_somebody_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputExistsError), new_run_directory(out):
        out.mkdir()
        (out / "theirs").touch()
    assert names(out) == ["theirs"]
    assert names(tmp_path) == ["out"]


def test_what_cannot_be_made_is_an_environment_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblemError, match="cannot create"), new_run_directory(tmp_path / "file" / "out"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="no such locks")
def test_a_run_has_one_writer(tmp_path: Path) -> None:
    (tmp_path / TRIALS_FILE).write_text("a line\n")
    with sole_writer(tmp_path):
        with pytest.raises(UsageError, match="still going on"), sole_writer(tmp_path):
            pass
        assert (tmp_path / TRIALS_FILE).read_text() == "a line\n"
    with sole_writer(tmp_path):
        pass


def test_what_a_kill_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (".model.new", ".model.old", "..model.new-abc", "model", ".mine"):
        (tmp_path / name / "deep").mkdir(parents=True)
    for name in (".run.json.77.tmp", "run.json", "notes.tmp", ".gitignore", "study.journal", "study.journal.lock"):
        (tmp_path / name).touch()
    sweep_leftovers(tmp_path)
    assert names(tmp_path) == [".gitignore", ".mine", "model", "notes.tmp", "run.json", "study.journal"]


@pytest.mark.parametrize("has_old", [False, True])
def test_a_model_is_replaced_whole(tmp_path: Path, has_old: bool) -> None:
    (tmp_path / ".model.new").mkdir()
    (tmp_path / ".model.new" / "new").touch()
    if has_old:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "old").touch()
    replace_model(tmp_path)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new"]


CONFIG = """
[model]
path = "org/model"
cache = "cache"

[calibration]
path = "calibration.txt"

[validation]
path = "validation.txt"

[test]
path = "test.txt"
"""


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A config file; beside it a run directory that began with it."""
    (tmp_path / "mine.toml").write_text(CONFIG)
    run = tmp_path / "run"
    run.mkdir()
    (run / CONFIG_FILE).write_text(to_toml(load_config(tmp_path / "mine.toml")))
    (run / RUN_FILE).touch()
    (run / TRIALS_FILE).touch()
    return tmp_path / "mine.toml"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("search.seed=3", "search.seed: 0, now 3"),
        ("workload.batch=8", "workload.batch: 1, now 8"),
        ("validation.min_exact_match=0.5", "validation.min_exact_match: 0.99, now 0.5"),
    ],
)
def test_a_refused_resume_names_what_changed(stored: Path, override: str, named: str) -> None:
    with pytest.raises(UsageError, match="cannot go on") as caught:
        check_run_directory(load_config(stored, [override]), stored.parent / "run", resume=True)
    assert named in caught.value.why


def test_a_section_that_came_or_went_is_named(stored: Path) -> None:
    stored.write_text(CONFIG.replace('[validation]\npath = "validation.txt"\n', ""))
    with pytest.raises(UsageError) as caught:
        check_run_directory(load_config(stored), stored.parent / "run", resume=True)
    assert "[validation] removed" in caught.value.why


@pytest.mark.parametrize(
    "override",
    [
        "search.max_trials=9",
        "search.timeout=5",
        "device.threads=1",
        "device.memory_limit=4",
        "model.cache=x",
        "test.path=other.txt",
    ],
)
def test_limits_and_test_sentences_may_change(stored: Path, override: str) -> None:
    check_run_directory(load_config(stored, [override]), stored.parent / "run", resume=True)
