"""Folders for work that may be killed: gone at the end, swept after a kill, never while somebody works in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from precision_search.model import work_folder as module
from precision_search.model.work_folder import STALE_SECONDS, only_one, sweep, try_lock, work_folder

PREFIX = ".export-"
WORKER = """
import sys, time
from pathlib import Path
from precision_search.model.work_folder import work_folder
with work_folder(Path(sys.argv[1]), ".export-") as folder:
    (folder / "half.onnx").write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


def make_old(folder: Path) -> None:
    past = folder.stat().st_mtime - STALE_SECONDS - 60
    os.utime(folder, (past, past))


def test_a_folder_is_empty_takes_its_result_out_and_is_gone(tmp_path: Path) -> None:
    parent = tmp_path / "not" / "yet"
    with work_folder(parent, PREFIX) as folder:
        assert list(folder.iterdir()) == []
        (folder / "file").write_text("x")
        folder.rename(parent / "result")
    assert [path.name for path in parent.iterdir()] == ["result"]
    assert [path.name for path in (parent / "result").iterdir()] == ["file"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), work_folder(tmp_path, PREFIX) as folder:
        (folder / "file").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks, and no kill -9")
def test_a_killed_process_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.iterdir())) == 2
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        with work_folder(tmp_path, PREFIX) as mine:
            left = set(tmp_path.iterdir()) - {mine.parent}
        assert len(left) == 1
        assert (left.pop() / "work" / "half.onnx").is_file()
        sweep(tmp_path, PREFIX)
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    sweep(tmp_path, PREFIX)
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_lock_is_swept_when_it_is_old(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".export-old", ".export-young", "bundle"))
    for folder in (old, young, other):
        (folder / "bundle").mkdir(parents=True)
    make_old(old)
    make_old(other)
    sweep(tmp_path, PREFIX)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".export-young", "bundle"]


def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "try_lock", lambda file: None)
    with work_folder(tmp_path, PREFIX) as folder:
        sweep(tmp_path, PREFIX)
        assert folder.is_dir()
        make_old(folder.parent)
        sweep(tmp_path, PREFIX)
        assert not folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_a_lock_is_had_once_and_ends_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as first, path.open("wb") as second:
        assert try_lock(first) is True
        assert try_lock(second) is False
    with path.open("wb") as third:
        assert try_lock(third) is True


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_only_one_is_inside_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def enter() -> None:
        with only_one(tmp_path):
            order.append("second")

    other = threading.Thread(target=enter)
    with only_one(tmp_path):
        other.start()
        time.sleep(0.1)  # enough to be inside, if nothing kept it out
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with only_one(tmp_path), only_one(tmp_path):
        pass
