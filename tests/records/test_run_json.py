"""The record of a run: counts, intervals, and that it names no paths."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace

import pytest

from precision_search.errors import InternalError
from precision_search.records.run_json import Counts, CutCheck, Match, Model, SampleFile, Versions
from tests.output_models import small_run
from tests.search_models import latency, trial


def test_plans_are_counted_by_verdict() -> None:
    trials = (*small_run(), trial(7, verdict="error"))
    assert Counts.of(trials) == Counts(judged=8, stable=4, mismatch=2, nonfinite=1, error=1)


def test_the_cut_is_held_against_the_converted_graphs() -> None:
    trials = [
        trial(1, expected_ms=99.0, latency=latency(100.0)),
        trial(2, expected_ms=50.1, latency=latency(50.0)),
        trial(3, expected_ms=1.0, latency=None),
        trial(4, expected_ms=None),
        trial(5, expected_ms=1.0, latency=replace(latency(100.0), source="measured")),
    ]
    found = CutCheck.of(trials)
    assert found is not None
    assert found.plans == 2
    assert found.largest_difference == pytest.approx(0.01)
    assert CutCheck.of(trials[2:]) is None


def test_a_match_carries_its_interval() -> None:
    assert Match.of(100, 100).value == 1.0
    assert Match.of(100, 100).low == pytest.approx(0.963, abs=1e-3)
    assert Match.of(98, 100).low < 0.98 < Match.of(98, 100).high < 1.0


@pytest.mark.parametrize("name", ["/home/me/model", "data/calibration.txt", "../x", "x/"])
def test_paths_are_refused(name: str) -> None:
    with pytest.raises(InternalError, match="bare names"):
        SampleFile(name, 1, "00", 0)
    with pytest.raises(InternalError, match="bare names"):
        Model(name, "00", True, ())


def test_versions_are_those_installed() -> None:
    versions = Versions.installed()
    assert versions.numpy == importlib.metadata.version("numpy")
    assert versions.onnxruntime in {
        importlib.metadata.version(name)
        for name in ("onnxruntime", "onnxruntime-gpu")
        if any(distribution.name == name for distribution in importlib.metadata.distributions())
    }
