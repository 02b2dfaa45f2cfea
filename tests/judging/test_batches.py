"""Fragile samples are judged with padding and one by one, whatever batches their set has by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from precision_search.config import DataSection
from precision_search.judging import confirm
from precision_search.judging.batches import FIRST_BATCH, FragileBatches, OwnDifference, choose_fragile
from precision_search.judging.judge import JudgeSettings, PlanJudge
from precision_search.judging.sample_sets import NearTie, SampleRows, judged_in, load_set, near_ties, open_fp32
from precision_search.judging.trial import Judged, Lengths, Proposal, Trial
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.samples import load_samples
from precision_search.precision.weights import WeightCache
from precision_search.runtime.reference import Reference, generate_all
from tests.judging.test_judge import SeenLatency
from tests.plans import SETTINGS, lowering
from tests.tiny_model import WORDS, write_padding_model

RESIDUAL = "encoder.block.0.layer.0/Add"
"""The sum that leaves the range of fp16 at padding."""

LENGTHS = {16: (4,) * 10, 1: (2, 3, 4, 5, 6) * 2}
"""Words in each sentence by batch size: in both cases the set itself needs no padding."""


def judged_sets(folder: Path, size: int, *, breaks: bool, leaks: bool = False) -> tuple[Bundle, SampleRows]:
    rng = np.random.default_rng(0)
    path = folder / "data.txt"
    path.write_text("\n".join(" ".join(rng.choice(WORDS, length)) for length in LENGTHS[size]) + "\n")
    model = write_padding_model(folder / "model", breaks=breaks, leaks=leaks)
    bundle = open_bundle(str(model), folder / "cache")
    section = DataSection(path, batch_size=size)
    return bundle, load_set(load_samples(path, "calibration"), section, open_fp32(bundle, SETTINGS)).data


def verdict_of(bundle: Bundle, samples: SampleRows, size: int) -> Trial:
    judge = judge_of(bundle, samples, size)
    assert judge(Proposal(lowering(bundle), "fp32"), 0).verdict == "stable"
    return judge(Proposal(lowering(bundle, {RESIDUAL}), "given"), 1)


def judge_of(bundle: Bundle, samples: SampleRows, size: int, validation: SampleRows | None = None) -> PlanJudge:
    settings, latency = JudgeSettings(SETTINGS, size, 0), SeenLatency()
    return PlanJudge(
        bundle, samples, validation, dtype="float16", latency=latency, weights=WeightCache(), settings=settings
    )


@pytest.mark.parametrize("size", [16, 1])
def test_a_plan_that_breaks_in_padded_rows_only_is_rejected(tmp_path: Path, size: int) -> None:
    bundle, samples = judged_sets(tmp_path, size, breaks=True)
    assert verdict_of(bundle, SampleRows(samples.rows, samples.reference), size).verdict == "stable"

    trial = verdict_of(bundle, samples, size)

    assert trial.verdict == "nonfinite"
    assert trial.first_divergence is not None
    assert trial.first_divergence.batch == "padded"
    assert trial.first_divergence.sample in samples.fragile.padded
    assert trial.first_divergence.node == RESIDUAL


@pytest.mark.parametrize("size", [16, 1])
def test_a_sound_model_stays_stable_and_says_what_was_judged(tmp_path: Path, size: int) -> None:
    bundle, samples = judged_sets(tmp_path, size, breaks=False)

    trial = verdict_of(bundle, samples, size)

    assert (trial.verdict, trial.exact_match) == ("stable", 1.0)
    assert trial.judged is not None
    assert trial.judged.batch_sizes == ((1, 10) if size == 16 else (1,))
    assert trial.judged.padded
    assert trial.judged.source_lengths.max == max(map(len, samples.rows))


def test_each_set_is_judged_in_batches_of_the_size_that_its_reference_was_made_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that fp32 gives in batches of three only is neither held against a plan nor hidden from it."""
    bundle, calibration = judged_sets(tmp_path, 16, breaks=False)
    assert calibration.batch_size == 16
    validation, sizes = replace(calibration, batch_size=3), []

    def noted(generator: Any, rows: Any, pad: int, size: int, *args: Any, **options: Any) -> Any:
        sizes.append((size, bool(options.get("width"))))
        return generate_all(generator, rows, pad, size, *args, **options)

    monkeypatch.setattr(confirm, "generate_all", noted)
    judge = judge_of(bundle, calibration, 16, validation)
    trial = judge(Proposal(lowering(bundle), "fp32"), 0)

    assert (trial.verdict, trial.validation_match) == ("stable", 1.0)
    assert sizes == [(16, False), (FIRST_BATCH, True), (1, False), (3, False), (3, True), (1, False)]
    assert trial.judged is not None and trial.judged.batch_sizes == (1, 3, 10)
    sizes.clear()
    judge.confirm(lowering(bundle), replace(validation, batch_size=2))
    assert sizes == [(2, False), (2, True), (1, False)]


