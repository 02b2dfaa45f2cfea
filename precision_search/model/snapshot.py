"""A model directory while it is read: every file must stay the one that it was, or nothing is made of what was read.

In: a directory. Out: a `Snapshot` of its files, and an InputError once they are others. A model takes seconds to hash
and minutes to export, weights in external files are mapped and read when they are needed, and whoever trains a model
may save over it at any time: what is made of it would be a mixture of two models that nobody has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from precision_search.errors import InputError
from precision_search.model.file_layouts import GraphFiles, graphs_in
from precision_search.model.hf_files import hf_files
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.onnx_files import data_files

WEIGHTS = "*.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""Names the files of a checkpoint whose weights are in several."""

Mark = tuple[int, ...] | None
"""What tells one content of a file from another without reading it; None where there is no file."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a model directory at one moment: device, inode, size and times of each."""

    directory: Path = Path()
    marks: Mapping[Path, Mark] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path) -> Snapshot:
        """Of config, tokenizer, weights, ONNX graphs and their external data, whether they are there or not."""
        graphs = {directory / graph.file for graph in SEQ2SEQ.graphs}
        with contextlib.suppress(InputError):  # who reads it says so
            graphs |= set((graphs_in(directory) or GraphFiles.plain()).paths(directory).values())
        files = [directory / name for name in hf_files()]
        files += [*directory.glob(WEIGHTS), *directory.glob(INDEX), *graphs]
        for graph in filter(Path.is_file, graphs):
            with contextlib.suppress(InputError):
                files += data_files(graph)
        return cls(directory, {path: _mark(path) for path in files})

    def check(self) -> None:
        """Raises InputError where a file is no longer what it was."""
        changed = sorted(path.name for path, mark in self.marks.items() if _mark(path) != mark)
        if changed:
            raise InputError(
                f"the model in {self.directory} changed while it was read",
                why=f"{', '.join(changed[:4])}{' and others' if len(changed) > 4 else ''} changed",
                fix="wait until nothing writes there, and start again; or work on a copy",
            )


@contextlib.contextmanager
def unchanged(directory: Path, since: Snapshot | None = None) -> Iterator[Snapshot]:
    """Raises InputError at the end, or in the place of what went wrong inside, if the model there was changed.

    A directory that cannot be looked at is left to those who read it.

    Args:
        directory: of the model.
        since: how it was at an earlier moment from which on it must not have changed.
    """
    snapshot = since or (Snapshot.of(directory) if directory.is_dir() else Snapshot())
    try:
        yield snapshot
    except Exception as error:
        # Half a file is broken in many ways, none of which is the reason.
        try:
            snapshot.check()
        except InputError as changed:
            raise changed from error
        raise
    snapshot.check()


def _mark(path: Path) -> Mark:
    try:
        found = path.stat()
    except (OSError, ValueError):  # an ONNX file may name any text
        return None
    # Not the time of the last change of its state: a backup, a hard link or a chmod moves it and leaves the content.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
