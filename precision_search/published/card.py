"""The model card: README.md of a published model, with the header that the Hugging Face Hub reads.

In: what `precision_search.json` holds, and some numbers. Out: Markdown. Names that come from data are escaped, and no
path of the machine that made the model is in it.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from precision_search.config import percent
from precision_search.errors import counted
from precision_search.model.graph import Family
from precision_search.precision.low import SHORT_NAMES
from precision_search.precision.plan import FAMILIES
from precision_search.published.facts import ModelFacts
from precision_search.records.markdown import block, code, escape
from precision_search.records.run_json import Match, SampleFile
from precision_search.records.wording import SHOWN_HASH, judged_text, number, part_of, share
from precision_search.runtime.backends import evidence

MOST_NAMES = 20
"""Patterns and nodes that a card lists; `blocklist.json` has them all."""

_GRAPHS: dict[Family, str] = {"encoder": "the encoder", "decoder": "both decoder graphs"}
_HUB_CACHE = re.compile(r"models--([A-Za-z0-9][\w.-]*)")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The fp32 model as the Hub's header names it: `t5` or `mt5`, and its hub id, None where it has none."""

    model_type: str
    hub_id: str | None


def model_card(facts: ModelFacts, base: BaseModel) -> str:
    """The card of a published model, as Markdown with a YAML header."""
    dtypes = "fp32" if facts.numbers.is_fp32 else f"{SHORT_NAMES[facts.plan.dtype]} and fp32"
    parts = [
        _header(facts, base),
        f"# {escape(facts.model_name)}, {dtypes}",
        _introduction(facts),
        "## What stays in fp32",
        *_plan(facts),
        "## How it was verified",
        _verdict(facts),
        _matches(facts),
        _settings(facts),
        *_commands(facts, base),
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


def _header(facts: ModelFacts, base: BaseModel) -> str:
    tags = ["onnx", base.model_type, "precision-search"]
    if not facts.numbers.is_fp32:
        tags += ["mixed-precision", SHORT_NAMES[facts.plan.dtype]]
    lines = ["---", "library_name: onnxruntime", "tags:", *(f"- {tag}" for tag in tags)]
    if base.hub_id is not None:
        # A JSON string is a YAML string.
        lines += [f"base_model: {json.dumps(base.hub_id)}", "base_model_relation: quantized"]
    return "\n".join([*lines, "---"])


def _introduction(facts: ModelFacts) -> str:
    numbers = facts.numbers
    what = "Encoder, decoder and decoder with past as three ONNX files"
    if numbers.is_fp32:
        return f"{what}, all in fp32."
    kept = f"{part_of(numbers.fp32_decisions, numbers.decisions)} nodes in fp32"
    return (
        f"{what}: {kept} (the decoder graphs share theirs), the others in {facts.plan.dtype}, "
        f"{counted(numbers.casts, 'cast')} between, {numbers.size_bytes / 1e6:.1f} MB of weights. {_latency(facts)}"
    )


def _latency(facts: ModelFacts) -> str:
    latency, workload = facts.latency, facts.workload
    if latency is None:
        return ""
    on = f" for {escape(latency.profile)}" if latency.profile else ""
    source = f"estimated by a cost model{on}, not measured" if latency.source == "estimated" else "measured"
    return (
        f"{latency.speedup:.2f} times as fast as fp32 ({source}; batch {workload.batch}, "
        f"{workload.source_length} source and {workload.target_length} target tokens)."
    )


def _plan(facts: ModelFacts) -> list[str]:
    if facts.numbers.is_fp32:
        return ["Everything."]
    plan = facts.plan
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
        "`blocklist.json` is the same for programs; in the ONNX files each of these nodes says its dtype and why.",
    ]


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(map(code, names[:MOST_NAMES])) + (f" and {more} more" if more > 0 else "")


def _verdict(facts: ModelFacts) -> str:
    verdict = facts.verdict
    return (
        f"Verdict: {verdict.verdict}. Greedy decoding was compared with the fp32 model, token by token. "
        f"{evidence(verdict.source)}"
    )


