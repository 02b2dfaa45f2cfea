"""The confirm run: free-running generation with the graphs as converted, which is what will be published.

The screen forces the reference; here the plan's own tokens and its own cache decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.judging.batches import FIRST_BATCH
from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.screen import Parting
from precision_search.judging.trial import BatchKind
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.graph import GraphName
from precision_search.precision.weights import WeightCache
from precision_search.runtime.backends import backend_of
from precision_search.runtime.batch_limit import BatchLimit, after_release
from precision_search.runtime.generator import Generator
from precision_search.runtime.progress import Progress, no_progress
from precision_search.runtime.reference import first_difference, generate_all
from precision_search.runtime.session import SessionSettings

GeneratedRows = tuple[tuple[tuple[int, ...], ...], npt.NDArray[np.bool_]]
"""What `generate_all` gives: tokens of each row, and whether it met a value that is not finite."""


@dataclass(frozen=True, slots=True)
class ConfirmResult:
    """What free-running generation gave.

    Attributes:
        exact_match: share of the samples with exactly the reference's tokens, in every batch.
        nonfinite: whether any sample met a non-finite value that counts.
        divergence: the first difference, by sample, the set's own batches before others; None if there is none.
    """

    exact_match: float
    nonfinite: bool
    divergence: Parting | None


def confirm_with(
    generator: Generator,
    samples: SampleRows,
    pad: int,
    *,
    batch_size: int,
    limit: BatchLimit | None = None,
    progress: Progress = no_progress,
) -> ConfirmResult:
    """The same with a generator from `open_generator`, which serves several sets; `pad` is the padding token's id.

    Raises:
        DeviceMemoryError: the device's memory does not hold one source.
    """
    limit, rows, fragile = limit or BatchLimit(), samples.rows, samples.fragile
    partings: list[Parting] = []
    any_nonfinite = False

    def compare(kind: BatchKind | None, numbers: Sequence[int], found: GeneratedRows) -> None:
        nonlocal any_nonfinite
        for number, tokens, is_bad in zip(numbers, *found, strict=True):
            wanted = samples.reference.tokens[number]
            if tokens != wanted or is_bad:
                partings.append(Parting(number, 0 if tokens == wanted else first_difference(tokens, wanted), kind))
            any_nonfinite |= bool(is_bad)

    found = limit.fitting(batch_size, lambda size: generate_all(generator, rows, pad, size, progress))
    compare(None, range(len(rows)), found)
    if fragile.padded:
        some, few = [rows[number] for number in fragile.padded], min(FIRST_BATCH, batch_size)
        found = limit.fitting(few, lambda size: generate_all(generator, some, pad, size, width=fragile.width))
        compare("padded", fragile.padded, found)
    if fragile.generated_alone and batch_size > 1:
        compare(
            "alone",
            fragile.generated_alone,
            generate_all(generator, [rows[number] for number in fragile.generated_alone], pad, 1),
        )
    exact = len(rows) - len({parting.sample for parting in partings})
    first = min(partings, key=lambda parting: parting.sample, default=None)
    return ConfirmResult(exact / len(rows), any_nonfinite, first)


def open_generator(
    models: Mapping[GraphName, ir.Model],
    generation: GenerationSettings,
    settings: SessionSettings,
    weights: WeightCache,
) -> Generator:
    """A generator on converted graphs as the backend runs them: as they are on CUDA, widened on a CPU.

    Raises:
        DeviceMemoryError: the device's memory does not hold the graphs.
    """
    run = backend_of(settings).prepare(models, weights)
    return after_release(lambda: Generator(run, generation, settings))
