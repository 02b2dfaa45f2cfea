"""Tokens per second on a CPU in fp32: our generator, transformers' `generate` and CTranslate2, in one process.

python -m benchmarks.generator [--config configs/demo.toml] [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.engines import ENGINES, OURS, REFERENCE, Rows, make_engines
from benchmarks.printing import Telling, add_common_arguments, give, machine, markdown_table, run_main, say
from benchmarks.random_t5 import SHAPE, random_rows, write_random_t5
from precision_search.config import load_config
from precision_search.model.bundle import open_bundle
from precision_search.model.samples import encode, load_samples
from precision_search.model.tokenizer import load_tokenizer

NAME = "generator"
TARGET = 2.0
"""How many times the tokens per second of transformers ours should be."""

BATCHES = (1, 8, 32)
PAUSE = 0.3
"""Seconds of rest before each run: OpenMP's threads spin for 0.2 s after their work, on somebody else's time."""

Generate = Callable[[Rows], list[list[int]]]


@dataclass(frozen=True, slots=True)
class Work:
    """What is generated.

    Attributes:
        model: its name in the table.
        checkpoint: directory with safetensors.
        rows: token ids of the sources.
        counts: how many of them at each batch size.
        max_new_tokens: most tokens a row gets.
    """

    model: str
    checkpoint: Path
    rows: Rows
    counts: Mapping[int, int]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Timed:
    """One engine at one batch size.

    Attributes:
        tokens: that it generates in a run.
        same_rows: of which the tokens are those of transformers.
        rows: in a run.
        seconds: of each run, two a round.
    """

    tokens: int
    same_rows: int
    rows: int
    seconds: tuple[float, ...]

    @property
    def by_round(self) -> list[float]:
        """Tokens per second, round by round."""
        pairs = zip(self.seconds[::2], self.seconds[1::2], strict=True)
        return [2 * self.tokens / (first + second) for first, second in pairs]


def measure(
    engines: Mapping[str, Generate],
    batches: Sequence[Rows],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    pause: float = PAUSE,
) -> dict[str, Timed]:
    """Runs all engines on the same batches, forwards and backwards in each round, after one run that does not count."""

    def run(generate: Generate) -> tuple[float, list[list[int]]]:
        time.sleep(pause)
        begin = clock()
        found = [tokens for batch in batches for tokens in generate(batch)]
        return clock() - begin, found

    tokens = {name: run(generate)[1] for name, generate in engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name in (*engines, *reversed(list(engines))):
            seconds[name].append(run(engines[name])[0])
    return {
        name: Timed(
            sum(map(len, found)),
            sum(ours == theirs for ours, theirs in zip(found, tokens[REFERENCE], strict=True)),
            len(found),
            tuple(seconds[name]),
        )
        for name, found in tokens.items()
    }


def times_reference(timed: Timed, reference: Timed) -> str:
    """How many times the reference's tokens per second: median, smallest and largest round."""
    ratios = [one / other for one, other in zip(timed.by_round, reference.by_round, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def table_rows(model: str, batch: int, timed: Mapping[str, Timed]) -> list[tuple[str, ...]]:
    """The rows of one model and batch size."""
    return [
        (
            model,
            str(batch),
            name,
            f"{median(each.by_round):,.0f}",
            "1" if name == REFERENCE else times_reference(each, timed[REFERENCE]),
            f"{each.same_rows} of {each.rows}",
        )
        for name, each in timed.items()
    ]


def report(where: str, rows: Sequence[Sequence[str]], threads: int, rounds: int) -> str:
    """The result as Markdown."""
    header = (
        "model",
        "batch",
        "engine",
        "tokens/s",
        f"÷ transformers (target for {OURS}: at least {TARGET:g})",
        "rows with its tokens",
    )
    how = f"{threads} threads each, fp32; medians of {rounds} rounds, smallest and largest round in brackets."
    return f"{where}\n\n{how}\n\n{markdown_table(header, rows)}"


def demo_work(config: Path, overrides: Sequence[str]) -> tuple[Work, Path]:
    """The model and test sentences of a config, and its cache."""
    loaded = load_config(config, overrides)
    checkpoint, data = Path(loaded.model.path), loaded.test or loaded.calibration
    samples = load_samples(data.path, "test")
    rows = encode(samples, load_tokenizer(checkpoint), data.prefix, data.max_length).ids
    counts = {batch: min(len(rows), count) for batch, count in zip(BATCHES, (32, 96, 192), strict=True)}
    bundle = open_bundle(str(checkpoint), Path(loaded.model.cache), reporter=Telling())
    return Work(checkpoint.name, checkpoint, rows, counts, bundle.generation.max_new_tokens), Path(loaded.model.cache)


def random_work(folder: Path, max_new_tokens: int) -> Work:
    """A random T5 of the shape of t5-small, which hardly ever ends a sentence by itself."""
    rows = random_rows(32, SHAPE["vocab_size"])
    return Work("random t5-small", write_random_t5(folder / "t5-small"), rows, {1: 2, 8: 8, 32: 32}, max_new_tokens)


def main() -> None:
    """Entry of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of two runs each; default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores, here %(default)s")
    parser.add_argument("--work", type=Path, default=Path("build/bench-generator"), help="default: %(default)s")
    parser.add_argument("--only", choices=("demo", "random"), help="one of the two models")
    arguments = parser.parse_args()
    where, rows = machine(), []
    demo, cache = demo_work(arguments.config, arguments.overrides)
    for name in ("demo", "random") if arguments.only is None else (arguments.only,):
        each = demo if name == "demo" else random_work(arguments.work, demo.max_new_tokens)
        engines = make_engines(each.checkpoint, cache, arguments.work, each.max_new_tokens, arguments.threads)
        for batch, count in each.counts.items():
            say(f"{each.model}, batch {batch}: {', '.join(ENGINES)}")
            batches = [each.rows[start : start + batch] for start in range(0, count, batch)]
            rows += table_rows(each.model, batch, measure(engines, batches, arguments.rounds))
    give(NAME, report(where, rows, arguments.threads, arguments.rounds), arguments.into)


if __name__ == "__main__":
    run_main(main)
