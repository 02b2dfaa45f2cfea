"""What rejected landmarks make of sentences: people believe "0 of 100 exact" when they see one.

In: the judged plans, the calibration set and its reference. Out: for each rejected landmark a few samples that it
generates freely and that differ from the reference, with the place where they part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from precision_search.judging.differences import DifferingSample, describe_difference
from precision_search.judging.sample_sets import LoadedSet
from precision_search.judging.trial import LANDMARKS, Trial
from precision_search.runtime.batch_limit import BatchLimit
from precision_search.runtime.generator import Generator
from precision_search.runtime.reference import generate_all

SHOWN = 8
"""Differing samples of each landmark: enough to see what a plan breaks."""
AT_ONCE = 8
"""Samples generated at once. Garbage runs to the longest length, so a plan that breaks everything costs one batch."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Span:
    """Characters of a text; none where a text ends before the other.

    Attributes:
        start: the first one, from 0.
        end: the one after the last.
    """

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class LandmarkSample:
    """A sample that a landmark differs on.

    Attributes:
        sample: the texts, and where they part.
        reference: the first differing token in the reference's text; None where no token differs (a non-finite value).
        model: the same in the plan's text.
        tokens: how many the plan generated; garbage often has no text.
    """

    sample: DifferingSample
    reference: Span | None
    model: Span | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Landmark:
    """A rejected landmark.

    Attributes:
        id: of its plan.
        generated: how many samples it generated, in the order of the file, until enough of them differed.
        samples: the first of these that differ.
    """

    id: int
    generated: int
    samples: tuple[LandmarkSample, ...]


def rejected_landmarks(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The landmarks that were judged and whose tokens are not the reference's."""
    return tuple(t for t in trials if t.stage in LANDMARKS and t.verdict in ("mismatch", "nonfinite"))


def show_landmark(
    trial: Trial, generator: Generator, calibration: LoadedSet, decode: Decode, *, pad: int, limit: BatchLimit
) -> Landmark:
    """Generates with the plan of a trial until `SHOWN` samples differ or none is left.

    Args:
        trial: the landmark.
        generator: on the plan's converted graphs.
        calibration: the calibration set with its reference.
        decode: token ids to text.
        pad: the padding token's id.
        limit: of samples at once, shared with others.

    Raises:
        DeviceMemoryError: the device's memory does not hold one source.
    """
    found: list[LandmarkSample] = []
    generated = 0
    for batch in _batches(generator, pad, calibration, limit):
        for tokens, nonfinite in batch:
            wanted = calibration.data.reference.tokens[generated]
            if (nonfinite or tokens != wanted) and len(found) < SHOWN:
                found.append(_sample(generated, calibration, tokens, decode, nonfinite=nonfinite))
            generated += 1
        if len(found) == SHOWN:
            break
    return Landmark(trial.id, generated, tuple(found))


def _batches(
    generator: Generator, pad: int, calibration: LoadedSet, limit: BatchLimit
) -> Iterator[list[tuple[tuple[int, ...], bool]]]:
    """Tokens of each sample, and whether it met a non-finite value, in the order of the file."""
    rows = calibration.data.rows
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]

        def generate(size: int, part: Sequence[Sequence[int]] = part) -> list[tuple[tuple[int, ...], bool]]:
            tokens, nonfinite = generate_all(generator, part, pad, size)
            return [(row, bool(flag)) for row, flag in zip(tokens, nonfinite, strict=True)]

        yield limit.fitting(AT_ONCE, generate)


def _sample(
    index: int, calibration: LoadedSet, tokens: Sequence[int], decode: Decode, *, nonfinite: bool
) -> LandmarkSample:
    reference = calibration.data.reference
    sample = describe_difference(index, calibration.samples, reference, tokens, decode, nonfinite=nonfinite)
    wanted = reference.tokens[index]
    if tuple(tokens) == wanted:
        return LandmarkSample(sample, None, None, len(tokens))
    return LandmarkSample(
        sample=sample,
        reference=_span(decode, wanted, sample.position, sample.reference),
        model=_span(decode, tokens, sample.position, sample.model),
        tokens=len(tokens),
    )


def _span(decode: Decode, tokens: Sequence[int], position: int, text: str) -> Span:
    """Where the token at `position` stands in `text`, with what follows if it has no text of its own.

    A decoder may join tokens, so the text of the first ones is compared with that of all.
    """
    start = _common(decode(tokens[:position]), text)
    ends = (_common(decode(tokens[: count + 1]), text) for count in range(position, len(tokens)))
    end = next((end for end in ends if text[start:end].strip()), start)
    shown = text[start:end]
    return Span(start + len(shown) - len(shown.lstrip()), end)


def _common(first: str, second: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))
