r"""Patterns over node keys, matched in bounded time, whoever wrote them.

In: a regular expression as Python's `re` reads it, lookarounds included, and node keys. Out: the keys that it matches
as a whole, or a `PatternError` that says what is wrong with it. `re` cannot be stopped once it matches, and a pattern
of ten characters can keep it busy for years. So `re` only decides what is a pattern; the package `regex`, which takes
a time limit, does the matching. Where that reads more into a pattern than `re` does (`x{e<=1}`, `[[:alpha:]]`), it is
given one that spells out what `re` reads.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable, Iterator

import regex

LONGEST = 1000
"""Characters of a pattern; one that names every role of a module has a tenth of them."""
DEEPEST = 20
"""Groups inside each other."""
MOST_REPEATS = 1000
"""What a counted repeat such as `{2,9}` may go up to."""
MOST_COPIES = 10_000
"""What the lower ends of all counted repeats may multiply to: `regex` writes out what repeats inside repeats, and no
limit of time holds while it does."""
SECONDS = 5.0
"""How long the patterns of one list may take over all keys; an honest one takes milliseconds."""

_PIECES = re.compile(
    r"(?P<escape>\\.)"
    r"|(?P<comment>\(\?#(?:\\.|[^\\)])*\))"
    r"|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])"
    r"|(?P<repeat>\{(?P<low>\d*)(?P<comma>,?)(?P<high>\d*)\})"
    r"|(?P<other>.)",
    re.DOTALL,
)
_PIECES_OF_SET = re.compile(r"\\.|.", re.DOTALL)
_VERBOSE = re.compile(r"\(\?[aiLmsu]*x")


class PatternError(ValueError):
    """A pattern that is no regular expression, or one that is too large or too slow; the message says which."""


def time_limit() -> float:
    """When patterns that are matched from now on have to be done, as `time.monotonic` counts."""
    return time.monotonic() + SECONDS


def matched(pattern: str, keys: Iterable[str], end: float | None = None) -> frozenset[str]:
    """The keys that the pattern matches as a whole.

    Args:
        pattern: as `re` reads it.
        keys: node keys. Which letters beyond ASCII `\\w` takes, `regex` decides.
        end: of the time for it and other patterns (`time_limit`); None gives it a time of its own.

    Raises:
        PatternError: it is no regular expression of Python, is beyond the limits above, or takes too long.
    """
    expression = _compiled(pattern)
    end = time_limit() if end is None else end
    try:
        if time.monotonic() >= end:
            raise TimeoutError
        return frozenset(key for key in keys if expression.fullmatch(key, timeout=max(1e-3, end - time.monotonic())))
    except TimeoutError as error:
        raise PatternError(f"it does not end within {SECONDS:g} seconds, which repeats inside repeats do") from error


def _compiled(pattern: str) -> regex.Pattern[str]:
    if len(pattern) > LONGEST:
        raise PatternError(f"it has {len(pattern)} characters, and {LONGEST} are the most")
    spelled = "".join(_spelled(pattern))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # sets that a later Python may read otherwise
            re.compile(pattern)
        return regex.compile(spelled, regex.V0)
    except (re.error, regex.error, OverflowError) as error:
        raise PatternError(str(error)) from error


def _spelled(pattern: str) -> Iterator[str]:
    """The pieces of the pattern that mean to `regex` what the pattern means to `re`."""
    depth, copies, verbose = 0, 1, _VERBOSE.search(pattern) is not None
    for piece in _PIECES.finditer(pattern):
        text = piece[0]
        if verbose and text == "#":
            raise PatternError("it has a comment in verbose mode, which is not supported; write it without")
        depth += (text == "(") - (text == ")")
        if depth > DEEPEST:
            raise PatternError(f"it has more than {DEEPEST} groups inside each other")
        if piece["comment"]:
            yield "(?#)"
        elif piece["set"]:
            yield text[0] + "".join(r"\[" if each == "[" else each for each in _PIECES_OF_SET.findall(text[1:]))
        elif piece["repeat"] and text != "{}":
            low, high = piece["low"] or "0", piece["high"] if piece["comma"] else piece["low"]
            if any(len(count) > 9 or int(count) > MOST_REPEATS for count in (low, high) if count):
                raise PatternError(f"it repeats up to {text}, and {MOST_REPEATS} times are the most")
            copies *= max(1, int(low))
            if copies > MOST_COPIES:
                raise PatternError(f"its repeats multiply to more than {MOST_COPIES} copies of what they repeat")
            yield f"{{{low},{high}}}"
        else:
            yield text.replace("{", r"\{") if piece["escape"] is None else text
