"""Judging one plan for real: screen, convert, confirm, cost. In: a proposal. Out: a trial."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from precision_search.errors import DeviceMemoryError
from precision_search.judging.confirm import ConfirmResult, confirm_with, open_generator
from precision_search.judging.damage import DamageFinder
from precision_search.judging.flip_risk import TokenMargins, estimate_flip_risk
from precision_search.judging.noise import DAMAGE_NOISE, is_damage, noise, rounding_unit
from precision_search.judging.sample_sets import SampleRows, judged_in
from precision_search.judging.screen import Parting, SampleScreen, Screener, ScreenResult
from precision_search.judging.trial import (
    LANDMARKS,
    Divergence,
    Findings,
    FlipRisk,
    Judged,
    PlanRecord,
    Proposal,
    Trial,
    TrialLatency,
    Verdict,
    VerdictSource,
    make_trial,
)
from precision_search.model.bundle import Bundle
from precision_search.model.graph import BASE_VARIANT, Graph, GraphName
from precision_search.precision.blocklist import blocklist_of_plan
from precision_search.precision.convert import Converted, convert
from precision_search.precision.low import LowDtype
from precision_search.precision.plan import NodeCounts, Plan, count_nodes
from precision_search.precision.weights import WeightCache
from precision_search.runtime.backends import backend_of
from precision_search.runtime.batch_limit import BatchLimit
from precision_search.runtime.generator import Generator
from precision_search.runtime.progress import Progress, no_progress
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.teacher_forcing import forced_batches


class LatencySource(Protocol):
    """Measures or estimates what a converted plan costs."""

    def latency(self, models: Mapping[GraphName, ir.Model], variant: str) -> TrialLatency | None:
        """The latency of the whole workload with graphs of a variant; None where it does not fit on the device."""


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """What judging depends on beside the plan.

    Attributes:
        session: device, optimization level, threads, TF32.
        batch_size: samples at once, if the device's memory holds them; of sets that do not say it themselves.
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
        build: preparing, of all.
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


