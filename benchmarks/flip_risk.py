"""Does the flip risk hold: predicted from calibration and validation, counted on sentences that nobody has looked at.

    python -m benchmarks.flip_risk [--config configs/demo.toml] [--unlabelled FILE] [--plans 40] [--plot FILE]

Plans are drawn at random, from hardly anything low to nearly all that fits, and judged as a search would judge them.
Then the unlabelled sentences are screened to the end, and the tokens that change are counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.flip_coverage import Outcome, PlanMargins, Summary, draw_sets, is_beyond_rounding, predict
from benchmarks.flip_plans import DrawnPlan, draw_plans
from benchmarks.flip_plot import draw_plot
from benchmarks.printing import Telling, add_common_arguments, give, machine, markdown_table, run_main, say
from precision_search.config import Config, load_config
from precision_search.errors import ConfigError, InputError
from precision_search.judging.flip_risk import TokenMargins
from precision_search.judging.ranges import measure_ranges
from precision_search.judging.sample_sets import SampleRows, load_set, open_fp32
from precision_search.judging.screen import SampleScreen, Screener
from precision_search.model.samples import encode, load_samples
from precision_search.precision.low import LOW_DTYPES, LowDtype
from precision_search.precision.weights import WeightCache
from precision_search.run.prepare import Prepared, prepare
from precision_search.runtime.reference import Reference
from precision_search.runtime.teacher_forcing import by_target_length, forced_batches
from precision_search.strategies.space import SpaceReport, make_space

NAME = "flip-risk"
TARGET = 0.8
"""Share of intervals that cover the count. Nominal is 0.9, but all plans share one validation set."""

DAMAGE = 0.5
"""Median shift in logits above which a plan does more than round. Undamaged fp16 plans of the demo stay below 0.01,
bfloat16 ones below 0.1."""

BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Judged:
    """A drawn plan with its prediction and its count.

    Attributes:
        drawn: the plan.
        low_nodes: compute nodes of encoder and first-step decoder that are low.
        exact: whether it is exact on calibration, as a search asks.
        margins: under the plan.
        outcome: predicted and counted.
    """

    drawn: DrawnPlan
    low_nodes: int
    exact: bool
    margins: PlanMargins
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class DtypeResult:
    """All plans of one low dtype, and how many drawn ones were left out for their damage."""

    dtype: LowDtype
    judged: tuple[Judged, ...]
    damaged: int


class Bench:
    """Everything that the plans are screened with."""

    def __init__(self, config: Config, unlabelled: Path) -> None:
        self.config = config
        self.prepared: Prepared = prepare(config, Telling())
        generation = self.prepared.bundle.generation
        sets = self.prepared.sets
        size = config.calibration.batch_size
        self._screens = {
            "calibration": SampleScreen(sets["calibration"].data, generation, size),
            "validation": SampleScreen(sets["validation"].data, generation, size),
            "unlabelled": SampleScreen(self._unlabelled(unlabelled), generation, BATCH_SIZE),
        }
        self._screeners: dict[LowDtype, Screener] = {}

    def run(self, dtype: LowDtype, count: int, seed: int) -> DtypeResult:
        """Draws and judges plans until `count` of them are not damaged."""
        judged: list[Judged] = []
        damaged = 0
        bundle, settings = self.prepared.bundle, self.prepared.settings
        self._screeners[dtype] = Screener(bundle.graphs, dtype, WeightCache(), settings)
        for drawn in draw_plans(self._space(dtype), self.prepared.bundle.graphs, seed):
            if len(judged) == count or damaged > count:
                break
            found = self._judge(drawn)
            if found is None:
                damaged += 1
                say(f"{dtype} {drawn.kind}: damaged, left out")
            else:
                judged.append(found)
                say(f"{dtype} {len(judged)} of {count}: {' | '.join(cells(found))}")
        if not judged:
            raise InputError(
                f"none of {damaged} drawn {dtype} plans is without damage",
                why="calibration sentences may not show how large values get",
                fix="give more of them, or raise search.range_safety",
            )
        return DtypeResult(dtype, tuple(judged), damaged)

    def _judge(self, drawn: DrawnPlan) -> Judged | None:
        plan = self._screeners[drawn.plan.dtype].prepare(drawn.plan)
        found: list[TokenMargins] = []
        verdicts = []
        for name, screen in self._screens.items():
            # Damage shows on the two small sets; the third takes longest.
            if name == "unlabelled" and is_beyond_rounding(found, DAMAGE):
                return None
            result = plan.screen(screen, to_the_end=True)
            verdicts.append(result.verdict)
            found.append(TokenMargins.of(screen.samples.reference.margins, result.margins))
        graphs = self.prepared.bundle.graphs
        keys = {node.key for name in ("encoder", "decoder") for node in graphs[name].compute}
        margins = PlanMargins(*found)
        outcome = predict(margins, self.config.search.seed)
        return Judged(drawn, len(keys - drawn.plan.fp32), verdicts[0] == "exact", margins, outcome)

    def _space(self, dtype: LowDtype) -> SpaceReport:
        """The search space; of a dtype that the config does not name, from ranges of its own."""
        if dtype == self.config.search.dtype:
            return self.prepared.space
        bundle, data = self.prepared.bundle, self.prepared.sets["calibration"].data
        order = by_target_length(data.reference.tokens)
        batches = forced_batches(
            data.rows, data.reference.tokens, bundle.generation, self.config.calibration.batch_size, order
        )
        ranges = measure_ranges(
            bundle.graphs["encoder"], bundle.graphs["decoder"], batches, dtype, self.prepared.settings
        )
        return make_space(bundle.graphs, dtype, ranges, range_safety=self.config.search.range_safety)

    def _unlabelled(self, path: Path) -> SampleRows:
        """The sentences with their reference, which is generated once and then kept beside the exports."""
        bundle, samples = self.prepared.bundle, load_samples(path, "unlabelled")
        section = dataclasses.replace(self.config.calibration, path=path, batch_size=BATCH_SIZE)
        fp32 = open_fp32(bundle, self.prepared.settings)
        rows = encode(samples, fp32.tokenizer, section.prefix, section.max_length).ids
        named = f"{bundle.content_hash} {samples.content_hash} {rows} {self.prepared.settings} {bundle.generation}"
        stored = self.config.model.cache / "flip-risk" / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}.npz"
        if stored.exists():
            return SampleRows(rows, read_reference(stored))
        say(f"generating the fp32 reference of {len(rows)} unlabelled samples")
        data = load_set(samples, section, fp32, Telling()).data
        write_reference(stored, data.reference)
        return data


def write_reference(path: Path, reference: Reference) -> None:
    """Keeps a reference in an npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(tokens) for tokens in reference.tokens])
    tokens = np.array(list(itertools.chain.from_iterable(reference.tokens)), np.int64)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, lengths=lengths, tokens=tokens, margins=np.concatenate(reference.margins))
    partial.replace(path)


