"""The whole tool on a device: a short search of the demo, `verify` of what it wrote, and generating with that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from precision_search import Seq2SeqGenerator
from precision_search.cost.estimate import Workload
from precision_search.judging.latency import MeasuredLatency
from precision_search.model.bundle import Bundle
from precision_search.precision.convert import convert
from precision_search.runtime.session import Device, SessionSettings
from tests.cli_models import invoke
from tests.conftest import DEMO_DATA, DEMO_MODEL
from tests.plans import NORMS, WO, keeping

pytestmark = pytest.mark.slow

SENTENCES = {"calibration": 24, "validation": 40, "test": 24}
CONFIG = f"""
[model]
path = "{DEMO_MODEL}"
[calibration]
path = "calibration.txt"
[validation]
path = "validation.txt"
min_exact_match = 0.9
[test]
path = "test.txt"
[search]
max_trials = 6
[workload]
batch = 64
source_length = 16
target_length = 8
"""
WORDING = {"cpu": ("emulated", "estimated"), "cuda": ("cuda", "measured")}
"""Where verdicts and latencies of a run are from."""


def searched(device: Device, folder: Path, cache: Path) -> Path:
    """A run directory of a search of a few plans."""
    for name, count in SENTENCES.items():
        lines = (DEMO_DATA / f"{name}.txt").read_text().splitlines()[:count]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "short.toml").write_text(CONFIG)
    settings = (f"device.kind={device}", "device.threads=1", f"model.cache={cache.resolve()}")
    options = [part for setting in settings for part in ("--set", setting)]
    result = invoke("run", folder / "short.toml", "--out", folder / "run", *options)
    assert result.exit_code in (0, 1), result.output
    return folder / "run"


@pytest.fixture(scope="module")
def run(device: Device, tmp_path_factory: pytest.TempPathFactory, demo_bundle: Bundle, export_cache: Path) -> Path:
    assert demo_bundle.path.is_dir()  # exported before the command asks for it
    return searched(device, tmp_path_factory.mktemp(f"{device}-run"), export_cache)


@pytest.fixture(scope="module")
def cpu_run(request: pytest.FixtureRequest, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same search without a device: what it finds must hold on one."""
    if device == "cpu":
        here: Path = request.getfixturevalue("run")
        return here
    return searched("cpu", tmp_path_factory.mktemp("run-elsewhere"), request.getfixturevalue("export_cache"))


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    return exported(run)


def exported(run: Path) -> Path:
    """The stable plan with most nodes in low precision, be it faster than fp32 or not: `run` may publish fp32."""
    stable = [trial for trial in trials_of(run) if trial["verdict"] == "stable"]
    best = max(stable, key=lambda trial: int(str(trial["low_nodes"])))
    assert int(str(best["low_nodes"])) > 100
    out = run.parent / "exported"
    if not out.exists():
        result = invoke("export", run, "--plan", str(best["id"]), "--out", out)
        assert result.exit_code == 0, result.output
    return out


def trials_of(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]


def test_a_run_says_where_its_verdicts_and_latencies_are_from(run: Path, device: Device) -> None:
    trials = trials_of(run)
    verdicts, latencies = WORDING[device]

    assert len(trials) > 2
    assert "stable" in {trial["verdict"] for trial in trials[1:]}
    confirmed = [trial for trial in trials if trial["verdict"] == "stable"]
    assert {trial["verdict_source"] for trial in confirmed} == {verdicts}
    for trial in confirmed:
        latency = trial["latency"]
        assert isinstance(latency, dict)
        assert latency["source"] == latencies
        assert 0 < latency["low_ms"] <= latency["p50_ms"] <= latency["high_ms"]
    record = json.loads((run / "run.json").read_text())
    assert record["device"]["kind"] == device
    assert record["device"]["use_tf32"] is False
    assert (record["device"]["profile"] is None) == (device == "cuda")


def verified(model: Path, reference: Path, device: Device, data: Path) -> dict[str, object]:
    """The report of `verify`."""
    result = invoke(
        *("verify", model, "--reference", reference, "--data", data),
        *("--device", device, "--format", "json", "--min-exact-match", "0.9"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert isinstance(report, dict)
    return report


def test_what_a_run_found_keeps_the_tokens(run: Path, model: Path, demo_bundle: Bundle, device: Device) -> None:
    report = verified(model, demo_bundle.path, device, run.parent / "calibration.txt")

    assert report["exact_match"] == 1.0
    assert report["source"] == WORDING[device][0]
    facts = json.loads((model / "precision_search.json").read_text())
    assert facts["settings"]["use_tf32"] is False


def test_what_was_found_without_a_device_holds_on_one(cpu_run: Path, demo_bundle: Bundle, device: Device) -> None:
    """What the emulation is for. Two sentences of 24 may part at near-ties, which emulation cannot foretell."""
    report = verified(exported(cpu_run), demo_bundle.path, device, cpu_run.parent / "calibration.txt")

    assert report["nonfinite"] == 0
    differences = report["differences"]
    assert isinstance(differences, list)
    print("differences:", differences)
    assert len(differences) <= 2


def test_published_models_generate(run: Path, model: Path, device: Device) -> None:
    """The plan's, and what the run holds to be best."""
    texts = (run.parent / "calibration.txt").read_text().splitlines()[:5]
    found = [
        Seq2SeqGenerator.from_pretrained(path, device=device, threads=1).generate(texts)
        for path in (model, run / "model")
    ]

    for out in found:
        assert all(out.finished)
        assert not any(out.nonfinite)
        assert all(out.texts)
    assert found[0].texts == found[1].texts


def test_latency_is_measured_against_fp32(demo_bundle: Bundle, settings: SessionSettings) -> None:
    """Only that it is there and whole: how long things take is for benchmarks."""
    measured = MeasuredLatency(demo_bundle, Workload(4, 8, 4), settings, seed=0)
    models = convert(demo_bundle.graphs, keeping(demo_bundle, NORMS, WO)).models

    found, timing = measured.latency(models), measured.take()

    assert found is not None
    assert timing is not None
    assert timing.comparison is not None
    assert (found.source, found.profile) == ("measured", None)
    assert 0 < found.low_ms <= found.p50_ms <= found.high_ms
    samples = timing.comparison.first.samples_ms, timing.comparison.second.samples_ms
    assert len(samples[0]) == len(samples[1]) >= 4
    assert np.isfinite([*samples[0], *samples[1], found.speedup]).all()
