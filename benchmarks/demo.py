"""How long the demo takes, stage by stage: once with nothing cached, once with the export there.

python -m benchmarks.demo [--config configs/demo.toml]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.printing import add_common_arguments, give, machine, markdown_table, run_main, say
from precision_search.records.run_files import read_run
from precision_search.records.run_json import RunInfo

NAME = "demo"
STARTUP = "starting Python, reading the config"
TARGET_SECONDS = (120, 60)
"""For a run with nothing cached and for one with the export cached, on two cores."""

_STAGE = re.compile(r"\[(\d+\.\d) s\] (.+)")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command.

    Attributes:
        seconds: wall clock, from start to end of the process.
        stages: seconds by stage, in order.
        info: what it says of itself.
    """

    seconds: float
    stages: dict[str, float]
    info: RunInfo


def run(config: Path, overrides: Sequence[str], out: Path) -> Run:
    """Runs the command and reads its stages off its stderr."""
    command = [sys.executable, "-m", "precision_search", "run", str(config), "--out", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, *(f"--set={override}" for override in overrides)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    begun: dict[str, float] = {STARTUP: 0.0}
    offset: float | None = None
    for line in process.stderr:
        say(line.rstrip())
        if (found := _STAGE.match(line)) is not None:
            printed = float(found.group(1))
            # Its clock starts after the imports, ours with the process.
            offset = time.perf_counter() - start - printed if offset is None else offset
            begun.setdefault(found.group(2), offset + printed)
    code = process.wait()
    seconds = time.perf_counter() - start
    if code not in (0, 1):  # 1: nothing is faster than fp32, which is a result
        sys.exit(code)
    ends = [*list(begun.values())[1:], seconds]
    stages = {name: end - begin for (name, begin), end in zip(begun.items(), ends, strict=True)}
    return Run(seconds, stages, read_run(out).info)


def report(where: str, fresh: Run, cached: Run) -> str:
    """The result as Markdown."""
    rows = [
        (name, *(f"{each.stages[name]:.1f}" if name in each.stages else "-" for each in (fresh, cached)))
        for name in {**fresh.stages, **cached.stages}
    ]
    targets = tuple(f"at most {seconds}" for seconds in TARGET_SECONDS)
    total = ("**all**", f"**{fresh.seconds:.1f}**", f"**{cached.seconds:.1f}**")
    table = markdown_table(("stage", "nothing cached, s", "export cached, s"), [*rows, total, ("target", *targets)])
    counts = cached.info.counts
    judged = f"{counts.judged} plans judged, {counts.stable} of them stable"
    peak = f"peak memory of the search {(cached.info.peak_rss_bytes or 0) / 1e6:.0f} MB"
    return f"{where}\n\n{table}\n\n{judged}; {peak}."


def main() -> None:
    """Entry of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_common_arguments(parser)
    arguments = parser.parse_args()
    where = machine()
    with tempfile.TemporaryDirectory(prefix="precision-search-") as folder:
        overrides = [*arguments.overrides, f"model.cache={folder}/cache"]
        fresh, cached = (run(arguments.config, overrides, Path(folder) / name) for name in ("fresh", "cached"))
    give(NAME, report(where, fresh, cached), arguments.into)


if __name__ == "__main__":
    run_main(main)
