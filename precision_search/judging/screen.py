"""The screen: what a plan does to every reference token, by one teacher-forced pass over switchable graphs.

Cheap because it generates nothing, because all plans share one session for each graph, because the most fragile samples
come first and a damaged plan ends after the first small batch, and because the encoder's output is remembered for plans
that leave the encoder as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from precision_search.judging.sample_sets import SampleRows
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.graph import BASE_VARIANT, Graph, GraphName
from precision_search.model.layout import SEQ2SEQ
from precision_search.precision.dtypes import assign
from precision_search.precision.low import LowDtype
from precision_search.precision.plan import Plan
from precision_search.precision.switchable import Flags, Switches, switchable
from precision_search.precision.weights import WeightCache
from precision_search.runtime.batch_limit import BatchLimit, after_release
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.teacher_forcing import (
    Feed,
    ForcedBatch,
    ForcedDecoder,
    ForcedEncoder,
    by_target_length,
    encoder_is_finite,
    forced_batches,
)

FloatArray = npt.NDArray[np.float32]
FIRST_BATCH = 8
"""Samples in the first, most fragile batch, if batches are that large: enough to show damage, little to pay for it."""

FP32_ENCODER = b""
"""The `encoder_id` of plans that leave the whole encoder as it is."""

ScreenVerdict = Literal["nonfinite", "mismatch", "exact"]


@dataclass(frozen=True, slots=True)
class Parting:
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
        build_seconds: time to prepare the plan.
        run_seconds: time in them.
        encoded: how many samples the encoder ran on; for the others its output was remembered.
    """

    verdict: ScreenVerdict
    exact_match: float
    screened: int
    divergence: Parting | None
    min_margin: float | None
    margins: Mapping[int, FloatArray]
    build_seconds: float
    run_seconds: float
    encoded: int


class SampleScreen:
    """One sample set, cut into batches with the most fragile samples first, and encoder outputs that it remembers."""

    def __init__(self, samples: SampleRows, generation: GenerationSettings, batch_size: int) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self._generation = generation
        self.batches = self._cut()
        self._fp32: dict[int, FloatArray] = {}
        self._last: dict[int, FloatArray] = {}
        self._last_encoder = FP32_ENCODER

    def shrink(self, batch_size: int) -> None:
        """No batch larger than this from now on, the first one included; what is known of the old ones is forgotten."""
        if batch_size < self.batch_size:
            self.batch_size = batch_size
            self.batches = self._cut()
            self._fp32, self._last = {}, {}

    def _cut(self) -> tuple[ForcedBatch, ...]:
        samples = self.samples
        order = samples.reference.fragile_first
        # Beyond the first batch, padding costs more than the order of fragility saves.
        first = order[:FIRST_BATCH]
        rest = [index for index in by_target_length(samples.reference.tokens) if index not in first]
        parts = [first, rest]
        return tuple(
            batch
            for part, size in zip(parts, (min(FIRST_BATCH, self.batch_size), self.batch_size), strict=True)
            if part
            for batch in forced_batches(samples.rows, samples.reference.tokens, self._generation, size, part)
        )

    def hidden(self, number: int, encoder: bytes, encode: Callable[[ForcedBatch], FloatArray]) -> FloatArray:
        """The encoder's output for a batch: remembered for the fp32 encoder and for the last other one.

        Args:
            number: of the batch.
            encoder: what tells this encoder from others; `FP32_ENCODER` for fp32.
            encode: runs it.
        """
        if encoder == FP32_ENCODER:
            known = self._fp32
        else:
            if encoder != self._last_encoder:
                self._last, self._last_encoder = {}, encoder
            known = self._last
        if number not in known:
            known[number] = encode(self.batches[number])
        return known[number]


