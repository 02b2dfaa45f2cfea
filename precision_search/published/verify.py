"""Verification: whether a model directory generates the tokens of the fp32 model, and what it says where it does not.

In: the fp32 bundle, a directory with three graphs in any mixture of precisions, and sentences. Out: a `VerifyReport`.
Both generate freely. On CUDA the graphs run as they are; on a CPU widened, since the plain CPU path computes something
else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from precision_search.device.cuda import process_memory_limit
from precision_search.errors import InputError, counted
from precision_search.judging.differences import DifferingSample, describe_difference
from precision_search.judging.intervals import binomial_interval
from precision_search.judging.trial import VerdictSource
from precision_search.model.bundle import Bundle
from precision_search.model.generation_config import read_generation_settings
from precision_search.model.samples import SampleSet, encode
from precision_search.model.tokenizer import load_tokenizer
from precision_search.precision.weights import WeightCache
from precision_search.published.load import OTHER_REFERENCE, LoadedModel, judged_settings, open_published
from precision_search.records.wording import listed
from precision_search.reporting import NOBODY, Reporter
from precision_search.runtime.backends import backend_of
from precision_search.runtime.batch_limit import BatchLimit, after_release
from precision_search.runtime.generator import Generator
from precision_search.runtime.progress import Progress
from precision_search.runtime.reference import Reference, generate_all, make_reference
from precision_search.runtime.session import NO_LIMIT, SessionSettings

__all__ = [
    "DifferingSample",
    "LoadedModel",
    "VerifyReport",
    "compare",
    "describe_difference",
    "make_report",
    "open_published",
]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        samples: how many were compared.
        exact: how many have exactly the reference's tokens and met no non-finite value.
        exact_match: their share.
        low: lower end of its 95% interval.
        high: upper end.
        nonfinite: how many met a non-finite value in the encoder's output or in a logit.
        differences: the others, by index.
        source: whether the kernels were emulated on a CPU or the real ones ran.
        warnings: what a reader should know beside the numbers.
        data_hash: SHA-256 of the sentences, hexadecimal; of a run's sample files `run.json` and the model card tell it.
    """

    samples: int
    exact: int
    exact_match: float
    low: float
    high: float
    nonfinite: int
    differences: tuple[DifferingSample, ...]
    source: VerdictSource
    warnings: tuple[str, ...]
    data_hash: str

    @property
    def near_ties(self) -> int:
        """How many differ only from a near-tie of fp32 on."""
        return sum(sample.near_tie for sample in self.differences)


def compare(
    reference: Bundle,
    loaded: LoadedModel,
    samples: SampleSet,
    settings: SessionSettings,
    *,
    prefix: str = "",
    max_length: int | None = None,
    batch_size: int = 32,
    reporter: Reporter = NOBODY,
) -> VerifyReport:
    """Generates with both models and compares.

    Args:
        reference: the fp32 bundle; its tokenizer and generation settings hold for both.
        loaded: the model to verify; it runs at the optimization level it was judged at.
        samples: the sentences.
        settings: session settings, for the reference as they are. Memory is always shared; a `memory_limit` of None is
            that of the process, or none.
        prefix: put before each sentence.
        max_length: longest source in tokens, None for the tokenizer's limit.
        batch_size: sentences at once, if the device's memory holds them; a warning of the report says where not.
        reporter: told of each slow step before it begins, and how many of its sentences are done.

    Raises:
        InputError: the two tokenizers differ, or one of the models cannot run.
        DeviceMemoryError: the device's memory does not hold one sentence.
    """
    tokenizer = load_tokenizer(reference.path)
    encoded = encode(samples, tokenizer, prefix, max_length)
    theirs = encode(samples, loaded.tokenizer, prefix, max_length)
    _check_tokens(reference, loaded, samples, encoded.ids, theirs.ids)
    warnings = (*samples.warnings, *encoded.warnings, *_doubts(reference, loaded))
    limited: list[str] = []
    limit = BatchLimit(limited.append)
    wanted, tokens, nonfinite = _generate_both(
        reference, loaded, encoded.ids, settings, batch_size=batch_size, limit=limit, reporter=reporter
    )
    unjudged = beyond_judged(loaded, encoded.ids, wanted.tokens, limit.of(batch_size))
    warnings, source = (*warnings, *limited, *unjudged), backend_of(settings).source
    return make_report(samples, wanted, tokens, nonfinite, decode=tokenizer.decode, source=source, warnings=warnings)


def _generate_both(
    reference: Bundle,
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    settings: SessionSettings,
    *,
    batch_size: int,
    limit: BatchLimit,
    reporter: Reporter,
) -> tuple[Reference, tuple[tuple[int, ...], ...], npt.NDArray[np.bool_]]:
    """The reference, and what `generate_all` gives of the loaded model."""
    reporter.stage(f"generating with the fp32 reference, {counted(len(rows), 'sample')}")
    if settings.memory_limit is None:
        settings = replace(settings, memory_limit=process_memory_limit(settings.device_id, NO_LIMIT))
    judged = judged_settings(loaded, settings)
    # They belong to the process, and fp32 products take no notice of them.
    settings = replace(settings, gemm_options=judged.gemm_options)
    wanted = _reference(reference, rows, batch_size, settings, limit=limit, progress=reporter.progress)
    reporter.stage(f"generating with {loaded.path}")
    runnable = backend_of(settings).prepare(loaded.graphs, WeightCache())
    generator = after_release(lambda: Generator(runnable, reference.generation, judged))
    pad = reference.generation.pad_token_id
    return wanted, *limit.fitting(batch_size, lambda size: generate_all(generator, rows, pad, size, reporter.progress))


