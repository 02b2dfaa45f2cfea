"""The node search beside other ways to find a plan: evaluations, seconds, and what the plan found is worth.

python -m benchmarks.search [--work build/bench-search] [--scales -6 -3 0 3] [--methods nodes op-types ...]

Rows are kept in `--work` as they are made, so that a run that was cut goes on; the tables are made from all rows that
belong to the config. An empty `--work` starts afresh, which a changed program needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.methods import Bench
from benchmarks.printing import Telling, add_common_arguments, give, machine, markdown_table, run_main, say
from benchmarks.rows import (
    HEADER,
    METHODS,
    NODES,
    OP_TYPES,
    RANDOM,
    Label,
    Row,
    add_record,
    read_records,
    targets,
)
from benchmarks.scaled import scale_name, scaled_checkpoint
from benchmarks.strategy_runs import search_row
from precision_search.config import Config, load_config, to_toml
from precision_search.errors import ConfigError
from precision_search.judging.sample_sets import load_set, open_fp32
from precision_search.model.bundle import open_bundle
from precision_search.model.samples import load_samples
from precision_search.runtime.backends import resolve_device
from precision_search.runtime.reference import Reference
from precision_search.runtime.session import SessionSettings
from precision_search.strategies import STRATEGIES

NAME = "search"
SCALES = (-6, -3, 0, 3)
OWN_STRATEGIES = (NODES, OP_TYPES, RANDOM)


@dataclass(frozen=True, slots=True)
class Likeness:
    """How close the fp32 outputs of a scaled model are to those of the unscaled one.

    Attributes:
        settings: hash of the config.
        scale: of the residual stream.
        samples: compared, of all sets.
        equal: of these, those with the same tokens.
        tokens: in the samples with the same tokens.
        equal_margins: of these, those whose margin is the same to the last bit.
        largest: largest difference of margins, in logits.
    """

    settings: str
    scale: str
    samples: int
    equal: int
    tokens: int
    equal_margins: int
    largest: float

    @property
    def text(self) -> str:
        """One line."""
        rest = f", the others within {self.largest:.1g}" if self.equal_margins < self.tokens else ""
        return (
            f"tokens of {self.equal} of {self.samples} samples, margins of {self.equal_margins} of {self.tokens} "
            f"tokens to the last bit{rest}"
        )


def likeness(settings: str, scale: str, ours: Sequence[Reference], theirs: Sequence[Reference]) -> Likeness:
    """Compares the references of the same sample sets."""
    samples = equal = tokens = equal_margins = 0
    largest = 0.0
    for one, other in zip(ours, theirs, strict=True):
        samples += len(one.tokens)
        for index, wanted in enumerate(other.tokens):
            if one.tokens[index] == wanted:
                difference = np.abs(one.margins[index] - other.margins[index])
                equal += 1
                tokens += len(wanted)
                equal_margins += int(np.count_nonzero(difference == 0))
                largest = max(largest, float(np.nanmax(difference, initial=0.0)))
    return Likeness(settings, scale, samples, equal, tokens, equal_margins, largest)


class Work:
    """The folder of the benchmark: checkpoints, runs, and the rows so far."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self.settings = hashlib.sha256(to_toml(config).encode()).hexdigest()[:12]
        self._rows = folder / "rows.jsonl"
        self._likeness = folder / "likeness.jsonl"

    def rows(self) -> Mapping[str, Mapping[str, Row]]:
        """The rows of this config, by scale and method."""
        found: dict[str, dict[str, Row]] = {}
        for row in read_records(self._rows, Row):
            if row.settings == self.settings:
                found.setdefault(row.scale, {})[row.method] = row
        return found

    def likenesses(self) -> Mapping[str, Likeness]:
        """How like the scaled models are, by scale."""
        found = read_records(self._likeness, Likeness)
        return {each.scale: each for each in found if each.settings == self.settings}

    def measure(self, power: int, methods: Sequence[str]) -> None:
        """Adds the rows of one scale that are missing."""
        scale = scale_name(power)
        config = self._scaled(power)
        if power and scale not in self.likenesses():
            say(f"{scale}: comparing with the unscaled model")
            record = likeness(self.settings, scale, self._references(config), self._references(self._scaled(0)))
            add_record(self._likeness, record)
        missing = [method for method in methods if method not in self.rows().get(scale, {})]
        if not missing:
            return
        label = Label(self.settings, scale)
        bench = Bench(label, config)
        for method in missing:
            say(f"{scale}: {method}")
            if method in OWN_STRATEGIES:
                strategy = strategy_config(config, method, self.rows().get(scale, {}))
                row = search_row(label, method, strategy, self._folder / "runs" / f"{scale}-{method}")
            else:
                row = bench.row(method)
            add_record(self._rows, row)
            say(" | ".join(row.cells))

    def _scaled(self, power: int) -> Config:
        path = scaled_checkpoint(Path(self._config.model.path), power, self._folder / "models")
        return dataclasses.replace(self._config, model=dataclasses.replace(self._config.model, path=str(path)))

    def _references(self, config: Config) -> list[Reference]:
        bundle = open_bundle(
            config.model.path,
            config.model.cache,
            max_new_tokens=config.generation.max_new_tokens,
            reporter=Telling(),
        )
        fp32 = open_fp32(bundle, SessionSettings(device=resolve_device(config.device.kind, warn=say)))
        sections = {"calibration": config.calibration, "validation": config.validation, "test": config.test}
        return [
            load_set(load_samples(section.path, name), section, fp32).data.reference
            for name, section in sections.items()
            if section is not None
        ]


