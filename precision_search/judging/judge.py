"""Judging one plan for real: screen, convert, confirm, cost. In: a proposal. Out: a trial."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from precision_search.errors import DeviceMemoryError
from precision_search.judging.confirm import ConfirmResult, confirm_with, open_generator
from precision_search.judging.damage import DamageFinder
from precision_search.judging.flip_risk import TokenMargins, estimate_flip_risk
from precision_search.judging.noise import is_damage, noise, rounding_unit
from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.screen import Divergence, SampleScreen, Screener, ScreenResult
from precision_search.judging.trial import (
    LANDMARKS,
    FlipRisk,
    PlanRecord,
    Proposal,
    Trial,
    TrialLatency,
    Verdict,
    VerdictSource,
)
from precision_search.judging.trial import Divergence as TrialDivergence
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GraphName
from precision_search.precision.blocklist import blocklist_of_plan
from precision_search.precision.convert import Converted, convert
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache
from precision_search.runtime.backends import backend_of
from precision_search.runtime.batch_limit import BatchLimit
from precision_search.runtime.generator import Generator
from precision_search.runtime.progress import Progress, no_progress
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.teacher_forcing import forced_batches


class LatencySource(Protocol):
    """Measures or estimates what a converted plan costs."""

    def latency(self, models: Mapping[GraphName, ir.Model]) -> TrialLatency | None:
        """The latency of the whole workload with these graphs; None where the workload does not fit on the device."""


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """What judging depends on beside the plan.

    Attributes:
        session: device, optimization level, threads, TF32.
        batch_size: samples at once, if the device's memory holds them.
        seed: of the flip-risk interval.
        limit: of samples at once, shared with what comes before and after judging.
    """

    session: SessionSettings
    batch_size: int
    seed: int
    limit: BatchLimit = dataclasses.field(default_factory=BatchLimit)


@dataclass(slots=True)
class ScreenStatistics:
    """Times of the calibration screens, in seconds.

    Attributes:
        full: of each that looked at every sample and ran both graphs.
        remembered: of each that looked at every sample, but for some remembered what the encoder says.
        fp32: of the fp32 plan's.
        rejected: of each that stopped early.
        build: preparing, of all: the first one builds the sessions.
    """

    full: list[float] = dataclasses.field(default_factory=list)
    remembered: list[float] = dataclasses.field(default_factory=list)
    fp32: list[float] = dataclasses.field(default_factory=list)
    rejected: list[float] = dataclasses.field(default_factory=list)
    build: list[float] = dataclasses.field(default_factory=list)

    @property
    def per_second(self) -> float | None:
        """Screens in a second of screening, preparing included; None before the first."""
        runs = [*self.full, *self.remembered, *self.fp32, *self.rejected]
        return len(runs) / (sum(runs) + sum(self.build)) if runs else None


class PlanJudge:
    """Judges plans of one bundle on its sample sets; callable as `run.loop` wants it."""

    def __init__(
        self,
        bundle: Bundle,
        calibration: SampleRows,
        validation: SampleRows | None,
        *,
        latency: LatencySource,
        weights: WeightCache,
        settings: JudgeSettings,
    ) -> None:
        self._bundle = bundle
        self._graphs = bundle.graphs
        self._settings = settings
        self._weights = weights
        self._latency = latency
        self._screener = Screener(self._graphs, weights, settings.session, settings.limit)
        self._damage = DamageFinder(self._graphs, weights, settings.session)
        self._calibration = SampleScreen(calibration, bundle.generation, settings.batch_size)
        self._validation = (
            None if validation is None else SampleScreen(validation, bundle.generation, settings.batch_size)
        )
        self.statistics = ScreenStatistics()

    @property
    def settings(self) -> JudgeSettings:
        """What judging depends on beside the plan."""
        return self._settings

    @property
    def screener(self) -> Screener:
        """What screens the plans."""
        return self._screener

    @property
    def source(self) -> VerdictSource:
        """Whether verdicts come from emulated or real kernels."""
        return backend_of(self._settings.session).source

    def __call__(self, proposal: Proposal, trial_id: int) -> Trial:
        """Judges the plan: the verdict is `stable` only if screen and confirm run both found nothing."""
        start = time.perf_counter()
        plan = proposal.plan
        prepared = self._screener.prepare(plan)
        screened = prepared.screen(self._calibration, to_the_end=proposal.stage in LANDMARKS)
        self._count(plan, screened)
        converted = convert(self._graphs, plan, self._weights)
        verdict: Verdict = "stable" if screened.verdict == "exact" else screened.verdict
        exact_match, where = screened.exact_match, screened.divergence
        validated: ScreenResult | None = None
        if verdict == "stable" and self._validation is not None:
            validated = prepared.screen(self._validation, to_the_end=True)
        validation_match: float | None = None
        if verdict == "stable":
            generator = self._open(converted)
            confirmed = self._generated(generator, self._calibration.samples)
            exact_match, where = confirmed.exact_match, confirmed.divergence
            if self._validation is not None and not confirmed.nonfinite and where is None:
                # The screen said how far margins move; which samples are kept is for generation to say.
                validation_match = self._generated(generator, self._validation.samples).exact_match
            del generator  # its sessions need not lie beside those that measure
            if confirmed.nonfinite:
                verdict = "nonfinite"
            elif where is not None:
                verdict = "mismatch"
        fp32_nodes, low_nodes = self.node_counts(plan)
        size = noise(self._calibration.samples.reference.margins, screened.margins, self._unit(plan))
        reported = verdict == "stable" or proposal.stage in LANDMARKS
        return Trial(
            id=trial_id,
            parent=proposal.parent,
            stage=proposal.stage,
            plan=self.record(plan),
            verdict=verdict,
            # What the screen rejects never ran as converted.
            verdict_source=self.source if screened.verdict == "exact" else "emulated",
            exact_match=exact_match,
            validation_match=validation_match,
            min_margin=screened.min_margin,
            flip_risk=self._flip_risk(plan, screened, validated) if verdict == "stable" else None,
            first_divergence=None
            if where is None
            else self._explain(plan, where, is_damage(verdict != "nonfinite", size)),
            latency=self._latency.latency(converted.models) if reported else None,
            size_bytes=converted.size_bytes,
            fp32_nodes=fp32_nodes,
            low_nodes=low_nodes,
            casts=converted.casts,
            seconds=time.perf_counter() - start,
            screened=screened.screened,
            noise=size,
            expected_ms=proposal.expected_ms,
            kept_for=proposal.kept_for,
            batch_size=self._settings.limit.of(self._settings.batch_size),
        )

    def confirm(self, converted: Converted, samples: SampleRows, progress: Progress = no_progress) -> ConfirmResult:
        """Free-running generation with converted graphs on a sample set."""
        return self._generated(self._open(converted), samples, progress)

    def _open(self, converted: Converted) -> Generator:
        return open_generator(converted.models, self._bundle.generation, self._settings.session, self._weights)

    def _generated(self, generator: Generator, samples: SampleRows, progress: Progress = no_progress) -> ConfirmResult:
        pad, size = self._bundle.generation.pad_token_id, self._settings.batch_size
        return confirm_with(generator, samples, pad, batch_size=size, limit=self._settings.limit, progress=progress)

    def record(self, plan: Plan) -> PlanRecord:
        """The plan as the log keeps it."""
        return PlanRecord.of(plan, blocklist_of_plan(plan, self._graphs).op_types)

    def node_counts(self, plan: Plan) -> tuple[int, int]:
        """How many compute nodes are fp32 and how many low, over the three graphs."""
        keys = [node.key for graph in self._graphs.values() for node in graph.compute]
        fp32 = sum(key in plan.fp32 for key in keys)
        return fp32, len(keys) - fp32

    def _unit(self, plan: Plan) -> float:
        return rounding_unit(self._calibration.samples.reference.margins, plan.dtype)

    def _flip_risk(self, plan: Plan, screened: ScreenResult, validated: ScreenResult | None) -> FlipRisk | None:
        if self._validation is None or validated is None:
            return None
        if self.node_counts(plan)[1] == 0:
            return FlipRisk(0.0, 0.0, 0.0)
        sets = ((self._calibration, screened), (self._validation, validated))
        calibration, validation = (
            TokenMargins.of(screen.samples.reference.margins, result.margins) for screen, result in sets
        )
        return estimate_flip_risk(validation, calibration, seed=self._settings.seed)

    def _explain(self, plan: Plan, where: Divergence, is_damaged: bool) -> TrialDivergence:
        """Where a plan diverged and, for damage, which node began it: noise has no culprit."""
        if not is_damaged:
            return TrialDivergence(where.sample, where.position, None, None)
        samples = self._calibration.samples
        order = [where.sample]
        batch = forced_batches(samples.rows, samples.reference.tokens, self._bundle.generation, 1, order)[0]
        try:
            node = self._damage.find(plan, batch)
        except DeviceMemoryError:  # every result of every node at once may be too much where a batch is not
            node = None
        error = None if node is None or not np.isfinite(node.relative_error) else node.relative_error
        return TrialDivergence(where.sample, where.position, None if node is None else node.key, error)

    def _count(self, plan: Plan, screened: ScreenResult) -> None:
        samples = len(self._calibration.samples.rows)
        self.statistics.build.append(screened.build_seconds)
        if self.node_counts(plan)[1] == 0:
            kind = self.statistics.fp32
        elif screened.screened < samples:
            kind = self.statistics.rejected
        else:
            kind = self.statistics.full if screened.encoded == samples else self.statistics.remembered
        kind.append(screened.run_seconds)
