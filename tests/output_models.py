"""Stand-ins for the output tests: a run's record and the trials of a small run, with all that a table shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precision_search.judging.sample_sets import NearTie, Parity
from precision_search.judging.trial import Divergence, FlipRisk, PlanRecord, Trial
from precision_search.model.bundle import Bundle
from precision_search.model.generation_config import GenerationSettings, ModelConfig
from precision_search.model.graph import Family, role_of
from precision_search.published.facts import JudgedSettings, JudgedVerdict, PlanNumbers, PublishFacts
from precision_search.records.nodes_json import NodeRecord, RunNodes
from precision_search.records.run_json import (
    Best,
    Counts,
    Device,
    Match,
    Model,
    RunInfo,
    SampleFile,
    Samples,
    ScreenSpeed,
    Versions,
    WorkloadInfo,
)
from precision_search.runtime.reference import ParityDifference
from tests.graphs import HEAD_WIDTH, HEADS, INNER, LAYERS, VOCABULARY, WIDTH, tiny_t5
from tests.search_models import latency, trial

OP_TYPES = ("Add", "Gather", "MatMul", "Mul", "Pow", "ReduceMean", "Relu", "Softmax", "Sqrt")
CLASSIC = ("Pow", "ReduceMean", "Relu", "Softmax", "Sqrt")
PINNED = ("decoder.block.0.layer.0.SelfAttention/Log", "encoder.block.0.layer.0.SelfAttention/Log")
DAMAGED = "encoder.block.1.layer.1.DenseReluDense.wo/MatMul"

VERSIONS = Versions("3.11.7", "1.23.2", "1.31.1", "1.1.0", "2.13.0+cpu", None, "2.4.6")
SAMPLES = Samples(
    SampleFile("calibration.txt", 100, "ab" * 32, 0),
    SampleFile("validation.txt", 100, "cd" * 32, 1),
    SampleFile("test.txt", 200, "ef" * 32, 0),
)
HF_CONTENT = {name: f'{{"file": "{name}"}}\n' for name in ("config.json", "generation_config.json", "tokenizer.json")}
WORKLOAD = WorkloadInfo(1024, 16, 16)
BEST = Best(3, "the fastest stable plan", True, Match.of(196, 200), Match.of(99, 100))


def keeping(encoder: Sequence[str], decoder: Sequence[str], *nodes: str) -> PlanRecord:
    """A plan that keeps these op types as a whole, these nodes, and what is pinned."""
    whole = [f"encoder.block.{n}.x/{op}" for op in encoder for n in range(2)]
    whole += [f"decoder.block.{n}.x/{op}.1" for op in decoder for n in range(2)]
    op_types = {"encoder": tuple(encoder), "decoder": tuple(decoder)}
    return PlanRecord("float16", "base", op_types, tuple(sorted({*whole, *nodes, *PINNED})))  # type: ignore[arg-type]


def fp32_trial(id: int = 0) -> Trial:
    return trial(
        id,
        stage="fp32",
        plan=keeping(OP_TYPES, OP_TYPES),
        low_nodes=0,
        latency=latency(78.3, 1.0),
        flip_risk=FlipRisk(0.0, 0.0, 0.0),
        size_bytes=34_377_401,
        casts=0,
    )


def small_run() -> tuple[Trial, ...]:
    """fp32, two rejected landmarks, three stable plans of which 3 wins and 5 is off the front, one more rejected."""
    rejected: dict[str, Any] = {"validation_match": None, "flip_risk": None, "min_margin": None}
    return (
        fp32_trial(),
        trial(
            1,
            stage="all-low",
            plan=keeping((), ()),
            verdict="mismatch",
            exact_match=0.0,
            first_divergence=Divergence(42, 0, DAMAGED, 12.2),
            latency=latency(30.0, 2.61),
            **rejected,
        ),
        trial(
            2,
            stage="classic",
            plan=keeping(CLASSIC, CLASSIC),
            verdict="nonfinite",
            exact_match=0.01,
            first_divergence=Divergence(42, 0, DAMAGED, None),
            latency=latency(35.0, 2.24),
            **rejected,
        ),
        trial(
            3,
            stage="ranges",
            plan=keeping(("Add", "MatMul", "Pow"), ("Pow",)),
            latency=latency(55.4321, 1.41),
            flip_risk=FlipRisk(1.234, 0.3, 2.15),
            size_bytes=17_119_581,
            casts=204,
        ),
        trial(
            4,
            stage="decoder",
            plan=keeping(OP_TYPES, ("MatMul", "Pow")),
            latency=latency(60.1, 1.3),
            flip_risk=FlipRisk(0.234, 0.03, 1.15),
            size_bytes=27_119_581,
            casts=104,
        ),
        trial(
            5,
            stage="decoder",
            plan=keeping(OP_TYPES, ("MatMul", "Pow"), "decoder.block.0.y/Add"),
            validation_match=0.98,
            latency=latency(70.4, 1.1),
            flip_risk=FlipRisk(12.0, 8.0, 31.0),
            casts=None,
            size_bytes=None,
        ),
        trial(
            6,
            stage="decoder",
            plan=keeping(OP_TYPES, ("Relu",)),
            verdict="mismatch",
            exact_match=0.9,
            first_divergence=Divergence(1, 2, None, None),
            **rejected,
        ),
    )


def run_info(**changes: Any) -> RunInfo:
    """The record of `small_run`; `changes` replace fields."""
    values: dict[str, Any] = {
        "schema_version": 1,
        "tool_version": "0.1.0",
        "status": "complete",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:05+00:00",
        "seconds": 60.0,
        "versions": VERSIONS,
        "device": Device("cpu", None, "t4", "basic", False, None),
        "model": Model("t5-small", "12" * 32, True, PINNED),
        "parity": Parity("near-ties", 100, (ParityDifference(1, 2, 3, None, 1e-5),)),
        "samples": SAMPLES,
        "batch_size": 32,
        "config_hash": "34" * 32,
        "workload": WORKLOAD,
        "strategy": "op-types",
        "seed": 0,
        "counts": Counts.of(small_run()),
        "stopped": "done",
        "screen": ScreenSpeed(12.5, None, 3.0),
        "peak_rss_bytes": 1 << 28,
        "near_ties": (NearTie("validation", 7, 3, 1.3e-4),),
        "best": BEST,
    }
    return RunInfo(**(values | changes))


def publish_facts_of_a_run(**changes: Any) -> PublishFacts:
    """What a run knows of a stable plan; `changes` replace fields."""
    values: dict[str, Any] = {
        "tool_version": "0.1.0",
        "model_name": "t5-small",
        "settings": JudgedSettings("cpu", "basic", False, None, 32),
        "verdict": JudgedVerdict(
            "stable", "emulated", 1.0, Match.of(99, 100), Match.of(196, 200), FlipRisk(1.2, 0.3, 2.1)
        ),
        "samples": SAMPLES,
        "versions": VERSIONS,
        "latency": latency(55.4, 1.41),
        "workload": WORKLOAD,
        "reasons": {},
    }
    return PublishFacts(**(values | changes))


NUMBERS = PlanNumbers(
    compute_nodes=507, fp32_nodes=188, casts=204, size_bytes=18_300_000, fp32_decisions=125, decisions=320
)


def run_nodes() -> RunNodes:
    """What `small_run` knew of its nodes: every op type in two layers, two that no plan makes low, one out of range."""
    families: tuple[Family, ...] = ("encoder", "decoder")
    keys = [(family, f"{family}.block.{n}.x/{op}") for family in families for op in OP_TYPES for n in range(2)]
    keys += [("encoder", DAMAGED), *((_family(key), key) for key in PINNED)]
    return RunNodes(1, "float16", 65504.0, 2.0**-14, 2.0, 100, tuple(node_record(key, family) for family, key in keys))


def node_record(key: str, family: Family = "encoder", **changes: Any) -> NodeRecord:
    """A node that fits into the range, or does not if it is `DAMAGED`, or never is low if it is pinned."""
    values: dict[str, Any] = {
        "key": key,
        "family": family,
        "op_type": key.rsplit("/", 1)[-1].partition(".")[0],
        "role": role_of(key),
        "graphs": ("encoder",) if family == "encoder" else ("decoder", "decoder_with_past"),
        "fixed": "index arithmetic" if key in PINNED else None,
        "forced_low": False,
        "beyond_range": key == DAMAGED,
        "largest_input": 11.5,
        "largest_output": 96_855.25 if key == DAMAGED else 812.5,
        "largest_inside": 0.0,
        "underflow": 0.01,
    }
    return NodeRecord(**(values | changes))


def _family(key: str) -> Family:
    return "encoder" if key.startswith("encoder") else "decoder"


def tiny_bundle(directory: Path) -> Bundle:
    """The tiny T5 as a bundle whose Hugging Face files lie in the new `directory`."""
    directory.mkdir()
    for name, content in HF_CONTENT.items():
        (directory / name).write_text(content)
    config = ModelConfig("t5", VOCABULARY, WIDTH, HEAD_WIDTH, INNER, HEADS, LAYERS, LAYERS, False, True)
    return Bundle(directory, tiny_t5(), "56" * 32, config, GenerationSettings(0, (1,), 0, 4, None, None), None)
