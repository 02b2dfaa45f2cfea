"""A whole run makes no more conversions and sessions than it needs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from precision_search.config import load_config
from precision_search.judging.landmarks import rejected_landmarks
from precision_search.precision import convert as converter
from precision_search.run import search as run_module
from precision_search.run.search import search
from tests.cli_models import invoke
from tests.tiny_model import write_tiny_config
from tests.told import Told


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts conversions and sessions, whoever asks for them."""
    found: Counter[str] = Counter()

    def counting(name: str, function: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            found[name] += 1
            return function(*args, **options)

        return counted

    convert = converter.convert
    for name, module in list(sys.modules.items()):
        if name.startswith("precision_search.") and getattr(module, "convert", None) is convert:
            monkeypatch.setattr(module, "convert", counting("convert", convert))
    monkeypatch.setattr(onnxruntime, "InferenceSession", counting("session", onnxruntime.InferenceSession))
    return found


@pytest.mark.slow
def test_a_run_of_five_plans_converts_each_once(tmp_path: Path, calls: Counter[str]) -> None:
    """With calibration, validation and test sets, a published winner and two landmarks to show."""
    told = Told()
    result = search(load_config(write_tiny_config(tmp_path, max_trials=5)), tmp_path / "run", reporter=told)

    assert len(result.trials) == 5
    assert result.choice.faster
    assert (tmp_path / "run/model/encoder_model.onnx").is_file()
    assert len(rejected_landmarks(result.trials)) == 2
    assert any("testing the winner" in stage for stage in told.stages)
    assert calls["convert"] == 5
    # fp32 for reference, plan 0 and the test set 3 + 2, ranges 2, screens 2, culprits 4, the winner 3, landmarks 2 x 3,
    # and each published file once.
    assert calls["session"] <= 25

    calls.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(run_module, "find_ceiling")  # it is read
        resumed = search(load_config(tmp_path / "tiny.toml"), tmp_path / "run", resume=True, reporter=(again := Told()))

    assert resumed.trials == result.trials
    assert again.notes[0] == told.notes[0]
    assert told.notes[0].startswith("ceiling: at most 1.")
    assert " at batch 4096, 128/128 on T4, estimated; " in told.notes[0]
    infos = json.loads((tmp_path / "run/run.json").read_text())
    assert list(infos["ceiling"]) == ["speedup", "variant", "source", "profile", "launch_share", "from_batch"]
    # Nothing that was judged is above it, damaged or not.
    assert max(t.latency.speedup for t in result.trials if t.latency) <= infos["ceiling"]["speedup"] * (1 + 1e-9)
    assert calls["convert"] == 1  # the winner, to test and publish it; what landmarks say is in the run already


@pytest.mark.slow
def test_a_run_in_which_nothing_wins_says_at_its_end_what_could_be_gained(tmp_path: Path) -> None:
    """At batch 1 a tiny model is all launches; the run goes on all the same."""
    config = write_tiny_config(tmp_path, max_trials=2)

    result = invoke("run", config, "--out", tmp_path / "run", "--set", "workload.batch=1")

    place = "at batch 1, 128/128 on T4, estimated"
    assert result.exit_code == 1
    assert f"\nceiling: no gain, at most 1.00x {place}; 100% of the time is launches; " in result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"nothing is faster than fp32: at most 1.00x could be gained {place}; ")
    assert last.split("; ")[-1] == result.stderr.partition("\nceiling: ")[2].splitlines()[0].split("; ")[-1]
