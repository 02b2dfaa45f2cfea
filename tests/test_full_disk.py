"""A disk that is full or read-only: exit code 3, the path and the remedy, nothing half-written, and runs that go on.

The disks are real ones, mounted for a child process (see `tests.small_disk`).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from precision_search.errors import EnvironmentProblemError
from precision_search.records import run_files
from precision_search.records.optuna_journal import StudyFile
from precision_search.records.timings import TimingLog
from precision_search.records.trials import TrialLog
from tests.checkpoints import saved_checkpoints
from tests.cli_models import write_run
from tests.records.test_optuna_journal import SPACE
from tests.records.test_timings import record
from tests.run.test_resume import assert_same_end, run
from tests.search_models import estimate, trial
from tests.small_disk import on_disk
from tests.tiny_model import write_sentences, write_tiny_config, write_tiny_model

PLENTY = 8192
GONE = "No space left on device"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config of few trials and a complete run of it in `run`."""
    folder = tmp_path_factory.mktemp("tiny")
    run(write_tiny_config(folder, max_trials=5), folder / "run")
    return folder


def told(text: str, what: str, why: str, fix: str) -> None:
    """The text is one error of three parts, after warnings, and has these words in them."""
    assert "Traceback" not in text
    found = re.search(r"^error: (.*)\n  why: (.*)\n  fix: (.*)\n\Z", text, re.MULTILINE)
    assert found is not None, text
    for part, words in zip(found.groups(), (what, why, fix), strict=True):
        assert words in part


@pytest.mark.slow
@pytest.mark.parametrize("kib", [4, 12, 32, 48, 72, 120])
def test_a_run_on_a_full_disk_ends_with_3_and_goes_on_once_there_is_space(tiny: Path, tmp_path: Path, kib: int) -> None:
    """The sizes are enough for more and more: directory, first plans, later plans, one graph, two graphs."""
    script = """
        mount -o remount,size="$KIB"k "$DISK"
        $RUN run "$CONFIG" --out "$DISK/run" --quiet 2>"$OUT/stderr" && exit 1 || test $? = 3
        ls -A "$DISK" > "$OUT/disk"
        test ! -e "$DISK/run" || ls -A "$DISK/run" > "$OUT/left"
        test ! -e "$DISK/run" || $RUN pareto "$DISK/run" > /dev/null
        mount -o remount,size=8192k "$DISK"
        $RUN run "$CONFIG" --out "$DISK/run" --quiet $(test ! -e "$DISK/run" || echo --resume)
        cp -r "$DISK/run" "$OUT/run"
    """
    disk = tmp_path / "disk"
    (tmp_path / "out").mkdir()
    on_disk(disk, PLENTY, script, KIB=str(kib), CONFIG=str(tiny / "tiny.toml"), OUT=str(tmp_path / "out"))

    text = (tmp_path / "out/stderr").read_text()
    told(text, f"cannot write {disk}", GONE, "free some space on that disk")
    assert (f"--out {disk}/run --resume" in text) == (tmp_path / "out/left").exists()
    assert (tmp_path / "out/disk").read_text().split() == (["run"] if (tmp_path / "out/left").exists() else [])
    left = (tmp_path / "out/left").read_text().split() if (tmp_path / "out/left").exists() else []
    assert not [name for name in left if name.startswith(".") or name == "model"]
    for name in ("stderr", "disk", "left"):
        (tmp_path / "out" / name).unlink(missing_ok=True)
    assert_same_end(tiny / "run", tmp_path / "out/run")


@pytest.mark.slow
def test_an_export_to_a_full_disk_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    script = """
        $RUN export "$FROM" --out "$DISK/model" --quiet && exit 1 || test $? = 3
        test -z "$(ls -A "$DISK")"
    """
    text = on_disk(tmp_path / "disk", 40, script, FROM=str(tiny / "run"))
    told(text, f"cannot write {tmp_path}/disk", GONE, "free some space")


