"""How long work says how far it is: a call with 0 when it begins, and one after each piece."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Receives how many are done, how many there are, and of what, in the plural."""


def no_progress(done: int, total: int, what: str) -> None:
    """Tells nobody."""
