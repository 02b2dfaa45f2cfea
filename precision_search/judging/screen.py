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

from precision_search.judging.batches import FIRST_BATCH, NONE_FRAGILE, first_lost
from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.trial import BatchKind
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
FP32_ENCODER = b""
"""The `encoder_id` of plans that leave the whole encoder as it is."""

ScreenVerdict = Literal["nonfinite", "mismatch", "exact"]


@dataclass(frozen=True, slots=True)
class Parting:
    """Where a plan first parts from the reference: sample and token position, both counted from 0, and the batch."""

    sample: int
    position: int
    batch: BatchKind | None = None


@dataclass(frozen=True, slots=True)
class ScreenResult:
    """What a screen found.

    Attributes:
        verdict: `nonfinite` if anything that counts was not finite, else `mismatch` if a token changed, else `exact`.
        exact_match: share of the screened samples whose tokens are all the reference's, in every batch.
        screened: how many samples were looked at; fewer than all when the verdict was certain before.
        divergence: the first difference, in screening order; None for `exact`.
        min_margin: the smallest margin met; None if one was not finite.
        margins: for each screened sample (by number) the signed margin of each token, float32 [T]; NaN for a forced
            token and where a logit was not finite. From the set's own batches; those of a sample that was looked at
            with padding only are from there.
        build_seconds: time to prepare the plan.
        run_seconds: time in them.
        encoded: how many sources the encoder ran on; for the others its output was remembered.
        padded: the same as `margins`, from padded batches.
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
    padded: Mapping[int, FloatArray] = field(default_factory=dict)


class SampleScreen:
    """One sample set, cut into batches with the most fragile samples first, and encoder outputs that it remembers.

    The most fragile samples come again with padding right after their own batch: a plan that breaks only there ends
    after two small batches. One by one they come last, as little but rounding sets them apart.
    """

    def __init__(
        self, samples: SampleRows, generation: GenerationSettings, batch_size: int, *, own_only: bool = False
    ) -> None:
        """With `own_only` no sample is looked at with padding or alone."""
        self.samples = samples
        self.batch_size = batch_size
        self._fragile = NONE_FRAGILE if own_only else samples.fragile
        self._generation = generation
        self.batches, self.kinds = self._cut()
        self._fp32: dict[int, FloatArray] = {}
        self._last: dict[int, FloatArray] = {}
        self._last_encoder = FP32_ENCODER

    def shrink(self, batch_size: int) -> None:
        """No batch larger than this from now on, the first one included; what is known of the old ones is forgotten."""
        if batch_size < self.batch_size:
            self.batch_size = batch_size
            self.batches, self.kinds = self._cut()
            self._fp32, self._last = {}, {}

    @property
    def passes(self) -> int:
        """Sources in all batches together."""
        return sum(len(batch.source.indices) for batch in self.batches)

    def _cut(self) -> tuple[tuple[ForcedBatch, ...], tuple[BatchKind | None, ...]]:
        """The batches, and of which kind each is: None for the set's own."""
        rows, reference, fragile = self.samples.rows, self.samples.reference, self._fragile
        # Beyond the first batch, padding costs more than the order of fragility saves.
        first = reference.fragile_first[:FIRST_BATCH]
        rest = tuple(index for index in by_target_length(reference.tokens) if index not in first)
        few = min(FIRST_BATCH, self.batch_size)
        parts: tuple[tuple[BatchKind | None, tuple[int, ...], int, int], ...] = (
            (None, first, few, 0),
            ("padded", fragile.padded, few, fragile.width),
            (None, rest, self.batch_size, 0),
            ("alone", fragile.alone if self.batch_size > 1 else (), 1, 0),
        )
        found = [
            (batch, kind)
            for kind, part, size, width in parts
            for batch in forced_batches(rows, reference.tokens, self._generation, size, part, width=width)
        ]
        return tuple(batch for batch, _ in found), tuple(kind for _, kind in found)

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
        generation: GenerationSettings | None = None,
    ) -> None:
        """Makes the sessions.

        Args:
            graphs: the graphs of the variant.
            dtype: the low dtype of all plans.
            weights: shared rounded weights.
            settings: session settings.
            limit: what the screens share with others; None makes one of their own.
            variant: whose graphs these are.
            generation: whose token rules hold; None has none.

        Raises:
            InputError: the graphs' opset does not take the dtype.
            DeviceMemoryError: the device's memory does not hold the sessions.
        """
        self._limit = limit or BatchLimit()
        self._graphs = graphs
        self._dtype = dtype
        self._variant = variant
        self._sessions = after_release(lambda: _open_sessions(graphs, dtype, weights, settings, generation))

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
    graphs: Mapping[GraphName, Graph],
    dtype: LowDtype,
    weights: WeightCache,
    settings: SessionSettings,
    generation: GenerationSettings | None,
) -> _Sessions:
    names = SEQ2SEQ.encoder.name, SEQ2SEQ.decoder.name
    encoder, decoder = (switchable(graphs[name], dtype, weights) for name in names)
    return _Sessions(
        ForcedEncoder(encoder.model, settings, consume=True),
        ForcedDecoder(decoder.model, settings, consume=True, generation=generation),
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
        own: dict[int, FloatArray] = {}
        padded: dict[int, FloatArray] = {}
        smallest: dict[int, float] = {}
        divergence: Parting | None = None
        encoded = 0

        def encode(batch: ForcedBatch) -> FloatArray:
            nonlocal encoded
            encoded += len(batch.source.indices)
            return self.encoder.encode(batch, self.encoder_flags, release=batch is samples.batches[-1])

        for number, (batch, kind) in enumerate(zip(samples.batches, samples.kinds, strict=True)):
            hidden = samples.hidden(number, self.encoder_id, encode)
            # What passes the last batch is confirmed next, in sessions of its own: both at once are the peak of memory.
            last = batch is samples.batches[-1]
            found = self.decoder.margins(batch, hidden, self.decoder_flags, release=last)
            finite = encoder_is_finite(batch, hidden)
            for row, sample in enumerate(batch.source.indices):
                if kind != "alone":
                    margins = padded if kind == "padded" else own
                    margins[sample] = found[row, : len(samples.samples.reference.tokens[sample])]
                judged = found[row, batch.valid[row]]
                # np.min keeps a NaN.
                least = np.min(judged, initial=smallest.get(sample, np.inf)) if finite[row] else np.nan
                smallest[sample] = float(least)
            if divergence is None:
                divergence = _first_divergence(batch, kind, found, finite)
            if divergence is not None and not to_the_end:
                break
        seconds = time.perf_counter() - start
        least_of_all = float(np.min(list(smallest.values())))
        verdict: ScreenVerdict = "exact" if least_of_all > 0 else "mismatch"
        return ScreenResult(
            verdict="nonfinite" if np.isnan(least_of_all) else verdict,
            exact_match=sum(margin > 0 for margin in smallest.values()) / len(smallest),
            screened=len(smallest),
            divergence=divergence,
            min_margin=least_of_all if np.isfinite(least_of_all) else None,
            margins={**padded, **own},
            build_seconds=self.build_seconds,
            run_seconds=seconds,
            encoded=encoded,
            padded=padded,
        )


def _first_divergence(
    batch: ForcedBatch, kind: BatchKind | None, margins: FloatArray, finite: npt.NDArray[np.bool_]
) -> Parting | None:
    for row, sample in enumerate(batch.source.indices):
        position = first_lost(margins[row], batch.valid[row], is_finite=bool(finite[row]))
        if position is not None:
            return Parting(sample, position, kind)
    return None
