"""What a stricter share of validation samples costs a search: plans judged, and what the winner is worth.

python -m benchmarks.shares [--record tests/data/shares/demo.json] [--config configs/demo.toml]

Searches with the strategy `nodes` for each share, with one judge: a plan that several of the searches ask for is judged
once. What was found goes into the file of `--record`, from which the tests replay the searches without judging; a plan
that the file has already is not judged again. The strategy draws nothing at random, so a seed changes no search.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.printing import Telling, add_common_arguments, markdown_table, run_main, say
from precision_search.config import Config, Requirement, load_config
from precision_search.cost.estimate import Workload
from precision_search.cost.placement import Placer
from precision_search.device.profile import load_profile
from precision_search.files import write_atomically
from precision_search.judging.judge import JudgeSettings, PlanJudge
from precision_search.judging.latency import EstimatedLatency
from precision_search.judging.ranges import NodeRange
from precision_search.judging.trial import (
    Findings,
    FlipRisk,
    PlanRecord,
    Proposal,
    Trial,
    TrialLatency,
    Verdict,
    make_trial,
)
from precision_search.model.bundle import Bundle
from precision_search.model.graph import BASE_VARIANT
from precision_search.precision.low import low_max
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache
from precision_search.records.codec import from_json, to_json
from precision_search.run.prepare import prepare
from precision_search.strategies.base import NodeSpace, SearchSpace, StrategyContext
from precision_search.strategies.node_space import make_node_space
from precision_search.strategies.nodes import NodeSearch
from precision_search.strategies.pareto import choose_winner
from precision_search.strategies.space import make_space, output_projection

SHARES = (0.97, 0.98, 0.99, 1.0)

JudgePlan = Callable[[Proposal], "Found"]


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of a plan, as far as a search looks at it; fields as in `Trial`."""

    verdict: Verdict
    validation_match: float | None
    noise: float | None
    flip_risk: FlipRisk | None


@dataclass(frozen=True, slots=True)
class Recording:
    """What searches of one model rest on.

    Attributes:
        largest: of the nodes beyond the range with the safety factor, the largest magnitude.
        noise: of each role by itself; None where it alone is damage.
        plans: what was found, by the plan's digest.
    """

    largest: Mapping[str, float]
    noise: Mapping[str, float | None]
    plans: Mapping[str, Found] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ground:
    """Where searches happen: the space at both levels, and what plans cost by the estimate."""

    space: SearchSpace
    nodes: NodeSpace
    estimate: Callable[[Plan], float]


def read_recording(path: Path) -> Recording:
    """The recording in a file."""
    return from_json(Recording, json.loads(path.read_text()), "recording")


def estimate_of(config: Config, bundle: Bundle) -> EstimatedLatency:
    """The estimate at the config's workload."""
    work = config.workload
    workload = Workload(work.batch, work.source_length, work.target_length)
    return EstimatedLatency(bundle, workload, load_profile(config.latency.profile))


def recorded_ground(config: Config, bundle: Bundle, recording: Recording) -> Ground:
    """The ground as it was when the recording was made: the graphs are there, what was measured is in the recording."""
    dtype, graphs, estimate = config.search.dtype, bundle.graphs, estimate_of(config, bundle)
    ranges = {key: NodeRange(key, "", size, size, 0.0, 0.0) for key, size in recording.largest.items()}
    report = make_space(graphs, dtype, ranges, range_safety=config.search.range_safety)
    space = report.space
    costs = estimate.placement_costs(dtype)
    placer = Placer(graphs, dtype, BASE_VARIANT, costs, fixed=space.fixed, forced_low=space.forced_low)
    roles = {node.key: node.role for graph in graphs.values() for node in graph.compute if node.key not in space.fixed}
    hard = {key: size / low_max(dtype) for key, size in report.hard.items()}
    sizes = {role: math.inf if size is None else size for role, size in recording.noise.items()}

    def place(fp32: frozenset[str], price_ms: Mapping[str, float]) -> tuple[Plan, float]:
        placed = placer.place(fp32, prices={key: ms / 1e3 for key, ms in price_ms.items()})
        return placed.plan, placed.seconds * 1e3

    projection = output_projection(graphs) & roles.keys()
    nodes = NodeSpace(roles, hard, projection, lambda wanted: {role: sizes[role] for role in wanted}, place)
    return Ground(space, nodes, estimate.plan_ms)


