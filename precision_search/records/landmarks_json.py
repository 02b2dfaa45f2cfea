"""The file with what rejected landmarks make of sentences: `landmarks.json`. The field names are its keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from precision_search.errors import InputError
from precision_search.judging.landmarks import Landmark
from precision_search.judging.trial import Trial, VerdictSource
from precision_search.records.run_files import write_json_atomically
from precision_search.records.run_json import SCHEMA_VERSION, read_record

LANDMARKS_FILE = "landmarks.json"


@dataclass(frozen=True, slots=True)
class RunLandmarks:
    """The content of `landmarks.json`.

    Attributes:
        schema_version: of this form.
        samples: how many there are in the calibration set.
        source: whether the kernels were emulated on a CPU or the real ones ran.
        landmarks: the rejected ones, in the order they were judged.
    """

    schema_version: int
    samples: int
    source: VerdictSource
    landmarks: tuple[Landmark, ...]


def write_landmarks(run_dir: Path, samples: int, source: VerdictSource, landmarks: Sequence[Landmark]) -> None:
    """Writes the file; EnvironmentProblemError where that cannot be done."""
    write_json_atomically(run_dir / LANDMARKS_FILE, RunLandmarks(SCHEMA_VERSION, samples, source, tuple(landmarks)))


def read_landmarks(run_dir: Path) -> RunLandmarks:
    """Reads the file of a run directory.

    Raises:
        InputError: it is missing, broken or of a later version.
    """
    return read_record(
        RunLandmarks,
        run_dir / LANDMARKS_FILE,
        root="landmarks",
        what="is not the record of a run's landmarks",
        fix="resume the run, which writes it anew",
    )


def are_there(run_dir: Path, rejected: Sequence[Trial]) -> bool:
    """Whether the file is there and is about these landmarks, so that a resumed run need not generate again."""
    try:
        found = read_landmarks(run_dir)
    except InputError:
        return False
    return [landmark.id for landmark in found.landmarks] == [trial.id for trial in rejected]
