"""Beginning, taking over and keeping a run directory: it appears whole, has one writer, and resumes what it judged.

In: the resolved config and a path. Out: a directory that can be read from its first moment on, or the reason why the
run there cannot go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from precision_search.config import Config, load_config
from precision_search.errors import EnvironmentProblemError, UsageError
from precision_search.files import check_name, reason, refuse_existing, remedy, writing
from precision_search.model.work_folder import try_lock, work_folder
from precision_search.records import run_files
from precision_search.records.optuna_journal import STUDY_FILE

FRESH_MODEL = f".{run_files.MODEL_DIRECTORY}.new"
OLD_MODEL = f".{run_files.MODEL_DIRECTORY}.old"
LEFTOVERS = (".*.tmp", FRESH_MODEL, OLD_MODEL, f".{FRESH_MODEL}-*", f"{STUDY_FILE}.lock*")
"""What a killed session leaves in a run directory, as glob patterns: files and models that were being written, and the
locks of Optuna's journal."""

RESUMING = "continue that run with --resume"


@contextlib.contextmanager
def new_run_directory(out: Path) -> Iterator[Path]:
    """A directory to fill with what a run begins with; at the end it becomes `out`, whole or not at all.

    Raises:
        OutputExistsError: somebody else made `out` in the meantime.
        EnvironmentProblemError: it cannot be written.
    """
    try:
        with work_folder(out.parent, f".{out.name}-new-") as work:
            yield work
            refuse_existing(out, RESUMING)
            work.rename(out)
    except OSError as error:
        raise EnvironmentProblemError(
            f"cannot create {out}", why=reason(error), fix=remedy(error, "give another --out")
        ) from error


@contextlib.contextmanager
def sole_writer(run_dir: Path) -> Iterator[None]:
    """Holds the run directory for this process; the system lets go of it when the process ends, however it ends.

    Where the system has no such locks (Windows, some network file systems), nothing is held.

    Raises:
        UsageError: another process holds it.
    """
    log = run_dir / run_files.TRIALS_FILE
    with writing(log):
        file = log.open("ab")
    with file:
        if try_lock(file) is False:
            raise UsageError(
                f"the run in {run_dir} is still going on",
                why="another process writes to it",
                fix="wait until it ends, or end it first",
            )
        yield


def sweep_leftovers(run_dir: Path) -> None:
    """Removes what a killed session left half-written; to be called by the sole writer only."""
    for pattern in LEFTOVERS:
        for path in run_dir.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def replace_model(run_dir: Path) -> None:
    """Puts the finished `FRESH_MODEL` in the place of `model/`; an earlier one is removed once it is replaced."""
    model, old = run_dir / run_files.MODEL_DIRECTORY, run_dir / OLD_MODEL
    if model.exists():
        model.rename(old)
    (run_dir / FRESH_MODEL).rename(model)
    shutil.rmtree(old, ignore_errors=True)


def check_run_directory(config: Config, out: Path, *, resume: bool) -> None:
    """Checks that a run may be written to `out`, or that the run there may go on under this config.

    Raises:
        OutputExistsError: it exists and `resume` is not set.
        EnvironmentProblemError: it cannot be created there.
        UsageError: its name is no text; nothing there to resume, it is still going on, or the config changed.
    """
    if resume:
        _check_resumable(config, out)
        return
    refuse_existing(out, RESUMING)
    check_name(out)
    # Asked before the work that the directory is for, which takes minutes.
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise EnvironmentProblemError(
            f"{out} cannot be used as a run directory",
            why=f"{parent} is {'not writable' if parent.is_dir() else 'not a directory'}",
            fix="give another --out",
        )


def _check_resumable(config: Config, out: Path) -> None:
    for name in (run_files.CONFIG_FILE, run_files.RUN_FILE, run_files.TRIALS_FILE):
        if not (out / name).is_file():
            raise UsageError(
                f"there is no run to resume in {out}",
                why=f"it has no {name}"
                if out.is_dir()
                else "it is a file"
                if out.exists()
                else "there is no such directory",
                fix="start a run in another directory" if out.exists() else "leave out --resume to start a run",
            )
    with sole_writer(out):
        pass
    stored = out / run_files.CONFIG_FILE
    if changes := _changes(_judging_part(load_config(stored)), _judging_part(config)):
        raise UsageError(
            f"the run in {out} cannot go on",
            why=f"the config changed since it began ({'; '.join(changes)}), so its verdicts hold for something else",
            fix=f"start a new run, or resume with the config in {stored}",
        )


def _changes(before: Config, now: Config) -> list[str]:
    """What differs between two configs, as `table.key: old, now new`."""
    changes = []
    for table in dataclasses.fields(Config):
        if not table.compare:
            continue
        old, new = getattr(before, table.name), getattr(now, table.name)
        if old == new:
            continue
        if old is None or new is None:
            changes.append(f"[{table.name}] {'added' if old is None else 'removed'}")
            continue
        pairs = ((each.name, getattr(old, each.name), getattr(new, each.name)) for each in dataclasses.fields(old))
        changes += [f"{table.name}.{name}: {was}, now {value}" for name, was, value in pairs if was != value]
    return changes


def _judging_part(config: Config) -> Config:
    """The config without what no verdict depends on: test sentences, limits, where to cache, threads, memory."""
    return dataclasses.replace(
        config,
        test=None,
        model=dataclasses.replace(config.model, cache=Path()),
        device=dataclasses.replace(config.device, threads=None, memory_limit=None),
        search=dataclasses.replace(config.search, max_trials=1, timeout=None),
    )