def read_reference(path: Path) -> Reference:
    """The reference that `write_reference` kept."""
    with np.load(path) as stored:
        ends = np.cumsum(stored["lengths"])[:-1]
        tokens = tuple(tuple(int(token) for token in part) for part in np.split(stored["tokens"], ends))
        return Reference(tokens, tuple(np.split(stored["margins"], ends)))


def cells(judged: Judged) -> tuple[str, ...]:
    """The row of the table."""
    risk = judged.outcome.predicted
    return (
        judged.drawn.kind,
        str(judged.low_nodes),
        "yes" if judged.exact else "no",
        f"{risk.value:.2f} ({risk.low:.2f} to {risk.high:.2f})",
        f"{judged.outcome.counted:.2f}",
        "yes" if judged.outcome.inside else "**no**",
    )


def summary_cells(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """A row of the summary; nothing but the name where there is no plan."""
    if not outcomes:
        return (name, *(["-"] * 5))
    summary = Summary.of(outcomes)
    return (
        name,
        f"{summary.inside} of {summary.plans} ({100 * summary.inside / summary.plans:.0f}%)",
        str(summary.below),
        *("-" if np.isnan(each) else f"{each:.2f}" for each in (summary.ratio, summary.width, summary.rank)),
    )


def report(where: str, results: Sequence[DtypeResult], other_draws: Sequence[Sequence[Outcome]]) -> str:
    """The result as Markdown: sums first, then every plan by predicted risk.

    Args:
        where: the machine.
        results: by low dtype, the config's first.
        other_draws: for the first of them, what other calibration and validation sentences would have predicted.
    """
    header = ("plans", "inside the interval", "counted above it", "predicted ÷ counted", "upper end ÷ value", "rank")
    first = results[0]
    rows = [
        summary_cells(f"{first.dtype} (target: at least {100 * TARGET:.0f}%)", outcomes_of(first.judged)),
        summary_cells(f"{first.dtype}, exact on calibration", outcomes_of([j for j in first.judged if j.exact])),
        *(summary_cells(each.dtype, outcomes_of(each.judged)) for each in results[1:]),
    ]
    if other_draws:
        name = f"{first.dtype}, {len(other_draws)} other draws of the samples"
        rows.append(summary_cells(name, list(itertools.chain.from_iterable(other_draws))))
    lines = [where, "", tokens_of(first), "", markdown_table(header, rows)]
    for each in results:
        ordered = sorted(each.judged, key=lambda judged: judged.outcome.predicted.value)
        table = ("drawn from", "low nodes", "exact on calibration", "predicted (90% interval)", "counted", "inside")
        lines += ["", f"{each.dtype}; plans left out for damage: {each.damaged}.", ""]
        lines += [markdown_table(table, [cells(judged) for judged in ordered])]
    return "\n".join(lines)


def outcomes_of(judged: Sequence[Judged]) -> list[Outcome]:
    """Predicted and counted of each plan."""
    return [each.outcome for each in judged]


def tokens_of(result: DtypeResult) -> str:
    """How much each set holds, in a sentence."""
    margins = result.judged[0].margins
    parts = [
        f"{part.reference.size:,} tokens in {part.sentences:,} {name} sentences"
        for name, part in (
            ("calibration", margins.calibration),
            ("validation", margins.validation),
            ("unlabelled", margins.unlabelled),
        )
    ]
    return f"{'; '.join(parts)}. Risks are flips per 1,000 tokens."


def main() -> None:
    """Entry of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--unlabelled", type=Path, metavar="FILE", help="default: unlabelled.txt beside validation")
    parser.add_argument("--plans", type=int, default=40, help="plans of the config's dtype; default: %(default)s")
    parser.add_argument("--others", type=int, default=8, help="plans of the other low dtype; default: %(default)s")
    parser.add_argument("--draws", type=int, default=50, help="other samples to predict from; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the plans; default: %(default)s")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw predicted over counted, as SVG")
    arguments = parser.parse_args()
    where, config = machine(), load_config(arguments.config, arguments.overrides)
    if (unlabelled := arguments.unlabelled) is None and config.validation is not None:
        unlabelled = config.validation.path.with_name("unlabelled.txt")
    if unlabelled is None:
        raise ConfigError("there is no [validation] in the config", fix="flip risk is estimated from it: add one")
    bench = Bench(config, unlabelled)
    dtypes = sorted(LOW_DTYPES, key=lambda dtype: dtype != config.search.dtype)
    counts = dict(zip(dtypes, (arguments.plans, arguments.others), strict=True))
    results = [bench.run(dtype, count, arguments.seed) for dtype, count in counts.items() if count]
    say("predicting from other samples")
    plans = [judged.margins for judged in results[0].judged]
    other_draws = [[predict(plan, draw) for plan in draw_sets(plans, draw)] for draw in range(arguments.draws)]
    if arguments.plot is not None:
        points = [(result.dtype, outcomes_of(result.judged)) for result in results]
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        arguments.plot.write_text(draw_plot(points, floor=500.0 / plans[0].unlabelled.reference.size))
    give(NAME, report(where, results, other_draws), arguments.into)


if __name__ == "__main__":
    run_main(main)
