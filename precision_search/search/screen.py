"""The screen: what a plan does to every reference token, by one teacher-forced pass over emulated graphs.

Cheap because it generates nothing, because the most fragile samples come first and a damaged plan ends after the first
small batch, and because the fp32 side of a plan that leaves one family alone is computed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.model.generation_config import GenerationSettings
from precision_search.model.graph import Graph, GraphName, family_of
from precision_search.precision.dtypes import Assignment, assign
from precision_search.precision.emulate import emulate
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache
from precision_search.runtime.forced import (
    ForcedBatch,
    ForcedDecoder,
    ForcedEncoder,
    by_target_length,
    encoder_is_finite,
    forced_batches,
)
from precision_search.runtime.reference import Reference
from precision_search.runtime.session import SessionSettings

FloatArray = npt.NDArray[np.float32]
FIRST_BATCH = 8
"""Samples in the first, most fragile batch: enough to show damage, little to pay for it."""

ScreenVerdict = Literal["nonfinite", "mismatch", "exact"]


@dataclass(frozen=True, slots=True)
class SampleRows:
    """A tokenized sample set with its reference.

    Attributes:
        rows: input ids of each sample.
        reference: the fp32 tokens and margins.
    """

    rows: tuple[tuple[int, ...], ...]
    reference: Reference


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a plan first parts from the reference: sample and token position, both counted from 0."""

    sample: int
    position: int


@dataclass(frozen=True, slots=True)
class ScreenResult:
    """What a screen found.

    Attributes:
        verdict: `nonfinite` if anything that counts was not finite, else `mismatch` if a token changed, else `exact`.
        exact_match: share of the screened samples whose tokens are all the reference's.
        screened: how many samples were looked at; fewer than all when the verdict was certain before.
        divergence: the first difference, in screening order; None for `exact`.
        min_margin: the smallest margin met; None if one was not finite.
        margins: for each screened sample (by number) the signed margin of each token, float32 [T]; NaN for a forced
            token and where a logit was not finite.
        build_seconds: time to build the sessions.
        run_seconds: time in them.
    """

    verdict: ScreenVerdict
    exact_match: float
    screened: int
    divergence: Divergence | None
    min_margin: float | None
    margins: Mapping[int, FloatArray]
    build_seconds: float
    run_seconds: float


class SampleScreen:
    """One sample set, cut into batches with the most fragile samples first, and its cached fp32 encoder outputs."""

    def __init__(self, samples: SampleRows, generation: GenerationSettings, batch_size: int) -> None:
        self.samples = samples
        order = samples.reference.fragile_first
        # Beyond the first batch, padding costs more than the order of fragility saves.
        first = order[:FIRST_BATCH]
        rest = [index for index in by_target_length(samples.reference.tokens) if index not in first]
        parts = [first, rest]
        self.batches: tuple[ForcedBatch, ...] = tuple(
            batch
            for part, size in zip(parts, (FIRST_BATCH, batch_size), strict=True)
            if part
            for batch in forced_batches(samples.rows, samples.reference.tokens, generation, size, part)
        )
        self._hidden: dict[int, FloatArray] = {}

    def fp32_hidden(self, number: int, encode: Callable[[ForcedBatch], FloatArray]) -> FloatArray:
        """The fp32 encoder's output for a batch, computed at most once."""
        if number not in self._hidden:
            self._hidden[number] = encode(self.batches[number])
        return self._hidden[number]


class Screener:
    """Screens plans of one bundle."""

    def __init__(self, graphs: Mapping[GraphName, Graph], weights: WeightCache, settings: SessionSettings) -> None:
        self._graphs = graphs
        self._weights = weights
        self._settings = settings
        self._fp32_encoder = ForcedEncoder(graphs["encoder"].model, settings)
        self._fp32_decoder = ForcedDecoder(graphs["decoder"].model, settings)

    def prepare(self, plan: Plan) -> PreparedPlan:
        """Builds the sessions of a plan; a family without low nodes uses the fp32 session."""
        start = time.perf_counter()
        assignments = assign(self._graphs, plan)
        encoder, decoder = self._fp32_encoder, self._fp32_decoder
        low_families = {
            family_of(name)
            for name, graph in self._graphs.items()
            if any(node.key not in plan.fp32 for node in graph.compute)
        }
        if "encoder" in low_families:
            encoder = ForcedEncoder(self._emulated("encoder", plan, assignments), self._settings, consume=True)
        if "decoder" in low_families:
            decoder = ForcedDecoder(self._emulated("decoder", plan, assignments), self._settings, consume=True)
        fp32_encoder = encoder is self._fp32_encoder
        return PreparedPlan(encoder, decoder, fp32_encoder, time.perf_counter() - start)

    def _emulated(self, name: GraphName, plan: Plan, assignments: Mapping[GraphName, Assignment]) -> ir.Model:
        return emulate(self._graphs[name], plan, assignments[name], self._weights)


@dataclass(frozen=True, slots=True)
class PreparedPlan:
    """The sessions of one plan.

    Attributes:
        encoder: emulated or fp32 encoder.
        decoder: emulated or fp32 decoder.
        fp32_encoder: whether the encoder is the fp32 one.
        build_seconds: what building took.
    """

    encoder: ForcedEncoder
    decoder: ForcedDecoder
    fp32_encoder: bool
    build_seconds: float

    def screen(self, samples: SampleScreen, *, to_the_end: bool = False) -> ScreenResult:
        """Screens one sample set; stops at the end of the batch that makes the verdict certain.

        Args:
            samples: the sample set.
            to_the_end: look at every sample all the same.
        """
        start = time.perf_counter()
        margins: dict[int, FloatArray] = {}
        smallest: dict[int, float] = {}
        divergence: Divergence | None = None
        for number, batch in enumerate(samples.batches):
            if self.fp32_encoder:
                hidden = samples.fp32_hidden(number, self.encoder.encode)
            else:
                hidden = self.encoder.encode(batch)
            found = self.decoder.margins(batch, hidden)
            finite = encoder_is_finite(batch, hidden)
            for row, sample in enumerate(batch.source.indices):
                margins[sample] = found[row, : len(samples.samples.reference.tokens[sample])]
                judged = found[row, batch.valid[row]]
                # np.min keeps a NaN.
                smallest[sample] = float(np.min(judged, initial=np.inf)) if finite[row] else float("nan")
            if divergence is None:
                divergence = _first_divergence(batch, found, finite)
            if divergence is not None and not to_the_end:
                break
        seconds = time.perf_counter() - start
        least = float(np.min(list(smallest.values())))
        verdict: ScreenVerdict = "nonfinite" if np.isnan(least) else "exact" if least > 0 else "mismatch"
        return ScreenResult(
            verdict=verdict,
            exact_match=sum(margin > 0 for margin in smallest.values()) / len(smallest),
            screened=len(smallest),
            divergence=divergence,
            min_margin=least if np.isfinite(least) else None,
            margins=margins,
            build_seconds=self.build_seconds,
            run_seconds=seconds,
        )


def _first_divergence(batch: ForcedBatch, margins: FloatArray, finite: npt.NDArray[np.bool_]) -> Divergence | None:
    for row, sample in enumerate(batch.source.indices):
        if not finite[row]:
            return Divergence(sample, 0)
        # `not >` also finds NaN.
        wrong = np.flatnonzero(~(margins[row] > 0) & batch.valid[row])
        if wrong.size:
            return Divergence(sample, int(wrong[0]))
    return None
