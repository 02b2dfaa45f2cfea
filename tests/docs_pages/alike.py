"""Whether two outputs of a command say the same, on whatever processor and at whatever speed they were made.

In: what a command prints here, and what a page says that it prints. Words, counts, ids, sizes, shares and estimated
latencies are exact. Three differences are explained, and nothing else is:

- A clock: times, rates, and the lines that a log gets because a minute has passed.
- The last bits of a processor's kernels: measured values, each kind with a tolerance of its own (`MEASURED`), and what
  follows from how many digits they print with: where the other cells of a table break, and the front's near-ties.
- Near-ties, between processors only (`parted`): a sentence that two tokens share by a hair is kept by one processor's
  kernels and lost by another's, and from there on a search goes other ways.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

WIDTH = 100
"""Columns of the terminal that the docs show."""

MOST_FLIPS = 0.05
"""The share of sentences that processors may disagree on: kernels differ in one or two of a hundred at most."""

_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_TIME = re.compile(r"\d+(?:\.\d+)? (s\b|screens/s)")
_TIMED = re.compile(r"\[\d+\.\d s\] ")
_CHUNK = re.compile(r"\S+(?: \S+)*")
_ROW = re.compile(r"(?:[>*]{1,2} +| *)\d+ {2,}\S")
_STABLE = re.compile(r"(?P<mark>[>*]* ?)(?P<id>\d+) .*\[\S+, (?P<risk>\S+)\]")
_CSV = re.compile(r"id,\w+(,\w+)*$")
_MATCHED = re.compile(r"(\d+) of (\d+)(?: (\w+) samples exact)?, \d")


@dataclass(frozen=True, slots=True)
class Measured:
    """A kind of number that kernels make: how to find it in a line, and how far two processors may differ.

    Attributes:
        pattern: its groups are the numbers; None where a group is not there.
        digits: significant digits that it is printed with, or more; trailing zeros may be missing.
        relative: the share of the value by which it may differ, besides the rounding of what is printed.
        absolute: the same as a difference.
    """

    pattern: re.Pattern[str]
    digits: int
    relative: float = 0.0
    absolute: float = 0.0

    def near(self, first: str, second: str) -> bool:
        """Whether the two may be the same value."""
        one, other = float(first), float(second)
        rounding = (self._last_digit(first) + self._last_digit(second)) / 2
        return abs(one - other) <= self.absolute + self.relative * max(one, other) + rounding * 1.001

    def _last_digit(self, text: str) -> float:
        """What one more in the last digit is worth."""
        value = float(text)
        digits = max(self.digits, len(text.partition("e")[0].replace(".", "").lstrip("0")))
        return 10.0 ** (math.floor(math.log10(value)) - digits + 1) if value else 0.0


# Where an fp32 sum ends in other bits, some of the fp16 values behind it round the other way: the noise that the risk
# is estimated from is another draw in those places. Processors were seen to differ by up to 2%; the interval is 60%.
RISK = Measured(
    re.compile(rf"flip risk {_NUMBER}|{_NUMBER} \[{_NUMBER}, {_NUMBER}\]|flip_risk\w* {_NUMBER}"), 2, relative=0.1
)
# Sums of fp32 products: a few times 2^-24 of the value for each of some hundred terms.
LARGEST = Measured(
    re.compile(rf"^{_NUMBER} {_NUMBER} (?:{_NUMBER}|-) \S+% (?:yes|no) |^# [\w./]+: {_NUMBER}$"), 3, relative=1e-5
)
# The difference of two logits of fp32, each of which is such a sum of numbers up to some tens.
MARGIN = Measured(re.compile(rf"reference margin {_NUMBER}"), 2, absolute=1e-4)
MEASURED = (RISK, LARGEST, MARGIN)

# What near-ties decide: the plans that a search tries after the first four, the table of stable ones, and the sentences
# that a model keeps. The first four follow from ranges and costs, so their lines must be on both sides.
_DECIDED = re.compile(
    r"plan \d+ \((?!(?:fp32|all-low|classic|cut)\))[\w-]+\): |measuring the noise of \d+ roles?$"
    r"|[>*]* ?\d+ (?:enc|dec|both|everything|nothing)\b.*\]|\d+,\w+,|> chosen: plan \d+, |left out at this width: "
    r"|at least [\d.]+% of the validation samples$"  # where the reason of a choice takes two lines
    r"|\d+ more (?:stable )?plans? (?:rejected|not shown)$|plan \d+: \d+ of \d+ \w+ samples exact, "
    r"|minimum cut: its cost of |line \d+ differs from token \d+ on |(?:source|reference|model) |$|exact match "
    r"|near-ties \d+ of the |error: .* keeps .*% of the samples exactly$|why: --min-exact-match asks for "
    r"|fix: look at the differing samples; |exit code [01]$"
)


def alike(printed: str, expected: str) -> bool:
    """Whether two outputs say the same; see above.

    Of lines that are wider than the terminal the part that fits counts: what a model says after its first difference
    is as near to a tie as that was.
    """
    first, second = _lines(printed), _lines(expected)
    if _marks(first) != _marks(second):
        first, second = (_with_front_settled(lines, [*first, *second]) for lines in (first, second))
    return len(first) == len(second) and all(map(_same, first, second))


def parted(printed: str, expected: str) -> bool:
    """Whether two outputs that are not alike can be those of two processors that decide near-ties differently."""
    first, second = ([line for line in _lines(text) if not _DECIDED.match(line)] for text in (printed, expected))
    here, there = _kept(printed), _kept(expected)
    near = all(
        total == there[name][1] and abs(kept - there[name][0]) <= MOST_FLIPS * total
        for name, (kept, total) in here.items()
        if name in there
    )
    return near and len(first) == len(second) and all(map(_same, first, second))


def _kept(text: str) -> dict[str, tuple[int, int]]:
    """By the name of a set, how many of how many sentences a model keeps."""
    return {match[3]: (int(match[1]), int(match[2])) for match in _MATCHED.finditer(text)}


def timeless(text: str) -> str:
    """The text without the lines that say how far a stage is, of which a log gets one a minute."""
    kept, stage = [], None
    for line in text.splitlines(keepends=True):
        if timed := _TIMED.match(line):
            said = line[timed.end() :].rstrip("\n")
            if stage is not None and said.startswith(f"{stage}: "):
                continue
            stage = said
        kept.append(line)
    return "".join(kept)


def _lines(text: str) -> list[str]:
    """The lines that say something, each in one piece, with single spaces."""
    cut = [_TIME.sub(r"T \1", line)[:WIDTH] for line in timeless(text).splitlines()]
    return list(_named_values(" ".join(line.replace("─", "").split()) for line in _whole_rows(cut)))


def _whole_rows(lines: Sequence[str]) -> Iterator[str]:
    """Tables with each row in one line: cells that were broken are put together, so that it does not matter where."""
    row: dict[int, str] = {}
    for line in lines:
        chunks = {match.start(): match[0] for match in _CHUNK.finditer(line)}
        if row and line.startswith("  ") and chunks and not _ROW.match(line) and chunks.keys() <= row.keys():
            row |= {start: f"{row[start]} {chunk}" for start, chunk in chunks.items()}
            continue
        if row:
            yield "  ".join(row.values())
        row = chunks if _ROW.match(line) else {}
        if not row:
            yield line
    if row:
        yield "  ".join(row.values())


def _named_values(lines: Iterable[str]) -> Iterator[str]:
    """CSV with the column's name before each value but id and stage, which says what kind it is."""
    names: list[str] = []
    for line in lines:
        values = line.split(",")
        if _CSV.match(line):
            names = values
        elif len(values) == len(names):
            pairs = zip(names[2:], values[2:], strict=True)
            yield ",".join([*values[:2], *(f"{name} {value}" for name, value in pairs)])
            continue
        yield line


