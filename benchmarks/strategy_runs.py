"""A strategy of ours, run as the command line runs it, as a row of the search benchmark."""

from __future__ import annotations

import re
import shutil
import sys
import time
from pathlib import Path

from benchmarks.rows import Label, Row, make_row
from precision_search import search
from precision_search.config import Config
from precision_search.display.reporters import QuietReporter
from precision_search.judging.batches import FIRST_BATCH
from precision_search.judging.trial import NOTHING_KNOWN, SearchState, Trial
from precision_search.records.run_files import read_run

PROBING = re.compile(r"measuring the noise of (\d+) role")
"""What a search says when it begins to screen roles one by one."""


class Stopwatch(QuietReporter):
    """Notes when each plan was judged, in seconds from the start of the first, and how many probes came before it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.seconds: list[float] = []
        self.probes: list[int] = []
        self._probed = 0
        self._started = 0.0

    def note(self, text: str) -> None:
        """Counts probes as they are announced."""
        if found := PROBING.search(text):
            self._probed += int(found[1])

    def trial(self, trial: Trial, state: SearchState = NOTHING_KNOWN) -> None:
        """The first plan began its own `seconds` ago."""
        now = time.perf_counter()
        if not self.seconds:
            self._started = now - trial.seconds
        self.seconds.append(now - self._started)
        self.probes.append(self._probed)


def search_row(label: Label, method: str, config: Config, run: Path) -> Row:
    """Runs a strategy of ours as the command line does; an unfinished run of it in `run` is thrown away.

    What it screens without judging a plan, probes of single roles, counts as evaluations too.
    """
    shutil.rmtree(run, ignore_errors=True)
    watch = Stopwatch()
    result = search(config, run, reporter=watch)
    if result.interrupted or result.choice.trial is None:
        sys.exit(130)
    trial = result.choice.trial
    place = next(place for place, each in enumerate(result.trials) if each.id == trial.id)
    best = read_run(run).info.best
    test = None if best is None or best.test_match is None else best.test_match.value
    notes = []
    if probes := watch.probes[-1]:
        count = f"{watch.probes[place]} of its evaluations until then, {probes} of all,"
        notes.append(f"{count} are probes: one role low, on the {FIRST_BATCH} most fragile samples")
    if trial.is_fp32:
        notes.append("no other plan was stable, so that fp32 stays")
    return make_row(
        label,
        method,
        trial,
        evaluations=watch.probes[place] + sum(not each.is_fp32 for each in result.trials[: place + 1]),
        seconds=watch.seconds[place],
        all_evaluations=watch.probes[-1] + sum(not each.is_fp32 for each in result.trials),
        all_seconds=watch.seconds[-1],
        test=1.0 if trial.is_fp32 else test,
        min_exact_match=config.min_exact_match,
        judged=result.trials,
        note="; ".join(notes),
    )
