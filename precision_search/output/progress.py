"""What a person sees while a command works, always on stderr: a live line on a terminal, plain lines elsewhere.

In: stages, notes, warnings and judged plans as they happen. Out: text for people; nothing here is data. Readable
without colour, since `NO_COLOR` and log files have none.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from precision_search.search.trials import Trial

Clock = Callable[[], float]

REFRESH_SECONDS = 0.25


class Reporter(Protocol):
    """Receives what happens, in order. `close` ends the display; what comes after it is still shown, as plain lines."""

    def stage(self, text: str) -> None:
        """A new stage begins, and with it the one before ends."""

    def note(self, text: str) -> None:
        """Something worth knowing that asks for no action."""

    def warn(self, text: str) -> None:
        """Something a person should look at."""

    def trial(self, trial: Trial, screens_per_second: float | None = None) -> None:
        """A plan was judged; so many screens a second were done since the search began."""

    def close(self) -> None:
        """Nothing more comes; may be called twice."""


def make_reporter(*, quiet: bool = False, verbose: bool = False, stream: TextIO | None = None) -> Reporter:
    """The reporter that suits the stream (None: stderr): live on a terminal, lines elsewhere, warnings only if quiet.

    `verbose` adds a line for each judged plan where the live line would only count it.
    """
    stream = sys.stderr if stream is None else stream
    if quiet:
        return QuietReporter(stream)
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console

        return RichReporter(Console(file=stream), verbose=verbose)
    return PlainReporter(stream)


class QuietReporter:
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

    def trial(self, trial: Trial, screens_per_second: float | None = None) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Has nothing to end."""


class PlainReporter:
    """One line for each stage, note, warning and judged plan, stages with the seconds since the start."""

    def __init__(self, stream: TextIO, *, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._started = clock()

    def stage(self, text: str) -> None:
        """Writes the stage with the time it begins at."""
        _write(self._stream, f"[{self._clock() - self._started:.1f} s] {text}")

    def note(self, text: str) -> None:
        """Writes the note."""
        _write(self._stream, text)

    def warn(self, text: str) -> None:
        """Writes the warning."""
        _write(self._stream, f"warning: {text}")

    def trial(self, trial: Trial, screens_per_second: float | None = None) -> None:
        """Writes what was found, and how fast screens are."""
        _write(self._stream, ", ".join([trial_line(trial), *_rate(screens_per_second)]))

    def close(self) -> None:
        """Has nothing to end."""


class Tally:
    """What the judged plans of this session come to: how many, how fast, and the best stable one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = 0.0
        self.judged = 0
        self.best: Trial | None = None
        self.screens_per_second: float | None = None

    def add(self, trial: Trial, screens_per_second: float | None = None) -> None:
        """Counts a plan; the first one began its own `seconds` ago."""
        self.screens_per_second = screens_per_second
        if not self.judged:
            self._started = self._clock() - trial.seconds
        self.judged += 1
        if _is_better(trial, self.best):
            self.best = trial

    def text(self) -> str:
        """For example `12 plans, 3.1 a second, 20.0 screens/s, best 7: 1.42x`; empty before the first plan."""
        if not self.judged:
            return ""
        parts = ["1 plan" if self.judged == 1 else f"{self.judged} plans"]
        seconds = self._clock() - self._started
        if seconds > 0:
            parts.append(f"{self.judged / seconds:.1f} a second")
        parts += _rate(self.screens_per_second)
        if self.best is not None and self.best.latency is not None:
            parts.append(f"best {self.best.id}: {self.best.latency.speedup:.2f}x")
        return ", ".join(parts)


class RichReporter:
    """A live last line (stage, plans judged, rates, best, seconds); finished stages and messages stay above it."""

    def __init__(self, console: Console, *, verbose: bool = False, clock: Clock = time.monotonic) -> None:
        from rich.live import Live

        self._console = console
        self._verbose = verbose
        self._clock = clock
        self._stage = ""
        self._stage_started = clock()
        self._closed = False
        self._tally = Tally(clock)
        # stdout carries data and is left alone; what libraries write to stderr is moved above the live line.
        self._live = Live(
            console=console, get_renderable=self._line, auto_refresh=False, transient=True, redirect_stdout=False
        )
        self._ticker = _Ticker(self._live.refresh)

    def stage(self, text: str) -> None:
        """Leaves a line for the stage before and shows this one."""
        self._finish_stage()
        if self._closed:
            self._print(text)
            return
        self._stage, self._stage_started = text, self._clock()
        if not self._live.is_started:
            self._live.start()
            self._ticker.start()
        self._live.refresh()

    def note(self, text: str) -> None:
        """Prints the note above the live line."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Prints the warning above the live line."""
        self._print(f"warning: {text}", style="yellow")

    def trial(self, trial: Trial, screens_per_second: float | None = None) -> None:
        """Counts the plan; prints it too if verbose."""
        self._tally.add(trial, screens_per_second)
        if self._verbose:
            self._print(trial_line(trial))

    def close(self) -> None:
        """Removes the live line, leaves one for the last stage, and ends the thread that refreshed it."""
        self._closed = True
        self._ticker.stop()
        self._live.stop()
        self._finish_stage()

    def _finish_stage(self) -> None:
        line = self._status() if self._stage else ""
        self._stage = ""
        self._tally = Tally(self._clock)
        if line:
            self._print(line, style="dim")

    def _status(self) -> str:
        counted = self._tally.text()
        return f"{self._stage}{f': {counted}' if counted else ''} ({self._clock() - self._stage_started:.1f} s)"

    def _line(self) -> Text:
        from rich.text import Text

        return Text(self._status() if self._stage else "", no_wrap=True, overflow="ellipsis")

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class _Ticker:
    """Calls a function every quarter of a second, in a thread that is gone when `stop` returns."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(REFRESH_SECONDS):
            self._tick()


def trial_line(trial: Trial) -> str:
    """A judged plan in one line, for example `plan 7 (decoder): stable, 1.36x estimated, flip risk 0.8, 0.31 s`."""
    from precision_search.output.table import rejection

    if trial.verdict == "stable":
        parts = ["stable"]
        parts += [] if trial.latency is None else [f"{trial.latency.speedup:.2f}x {trial.latency.source}"]
        parts += [] if trial.flip_risk is None else [f"flip risk {trial.flip_risk.value:.2g}"]
    else:
        parts = ["rejected", rejection(trial)]
    return f"plan {trial.id} ({trial.stage}): {', '.join([*parts, f'{trial.seconds:.2f} s'])}"


def _rate(screens_per_second: float | None) -> list[str]:
    return [] if screens_per_second is None else [f"{screens_per_second:.1f} screens/s"]


def _is_better(trial: Trial, best: Trial | None) -> bool:
    if trial.verdict != "stable" or trial.is_fp32 or trial.latency is None:
        return False
    return best is None or best.latency is None or trial.latency.speedup > best.latency.speedup


def _write(stream: TextIO, line: str) -> None:
    print(line, file=stream, flush=True)