def _same(first: str, second: str) -> bool:
    one, other = _taken_apart(first), _taken_apart(second)
    return (one.rest, len(one.values)) == (other.rest, len(other.values)) and all(
        kind is other_kind and kind.near(value, other_value)
        for (kind, value), (other_kind, other_value) in zip(one.values, other.values, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """A line without what was measured, and that."""

    rest: str
    values: list[tuple[Measured, str]]


def _taken_apart(line: str) -> _Line:
    values: list[tuple[Measured, str]] = []
    for kind in MEASURED:
        for match in kind.pattern.finditer(line):
            values += [(kind, group) for group in match.groups() if group is not None]
        line = kind.pattern.sub(_blanked, line)
    return _Line(line, values)


def _blanked(match: re.Match[str]) -> str:
    text, start = match[0], match.start()
    for number in reversed(range(1, len(match.groups()) + 1)):
        if match[number] is not None:
            text = text[: match.start(number) - start] + "N" + text[match.end(number) - start :]
    return text


def _marks(lines: Sequence[str]) -> list[tuple[str, str]]:
    """The marks of the stable plans with their ids, as they stand."""
    return [(found["mark"], found["id"]) for line in lines if (found := _STABLE.match(line))]


def _with_front_settled(lines: Sequence[str], both: Sequence[str]) -> list[str]:
    """The lines with the stable plans by id, and no `*` where the front may have been a near-tie of flip risks.

    A plan is on the front if no faster one has a lower upper end of the risk; if one has nearly the same, bits decide.
    """
    rows = [found for line in both if (found := _STABLE.match(line))]
    settled = [_without_tied_mark(line, rows) for line in lines]
    places = [place for place, line in enumerate(settled) if _STABLE.match(line)]
    ordered = sorted((settled[place] for place in places), key=_plan)
    for place, line in zip(places, ordered, strict=True):
        settled[place] = line
    return settled


def _without_tied_mark(line: str, rows: Sequence[re.Match[str]]) -> str:
    found = _STABLE.match(line)
    if found is None:
        return line
    tied = any(row["id"] != found["id"] and RISK.near(row["risk"], found["risk"]) for row in rows)
    mark = found["mark"].replace("*", "") if tied else found["mark"]
    return f"{mark}{line[found.end('mark') :]}".strip()


def _plan(row: str) -> int:
    found = _STABLE.match(row)
    return int(found["id"]) if found else 0
