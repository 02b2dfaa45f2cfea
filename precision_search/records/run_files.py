"""The files of a run directory: their names, how each is written whole or not at all, and how a run is read back.

In: dataclasses. Out: `run.json`, `pareto.csv`, `blocklist.json`, and a `Run` read from a directory. `trials.jsonl`
alone grows while a run goes on (see `records.trials`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from precision_search.config import Requirement
from precision_search.errors import EnvironmentProblemError, InputError, InternalError
from precision_search.files import write_atomically
from precision_search.judging.trial import Trial
from precision_search.precision.blocklist import Blocklist
from precision_search.records.codec import to_json
from precision_search.records.pareto_table import pareto_table, to_csv
from precision_search.records.run_json import RunInfo, read_record
from precision_search.records.trials import read_trials
from precision_search.strategies.pareto import Choice, choose_winner, is_acceptable

CONFIG_FILE = "config.toml"
RUN_FILE = "run.json"
TRIALS_FILE = "trials.jsonl"
PARETO_FILE = "pareto.csv"
BLOCKLIST_FILE = "blocklist.json"
MODEL_DIRECTORY = "model"
DATA_DIRECTORY = "data"
"""Sample sets of a run that began with a list of sentences."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory as read: its facts, its judged plans in the order they were judged, and where it is."""

    info: RunInfo
    trials: tuple[Trial, ...]
    directory: Path


def read_run(run_dir: Path) -> Run:
    """Reads a run directory, finished or not.

    Raises:
        InputError: it is no run directory, or `run.json` or `trials.jsonl` is missing or broken.
    """
    if not run_dir.is_dir():
        raise InputError(
            f"there is no run directory {run_dir}",
            why="it is a file" if run_dir.exists() else f"seen from {Path.cwd()}",
            fix="give a directory that `precision-search run` wrote; by default they lie in runs",
        )
    for name in (RUN_FILE, TRIALS_FILE):
        if not (run_dir / name).is_file():
            raise InputError(
                f"{run_dir} is not a run directory", why=f"it has no {name}", fix="name the directory that holds it"
            )
    return Run(_read_info(run_dir / RUN_FILE), read_trials(run_dir / TRIALS_FILE), run_dir)


def choice_of(run: Run, requirement: Requirement) -> Choice:
    """What a run chose: as a complete run recorded it, else what would be chosen of the plans judged so far.

    The rule may have been another when the run was made, and `model/` holds what was chosen then.
    """
    best = run.info.best if run.info.status == "complete" else None
    stable = (trial for trial in run.trials if trial.verdict == "stable")  # whatever a file says of others
    trial = None if best is None else next((trial for trial in stable if trial.id == best.id), None)
    if best is None or trial is None:
        return choose_winner(run.trials, requirement)
    met = best.requirements_met
    if met is None:
        met = requirement.share == 0.0 or (not trial.is_fp32 and is_acceptable(trial, requirement.share))
    return Choice(trial, best.reason, best.faster, met)


def write_run_info(run_dir: Path, info: RunInfo) -> None:
    """Writes `run.json` in `run_dir`.

    Raises:
        InternalError: a number that must be there is not finite.
        EnvironmentProblemError: the file cannot be written.
    """
    write_json_atomically(run_dir / RUN_FILE, info)


def write_pareto_csv(
    path: Path, trials: Sequence[Trial], requirement: Requirement, pinned: Collection[str] = ()
) -> None:
    """Writes the Pareto table as CSV: every stable plan and the rejected landmarks; arguments as for `pareto_table`.

    Raises:
        EnvironmentProblemError: the file cannot be written.
    """
    write_text_atomically(path, to_csv(pareto_table(trials, requirement, pinned=pinned)))


def write_blocklist(path: Path, blocklist: Blocklist) -> None:
    """Writes a `blocklist.json`; EnvironmentProblemError where that cannot be done."""
    write_json_atomically(path, blocklist.to_json())


def write_json_atomically(path: Path, content: object) -> None:
    """Writes a dataclass or a JSON value as indented JSON, whole or not at all.

    Raises:
        InternalError: it holds what JSON has not.
        EnvironmentProblemError: the file cannot be written.
    """
    try:
        text = json.dumps(to_json(content), allow_nan=False, indent=2)
    except (ValueError, TypeError) as error:
        raise InternalError(f"{path.name} cannot be written", why=str(error)) from error
    write_text_atomically(path, text + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 with its line ends as they are; a reader sees the old file or the new one, never a part.

    Raises:
        EnvironmentProblemError: the file cannot be written; what was there is untouched.
    """
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise EnvironmentProblemError(
            f"cannot write {path}",
            why=f"it would hold {error.object[error.start]!r}, which is no character",
            fix="give files and directories names in UTF-8",
        ) from error
    write_atomically(path, content)


def _read_info(path: Path) -> RunInfo:
    return read_record(
        RunInfo,
        path,
        root="run",
        what="is not the record of a run",
        fix="restore the file from a copy, or start a new run",
    )