@pytest.mark.slow
@pytest.mark.parametrize("full", [True, False], ids=["full", "read-only"])
def test_the_cache_of_exports_may_be_full_or_read_only(tmp_path: Path, export_cache: Path, full: bool) -> None:
    checkpoint = saved_checkpoints(export_cache) / "t5-v1_1"
    script = f"""
        {'mount -o remount,size=16k "$DISK"' if full else 'mount -o remount,ro "$DISK"'}
        XDG_CACHE_HOME="$DISK" $RUN inspect "$MODEL" --quiet && exit 1 || test $? = 3
        find "$DISK" -type f
    """
    text = on_disk(tmp_path / "disk", PLENTY, script, MODEL=str(checkpoint))
    fix = "free some space" if full else "make it writable"
    told(text, f"cannot write {tmp_path}/disk/precision-search", GONE if full else "Read-only file system", fix)
    if not full:
        told(text, "", "", "keep the cache elsewhere: set `model.cache` in the config, or XDG_CACHE_HOME")


READ_ONLY = """
    cp -r "$FROM" "$DISK/run"
    mount -o remount,ro "$DISK"
    for command in "run $CONFIG --out $DISK/new" "run $CONFIG --out $DISK/run --resume" \\
        "run $CONFIG --out $DISK/a/b/c" "export $FROM --out $DISK/model" "export $FROM --out $DISK/run/a/b"
    do $RUN $command --quiet && exit 1 || echo "code $?"
    done
    $RUN pareto "$DISK/run" > /dev/null
    echo readable
"""


@pytest.mark.slow
def test_a_read_only_folder_is_3_for_whatever_writes_and_can_be_read(tiny: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    out = on_disk(disk, PLENTY, READ_ONLY, FROM=str(tiny / "run"), CONFIG=str(tiny / "tiny.toml"))
    assert "Traceback" not in out
    *errors, end = re.split(r"code 3\n", out)
    assert end == "readable\n"
    new, resumed, below, exported, inside = errors
    told(new, f"{disk}/new cannot be used as a run directory", f"{disk} is not writable", "give another --out")
    told(resumed, f"cannot write {disk}/run/trials.jsonl", "Read-only file system", "make it writable")
    told(below, f"{disk}/a/b/c cannot be used as a run directory", f"{disk} is not writable", "give another --out")
    told(exported, f"cannot write {disk}/model", "Read-only file system", "make it writable, or give another --out")
    told(inside, f"cannot write {disk}/run/a/b", "Read-only file system", "make it writable, or give another --out")


@pytest.mark.slow
def test_a_home_that_cannot_be_written_stops_only_what_needs_it(tmp_path: Path) -> None:
    model, data = write_tiny_model(tmp_path / "model"), write_sentences(tmp_path / "data.txt", 4, 0)
    script = """
        mount -o remount,ro "$DISK"
        unset XDG_CACHE_HOME
        HOME="$DISK" $RUN verify "$MODEL" --reference "$MODEL" --data "$DATA" --device cpu --quiet
    """
    assert "4 of 4" in on_disk(tmp_path / "disk", PLENTY, script, MODEL=str(model), DATA=str(data))


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def a_plan_in_the_log(folder: Path) -> None:
    TrialLog(folder / "trials.jsonl").append(trial(0))


def times(folder: Path) -> None:
    TimingLog(folder / "timings.jsonl", 0).append(record(0))


WRITERS: dict[str, Callable[[Path], object]] = {
    "trials.jsonl": a_plan_in_the_log,
    "timings.jsonl": times,
    "config.toml": lambda folder: run_files.write_text_atomically(folder / "config.toml", "text"),
    "pareto.csv": lambda folder: run_files.write_pareto_csv(folder / "pareto.csv", (), 1.0),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_writer_names_its_file_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentProblemError) as caught:
        WRITERS[name](tmp_path)
    assert caught.value.what == f"cannot write {tmp_path / name}"
    assert (caught.value.why, caught.value.fix) == (GONE, "free some space on that disk")
    assert not [path for path in tmp_path.iterdir() if path.stat().st_size]


def test_the_study_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StudyFile, "_create", full)
    with pytest.raises(EnvironmentProblemError) as caught:
        StudyFile(tmp_path, [SPACE], estimate).add(trial(0))
    assert caught.value.what == f"cannot write {tmp_path / 'study.journal'}"
    assert caught.value.fix == "free some space on that disk"


def test_a_run_whose_files_are_gone_cannot_be_written(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run")
    log = TrialLog(directory / "trials.jsonl")
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    with pytest.raises(EnvironmentProblemError, match="cannot write") as caught:
        log.append(trial(2))
    assert caught.value.why == os.strerror(errno.ENOENT)