def _matches(facts: ModelFacts) -> str:
    verdict, samples = facts.verdict, facts.samples
    rows = [
        _match_row("calibration, what the plan was chosen by", samples.calibration, share(verdict.exact_match), ""),
        _measured_row("validation, a condition of the choice", samples.validation, verdict.validation_match),
        _measured_row("test, took no part in the choice", samples.test, verdict.test_match),
    ]
    lines = ["| samples | file | count | SHA-256 of the sentences | exact match | 95% interval |"]
    lines.append("|:--|:--|--:|:--|--:|:--|")
    table = "\n".join([*lines, *(row for row in rows if row)])
    if required := _required(facts):
        table += f"\n\n{required}"
    risk = verdict.flip_risk
    if risk is None:
        return table
    return (
        f"{table}\n\nFlip risk, the tokens out of 1,000 unseen ones expected to differ through rounding alone: "
        f"{number(risk.value)} (90% interval {number(risk.low)} to {number(risk.high)})."
    )


def _required(facts: ModelFacts) -> str:
    """What the run required of the validation samples, and whether that is kept."""
    verdict = facts.verdict
    if verdict.min_exact_match is None or verdict.requirements_met is None:
        return ""
    asked = f"The run required that {percent(verdict.min_exact_match)} of the validation samples be exact"
    if verdict.requirements_met:
        return f"{asked}."
    if facts.numbers.is_fp32:
        return f"**No plan other than fp32 is stable and meets the requirement.** {asked}; this is fp32."
    return f"**The requirement is not met.** {asked}; this model does not meet that."


def _measured_row(what: str, samples: SampleFile | None, match: Match | None) -> str:
    if samples is None or match is None:
        return ""
    # Outwards, so that rounding never makes the interval narrower than it is.
    high = share(math.ceil(match.high * 1000 - 1e-9) / 1000)
    return _match_row(what, samples, share(match.value), f"{share(match.low)} to {high}")


def _match_row(what: str, samples: SampleFile, match: str, interval: str) -> str:
    cells = (what, escape(samples.name), str(samples.count), code(samples.hash[:SHOWN_HASH]), match, interval)
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
            f"- batches of {counted(settings.batch_size, 'sentence')}, padded on the {settings.padding}",
            f"- judged in {judged_text(facts.judged)}",
            *([f"- {escape(found)}"] if (found := facts.generation.text) else []),
            f"- fp32 model: SHA-256 {code(facts.content_hash)}",
            f"- plan: {code(facts.plan_digest)}",
        ]
    )


def _commands(facts: ModelFacts, base: BaseModel) -> list[str]:
    """What verifies the model again, a command for each set that it was verified on."""
    verdict, samples = facts.verdict, facts.samples
    found = [(samples.calibration, verdict.exact_match)]
    found += [
        (file, match.value)
        for file, match in ((samples.validation, verdict.validation_match), (samples.test, verdict.test_match))
        if file is not None and match is not None
    ]
    reference = base.hub_id or facts.model_name
    commands = [_command(reference, file, share, facts.settings.batch_size) for file, share in found]
    return [
        "To verify it again, with the fp32 model and the files at hand (`verify` prints the SHA-256 of the sentences; "
        "any others will do as well):",
        block("\n".join(commands)),
    ]


def _command(reference: str, file: SampleFile, exact_match: float, batch_size: int) -> str:
    words = ["precision-search", "verify", ".", "--reference", reference, "--data"]
    # A name that begins with a dash would be taken for an option.
    words.append(f"./{file.name}" if file.name.startswith("-") else file.name)
    words += ["--prefix", file.prefix] if file.prefix else []
    words += ["--max-length", str(file.max_length)] if file.max_length is not None else []
    # Rounded down, so that the share that was found passes.
    least = math.floor(exact_match * 1e4) / 1e4
    words += ["--batch-size", str(batch_size), "--min-exact-match", f"{least:g}"]
    return shlex.join(words)


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
