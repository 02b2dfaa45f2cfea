"""Generating with converted graphs and comparing, in one call: what a judge does with a generator that it keeps."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from precision_search.judging.confirm import ConfirmResult, confirm_with, open_generator
from precision_search.judging.sample_sets import SampleRows
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.graph import GraphName
from precision_search.precision.weights import WeightCache
from precision_search.runtime.batch_limit import BatchLimit
from precision_search.runtime.session import SessionSettings


def confirm(
    models: Mapping[GraphName, ir.Model],
    samples: SampleRows,
    generation: GenerationSettings,
    settings: SessionSettings,
    *,
    batch_size: int,
    weights: WeightCache,
    limit: BatchLimit | None = None,
) -> ConfirmResult:
    generator = open_generator(models, generation, settings, weights)
    return confirm_with(generator, samples, generation.pad_token_id, batch_size=batch_size, limit=limit)
