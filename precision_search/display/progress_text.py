"""How far a stage is, in words: what was judged, how fast, the best so far, and how long it may still take.

In: judged plans and counts as they happen. Out: the parts of a line, each with its importance, so that a narrow line
can leave out whole parts. Times left are guesses from the present rate and carry a `~`; `up to` marks an upper bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precision_search.errors import counted
from precision_search.judging.trial import NOTHING_KNOWN, SearchState
from precision_search.records.wording import ABBREVIATED

if TYPE_CHECKING:
    from precision_search.judging.trial import Trial, TrialLatency

Clock = Callable[[], float]

RECENT = 20
"""Plans whose times make the present rate: stages of a search differ, and the first plan also builds the sessions."""

ALWAYS = 0
"""The rank of a part that the narrowest line still shows."""

DETAIL, TOOK = 5, 6
"""The ranks of a title's detail, and of how long it took."""

ELLIPSIS = "..."


@dataclass(frozen=True, slots=True)
class Part:
    """Something to say in a line; parts of a higher rank are left out first."""

    text: str
    rank: int


class Tally:
    """What one stage comes to: plans judged, or pieces of work done of all."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._finished: deque[float] = deque(maxlen=RECENT + 1)
        self._last: Trial | None = None
        self._state = NOTHING_KNOWN
        self._work: tuple[int, int, str] | None = None
        self._work_began = self._work_moved = clock()

    def add(self, trial: Trial, state: SearchState) -> None:
        """Counts a judged plan."""
        self._finished.append(self._clock())
        self._last, self._state, self._work = trial, state, None

    def progress(self, done: int, total: int, what: str) -> None:
        """Notes that so many pieces of work are done of all; fewer than before means that they were begun anew."""
        self._work_moved = self._clock()
        if self._work is None or done < self._work[0] or (total, what) != self._work[1:]:
            self._work_began = self._work_moved
        self._work = (done, total, what) if self._last is None or done < total else None

    def parts(self, *, ended: bool = False) -> list[Part]:
        """What to say now, in the order of a line; once the stage has ended, nothing of what is under way."""
        parts, work = self._counted(), self._work  # read once: another thread may ask
        left = None if ended else self._search_left()
        if work is not None and not ended:
            done, total, what = work
            parts.append(Part(f"{done} of {total} {what}", 3 if parts else ALWAYS))
            if self._last is None:  # within a search, how long it takes is no news of the search's end
                left = self._work_left(done, total)
        return parts if left is None else [*parts, Part(left, 2)]

    def _counted(self) -> list[Part]:
        last, state = self._last, self._state
        if last is None:
            return []
        judged, best, seconds = last.id + 1, state.best, self._seconds_each()
        parts = [Part(counted(judged, "plan"), ALWAYS), Part(f"stage {last.stage}", 7)]
        if seconds:
            parts.append(Part(f"{seconds:.1f} s each" if seconds >= 1 else f"{1 / seconds:.1f} a second", 8))
        if state.screens_per_second is not None:
            parts.append(Part(screen_rate(state.screens_per_second), 4))
        if best is not None and not best.is_fp32 and best.latency is not None:
            parts.append(Part(f"best {_speedup(best.latency, state.fastest)} {ABBREVIATED[best.latency.source]}", 1))
        return parts

    def _seconds_each(self) -> float | None:
        """Seconds from plan to plan; None before two were judged after the first, which is no measure."""
        plans = len(self._finished) - 1
        return (self._finished[-1] - self._finished[0]) / plans if plans >= 2 else None

    def _work_left(self, done: int, total: int) -> str | None:
        """By the pace so far; None before there is any, and at the end."""
        took = self._work_moved - self._work_began
        if not 0 < done < total or took <= 0:
            return None
        left = took / done * (total - done) - (self._clock() - self._work_moved)
        return f"~{clock_time(left)} left"

    def _search_left(self) -> str | None:
        """The nearer of what the plans that may come would take at the present rate, and the time limit."""
        remaining, seconds = self._state.remaining, self._seconds_each()
        if remaining is None or not self._finished:
            return None
        bounds = []
        if seconds is not None:
            bounds.append((remaining.plans * seconds, "~"))
        if remaining.seconds is not None:
            bounds.append((remaining.seconds, ""))
        if not bounds:
            return None
        left, mark = min(bounds)
        return f"up to {mark}{clock_time(left - (self._clock() - self._finished[-1]))} left"


def fitted(title: str, parts: Sequence[Part], width: int, took: str = "") -> str:
    """A line of at most `width` characters: what matters most comes in first, whole; a title too long loses its end.

    Args:
        title: the stage; what follows its first comma is detail.
        parts: in their order; those of the lowest rank matter most, those of rank `ALWAYS` stay.
        width: characters there are.
        took: how long it took so far, told at the end of the line.
    """
    short, comma, detail = title.partition(", ")

    def line(ranks: set[int]) -> str:
        said = ", ".join(part.text for part in parts if part.rank in ranks)
        ended = f" ({took})" if took and TOOK in ranks else ""
        return f"{short}{comma + detail if DETAIL in ranks else ''}{f': {said}' if said else ''}{ended}"

    kept = {ALWAYS}
    for rank in sorted({*(part.rank for part in parts), DETAIL, TOOK}):
        if len(line(kept | {rank})) <= width:
            kept.add(rank)
    found = line(kept)
    return found if len(found) <= width else found[: max(0, width - len(ELLIPSIS))] + ELLIPSIS[:width]


def _speedup(best: TrialLatency, fastest: Trial | None) -> str:
    """The best plan's speedup. Where flip risk made it the best it may be up to 2% (`strategies.pareto.ALIKE`) slower
    than the fastest one; then it is told by that one's, with a `~`, so that the number never falls.
    """
    chosen = f"{best.speedup:.2f}x"
    most = chosen if fastest is None or fastest.latency is None else f"{fastest.latency.speedup:.2f}x"
    return chosen if chosen == most else f"~{most}"


def screen_rate(per_second: float) -> str:
    """For example `20.1 screens/s`."""
    return f"{per_second:.1f} screens/s" if per_second >= 1 else f"{per_second:.2f} screens/s"


def clock_time(seconds: float) -> str:
    """For example `0:07`, `4:10` or `1:02:03`; nothing is less than no time."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """How long something took: `12.3 s`, from a minute on as `clock_time` has it."""
    return f"{seconds:.1f} s" if seconds < 60 else clock_time(seconds)
