"""A whole run from a model and sentences in memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from precision_search.config import WorkloadSection, new_run
from precision_search.display.reporters import make_reporter
from precision_search.judging.trial import SearchReporter
from precision_search.run.from_data import Wishes, from_data, name_of, run_places, sets_of_texts
from precision_search.run.search import RunResult, search

_WORKLOAD = WorkloadSection()


def optimize(
    model: str | os.PathLike[str],
    sentences: Iterable[str],
    out: str | os.PathLike[str] | None = None,
    *,
    validation: Iterable[str] | None = None,
    test: Iterable[str] | None = None,
    prefix: str = "",
    batch: int = _WORKLOAD.batch,
    source_length: int = _WORKLOAD.source_length,
    target_length: int = _WORKLOAD.target_length,
    gpu: str | None = None,
    overrides: Sequence[str] = (),
    reporter: SearchReporter | None = None,
) -> RunResult:
    """Searches for the fastest stable plan of a model, from sentences alone: what `precision-search run MODEL --data
    FILE` does.

    Sentences that come again are left out; 40% of the others calibrate, 30% validate and 30% test, drawn by
    `search.seed`. The config and the sets are in the run directory.

    Args:
        model: checkpoint directory, directory of ONNX graphs, or hub id.
        sentences: what the model is used for, without prefix.
        out: the run directory, which must not exist; None for one in `runs/`, named by model and time.
        validation: sentences to validate with, instead of a part of `sentences`.
        test: sentences to test with, likewise.
        prefix: put before each sentence.
        batch: sentences in a batch of the workload that latency refers to.
        source_length: tokens of each source there.
        target_length: tokens of each target there.
        gpu: a built-in device profile by name, or a TOML file of that form; None for `t4`, which has no bfloat16, and
            `a10g` for that.
        overrides: of keys of the config, as for `load_config`.
        reporter: receives progress.

    Raises:
        InputError: there are too few sentences, or they are no texts.
        PrecisionSearchError: see `search`.
    """
    with contextlib.closing(make_reporter(quiet=True) if reporter is None else reporter) as told:
        path = Path(new_run(name_of(os.fspath(model))) if out is None else out)
        given = sets_of_texts(data=sentences, validation=validation, test=test)
        wishes = Wishes(prefix, WorkloadSection(batch, source_length, target_length), gpu, tuple(overrides))
        made = from_data(os.fspath(model), given, wishes, *run_places(path))
        told.note(made.summary)
        return search(made.config, path, samples=made.samples, reporter=told)
