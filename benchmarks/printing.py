"""What the benchmarks share: the machine in one line, ratios with their spread, Markdown, and where it goes."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from precision_search.errors import PrecisionSearchError
from precision_search.machine.doctor import examine
from precision_search.reporting import Nobody
from precision_search.runtime.timing import RULES, compare_times

NAMED_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx-ir", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Ratio:
    """How long one thing takes in units of another, timed against each other.

    Attributes:
        value: median over the rounds.
        low: the smallest round.
        high: the largest round.
        first_ms: median time of the unit.
        second_ms: median time of what is measured in it.
    """

    value: float
    low: float
    high: float
    first_ms: float
    second_ms: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(unit: Callable[[], object], measured: Callable[[], object], rounds: int) -> Ratio:
    """Times both in the order unit, measured, measured, unit, after a warm-up; a round gives one ratio."""
    times = compare_times(unit, measured, rules=replace(RULES, least_rounds=rounds, most_rounds=rounds))
    first, second = times.first, times.second
    pairs = zip(_by_round(first.samples_ms), _by_round(second.samples_ms), strict=True)
    found = [measured_ms / unit_ms for unit_ms, measured_ms in pairs]
    return Ratio(median(found), min(found), max(found), first.p50_ms, second.p50_ms)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its cells as they are."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """The machine and the versions that timings belong to, and how busy it is; to be asked before the work begins."""
    report = examine()
    memory = "" if report.memory_bytes is None else f", {report.memory_bytes / 2**30:.1f} GiB"
    packages = ", ".join(f"{p.name} {p.version}" for p in report.packages if p.name in NAMED_PACKAGES)
    device = f", {report.cuda.device}" if report.cuda.works else ""
    load = f"; load average before: {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"Machine: {report.cores} cores ({_processor()}){memory}{device}, {report.platform}; Python {report.python}, "
        f"{packages}; {datetime.now(UTC):%Y-%m-%d}{load}."
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"), help="default: %(default)s")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--into", type=Path, metavar="FILE", help="also put the result into its section of this file")


class Telling(Nobody):
    """Tells stages and warnings on stderr."""

    def stage(self, text: str) -> None:
        """Prints the stage."""
        say(text)

    def warn(self, text: str) -> None:
        """Prints the warning."""
        say(text)


def say(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def give(name: str, text: str, into: Path | None) -> None:
    """Prints the result; puts it between the markers of its section too where a file is given."""
    print(text)
    if into is not None:
        into.write_text(with_section(into.read_text(), name, text))


def with_section(page: str, name: str, text: str) -> str:
    """The page with `text` between its lines `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

    Raises:
        ValueError: the page has no such lines.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    found = re.search(re.escape(begin) + "(.*?)" + re.escape(end), page, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"there is no section {name}: the lines {begin.strip()} and {end} are missing")
    return f"{page[: found.start(1)]}{text}\n{page[found.end(1) :]}"


def run_main(main: Callable[[], None]) -> None:
    """Runs a benchmark; an error of ours ends it with its message and exit code."""
    try:
        main()
    except PrecisionSearchError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


def _by_round(samples_ms: Sequence[float]) -> list[float]:
    return [one + two for one, two in zip(samples_ms[::2], samples_ms[1::2], strict=True)]


def _processor() -> str:
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        named = None
    return named.group(1).strip() if named else platform.processor() or "unnamed"
