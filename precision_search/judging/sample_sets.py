"""The sample sets of a run: tokenized, with the fp32 reference, its near-ties and its parity with the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from precision_search.config import Config, DataSection
from precision_search.errors import InputError, VerificationError, counted
from precision_search.judging.batches import NONE_FRAGILE, FragileBatches, choose_fragile, without_own_differences
from precision_search.judging.trial import BatchKind, Judged, Lengths
from precision_search.model.bundle import Bundle, oracle_tokens
from precision_search.model.samples import SampleSet, encode
from precision_search.model.tokenizer import load_tokenizer
from precision_search.reporting import NOBODY, Reporter
from precision_search.runtime.backends import backend_of
from precision_search.runtime.batch_limit import BatchLimit, after_release
from precision_search.runtime.generator import Generator
from precision_search.runtime.reference import (
    NEAR_TIE,
    ForcedModel,
    ParityDifference,
    Reference,
    compare_with_oracle,
    make_reference,
    open_forced,
)
from precision_search.runtime.session import SessionSettings

SetName = Literal["calibration", "validation", "test"]
ParityStatus = Literal["equal", "near-ties", "skipped"]
MOST_TIES = 5
"""Near-ties that are told one by one; a model that was never trained has one at nearly every token."""


@dataclass(frozen=True, slots=True)
class SampleRows:
    """A tokenized sample set with its reference.

    Attributes:
        rows: input ids of each sample.
        reference: the fp32 tokens and margins.
        fragile: the batches that it is judged in beside its own.
        batch_size: samples at once in the reference and in `fragile`, and so in what is compared with them: fp32 itself
            may give other tokens in other batches. None where whoever judges chooses.
    """

    rows: tuple[tuple[int, ...], ...]
    reference: Reference
    fragile: FragileBatches = NONE_FRAGILE
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class LoadedSet:
    """A sample set, tokenized, with its fp32 reference.

    Attributes:
        samples: texts and content hash.
        data: input ids and reference.
        truncated: how many samples were cut to fit.
        section: how the config says that they are read.
    """

    samples: SampleSet
    data: SampleRows
    truncated: int
    section: DataSection


class Fp32Model:
    """The fp32 bundle with what turns texts into its tokens.

    Its sessions are made when they are asked for, and kept until `close`: every sample set needs the same ones.
    """

    def __init__(self, bundle: Bundle, settings: SessionSettings, limit: BatchLimit) -> None:
        """`limit` is of samples at once, shared with others."""
        self.bundle = bundle
        self.settings = settings
        self.limit = limit
        self.tokenizer = load_tokenizer(bundle.path)
        self._generator: Generator | None = None
        self._forced: ForcedModel | None = None

    @property
    def generator(self) -> Generator:
        """What generates.

        Raises:
            DeviceMemoryError: the device's memory does not hold its sessions.
        """
        if self._generator is None:
            bundle = self.bundle
            self._generator = after_release(lambda: Generator(bundle.models, bundle.generation, self.settings))
        return self._generator

    def forced(self) -> ForcedModel:
        """What gives the margins of tokens.

        Raises:
            DeviceMemoryError: the device's memory does not hold its sessions.
        """
        if self._forced is not None:
            return self._forced
        forced = open_forced(self.bundle, self.settings)
        if backend_of(self.settings).may_idle:
            self._forced = forced
        return forced

    def close(self) -> None:
        """Lets go of the sessions; they are made anew if they are asked for once more."""
        self._generator = self._forced = None


@dataclass(frozen=True, slots=True)
class NearTie:
    """A token of the fp32 reference that won by so little that no plan is reliable there, or that fp32 itself changes.

    Attributes:
        set: the sample set.
        sample: index in it, from 0.
        position: token position within its target, from 0.
        margin: by how much it won, in logits.
        batch: the batch in which fp32 gives another token, which is then held against no plan; None for a token that
            is a near-tie in the set's own batches.
    """

    set: SetName
    sample: int
    position: int
    margin: float
    batch: BatchKind | None = None


@dataclass(frozen=True, slots=True)
class Parity:
    """Whether the fp32 bundle generates what its checkpoint does.

    Attributes:
        status: `near-ties` if all differences are at near-ties of fp32; `skipped` without a checkpoint.
        samples: how many samples were compared.
        differences: where they differ.
    """

    status: ParityStatus
    samples: int
    differences: tuple[ParityDifference, ...]


def open_fp32(bundle: Bundle, settings: SessionSettings, limit: BatchLimit | None = None) -> Fp32Model:
    """The fp32 bundle, ready to generate; `limit` is of samples at once, shared with others."""
    model = Fp32Model(bundle, settings, limit or BatchLimit())
    _ = model.generator
    return model


def load_set(samples: SampleSet, section: DataSection, fp32: Fp32Model, reporter: Reporter = NOBODY) -> LoadedSet:
    """Tokenizes a sample set and generates its reference."""
    encoded = encode(samples, fp32.tokenizer, section.prefix, section.max_length)
    for warning in (*samples.warnings, *encoded.warnings):
        reporter.warn(warning)
    highest = max(max(ids) for ids in encoded.ids)
    if highest >= fp32.bundle.config.vocab_size:
        raise InputError(
            f"the tokenizer gives the id {highest}, the model knows {counted(fp32.bundle.config.vocab_size, 'token')}",
            why="tokenizer and model do not belong together",
            fix="put the model's own tokenizer files into its directory",
        )
    reference = make_reference(
        fp32.bundle,
        fp32.generator,
        encoded.ids,
        section.batch_size,
        fp32.settings,
        forced=fp32.forced,
        limit=fp32.limit,
        progress=reporter.progress,
    )
    longest = max(fp32.tokenizer.model_max_length, section.max_length or 0)
    fragile = without_own_differences(
        choose_fragile(encoded.ids, reference, longest),
        encoded.ids,
        reference,
        generator=fp32.generator,
        forced=fp32.forced(),
        generation=fp32.bundle.generation,
        batch_size=section.batch_size,
        limit=fp32.limit,
    )
    rows = SampleRows(encoded.ids, reference, fragile, section.batch_size)
    return LoadedSet(samples, rows, len(encoded.truncated), section)


def near_ties(name: SetName, samples: SampleRows) -> tuple[NearTie, ...]:
    """The reference's tokens with margins below `NEAR_TIE`, then those that fp32 changes in other batches."""
    own = (
        NearTie(name, sample, position, float(margin))
        for sample, margins in enumerate(samples.reference.margins)
        for position, margin in enumerate(margins)
        if margin < NEAR_TIE
    )
    return (*own, *_changed_by_fp32(name, samples))