class Screener:
    """Screens plans of one bundle in one dtype: a session for the encoder, one for the decoder, whatever the plan."""

    def __init__(
        self,
        graphs: Mapping[GraphName, Graph],
        dtype: LowDtype,
        weights: WeightCache,
        settings: SessionSettings,
        limit: BatchLimit | None = None,
        *,
        variant: str = BASE_VARIANT,
    ) -> None:
        """Makes the sessions.

        Args:
            graphs: the graphs of the variant.
            dtype: the low dtype of all plans.
            weights: shared rounded weights.
            settings: session settings.
            limit: what the screens share with others; None makes one of their own.
            variant: whose graphs these are.

        Raises:
            InputError: the graphs' opset does not take the dtype.
            DeviceMemoryError: the device's memory does not hold the sessions.
        """
        self._limit = limit or BatchLimit()
        self._graphs = graphs
        self._dtype = dtype
        self._variant = variant
        self._sessions = after_release(lambda: _open_sessions(graphs, dtype, weights, settings))

    def prepare(self, plan: Plan) -> PreparedPlan:
        """Makes a plan ready to be screened; takes a millisecond or two.

        Raises:
            ValueError: the plan is of another dtype.
            InputError: the plan makes a node low that cannot be.
        """
        if plan.dtype != self._dtype:
            raise ValueError(f"a screener for {self._dtype} was given a plan in {plan.dtype}")
        start = time.perf_counter()
        assignments = assign(self._graphs, plan)
        sessions = self._sessions
        encoder_flags = sessions.encoder_switches.of(assignments[SEQ2SEQ.encoder.name])
        decoder_flags = sessions.decoder_switches.of(assignments[SEQ2SEQ.decoder.name])
        return PreparedPlan(
            sessions.encoder,
            sessions.decoder,
            sessions.encoder_switches.feed(encoder_flags),
            sessions.decoder_switches.feed(decoder_flags),
            self._encoder_id(encoder_flags),
            time.perf_counter() - start,
            self._limit,
        )

    def _encoder_id(self, flags: Flags) -> bytes:
        """Equal for plans whose encoders are; another variant's encoder is another one in fp32, too."""
        if self._variant == BASE_VARIANT and not flags.any():
            return FP32_ENCODER
        return f"{self._variant}/{self._dtype}/".encode() + flags.tobytes()


@dataclass(frozen=True, slots=True)
class _Sessions:
    """Switchable sessions of one dtype and what they can be told."""

    encoder: ForcedEncoder
    decoder: ForcedDecoder
    encoder_switches: Switches
    decoder_switches: Switches


def _open_sessions(
    graphs: Mapping[GraphName, Graph], dtype: LowDtype, weights: WeightCache, settings: SessionSettings
) -> _Sessions:
    names = SEQ2SEQ.encoder.name, SEQ2SEQ.decoder.name
    encoder, decoder = (switchable(graphs[name], dtype, weights) for name in names)
    return _Sessions(
        ForcedEncoder(encoder.model, settings, consume=True),
        ForcedDecoder(decoder.model, settings, consume=True),
        encoder.switches,
        decoder.switches,
    )


@dataclass(frozen=True, slots=True)
class PreparedPlan:
    """A plan, ready to be screened.

    Attributes:
        encoder: the encoder of all plans.
        decoder: the decoder of all plans.
        encoder_flags: what makes the encoder this plan's.
        decoder_flags: what makes the decoder this plan's.
        encoder_id: equal for plans whose encoders are the same; `FP32_ENCODER` for fp32.
        build_seconds: what preparing took.
        limit: of samples at once.
    """

    encoder: ForcedEncoder
    decoder: ForcedDecoder
    encoder_flags: Feed
    decoder_flags: Feed
    encoder_id: bytes
    build_seconds: float
    limit: BatchLimit = field(default_factory=BatchLimit)

    def screen(self, samples: SampleScreen, *, to_the_end: bool = False) -> ScreenResult:
        """Screens one sample set; stops at the end of the batch that makes the verdict certain.

        Args:
            samples: the sample set.
            to_the_end: look at every sample all the same.

        Raises:
            DeviceMemoryError: the device's memory does not hold one sample.
        """

        def screen(size: int) -> ScreenResult:
            samples.shrink(size)
            return self._screen(samples, to_the_end)

        return self.limit.fitting(samples.batch_size, screen)

    def _screen(self, samples: SampleScreen, to_the_end: bool) -> ScreenResult:
        start = time.perf_counter()
        margins: dict[int, FloatArray] = {}
        smallest: dict[int, float] = {}
        divergence: Parting | None = None
        encoded = 0

        def encode(batch: ForcedBatch) -> FloatArray:
            nonlocal encoded
            encoded += len(batch.source.indices)
            return self.encoder.encode(batch, self.encoder_flags, release=batch is samples.batches[-1])

        for number, batch in enumerate(samples.batches):
            hidden = samples.hidden(number, self.encoder_id, encode)
            # What passes the last batch is confirmed next, in sessions of its own: both at once are the peak of memory.
            last = batch is samples.batches[-1]
            found = self.decoder.margins(batch, hidden, self.decoder_flags, release=last)
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
            encoded=encoded,
        )


def _first_divergence(batch: ForcedBatch, margins: FloatArray, finite: npt.NDArray[np.bool_]) -> Parting | None:
    for row, sample in enumerate(batch.source.indices):
        if not finite[row]:
            return Parting(sample, 0)
        # `not >` also finds NaN.
        wrong = np.flatnonzero(~(margins[row] > 0) & batch.valid[row])
        if wrong.size:
            return Parting(sample, int(wrong[0]))
    return None
