"""Files at the door: what is no regular file is never waited for, and a failed write leaves what was there."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from precision_search import files
from precision_search.errors import EnvironmentProblemError, OutputExistsError
from precision_search.files import append, read_file, write_atomically, writing

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refusal(path: Path, most: int = files.LARGEST_TEXT) -> str:
    with pytest.raises(OSError) as caught:
        read_file(path, most)
    return str(caught.value.strerror)


def test_what_is_no_regular_file_is_told_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("pipe")
    assert "it is a pipe" in refusal(tmp_path / "pipe")
    assert "it is a pipe" in refusal(tmp_path / "link")
    assert "it is a socket" in refusal(tmp_path / "socket")
    assert "it is a device" in refusal(Path("/dev/zero"))
    assert refusal(tmp_path) == os.strerror(errno.EISDIR)
    (tmp_path / "dangling").symlink_to("nothing")
    assert refusal(tmp_path / "dangling") == os.strerror(errno.ENOENT)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    assert "it has 1099511627776 bytes" in refusal(tmp_path / "huge")
    (tmp_path / "small").write_bytes(b"123")
    assert read_file(tmp_path / "small", 3) == b"123"
    assert "more than the 2" in refusal(tmp_path / "small", 2)


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free some space on that disk"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "make it writable"),
        (errno.EACCES, "make it writable"),
        (errno.EIO, "check the path"),
    ],
)
def test_what_the_system_refuses_is_one_error_with_path_reason_and_remedy(number: int, fix: str) -> None:
    with pytest.raises(EnvironmentProblemError) as caught, writing(Path("some/file")):
        raise OSError(number, os.strerror(number), "some/hidden/file.tmp")
    assert (caught.value.what, caught.value.why) == ("cannot write some/file", os.strerror(number))
    assert fix in caught.value.fix
    assert caught.value.exit_code == 3


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentProblemError, match="cannot write"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    append(path, b"one\n")
    append(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"

    def full(_: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentProblemError) as caught:
        append(path, b"three\n")
    assert caught.value.what == f"cannot write {path}"
    assert path.read_bytes() == b"one\ntwo\n"


def test_what_is_there_is_told_with_what_it_is(tmp_path: Path) -> None:
    files.refuse_existing(tmp_path / "out")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for path, kind in ((tmp_path, "directory"), (tmp_path / "file", "file"), (tmp_path / "link", "link")):
        with pytest.raises(OutputExistsError, match="already exists") as caught:
            files.refuse_existing(path, "add --force")
        assert f"it is a {kind}" in caught.value.why
        assert caught.value.fix == "give another path, or add --force"
