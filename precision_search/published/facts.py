"""What a published model says of itself: the dataclasses behind `precision_search.json`.

The field names are the keys. What a verdict depends on and an ONNX file does not hold is here: who loads the model can
run it as it was judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from precision_search.config import NOTHING_REQUIRED, Requirement
from precision_search.judging.trial import FlipRisk, Judged, Trial, TrialLatency, Verdict, VerdictSource
from precision_search.precision.blocklist import Blocklist
from precision_search.published.load import FACTS_FILE
from precision_search.published.reasons import node_reasons
from precision_search.records.nodes_json import RunNodes
from precision_search.records.run_json import (
    NOTHING_OVERRIDDEN,
    GenerationInfo,
    Match,
    RunInfo,
    Samples,
    Versions,
    WorkloadInfo,
    read_record,
)
from precision_search.strategies.pareto import is_acceptable


@dataclass(frozen=True, slots=True)
class JudgedSettings:
    """How the model ran when it was judged.

    Attributes:
        device: where; on a CPU its kernels were emulated.
        optimization_level: of the sessions.
        use_tf32: whether fp32 matrix products might round their inputs to TF32.
        gemm_options: `ORT_CUDA_GEMM_OPTIONS`; where it was judged on a CPU, what a device is to run with.
        batch_size: sentences at once.
        padding: the side on which shorter ones were padded.
    """

    device: Literal["cpu", "cuda"]
    optimization_level: str
    use_tf32: bool
    gemm_options: str | None
    batch_size: int
    padding: Literal["right"] = "right"


@dataclass(frozen=True, slots=True)
class JudgedVerdict:
    """What was found.

    Attributes:
        verdict: `stable` for everything that a run publishes.
        source: emulated kernels on a CPU, or the real ones.
        exact_match: share of the calibration samples, 0 to 1.
        validation_match: share of the validation samples, None where not run.
        test_match: share of the test samples, None where not run.
        flip_risk: None where not estimated.
        min_exact_match: share of the validation samples that the run required; None where it required nothing, or did
            not say.
        requirements_met: whether that is kept. For fp32 itself: whether a plan of the run kept it. None as above.
    """

    verdict: Verdict
    source: VerdictSource
    exact_match: float
    validation_match: Match | None
    test_match: Match | None
    flip_risk: FlipRisk | None
    min_exact_match: float | None = None
    requirements_met: bool | None = None


@dataclass(frozen=True, slots=True)
class PlanNumbers:
    """What a plan comes to, over the three graphs as converted.

    Attributes:
        compute_nodes: compute nodes.
        fp32_nodes: those of them in fp32.
        casts: casts that the plan adds.
        size_bytes: of the weights.
        fp32_decisions: compute-node keys in fp32, pinned ones included; what both decoder graphs hold counts once.
        decisions: all compute-node keys; None, as the one before, in what older versions wrote.
    """

    compute_nodes: int
    fp32_nodes: int
    casts: int
    size_bytes: int
    fp32_decisions: int | None = None
    decisions: int | None = None

    @property
    def is_fp32(self) -> bool:
        """Whether nothing was lowered."""
        return self.fp32_nodes == self.compute_nodes


@dataclass(frozen=True, slots=True)
class PublishFacts:
    """What a run knows of a plan and the model it belongs to.

    Attributes:
        tool_version: of precision-search.
        model_name: bare name of the fp32 model.
        settings: how it was judged.
        verdict: what was found.
        samples: on which samples.
        versions: of the packages.
        latency: of the plan, None where unknown.
        workload: the workload that latency refers to.
        reasons: why each compute node has its precision, by key.
        judged: in which batches it was judged, None where an older version judged it.
    """

    tool_version: str
    model_name: str
    settings: JudgedSettings
    verdict: JudgedVerdict
    samples: Samples
    versions: Versions
    latency: TrialLatency | None
    workload: WorkloadInfo
    reasons: Mapping[str, str]
    judged: Judged | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The content of `precision_search.json`.

    Attributes:
        schema_version: of this form.
        tool_version: of precision-search.
        plan: what stays in fp32.
        plan_digest: the plan's stable id.
        model_name: bare name of the fp32 model.
        content_hash: SHA-256 of the fp32 model's three ONNX files, hexadecimal.
        settings: how it was judged.
        verdict: what was found.
        samples: on which samples.
        versions: of the packages.
        numbers: what the plan comes to.
        latency: of the plan, None where unknown; it says whether it was measured or estimated.
        workload: the workload that latency refers to.
        judged: the batches that the verdict holds for, None where an older version judged it in batches of
            `settings.batch_size` alone.
        generation: what of the fp32 model's generation config gave way to greedy decoding.
    """

    schema_version: int
    tool_version: str
    plan: Blocklist
    plan_digest: str
    model_name: str
    content_hash: str
    settings: JudgedSettings
    verdict: JudgedVerdict
    samples: Samples
    versions: Versions
    numbers: PlanNumbers
    latency: TrialLatency | None
    workload: WorkloadInfo
    judged: Judged | None = None
    generation: GenerationInfo = NOTHING_OVERRIDDEN


def publish_facts(
    info: RunInfo, nodes: RunNodes | None, trial: Trial, requirement: Requirement = NOTHING_REQUIRED
) -> PublishFacts:
    """What a run knows of its trial; test samples are known of the winner alone, reasons where nodes were recorded."""
    validation = info.samples.validation
    return PublishFacts(
        tool_version=info.tool_version,
        model_name=info.model.name,
        settings=JudgedSettings(
            device=info.device.kind,
            optimization_level=info.device.optimization_level,
            use_tf32=info.device.use_tf32,
            gemm_options=info.device.gemm_options,
            batch_size=info.batch_size if trial.batch_size is None else trial.batch_size,
        ),
        verdict=JudgedVerdict(
            verdict=trial.verdict,
            source=trial.verdict_source,
            exact_match=trial.exact_match,
            validation_match=None
            if validation is None or trial.validation_match is None
            else Match.of(round(trial.validation_match * validation.count), validation.count),
            test_match=info.best.test_match if info.best is not None and info.best.id == trial.id else None,
            flip_risk=trial.flip_risk,
            min_exact_match=requirement.share or None,
            requirements_met=_requirements_met(info, trial, requirement),
        ),
        samples=info.samples,
        versions=info.versions,
        latency=trial.latency,
        workload=info.workload,
        reasons={} if nodes is None else node_reasons(nodes, trial),
        judged=trial.judged,
    )


def _requirements_met(info: RunInfo, trial: Trial, requirement: Requirement) -> bool | None:
    if requirement.share == 0.0:
        return None
    if trial.is_fp32:
        return None if info.best is None else info.best.requirements_met
    return is_acceptable(trial, requirement.share)


def read_model_facts(directory: Path) -> ModelFacts:
    """Reads the `precision_search.json` of a published model.

    Raises:
        InputError: it is missing, broken or of a later version.
    """
    return read_record(
        ModelFacts,
        directory / FACTS_FILE,
        root="facts",
        what="does not describe a published model",
        fix="restore the file, or export the model again with `precision-search export`",
    )
