"""Judged plans and their log: the dataclasses behind each line of `trials.jsonl`, and the file itself.

In: a `Trial` for every plan that was judged. Out: one line of JSON each, on the disk before the next plan is judged,
and found again by plan. The field names are the file's keys.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from precision_search.errors import InputError, InternalError
from precision_search.files import append, parse_json, read_file, reason
from precision_search.judging.trial import Trial
from precision_search.precision.plan import Plan
from precision_search.records.codec import from_json, to_json


def trial_to_line(trial: Trial) -> str:
    """The trial as one line of strict JSON (without the line end); an optional number that is not finite becomes null.

    Raises:
        InternalError: a number that must be there is NaN or infinite, or a value is of a type that JSON has not.
    """
    try:
        return json.dumps(to_json(trial), allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError) as error:
        raise InternalError(f"plan {trial.id} cannot be written to the log", why=str(error)) from error


def trial_from_line(line: str, where: str) -> Trial:
    """Reads one line of the log; a key that the trial does not have is ignored, so that newer logs stay readable.

    Raises:
        InputError: the line is not JSON or not a trial; `where` (file and line) is named in the message.
    """
    try:
        return from_json(Trial, parse_json(line), "trial")
    except ValueError as error:
        raise InputError(
            f"{where} is not a judged plan",
            why=str(error),
            fix="restore the file from a copy, or start a new run; only a half-written last line is repaired",
        ) from error


def read_trials(path: Path) -> tuple[Trial, ...]:
    """Reads a log without changing it; half a line at the end, left by a killed run, is not counted.

    Raises:
        InputError: the file cannot be read, a line before the last is broken, or a plan or id occurs twice.
    """
    return _parse(_read_bytes(path), path)[0]


class TrialLog:
    """The log of one run, opened for appending: every plan at most once."""

    def __init__(self, path: Path) -> None:
        """Opens or creates `path` and reads what it holds; half a line at its end is cut off.

        Raises:
            InputError: as `read_trials`.
        """
        self._path = path
        self._by_digest: dict[str, Trial] = {}
        self._next_id = 0
        trials: tuple[Trial, ...] = ()
        if path.exists():
            data = _read_bytes(path)
            trials, good = _parse(data, path)
            if good < len(data):
                os.truncate(path, good)
            elif data and not data.endswith(b"\n"):
                append(path, b"\n")
        else:
            append(path, b"")
        for trial in trials:
            self._remember(trial)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials in the order they were judged."""
        return tuple(self._by_digest.values())

    @property
    def next_id(self) -> int:
        """The id for the next trial."""
        return self._next_id

    def __len__(self) -> int:
        """How many plans were judged."""
        return len(self._by_digest)

    def find(self, plan: Plan) -> Trial | None:
        """The trial of `plan`, None if it was never judged."""
        return self._by_digest.get(plan.digest)

    def append(self, trial: Trial) -> None:
        """Writes the trial through to the disk.

        Raises:
            InternalError: the plan was judged before, or the id is not `next_id`.
            EnvironmentProblemError: the file cannot be written; it ends with the trial before.
        """
        if self.find(trial.plan.plan) is not None or trial.id != self._next_id:
            raise InternalError(
                f"plan {trial.id} does not fit the log",
                why=f"its digest {trial.plan.plan.digest} is there already, or its id is not {self._next_id}",
            )
        append(self._path, trial_to_line(trial).encode() + b"\n")
        self._remember(trial)

    def _remember(self, trial: Trial) -> None:
        self._by_digest[trial.plan.plan.digest] = trial
        self._next_id = max(self._next_id, trial.id + 1)


def _read_bytes(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(
            f"cannot read the plan log {path}", why=reason(error), fix="check the path and its permissions"
        ) from error


def _parse(data: bytes, path: Path) -> tuple[tuple[Trial, ...], int]:
    """The trials and how many bytes of `data` hold them.

    A last line without its line end counts when it is whole: a JSON object cut anywhere is no JSON, so nothing judged
    is lost.
    """
    lines = data.split(b"\n")
    last = lines.pop()
    good = len(data) - len(last)
    trials: list[Trial] = []
    seen: dict[object, int] = {}
    for number, raw in enumerate([*lines, last] if _is_json(last) else lines, start=1):
        where = f"line {number} of {path}"
        trial = trial_from_line(raw.decode("utf-8", errors="replace"), where)
        for name in (trial.id, trial.plan.plan.digest):
            if (first := seen.setdefault(name, number)) != number:
                raise InputError(
                    f"{where} repeats line {first}",
                    why=f"both hold id or plan {name}",
                    fix="remove the later of the two, or restore the file from a copy",
                )
        trials.append(trial)
    return tuple(trials), len(data) if _is_json(last) else good


def _is_json(raw: bytes) -> bool:
    """Whether a last line is to be read: half of one of ours begins with a brace, anything else is not ours."""
    if raw.strip()[:1] not in (b"", b"{"):
        return True
    try:
        parse_json(raw)
    except ValueError:
        return False
    return True
