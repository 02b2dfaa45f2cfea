"""The script `examples/ci_gate.sh` lets a good plan pass, and its exit codes are those that the docs name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tiny_model import write_tiny_config


def gate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script, with the command of this environment on its path."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    command = tools / "precision-search"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m precision_search "$@"\n')
    command.chmod(0o755)
    return subprocess.run(
        [ROOT / "examples/ci_gate.sh", *arguments],
        cwd=folder,
        env=os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_gate_lets_a_good_plan_pass_and_says_why_not(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    given = {"dtype": "float16", "patterns": [r"encoder\..*", "lm_head/.*"]}
    (tmp_path / "blocklist.json").write_text(json.dumps(given))
    (tmp_path / "nothing.json").write_text(json.dumps({"dtype": "float16"}))
    data, arguments = str(tmp_path / "test.txt"), (str(config), "blocklist.json", str(tmp_path / "model"))

    passed = gate(tmp_path, *arguments, data, "0.5")
    assert passed.returncode == 0, passed.stderr
    assert "chosen: plan 1" in passed.stdout
    assert "emulated" in passed.stdout.splitlines()[-2], "the last lines are those of verify"
    assert (tmp_path / "gate-run/model/encoder_model.onnx").is_file()

    assert gate(tmp_path, *arguments, data, "0.5").returncode == 2, "gate-run is there already"
    (tmp_path / "gate-run").rename(tmp_path / "first")

    all_low = gate(tmp_path, str(config), "nothing.json", str(tmp_path / "model"), data, "0.5")
    assert all_low.returncode == 1, all_low.stderr
    assert "nonfinite from token 1" in all_low.stdout
    assert "samples exact" in all_low.stdout.splitlines()[-1], "the second step is not reached"
