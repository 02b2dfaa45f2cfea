"""What judging costs: full screens against the fp32 pass, rejections against full screens, preparing, and memory.

python -m benchmarks.screen [--config configs/demo.toml] [--rounds 5]
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.plans import FP32, named_plans
from benchmarks.printing import (
    Ratio,
    Telling,
    add_common_arguments,
    give,
    machine,
    markdown_table,
    ratio,
    run_main,
    say,
)
from precision_search.config import load_config
from precision_search.judging.screen import FP32_ENCODER, PreparedPlan, SampleScreen, Screener
from precision_search.model.bundle import Bundle
from precision_search.model.onnx_files import weight_bytes
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache
from precision_search.records.run_files import read_run
from precision_search.run.prepare import prepare
from precision_search.runtime.teacher_forcing import NOTHING, ForcedDecoder, ForcedEncoder

NAME = "screen"


@dataclass(frozen=True, slots=True)
class PlanTimes:
    """What one plan costs to judge.

    Attributes:
        name: of the plan.
        low_nodes: compute nodes of encoder and decoder that are low.
        prepare_ms: median time to prepare it, once the sessions are there.
        full: a screen of every sample, in units of the fp32 pass.
        screened: samples looked at before the verdict was certain.
        samples: samples there are.
        rejecting: a screen that may stop, in units of the full one; None where it does not.
    """

    name: str
    low_nodes: int
    prepare_ms: float
    full: Ratio
    screened: int
    samples: int
    rejecting: Ratio | None

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        return (
            self.name,
            str(self.low_nodes),
            f"{self.prepare_ms:.1f}",
            f"{self.full.second_ms:.0f}",
            str(self.full),
            f"{self.screened} of {self.samples}",
            "-" if self.rejecting is None else str(self.rejecting),
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak resident memory of a whole run with nothing cached, in bytes.

    Attributes:
        search: of the process that searches.
        largest: of the largest process, those that export and generate with torch included.
    """

    search: int
    largest: int


class Bench:
    """Everything that the plans are screened with, and the fp32 pass that they are compared with.

    Attributes:
        bundle: the model.
        plans: by name.
        build_ms: time to build the sessions of all plans, weights rounded on the way.
    """

    def __init__(self, config_path: Path, overrides: Sequence[str]) -> None:
        config = dataclasses.replace(load_config(config_path, overrides), validation=None, test=None)
        prepared = prepare(config, Telling())
        self.bundle: Bundle = prepared.bundle
        self.plans: Mapping[str, Plan] = named_plans(prepared.space.space)
        self._samples = prepared.sets["calibration"].data
        self._batch_size = config.calibration.batch_size
        start = time.perf_counter()
        dtype = self.plans[FP32].dtype
        self._screener = Screener(self.bundle.graphs, dtype, WeightCache(), prepared.settings)
        self.build_ms = (time.perf_counter() - start) * 1e3
        # The graphs as exported, which no switch slows down.
        self._plain = PreparedPlan(
            ForcedEncoder(self.bundle.graphs["encoder"].model, prepared.settings),
            ForcedDecoder(self.bundle.graphs["decoder"].model, prepared.settings),
            encoder_flags=NOTHING,
            decoder_flags=NOTHING,
            encoder_id=FP32_ENCODER,
            build_seconds=0.0,
        )

    def time(self, name: str, rounds: int) -> PlanTimes:
        """Times one plan."""
        plan = self.plans[name]
        prepare_seconds = [self._screener.prepare(plan).build_seconds for _ in range(rounds)]
        prepared = self._screener.prepare(plan)
        stopped = prepared.screen(self._fresh())
        full = ratio(lambda: self._run_all(self._plain), lambda: self._run_all(prepared), rounds)
        rejecting = None
        if stopped.screened < len(self._samples.rows):
            rejecting = ratio(lambda: self._run_all(prepared), lambda: prepared.screen(self._fresh()), rounds)
        keys = {node.key for name in ("encoder", "decoder") for node in self.bundle.graphs[name].compute}
        return PlanTimes(
            name=name,
            low_nodes=len(keys - plan.fp32),
            prepare_ms=median(prepare_seconds) * 1e3,
            full=full,
            screened=stopped.screened,
            samples=len(self._samples.rows),
            rejecting=rejecting,
        )

    def _run_all(self, prepared: PreparedPlan) -> None:
        prepared.screen(self._fresh(), to_the_end=True)

    def _fresh(self) -> SampleScreen:
        """Without the encoder outputs that a search remembers from plan to plan: every screen pays for its encoder."""
        return SampleScreen(self._samples, self.bundle.generation, self._batch_size)


def search_memory(config: Path, overrides: Sequence[str]) -> Memory:
    """Runs a whole search in a child process. To be called before this process has had other children."""
    with tempfile.TemporaryDirectory(prefix="precision-search-") as folder:
        out = Path(folder) / "run"
        options = [f"--set={override}" for override in (*overrides, f"model.cache={folder}/cache")]
        command = [sys.executable, "-m", "precision_search", "run", str(config), "--quiet", "--out", str(out), *options]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode not in (0, 1):  # 1: nothing is faster than fp32, which is a result
            sys.exit(done.returncode)
        peak = read_run(out).info.peak_rss_bytes or 0
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Memory(peak, largest if sys.platform == "darwin" else largest * 1024)


def report(where: str, times: Sequence[PlanTimes], memory: Memory | None, bench: Bench, rounds: int) -> str:
    """The result as Markdown."""
    header = (
        "plan",
        "low nodes",
        "preparing, ms",
        "full screen, ms",
        "÷ fp32 pass (target: at most 1.5)",
        "stops after",
        "rejecting ÷ full screen (target: at most 0.15)",
    )
    lines = [
        where,
        "",
        f"Medians of {rounds} rounds, smallest and largest round in brackets. "
        f"The fp32 pass takes {median(each.full.first_ms for each in times):.0f} ms, "
        f"building the sessions of all plans {bench.build_ms:.0f} ms.",
        "",
        markdown_table(header, [each.cells for each in times]),
    ]
    if memory is not None:
        weights = sum(weight_bytes(bench.bundle.graphs[name].model) for name in ("encoder", "decoder"))
        limit = 4 * weights + 10**9
        rows = (
            ("fp32 weights of encoder and decoder", f"{weights / 1e6:.0f}", ""),
            ("the search", f"{memory.search / 1e6:.0f}", f"at most {limit / 1e6:.0f}"),
            ("the largest process, torch's children included", f"{memory.largest / 1e6:.0f}", ""),
        )
        lines += ["", markdown_table(("memory", "MB", "target: 4 × weights + 1 GB"), rows)]
    return "\n".join(lines)


def main() -> None:
    """Entry of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of four screens each; default: %(default)s")
    parser.add_argument("--no-memory", action="store_true", help="leave out the search in a child process")
    arguments = parser.parse_args()
    where, memory = machine(), None
    if not arguments.no_memory:
        say("searching in a child process, with nothing cached")
        memory = search_memory(arguments.config, arguments.overrides)
    bench = Bench(arguments.config, arguments.overrides)
    times = []
    for name in bench.plans:
        say(f"screening {name}")
        times.append(bench.time(name, arguments.rounds))
    give(NAME, report(where, times, memory, bench, arguments.rounds), arguments.into)


if __name__ == "__main__":
    run_main(main)