def test_runtime_alone_gives_the_same_fp32_states_with_padding(tmp_path: Path) -> None:
    """The reference for padded rows is fp32 with padding: what plain ONNX Runtime says at the valid positions."""
    _, samples = judged_sets(tmp_path, 16, breaks=True)
    fragile = samples.fragile
    assert len(fragile.padded) == FIRST_BATCH
    session = onnxruntime.InferenceSession(tmp_path / "model/encoder_model.onnx", providers=["CPUExecutionProvider"])
    row = np.array([samples.rows[fragile.padded[0]]])
    wide = np.pad(row, ((0, 0), (0, fragile.width - row.shape[1])))
    plain, padded = (
        session.run(None, {"input_ids": ids, "attention_mask": (np.arange(ids.shape[1]) < row.shape[1])[None] * 1})[0]
        for ids in (row, wide)
    )
    assert np.isfinite(padded).all()
    np.testing.assert_allclose(padded[:, : row.shape[1]], plain, rtol=1e-3, atol=1e-3)


def test_a_token_that_fp32_itself_changes_with_padding_is_listed_and_held_against_no_plan(tmp_path: Path) -> None:
    bundle, samples = judged_sets(tmp_path, 16, breaks=False, leaks=True)
    (changed,) = samples.fragile.differences
    every = choose_fragile(samples.rows, samples.reference, longest=512)
    assert changed.sample == every.padded[0] and changed.batch == "padded"
    assert samples.fragile.padded == every.padded[1:]
    assert samples.fragile.alone == every.alone

    # Held to it, not even fp32 would be stable.
    fp32 = judge_of(bundle, SampleRows(samples.rows, samples.reference, every), 16)(
        Proposal(lowering(bundle), "fp32"), 0
    )
    assert fp32.verdict == "mismatch"
    assert fp32.first_divergence is not None
    assert (fp32.first_divergence.sample, fp32.first_divergence.batch) == (changed.sample, "padded")

    trial = verdict_of(bundle, samples, 16)
    assert (trial.verdict, trial.exact_match) == ("stable", 1.0)
    assert trial.judged is not None and trial.judged.padded
    (tie,) = near_ties("calibration", samples)
    assert (tie.sample, tie.position, tie.batch) == (changed.sample, changed.position, "padded")
    assert tie.margin == samples.reference.margins[changed.sample][changed.position]


def test_what_is_chosen_is_fragile_and_really_padded() -> None:
    rows = [(3,) * length for length in (2, 9, 10, 4)]
    margins = tuple(np.array([margin], np.float32) for margin in (0.4, 0.3, 0.2, 0.1))

    found = choose_fragile(rows, Reference(((1,),) * 4, margins), longest=10)

    assert found == FragileBatches(padded=(3, 1, 0), width=10, alone=(3, 2, 1, 0))
    assert choose_fragile(rows, Reference(((1,),) * 4, margins), longest=512).width == 20


def test_where_fp32_itself_differs_is_listed_as_its_own_near_tie() -> None:
    fragile = FragileBatches((0,), 8, (0, 1), (OwnDifference("padded", 1, 0),))
    samples = SampleRows(((4,), (4, 5)), Reference(((1,), (7, 1)), (np.ones(1, np.float32),) * 2), fragile)

    assert near_ties("calibration", samples) == (NearTie("calibration", 1, 0, 1.0, "padded"),)
    assert judged_in([samples], [32]) == Judged((1, 2), True, Lengths(1, 2), Lengths(1, 2))
