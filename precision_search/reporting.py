"""Who is told what happens: stages, notes, warnings, and how far the work of a stage is.

Functions take one reporter, or `NOBODY`. They never close it: that is for who made it, or for who promises it.
"""

from __future__ import annotations

from typing import Protocol, Self


class Reporter(Protocol):
    """Receives what happens, in order. `close` ends the display; what comes after it is still shown, as plain lines.

    As a context manager it is closed whatever happens, since a live line hides the cursor.
    """

    def stage(self, text: str) -> None:
        """A new stage begins, and with it the one before ends; after a comma comes what a narrow line leaves out."""

    def note(self, text: str) -> None:
        """Something worth knowing that asks for no action."""

    def warn(self, text: str) -> None:
        """Something a person should look at."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Of the current stage's work, so many samples or the like are done; called once with 0 when it begins."""

    def close(self) -> None:
        """Nothing more comes; may be called twice."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()


class Nobody(Reporter):
    """Tells nobody."""

    def stage(self, text: str) -> None:
        """Says nothing."""

    def note(self, text: str) -> None:
        """Says nothing."""

    def warn(self, text: str) -> None:
        """Says nothing."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Has nothing to end."""


NOBODY = Nobody()
