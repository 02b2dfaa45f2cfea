"""How long work says how far it is: a call with 0 when it begins, and one after each piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int, str], None]
"""Receives how many are done, how many there are, and of what, in the plural."""


def no_progress(done: int, total: int, what: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """The most that may still come after a judged plan.

    Attributes:
        plans: to be judged, by the budget and by what the strategy knows of its end.
        seconds: to the time limit, None without one; the plan that is judged then is finished.
    """

    plans: int
    seconds: float | None = None
