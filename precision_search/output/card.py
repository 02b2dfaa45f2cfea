"""The model card: README.md of a published model, with the header that the Hugging Face Hub reads.

In: what `precision_search.json` holds, and some numbers. Out: Markdown. Names that come from data are escaped, and no
path of the machine that made the model is in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from precision_search.model.graph import Family
from precision_search.output.markdown import code, escape
from precision_search.output.model_facts import ModelFacts
from precision_search.output.render import share
from precision_search.output.run_info import Match, SampleFile, WorkloadInfo
from precision_search.precision.plan import FAMILIES, Blocklist
from precision_search.search.trials import TrialLatency

MOST_NAMES = 20
"""Patterns and nodes that a card lists; `blocklist.json` has them all."""

_GRAPHS: dict[Family, str] = {"encoder": "the encoder", "decoder": "both decoder graphs"}
_DTYPES = {"float16": "fp16", "bfloat16": "bf16"}
_HUB_CACHE = re.compile(r"models--([A-Za-z0-9][\w.-]*)")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says beside `precision_search.json`.

    Attributes:
        model_type: `t5` or `mt5`.
        base_model: hub id of the fp32 model, None where it has none.
        fp32_nodes: compute nodes in fp32 over the three graphs.
        compute_nodes: all compute nodes over the three graphs.
        casts: casts that the plan adds.
        size_bytes: of the weights of the three graphs.
        latency: of the plan, None where unknown.
        workload: what the latency is stated for.
    """

    model_type: str
    base_model: str | None
    fp32_nodes: int
    compute_nodes: int
    casts: int
    size_bytes: int
    latency: TrialLatency | None
    workload: WorkloadInfo

    @property
    def is_fp32(self) -> bool:
        """Whether nothing was lowered."""
        return self.fp32_nodes == self.compute_nodes