def searched(ground: Ground, share: float, seed: int, judge: JudgePlan, max_trials: int = 200) -> list[Trial]:
    """Every plan that the node search for that share judges."""
    nodes = ground.nodes
    search = NodeSearch(StrategyContext(ground.space, seed, max_trials, ground.estimate, lambda: nodes, share))
    trials: list[Trial] = []
    fp32_ms = 0.0
    while len(trials) < max_trials and (proposal := search.propose()) is not None:
        found, plan, ms = judge(proposal), proposal.plan, ground.estimate(proposal.plan)
        fp32_ms = fp32_ms or ms  # fp32 comes first
        low = len(nodes.roles.keys() - plan.fp32)
        findings = Findings(
            found.verdict,
            "emulated",
            exact_match=float(found.verdict == "stable"),
            validation_match=found.validation_match,
            noise=found.noise,
            flip_risk=found.flip_risk,
            latency=TrialLatency(ms, ms, ms, fp32_ms / ms, "estimated", None),
        )
        record, counts = PlanRecord.of(plan, {}), (len(plan.fp32), low)
        trials.append(make_trial(proposal, len(trials), findings, plan=record, nodes=counts, seconds=0.0))
        search.observe(trials[-1])
    return trials


def judged_ground(config: Config, found: dict[str, Found]) -> tuple[Recording, Ground, JudgePlan]:
    """The real thing: measures what searches rest on, and a judge that adds what it finds."""
    prepared = prepare(config, Telling())
    bundle, dtype = prepared.bundle, config.search.dtype
    estimate, calibration = estimate_of(config, bundle), prepared.sets["calibration"].data
    settings = JudgeSettings(prepared.settings, config.calibration.batch_size, config.search.seed, prepared.limit)
    validation = prepared.sets["validation"].data
    judge = PlanJudge(
        bundle, calibration, validation, dtype=dtype, latency=estimate, weights=WeightCache(), settings=settings
    )
    costs, screener = estimate.placement_costs(dtype), judge.screener_of()
    nodes = make_node_space(bundle, prepared.space, costs, screener=screener, samples=calibration)
    sizes = nodes.noise(frozenset(nodes.roles.values()))
    noise = {role: size if math.isfinite(size) else None for role, size in sorted(sizes.items())}

    def judged(proposal: Proposal) -> Found:
        digest = proposal.plan.digest
        if digest not in found:
            trial = judge(proposal, 0)
            found[digest] = Found(trial.verdict, trial.validation_match, trial.noise, trial.flip_risk)
            say(f"{proposal.stage}: {trial.verdict}")
        return found[digest]

    ground = Ground(prepared.space.space, nodes, estimate.plan_ms)
    return Recording(dict(sorted(prepared.space.hard.items())), noise), ground, judged


def main() -> None:
    """Records and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep what is found in this file")
    options = parser.parse_args()
    config = load_config(options.config, ["device.kind=cpu", "device.threads=1", *options.overrides])
    there = options.record is not None and options.record.exists()
    found = dict(read_recording(options.record).plans) if there else {}
    recording, ground, judge = judged_ground(config, found)
    rows = []
    for share in SHARES:
        trials = searched(ground, share, config.search.seed, judge)
        winner = choose_winner(trials, Requirement(share)).trial
        assert winner is not None and winner.latency is not None  # fp32 was judged
        rows.append([f"{share:.0%}", str(len(trials)), f"{winner.latency.speedup:.3f}x", str(winner.validation_match)])
        if options.record is not None:
            recording = Recording(recording.largest, recording.noise, dict(sorted(found.items())))
            options.record.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(options.record, json.dumps(to_json(recording), indent=1, allow_nan=False).encode() + b"\n")
    print(markdown_table(["share", "plans judged", "winner", "validation"], rows))


if __name__ == "__main__":
    run_main(main)
