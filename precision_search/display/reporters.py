"""What a person sees while a command works, always on stderr: a live line on a terminal, plain lines elsewhere.

In: stages, notes, warnings and judged plans as they happen. Out: text for people; nothing here is data. Readable
without colour, since `NO_COLOR` and log files have none.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, TextIO

from precision_search.display.progress_text import Clock, Tally, duration, fitted, screen_rate
from precision_search.judging.trial import NOTHING_KNOWN, SearchReporter, SearchState
from precision_search.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from precision_search.judging.trial import Trial

LOG_SECONDS = 60.0
"""A log says at least so often how far a long stage is, where the stage knows."""


def make_reporter(*, quiet: bool = False, verbose: bool = False, stream: TextIO | None = None) -> SearchReporter:
    """The reporter that suits the stream (None: stderr): live on a terminal, lines elsewhere, warnings only if quiet.

    `verbose` adds a line for each judged plan where the live line would only count it.
    """
    stream = sys.stderr if stream is None else stream
    if quiet:
        return QuietReporter(stream)
    if stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        from precision_search.display.live_line import make_console

        return RichReporter(make_console(stream), verbose=verbose)
    return PlainReporter(stream)


class QuietReporter(SearchReporter):
    """Warnings only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def stage(self, text: str) -> None:
        """Says nothing."""

    def note(self, text: str) -> None:
        """Says nothing."""

    def warn(self, text: str) -> None:
        """Writes the warning."""
        _write(self._stream, f"warning: {text}")

    def trial(self, trial: Trial, state: SearchState = NOTHING_KNOWN) -> None:
        """Says nothing."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Has nothing to end."""


class PlainReporter(SearchReporter):
    """One line for each stage, note, warning and judged plan; in long stages one a minute for how far they are."""

    def __init__(self, stream: TextIO, *, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._started = self._told = clock()
        self._stage = ""
        self._tally = Tally(clock)

    def stage(self, text: str) -> None:
        """Writes the stage with the time it begins at."""
        self._stage, self._tally = text, Tally(self._clock)
        self._timed(text)

    def note(self, text: str) -> None:
        """Writes the note."""
        _write(self._stream, text)

    def warn(self, text: str) -> None:
        """Writes the warning."""
        _write(self._stream, f"warning: {text}")

    def trial(self, trial: Trial, state: SearchState = NOTHING_KNOWN) -> None:
        """Writes what was found, and how fast screens are."""
        self._tally.add(trial, state)
        rate = [] if state.screens_per_second is None else [screen_rate(state.screens_per_second)]
        _write(self._stream, ", ".join([trial_line(trial), *rate]))
        self._tell_now_and_then()

    def progress(self, done: int, total: int, what: str) -> None:
        """Writes how much is done, once a minute."""
        self._tally.progress(done, total, what)
        self._tell_now_and_then()

    def close(self) -> None:
        """Has nothing to end."""

    def _tell_now_and_then(self) -> None:
        if self._clock() - self._told >= LOG_SECONDS:
            self._timed(fitted(self._stage, self._tally.parts(), sys.maxsize))

    def _timed(self, text: str) -> None:
        self._told = self._clock()
        _write(self._stream, f"[{self._told - self._started:.1f} s] {text}")


class RichReporter(SearchReporter):
    """A live last line, as much of it as the terminal is wide; finished stages and messages stay above it."""

    def __init__(self, console: Console, *, verbose: bool = False, clock: Clock = time.monotonic) -> None:
        from precision_search.display.live_line import LiveLine

        self._verbose = verbose
        self._clock = clock
        self._stage = ""
        self._stage_started = clock()
        self._closed = False
        self._tally = Tally(clock)
        self._line = LiveLine(console, self._text)

    def stage(self, text: str) -> None:
        """Leaves a line for the stage before and shows this one."""
        self._finish_stage()
        if self._closed:
            self._line.print(text)
            return
        self._stage, self._stage_started = text, self._clock()
        self._line.start()

    def note(self, text: str) -> None:
        """Prints the note above the live line."""
        self._line.print(text)

    def warn(self, text: str) -> None:
        """Prints the warning above the live line."""
        self._line.print(f"warning: {text}", style="yellow")

    def trial(self, trial: Trial, state: SearchState = NOTHING_KNOWN) -> None:
        """Counts the plan; prints it too if verbose."""
        self._tally.add(trial, state)
        if self._verbose:
            self._line.print(trial_line(trial))

    def progress(self, done: int, total: int, what: str) -> None:
        """Shows how much is done."""
        self._tally.progress(done, total, what)

    def close(self) -> None:
        """Removes the live line, leaves one for the last stage, and ends the thread that refreshed it."""
        self._closed = True
        self._line.stop()
        self._finish_stage()

    def _finish_stage(self) -> None:
        stage, parts, took = self._stage, self._tally.parts(ended=True), self._took()
        self._stage, self._tally = "", Tally(self._clock)
        if stage:
            self._line.print(fitted(stage, parts, self._line.width, took), style="dim")

    def _took(self) -> str:
        return duration(self._clock() - self._stage_started)

    def _text(self, width: int) -> str:
        return fitted(self._stage, self._tally.parts(), width, self._took()) if self._stage else ""


def trial_line(trial: Trial) -> str:
    """A judged plan in one line, for example `plan 7 (decoder): stable, 1.36x estimated, flip risk 0.8, 0.31 s`."""
    from precision_search.records.pareto_table import rejection
    from precision_search.records.wording import number

    if trial.verdict == "stable":
        parts = ["stable"]
        parts += [] if trial.latency is None else [f"{trial.latency.speedup:.2f}x {trial.latency.source}"]
        parts += [] if trial.flip_risk is None else [f"flip risk {number(trial.flip_risk.value)}"]
    else:
        parts = ["rejected", rejection(trial)]
    return f"plan {trial.id} ({trial.stage}): {', '.join([*parts, f'{trial.seconds:.2f} s'])}"


def _write(stream: TextIO, line: str) -> None:
    print(printable(line), file=stream, flush=True)
