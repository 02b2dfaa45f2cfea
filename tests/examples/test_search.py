"""The examples do what they say, on a model small enough for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tiny_model import write_tiny_config
from tests.warm import python_command


@pytest.mark.slow
def test_search_leaves_a_model_and_generates_with_it(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path, "nodes", max_trials=8)
    command = [*python_command(), str(ROOT / "examples/search.py"), str(config), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    nearly = "the one with the least flip risk within 2% of "  # if one is that near
    assert lines[0].replace(nearly, "").startswith("chosen: the fastest stable plan")
    assert any("(estimated)" in line and "in 1,000 tokens" in line for line in lines)
    assert f"{tmp_path / 'run-calm'}: 12 of 12 calibration samples exact (emulated)" in lines
    assert (tmp_path / "run-calm/precision_search.json").is_file()


@pytest.mark.slow
def test_search_needs_no_validation_set(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path, "op-types", max_trials=12)
    text = config.read_text()
    start, end = text.index("[validation]"), text.index("[test]")
    config.write_text(text[:start] + text[end:])
    command = [*python_command(), str(ROOT / "examples/search.py"), str(config), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "flips: unknown" in done.stdout
    assert (tmp_path / "run-calm/precision_search.json").is_file()


def test_search_says_how_it_is_called() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/search.py")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "usage: " in done.stderr