def model_card(facts: ModelFacts, numbers: CardFacts) -> str:
    """The card of a published model, as Markdown with a YAML header."""
    parts = [
        _header(facts, numbers),
        f"# {escape(facts.model_name)}, {'fp32' if numbers.is_fp32 else f'{_DTYPES[facts.plan.dtype]} and fp32'}",
        _introduction(facts, numbers),
        "## What stays in fp32",
        *_plan(facts.plan, numbers),
        "## How it was verified",
        _verdict(facts),
        _matches(facts),
        _settings(facts),
        "To verify it again, on these or other sentences:",
        "```\nprecision-search verify . --reference FP32_MODEL --data FILE\n```",
        "## Made with",
        _versions(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def hub_id(path: Path) -> str | None:
    """The hub id of a model whose files lie in the hub's own cache, None for any other directory."""
    for part in path.parts:
        if found := _HUB_CACHE.fullmatch(part):
            return found[1].replace("--", "/")
    return None


def _header(facts: ModelFacts, numbers: CardFacts) -> str:
    tags = ["onnx", numbers.model_type, "precision-search"]
    if not numbers.is_fp32:
        tags += ["mixed-precision", _DTYPES[facts.plan.dtype]]
    lines = ["---", "library_name: onnxruntime", "tags:", *(f"- {tag}" for tag in tags)]
    if numbers.base_model is not None:
        # A JSON string is a YAML string.
        lines += [f"base_model: {json.dumps(numbers.base_model)}", "base_model_relation: quantized"]
    return "\n".join([*lines, "---"])


def _introduction(facts: ModelFacts, numbers: CardFacts) -> str:
    what = "Encoder, decoder and decoder with past as three ONNX files"
    if numbers.is_fp32:
        return f"{what}, all in fp32."
    low = numbers.compute_nodes - numbers.fp32_nodes
    return (
        f"{what}: {low} of {numbers.compute_nodes} compute nodes in {facts.plan.dtype}, {numbers.casts} casts between, "
        f"{numbers.size_bytes / 1e6:.1f} MB of weights. {_latency(numbers)}"
    )


def _latency(numbers: CardFacts) -> str:
    latency, workload = numbers.latency, numbers.workload
    if latency is None:
        return ""
    on = f" for {escape(latency.profile)}" if latency.profile else ""
    source = f"estimated by a cost model{on}, not measured" if latency.source == "estimated" else "measured"
    return (
        f"{latency.speedup:.2f} times as fast as fp32 ({source}; batch {workload.batch}, "
        f"{workload.source_length} source and {workload.target_length} target tokens)."
    )


def _plan(plan: Blocklist, numbers: CardFacts) -> list[str]:
    if numbers.is_fp32:
        return ["Everything."]
    lines = [
        f"- in {_GRAPHS[family]}, the op types {', '.join(map(code, plan.op_types[family]))}"
        for family in FAMILIES
        if plan.op_types.get(family)
    ]
    if plan.patterns:
        lines.append(f"- nodes whose keys match {_some(plan.patterns)}")
    if nodes := sorted({node for names in plan.nodes.values() for node in names}):
        lines.append(f"- the nodes {_some(nodes)}")
    lines.append("- index arithmetic (relative-position buckets), in every plan")
    return [
        "\n".join(lines),
        "`blocklist.json` is the same for programs; each node of the ONNX files carries its dtype.",
    ]


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(map(code, names[:MOST_NAMES])) + (f" and {more} more" if more > 0 else "")


def _verdict(facts: ModelFacts) -> str:
    if facts.verdict.source == "cuda":
        how = "The graphs ran on a CUDA device as they are."
    else:
        how = (
            "The graphs ran on a CPU with the rounding of the CUDA kernels emulated (ONNX Runtime's own CPU kernels "
            "compute these graphs in fp32 instead, and hide overflow)."
        )
    return f"Verdict: {facts.verdict.verdict}. Greedy decoding was compared with the fp32 model, token by token. {how}"


def _matches(facts: ModelFacts) -> str:
    verdict, samples = facts.verdict, facts.samples
    rows = [
        _match_row("calibration, what the plan was chosen by", samples.calibration, share(verdict.exact_match), ""),
        _measured_row("validation, a condition of the choice", samples.validation, verdict.validation_match),
        _measured_row("test, took no part in the choice", samples.test, verdict.test_match),
    ]
    lines = ["| samples | file | count | SHA-256 | exact match | 95% interval |", "|:--|:--|--:|:--|--:|:--|"]
    table = "\n".join([*lines, *(row for row in rows if row)])
    risk = verdict.flip_risk
    if risk is None:
        return table
    return (
        f"{table}\n\nFlip risk, the tokens out of 1,000 unseen ones expected to differ through rounding alone: "
        f"{risk.value:.2g} (90% interval {risk.low:.2g} to {risk.high:.2g})."
    )


def _measured_row(what: str, samples: SampleFile | None, match: Match | None) -> str:
    if samples is None or match is None:
        return ""
    # Outwards, so that rounding never makes the interval narrower than it is.
    high = share(math.ceil(match.high * 1000 - 1e-9) / 1000)
    return _match_row(what, samples, share(match.value), f"{share(match.low)} to {high}")


def _match_row(what: str, samples: SampleFile, match: str, interval: str) -> str:
    cells = (what, escape(samples.name), str(samples.count), code(samples.hash[:16]), match, interval)
    return f"| {' | '.join(cells)} |"


def _settings(facts: ModelFacts) -> str:
    settings = facts.settings
    return "\n".join(
        [
            "The verdict holds for these settings (`precision_search.json` has them for programs):",
            "",
            f"- ONNX Runtime sessions at optimization level {code(settings.optimization_level)}",
            f"- TF32 {'on' if settings.use_tf32 else 'off'}; `ORT_CUDA_GEMM_OPTIONS` "
            + (code(settings.gemm_options) if settings.gemm_options is not None else "unset"),
            f"- batches of {settings.batch_size} sentences, padded on the {settings.padding}",
            f"- fp32 model: SHA-256 {code(facts.content_hash)}",
            f"- plan: {code(facts.plan_digest)}",
        ]
    )


def _versions(facts: ModelFacts) -> str:
    versions = facts.versions
    named = {
        "precision-search": facts.tool_version,
        "Python": versions.python,
        "onnx": versions.onnx,
        "onnxruntime": versions.onnxruntime,
        "onnx-ir": versions.onnx_ir,
        "torch": versions.torch,
        "transformers": versions.transformers,
        "numpy": versions.numpy,
    }
    return ", ".join(f"{name} {escape(version)}" for name, version in named.items() if version is not None) + "."
