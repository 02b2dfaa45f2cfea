"""The confirm run: free-running generation with the graphs as converted, which is what will be published.

The screen forces the reference; here the plan's own tokens and its own cache decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.screen import Parting
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.graph import GraphName
from precision_search.precision.weights import WeightCache
from precision_search.runtime.backends import backend_of
from precision_search.runtime.batch_limit import BatchLimit, after_release
from precision_search.runtime.generator import Generator
from precision_search.runtime.progress import Progress, no_progress
from precision_search.runtime.reference import first_difference, generate_all
from precision_search.runtime.session import SessionSettings


@dataclass(frozen=True, slots=True)
class ConfirmResult:
    """What free-running generation gave.

    Attributes:
        exact_match: share of the samples with exactly the reference's tokens.
        nonfinite: whether any sample met a non-finite value that counts.
        divergence: the first difference, by sample; None if there is none.
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
    tokens, nonfinite = (limit or BatchLimit()).fitting(
        batch_size, lambda size: generate_all(generator, samples.rows, pad, size, progress)
    )
    divergence = None
    exact = 0
    for sample, (found, wanted) in enumerate(zip(tokens, samples.reference.tokens, strict=True)):
        if found == wanted and not nonfinite[sample]:
            exact += 1
        elif divergence is None:
            divergence = Parting(sample, 0 if found == wanted else first_difference(found, wanted))
    return ConfirmResult(exact / len(tokens), bool(nonfinite.any()), divergence)


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