def strategy_config(config: Config, method: str, rows: Mapping[str, Row]) -> Config:
    """The config for one of our strategies; random search gets the budget that the node search used.

    Args:
        config: of the scale.
        method: one of `OWN_STRATEGIES`.
        rows: what the scale has so far, by method.

    Raises:
        ConfigError: there is no row yet that says what random search may use.
    """
    search = dataclasses.replace(config.search, strategy=method)
    if method == RANDOM:
        model = rows.get(NODES) or rows.get(OP_TYPES)
        if model is None:
            raise ConfigError("random search has the budget of the node search", fix="run `nodes` before `random`")
        search = dataclasses.replace(search, max_trials=model.all_evaluations + 1)  # fp32 is a trial too
    return dataclasses.replace(config, search=search)


def report(where: str, rows: Mapping[str, Mapping[str, Row]], likenesses: Mapping[str, Likeness]) -> str:
    """The result as Markdown: a table for each scale, then the targets."""
    lines = [where]
    ordered = sorted(rows, key=_power)
    for scale in ordered:
        found = [rows[scale][method] for method in METHODS if method in rows[scale]]
        lines += ["", f"**Residual stream times {scale}**" if scale != scale_name(0) else "**The model as it is**"]
        if scale in likenesses:
            lines += ["", f"Same as the unscaled model in fp32: {likenesses[scale].text}."]
        lines += ["", markdown_table(HEADER, [row.cells for row in found])]
        notes = [f"- {row.method}: {row.note}." for row in found if row.note]
        lines += ["", *notes] if notes else []
    asked = [target for scale in ordered for target in targets(scale, rows[scale])]
    lines += ["", markdown_table(("scale", "target", "node search", "result"), [target.cells for target in asked])]
    return "\n".join(lines)


def _power(scale: str) -> int:
    return 0 if scale == scale_name(0) else int(scale.removeprefix("2^"))


def _choose(names: Sequence[str]) -> list[str]:
    """The methods to run, in the order in which they need each other; one that does not exist yet is left out."""
    there = {strategy.name for strategy in STRATEGIES}
    chosen = []
    for method in METHODS:
        if method in names and method in OWN_STRATEGIES and method not in there:
            say(f"{method} is left out: there is no such strategy in this version")
        elif method in names:
            chosen.append(method)
    return chosen


def main() -> None:
    """Entry of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--work", type=Path, default=Path("build/bench-search"), help="default: %(default)s")
    parser.add_argument("--scales", type=int, nargs="*", default=SCALES, metavar="POWER", help="powers of two")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS, metavar="NAME")
    arguments = parser.parse_args()
    where = machine()
    work = Work(load_config(arguments.config, arguments.overrides), arguments.work)
    methods = _choose(arguments.methods)
    for power in arguments.scales:
        work.measure(power, methods)
    give(NAME, report(where, work.rows(), work.likenesses()), arguments.into)


if __name__ == "__main__":
    run_main(main)
