"""The last line of a terminal, redrawn while a command works, and consoles that take NO_COLOR at its word.

In: a function that gives the line for a width, and messages. Out: one line that never wraps, messages above it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment

from precision_search.printable import printable

REFRESH_SECONDS = 0.25


def _control(text: str, kind: ControlType) -> Segment:
    """A control code that Rich has no name for; an old Windows console, which knows kinds only, gets the kind."""
    return Segment(text, None, [(kind, 0)])


_ERASE_BELOW = _control("\x1b[J", ControlType.ERASE_IN_LINE)
# A window that was made narrower a moment ago, which nobody could know yet, cuts the line instead of wrapping it.
_BEGIN = _control("\x1b[?7l", ControlType.CARRIAGE_RETURN)
_END = _control("\x1b[?7h\r", ControlType.CARRIAGE_RETURN)
_ERASING = Control()
# The line first: tmux keeps what is erased from the top left corner on, if there is anything, as history.
_ERASING.segment = _control("\r\x1b[2K\x1b[J", ControlType.CARRIAGE_RETURN)


class _PrintableConsole(Console):
    """A console that sends no control characters but its own, whatever is in the text that it is given.

    Who measures a text makes it printable first: here it only grows longer than was meant.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is rendered, their text made printable; control codes are nobody's text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def make_console(stream: TextIO, width: int | None = None) -> Console:
    """A console on the stream, as wide as its terminal unless told; with NO_COLOR without bold and dim too."""
    return _PrintableConsole(file=stream, width=width, color_system=None if os.environ.get("NO_COLOR") else "auto")


class LiveLine:
    """Shows a line from `start` to `stop`; may be given messages before, between and after."""

    def __init__(self, console: Console, text: Callable[[int], str]) -> None:
        """`text` gives the line, of at most so many characters; it is also called from another thread."""
        self._console = console
        self._text = text
        # stdout carries data and is left alone; what libraries write to stderr is moved above the live line.
        self._live = Live(
            console=console, get_renderable=lambda: self, auto_refresh=False, transient=True, redirect_stdout=False
        )
        self._ticker = _Ticker(self._live.refresh)

    @property
    def width(self) -> int:
        """Characters that a line may have: the last column stays empty, since terminals differ in when they wrap."""
        width = self._console.width
        with contextlib.suppress(OSError, ValueError):  # no terminal behind the stream
            # COLUMNS, which wins for tables, is of no use here: the terminal wraps where it ends.
            width = min(width, os.get_terminal_size(self._console.file.fileno()).columns or width)
        return width - 1

    def start(self) -> None:
        """Shows the line, or brings it up to date."""
        if not self._live.is_started:
            self._live.start()
            self._ticker.start()
        self._live.refresh()

    def stop(self) -> None:
        """Removes the line and gives the cursor back."""
        self._ticker.stop()
        self._live.stop()

    def print(self, text: str, style: str | None = None) -> None:
        """Prints a message above the line; the terminal wraps a long one, so that it can be copied."""
        with self._console as console:
            if self._live.is_started:
                console.control(_ERASING)
            console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Leaves the cursor at the line's start: there it stays where a window is made narrower and wraps the line."""
        return self._segments()

    def _segments(self) -> Iterator[Segment]:
        yield _ERASE_BELOW
        yield _BEGIN
        yield Segment(printable(self._text(self.width)))
        yield _END


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