@dataclass(frozen=True, slots=True)
class _Variant:
    """The graphs of a variant, and what screens its plans and explains their damage."""

    graphs: Mapping[GraphName, Graph]
    screener: Screener
    damage: DamageFinder


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A verdict and what it rests on."""

    verdict: Verdict
    exact_match: float
    divergence: Parting | None
    validation_match: float | None = None


class PlanJudge:
    """Judges plans of one bundle on its sample sets; callable as `run.loop` wants it."""

    def __init__(
        self,
        bundle: Bundle,
        calibration: SampleRows,
        validation: SampleRows | None,
        *,
        dtype: LowDtype,
        latency: LatencySource,
        weights: WeightCache,
        settings: JudgeSettings,
        fp32: Generator | None = None,
    ) -> None:
        """Makes the sessions that screen.

        Args:
            bundle: the fp32 bundle.
            calibration: what plans must keep.
            validation: what tells how well they keep other sentences.
            dtype: the low dtype of all plans.
            latency: measures or estimates.
            weights: shared rounded weights.
            settings: what judging depends on beside the plan.
            fp32: what the reference was generated with. The converter proves that it leaves the graphs of plan 0 as
                they are, so its sessions are those of plan 0, too.
        """
        self._bundle = bundle
        self._settings = settings
        self._weights = weights
        self._latency = latency
        self._fp32 = fp32
        self._last: tuple[Plan, Converted] | None = None
        self._kept: dict[Plan, Converted] = {}
        self._generator: tuple[Plan, Generator] | None = None
        self._variants = {name: _open_variant(bundle, name, dtype, weights, settings) for name in bundle.variant_names}
        self._calibration = SampleScreen(calibration, bundle.generation, self._size_of(calibration))
        self._validation = (
            None
            if validation is None
            # Of this screen only margins are wanted, for flip risk: those of the set's own batches.
            else SampleScreen(validation, bundle.generation, self._size_of(validation), own_only=True)
        )
        self.statistics = ScreenStatistics()

    def screener_of(self, variant: str = BASE_VARIANT) -> Screener:
        """What screens the plans of a variant."""
        return self._variants[variant].screener

    @property
    def source(self) -> VerdictSource:
        """Whether verdicts come from emulated or real kernels."""
        return backend_of(self._settings.session).source

    def __call__(self, proposal: Proposal, trial_id: int) -> Trial:
        """Judges the plan: the verdict is `stable` only if screen and confirm run both found nothing."""
        start = time.perf_counter()
        plan = proposal.plan
        found = self._judge(plan, is_landmark=proposal.stage in LANDMARKS)
        self._fp32 = None  # plan 0 comes first
        record, nodes, seconds = self.record(plan), self.node_counts(plan), time.perf_counter() - start
        return make_trial(proposal, trial_id, found, plan=record, nodes=nodes, seconds=seconds)

    def _judge(self, plan: Plan, *, is_landmark: bool) -> Findings:
        prepared = self.screener_of(plan.variant).prepare(plan)
        screened = prepared.screen(self._calibration, to_the_end=is_landmark)
        self._count(plan, screened)
        converted = self.converted(plan)
        validated: ScreenResult | None = None
        if screened.verdict == "exact":
            if self._validation is not None:
                validated = prepared.screen(self._validation, to_the_end=True)
            outcome = self._confirm(plan)
        else:
            outcome = _Outcome(screened.verdict, screened.exact_match, screened.divergence)
        stable, where = outcome.verdict == "stable", outcome.divergence
        size = self._noise(plan, screened)
        damaged = is_damage(outcome.verdict != "nonfinite", size)
        return Findings(
            verdict=outcome.verdict,
            # What the screen rejects never ran as converted.
            verdict_source=self.source if screened.verdict == "exact" else "emulated",
            exact_match=outcome.exact_match,
            validation_match=outcome.validation_match,
            min_margin=screened.min_margin,
            flip_risk=self._flip_risk(plan, screened, validated) if stable else None,
            first_divergence=None if where is None else self._explain(plan, where, damaged),
            latency=self._latency.latency(converted.models, plan.variant) if stable or is_landmark else None,
            size_bytes=converted.size_bytes,
            casts=converted.casts,
            screened=screened.screened,
            noise=size,
            batch_size=self._settings.limit.of(self._size_of(self._calibration.samples)),
            judged=self._judged(with_validation=validated is not None),
        )

    def _judged(self, *, with_validation: bool) -> Judged:
        sets = [self._calibration.samples]
        if self._validation is not None and with_validation:
            sets.append(self._validation.samples)
        return judged_in(sets, [self._settings.limit.of(self._size_of(each)) for each in sets])

    def _size_of(self, samples: SampleRows) -> int:
        """Samples at once: as many as in the set's reference."""
        return samples.batch_size or self._settings.batch_size

    def _confirm(self, plan: Plan) -> _Outcome:
        """What the plan generates by itself, on the calibration set and, if it passes, on the validation set."""
        generator = self.generator(plan)
        confirmed = self._generated(generator, self._calibration.samples)
        verdict: Verdict = "stable"
        validation_match: float | None = None
        if confirmed.nonfinite:
            verdict = "nonfinite"
        elif confirmed.divergence is not None:
            verdict = "mismatch"
        elif self._validation is not None:
            # The screen said how far margins move; which samples are kept is for generation to say.
            validation_match = self._generated(generator, self._validation.samples).exact_match
        return _Outcome(verdict, confirmed.exact_match, confirmed.divergence, validation_match)

    def confirm(self, plan: Plan, samples: SampleRows, progress: Progress = no_progress) -> ConfirmResult:
        """Free-running generation with a plan's converted graphs on a sample set."""
        return self._generated(self.generator(plan), samples, progress)

    def _generated(self, generator: Generator, samples: SampleRows, progress: Progress = no_progress) -> ConfirmResult:
        pad, size = self._bundle.generation.pad_token_id, self._size_of(samples)
        return confirm_with(generator, samples, pad, batch_size=size, limit=self._settings.limit, progress=progress)

    def converted(self, plan: Plan) -> Converted:
        """The graphs under a plan: those of the last one, and of those that are kept, are there already."""
        if plan not in self._kept:
            if self._last is None or self._last[0] != plan:
                self._last = plan, convert(self._graphs_of(plan), plan, self._weights)
            return self._last[1]
        return self._kept[plan]

    def keep(self, plans: Iterable[Plan]) -> None:
        """Keeps the graphs of these plans, as far as they are there, and no others.

        They share their weights with each other and with all that is judged, so that a plan is a few MB.
        """
        known = self._kept if self._last is None else self._kept | dict([self._last])
        self._kept = {plan: known[plan] for plan in plans if plan in known}
        if self._generator is not None and self._generator[0] not in self._kept:
            self._generator = None

    def generator(self, plan: Plan) -> Generator:
        """What generates with a plan's converted graphs; on a CPU it stays until another plan's is asked for."""
        if self._generator is not None and self._generator[0] == plan:
            return self._generator[1]
        # Those that made the references serve the first plan that is judged, which is fp32, or nobody.
        fp32, self._fp32, self._generator = self._fp32, None, None
        if fp32 is not None and self._is_fp32(plan):
            generator = fp32
        else:
            session, models = self._settings.session, self.converted(plan).models
            generator = open_generator(models, self._bundle.generation, session, self._weights)
        if backend_of(self._settings.session).may_idle:
            self._generator = plan, generator
        return generator

    def record(self, plan: Plan) -> PlanRecord:
        """The plan as the log keeps it."""
        return PlanRecord.of(plan, blocklist_of_plan(plan, self._graphs_of(plan)).op_types)

    def node_counts(self, plan: Plan) -> NodeCounts:
        """How much the plan keeps in fp32."""
        return count_nodes(self._graphs_of(plan), plan)

    def _graphs_of(self, plan: Plan) -> Mapping[GraphName, Graph]:
        return self._variants[plan.variant].graphs

    def _is_fp32(self, plan: Plan) -> bool:
        """Whether this is the fp32 model itself, its graphs as they are."""
        return plan.variant == BASE_VARIANT and self.node_counts(plan).low_nodes == 0

    def _unit(self, plan: Plan) -> float:
        return rounding_unit(self._calibration.samples.reference.margins, plan.dtype)

    def _noise(self, plan: Plan, screened: ScreenResult) -> float | None:
        """How far margins moved in the set's own batches; or in padded ones, where that is damage."""
        reference, unit = self._calibration.samples.reference.margins, self._unit(plan)
        own = noise(reference, screened.margins, unit)
        if own is None or not screened.padded:
            return own
        padded = noise(reference, screened.padded, unit)
        if padded is None:
            return None
        return max(own, padded) if padded >= DAMAGE_NOISE else own

    def _flip_risk(self, plan: Plan, screened: ScreenResult, validated: ScreenResult | None) -> FlipRisk | None:
        if self._validation is None or validated is None:
            return None
        if self._is_fp32(plan):
            return FlipRisk(0.0, 0.0, 0.0)
        sets = ((self._calibration, screened), (self._validation, validated))
        calibration, validation = (
            TokenMargins.of(screen.samples.reference.margins, result.margins) for screen, result in sets
        )
        return estimate_flip_risk(validation, calibration, seed=self._settings.seed)

    def _explain(self, plan: Plan, where: Parting, is_damaged: bool) -> Divergence:
        """Where a plan diverged and, for damage, which node began it: noise has no culprit."""
        if not is_damaged:
            return Divergence(where.sample, where.position, None, None, where.batch)
        samples = self._calibration.samples
        order, width = [where.sample], samples.fragile.width if where.batch == "padded" else 0
        rows, tokens, generation = samples.rows, samples.reference.tokens, self._bundle.generation
        batch = forced_batches(rows, tokens, generation, 1, order, width=width)[0]
        try:
            node = self._variants[plan.variant].damage.find(plan, batch)
        except DeviceMemoryError:  # every result of every node at once may be too much where a batch is not
            node = None
        error = None if node is None or not np.isfinite(node.relative_error) else node.relative_error
        return Divergence(where.sample, where.position, None if node is None else node.key, error, where.batch)

    def _count(self, plan: Plan, screened: ScreenResult) -> None:
        samples = len(self._calibration.samples.rows)
        self.statistics.build.append(screened.build_seconds)
        if self._is_fp32(plan):
            kind = self.statistics.fp32
        elif screened.screened < samples:
            kind = self.statistics.rejected
        else:
            ran_all = screened.encoded == self._calibration.passes
            kind = self.statistics.full if ran_all else self.statistics.remembered
        kind.append(screened.run_seconds)


def _open_variant(
    bundle: Bundle, name: str, dtype: LowDtype, weights: WeightCache, settings: JudgeSettings
) -> _Variant:
    graphs, session = bundle.graphs_of(name), settings.session
    screener = Screener(graphs, dtype, weights, session, settings.limit, variant=name, generation=bundle.generation)
    return _Variant(graphs, screener, DamageFinder(graphs, weights, session))
