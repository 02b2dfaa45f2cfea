"""A reporter that remembers what it is told."""

from __future__ import annotations

from precision_search.judging.trial import NOTHING_KNOWN, SearchReporter, SearchState, Trial
from precision_search.reporting import Nobody


class Told(Nobody, SearchReporter):
    """Lists of what a person would see."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.trials: list[Trial] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def trial(self, trial: Trial, state: SearchState = NOTHING_KNOWN) -> None:
        self.trials.append(trial)