def make_report(
    samples: SampleSet,
    reference: Reference,
    tokens: Sequence[Sequence[int]],
    nonfinite: npt.NDArray[np.bool_],
    *,
    decode: Callable[[Sequence[int]], str],
    source: VerdictSource,
    warnings: tuple[str, ...] = (),
) -> VerifyReport:
    """Compares what was generated: `tokens` of each sample, and `nonfinite`, bool [samples]."""
    differences = tuple(
        describe_difference(index, samples, reference, tokens[index], decode, nonfinite=bool(nonfinite[index]))
        for index, wanted in enumerate(reference.tokens)
        if nonfinite[index] or tuple(tokens[index]) != wanted
    )
    total = len(reference.tokens)
    exact = total - len(differences)
    low, high = binomial_interval(exact, total)
    return VerifyReport(
        samples=total,
        exact=exact,
        exact_match=exact / total,
        low=low,
        high=high,
        nonfinite=int(np.count_nonzero(nonfinite)),
        differences=differences,
        source=source,
        warnings=warnings,
        data_hash=samples.content_hash,
    )


def _reference(
    bundle: Bundle,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    settings: SessionSettings,
    *,
    limit: BatchLimit,
    progress: Progress,
) -> Reference:
    """On its own, so that the fp32 sessions are gone before the others are made."""
    generator = Generator(bundle.models, bundle.generation, settings)
    return make_reference(bundle, generator, rows, batch_size, settings, limit=limit, progress=progress)


def _check_tokens(
    reference: Bundle,
    loaded: LoadedModel,
    samples: SampleSet,
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
) -> None:
    """Tokenizer files differ in ways that mean nothing, so what they make of the data is compared."""
    highest = max(max(ids) for ids in ours)
    if highest >= reference.config.vocab_size:
        raise InputError(
            f"the tokenizer of {reference.path} gives the id {highest}",
            why=f"the model knows {counted(reference.config.vocab_size, 'token')}: the two do not belong together",
            fix="put the model's own tokenizer files into its directory",
        )
    differing = next((index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), None)
    if differing is not None:
        raise InputError(
            f"{loaded.path} has another tokenizer than the reference",
            why=f"line {samples.samples[differing].line} of {samples.path} becomes other tokens",
            fix=f"{OTHER_REFERENCE}, or restore its tokenizer files",
        )


def beyond_judged(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], batch_size: int
) -> tuple[str, ...]:
    """What of a verification lies outside of what the model's verdict rests on, in words; nothing where it has none.

    Args:
        loaded: the model.
        rows: input ids of each sample.
        tokens: the reference's tokens of each.
        batch_size: samples at once.
    """
    judged, name, found = loaded.judged, loaded.path, []
    if judged is None:
        if loaded.content_hash is not None:
            found.append(
                f"{name} does not say which batches and lengths it was judged with: an older version judged it, in "
                "batches of one size and with no padding but what its samples needed"
            )
        return tuple(found)
    size, largest = min(batch_size, len(rows)), max(judged.batch_sizes)
    # A batch that is not full is met at the end of every sample set.
    if size not in judged.batch_sizes and not (size < batch_size and size <= largest):
        found.append(f"batches of {size} were not judged: {name} was judged in batches of {listed(judged.batch_sizes)}")
    if not judged.padded and size > 1 and len({len(row) for row in rows}) > 1:
        found.append(f"{name} was not judged in padded batches, and sentences of several lengths are padded here")
    for what, texts, lengths in (
        ("sentences", rows, judged.source_lengths),
        ("outputs of the reference", tokens, judged.target_lengths),
    ):
        if longer := [len(each) for each in texts if len(each) > lengths.max]:
            found.append(
                f"of {len(texts)} {what}, {len(longer)} {'is' if len(longer) == 1 else 'are'} longer than any that "
                f"{name} was judged with (up to {counted(max(longer), 'token')}, judged up to {lengths.max})"
            )
    return tuple(found)


def _doubts(reference: Bundle, loaded: LoadedModel) -> tuple[str, ...]:
    doubts = []
    if loaded.content_hash is not None and loaded.content_hash != reference.content_hash:
        doubts.append(f"{loaded.path} says that it was made from another fp32 model (or another export of it)")
    own = read_generation_settings(loaded.path, reference.generation.max_new_tokens)
    different = [
        f"{field.name} {getattr(own, field.name)} instead of {getattr(reference.generation, field.name)}"
        for field in fields(own)
        if field.compare and getattr(own, field.name) != getattr(reference.generation, field.name)
    ]
    if different:
        doubts.append(
            f"{loaded.path} asks for other generation settings ({', '.join(different)}); "
            "both were run with the reference's"
        )
    return tuple(doubts)
