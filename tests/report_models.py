"""Stand-ins for the report tests: run directories made at once, small, hostile, odd or huge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precision_search.config import load_config, to_toml
from precision_search.judging.differences import DifferingSample
from precision_search.judging.landmarks import Landmark, LandmarkSample, Span, rejected_landmarks
from precision_search.judging.trial import FlipRisk, PlanRecord, Trial
from precision_search.model.graph import layer_of, role_of
from precision_search.records import run_files
from precision_search.records.landmarks_json import write_landmarks
from precision_search.records.nodes_json import NODES_FILE, NodeRecord, RunNodes
from precision_search.records.trials import TrialLog
from tests.cli_models import DEMO
from tests.output_models import PINNED, run_info, small_run
from tests.search_models import latency, trial

EVIL = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'& \u2028 \u202e \x1b[2J {{ 7 * 7 }} "
    "\u05e9\u05dc\u05d5\u05dd \U0001f600"
)
"""Text that a page must show as it stands."""
EVIL_NAME = "<img src=x onerror=alert(3)>&\"' \U0001f600"
"""The same without a slash, which a model's name cannot hold."""


def nodes_of(trials: Sequence[Trial], **changes: Any) -> RunNodes:
    """A record of the nodes that the plan of fp32 keeps, so of all there are; `changes` replace its fields."""
    every = next((trial.plan.nodes for trial in trials if trial.is_fp32), ())
    records = tuple(
        NodeRecord(
            key=key,
            family="encoder" if key.startswith("encoder") else "decoder",
            op_type=key.rsplit("/", 1)[-1].partition(".")[0],
            role=role_of(key),
            graphs=("encoder",) if key.startswith("encoder") else ("decoder", "decoder_with_past"),
            fixed="index arithmetic" if key in PINNED else None,
            forced_low=False,
            beyond_range=key.endswith("/Pow"),
            largest_input=10.0 + (layer_of(key) or 0),
            largest_output=1e9 if key.endswith("/Pow") else 5.0,
            largest_inside=0.0,
            underflow=0.25,
        )
        for key in sorted(every, key=lambda key: (not key.startswith("encoder"), key))
    )
    found = RunNodes(1, "float16", 65504.0, 6.1e-05, 2.0, 100, records)
    return dataclasses.replace(found, **changes)


def differing(source: str = "a sentence", reference: str = "ein Satz", model: str = "ein Garten") -> LandmarkSample:
    """A sample whose texts part after their first word."""
    sample = DifferingSample(
        index=0, line=1, source=source, reference=reference, model=model, position=1, margin=0.5, near_tie=False,
        nonfinite=False,
    )  # fmt: skip
    start = min(4, len(reference), len(model))
    return LandmarkSample(sample, Span(start, len(reference)), Span(start, len(model)), 4)


def write_report_run(
    directory: Path,
    trials: Sequence[Trial] | None = None,
    *,
    nodes: RunNodes | None = None,
    samples: Sequence[LandmarkSample] = (),
    **info: Any,
) -> Path:
    """A run directory with all that a report reads; `samples` are those of each rejected landmark."""
    trials = small_run() if trials is None else trials
    directory.mkdir(parents=True)
    run_files.write_run_info(directory, run_info(**info))
    run_files.write_text_atomically(directory / run_files.CONFIG_FILE, to_toml(load_config(DEMO)))
    run_files.write_json_atomically(directory / NODES_FILE, nodes or nodes_of(trials))
    log = TrialLog(directory / run_files.TRIALS_FILE)
    for judged in trials:
        log.append(judged)
    rejected = [Landmark(found.id, 8, tuple(samples) or (differing(),)) for found in rejected_landmarks(trials)]
    write_landmarks(directory, 100, "emulated", rejected)
    return directory


def hostile_run(directory: Path) -> Path:
    """A run whose every text is `EVIL`."""
    trials = list(small_run())
    trials[4] = dataclasses.replace(trials[4], stage=EVIL)
    rejected: dict[str, Any] = {"validation_match": None, "flip_risk": None, "min_margin": None, "latency": None}
    key = f"encoder.block.0.{EVIL_NAME}/Add"
    every = dataclasses.replace(trials[0].plan, nodes=tuple(sorted({*trials[0].plan.nodes, key})))
    trials[0] = dataclasses.replace(trials[0], plan=every)
    trials.append(trial(7, stage=EVIL, verdict="error", message=EVIL, **rejected))
    samples = [differing(EVIL, EVIL, EVIL[::-1]), differing("long " * 2000, "x" * 5000, "y" * 5000)]
    return write_report_run(
        directory, trials, samples=samples, model=dataclasses.replace(run_info().model, name=EVIL_NAME)
    )


def huge_run(count: int = 2000, layers: int = 24) -> tuple[tuple[Trial, ...], RunNodes]:
    """So many plans over so many layers of a gated model, and its nodes."""
    parts = {
        "encoder": ("SelfAttention", "DenseGatedActDense"),
        "decoder": ("SelfAttention", "EncDecAttention", "DenseGatedActDense"),
    }
    keys = [
        f"{family}.block.{layer}.layer.{number}.{part}.{name}/MatMul"
        for family, names in parts.items()
        for layer in range(layers)
        for number, part in enumerate(names)
        for name in "abcdefghijk"
    ]
    first = trial(
        0, stage="fp32", plan=_plan(keys), low_nodes=0, latency=latency(100.0, 1.0), flip_risk=FlipRisk(0.0, 0.0, 0.0)
    )
    others = [
        trial(
            number,
            stage=f"stage {number % 9}",
            plan=_plan([*keys[number % 7 :: 2 + number % 11], f"decoder.extra{number}/Add"]),
            verdict="mismatch" if number % 3 == 0 else "stable",
            latency=None if number % 3 == 0 else latency(40.0 + number % 61, 100.0 / (40.0 + number % 61)),
            expected_ms=50.0 + number % 17 if number % 6 == 0 else None,
            flip_risk=None if number % 3 == 0 else FlipRisk(0.01 * number, 0.0, 0.02 * number + 0.1),
            kept_for={"noise": tuple(keys[:: 3 + number % 5])},
        )
        for number in range(1, count)
    ]  # fmt: skip
    trials = (first, *others)
    return trials, nodes_of(trials)


def _plan(keys: Sequence[str]) -> PlanRecord:
    return PlanRecord("float16", "base", {"encoder": (), "decoder": ()}, tuple(sorted(keys)))