def _changed_by_fp32(name: SetName, samples: SampleRows) -> Iterator[NearTie]:
    for each in samples.fragile.differences:
        margin = samples.reference.margins[each.sample][each.position]
        # A forced token has no margin.
        yield NearTie(name, each.sample, each.position, float(np.nan_to_num(margin)), each.batch)


def judged_in(sets: Sequence[SampleRows], batch_sizes: Sequence[int]) -> Judged:
    """The batches in which a plan is judged that passes.

    Args:
        sets: the calibration set, then others.
        batch_sizes: samples at once, of each set.
    """
    sizes = {min(size, len(each.rows)) for each, size in zip(sets, batch_sizes, strict=True)}
    sizes |= {1 for each in sets if each.fragile.alone}
    sources = [len(row) for each in sets for row in each.rows]
    targets = [len(row) for each in sets for row in each.reference.tokens]
    return Judged(
        batch_sizes=tuple(sorted(sizes)),
        padded=bool(sets[0].fragile.padded),
        source_lengths=Lengths(min(sources), max(sources)),
        target_lengths=Lengths(min(targets), max(targets)),
    )


def check_ties(calibration: LoadedSet, reporter: Reporter) -> None:
    """A calibration sample that fp32 itself cannot decide makes every plan a matter of luck, fp32 included."""
    samples = calibration.samples
    ties = near_ties("calibration", calibration.data)
    for number, tie in enumerate(ties):
        line = samples.samples[tie.sample].line
        where = f"line {line} of {samples.path}, token {tie.position + 1}"
        if tie.margin <= 0 and tie.batch is None:
            raise InputError(
                f"{where}: fp32 generates one token and prefers another when it reads the whole sentence",
                why=f"a tie that its own rounding decides (margin {tie.margin:.2g})",
                fix="remove that line: no plan can be held to it",
            )
        if number < MOST_TIES:
            reporter.warn(f"{where}: {_tie_text(tie)}")
    if len(ties) > MOST_TIES:
        reporter.warn(
            f"{counted(len(ties) - MOST_TIES, 'more near-tie')} of fp32 in {samples.path}; run.json lists them all"
        )


def _tie_text(tie: NearTie) -> str:
    if tie.batch is None:
        return f"a near-tie of fp32 (margin {tie.margin:.2g}), which any rounding may flip"
    how = "with padding" if tie.batch == "padded" else "in a batch of its own"
    return f"a near-tie of fp32, which generates another token {how} and so judges no plan by it there"


def check_parity(bundle: Bundle, calibration: LoadedSet, config: Config, reporter: Reporter) -> Parity:
    """Whether the bundle generates what its checkpoint does on the calibration set.

    Raises:
        VerificationError: it does not, and fp32 is sure of the tokens that differ.
    """
    rows = calibration.data.rows
    if bundle.checkpoint is None:
        reporter.warn("parity with transformers is skipped: there is no checkpoint beside the ONNX files")
        return Parity("skipped", 0, ())
    reporter.stage("comparing the fp32 bundle with transformers")
    oracle = oracle_tokens(bundle, rows, config.model.cache, reporter=reporter)
    differences = compare_with_oracle(calibration.data.reference, oracle)
    real = [difference for difference in differences if not difference.near_tie]
    if real:
        lines = [
            f"sample {d.sample + 1}, token {d.position + 1}: bundle {d.bundle_token}, checkpoint {d.checkpoint_token}"
            + ("" if d.margin is None else f", margin {d.margin:.4g}")
            for d in real[:5]
        ]
        raise VerificationError(
            f"the fp32 bundle differs from its checkpoint on {len(real)} of {len(rows)} calibration samples",
            why="; ".join(lines),
            fix="export the model again; if the ONNX files are from another checkpoint, give theirs",
        )
    for difference in differences:
        reporter.warn(
            f"calibration sample {difference.sample + 1}: bundle and checkpoint part at a near-tie of fp32 "
            f"(margin {difference.margin:.2g})"
        )
    return Parity("near-ties" if differences else "equal", len(rows), differences)
