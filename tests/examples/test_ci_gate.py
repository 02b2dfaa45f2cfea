"""The script `examples/ci_gate.sh` lets a good plan pass, and its exit codes are those that the docs name."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, why_no_cuda
from tests.tiny_model import write_tiny_config
from tests.warm import python_command


def gate(folder: Path, *arguments: str, command: str | None = None) -> Any:
    """Runs the script with `command` as `precision-search`, or the real one."""
    command = command or f'exec {shlex.join(python_command())} -m precision_search "$@"'
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    program = tools / "precision-search"
    program.write_text(f"#!/bin/sh\n{command}\n")
    program.chmod(0o755)
    return subprocess.run(
        [ROOT / "examples/ci_gate.sh", *arguments],
        cwd=folder,
        env=os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_good_plan_passes_and_a_bad_one_does_not(tmp_path: Path) -> None:
    config, model, data = str(write_tiny_config(tmp_path)), str(tmp_path / "model"), str(tmp_path / "test.txt")
    given = {"dtype": "float16", "patterns": [r"encoder\..*", "lm_head/.*"]}
    (tmp_path / "blocklist.json").write_text(json.dumps(given))
    (tmp_path / "nothing.json").write_text(json.dumps({"dtype": "float16"}))

    passed = gate(tmp_path, config, "blocklist.json", model, data, "0.5")
    assert passed.returncode == 0, passed.stderr
    assert "chosen: plan 1" in passed.stdout
    assert "non-finite   0 of 8" in passed.stdout, "the last lines are those of verify"
    assert (tmp_path / "gate-run/model/encoder_model.onnx").is_file()

    again = gate(tmp_path, config, "blocklist.json", model, data, "0.5")
    assert (again.returncode, again.stdout) == (2, "")
    assert "already exists" in again.stderr

    (tmp_path / "gate-run").rename(tmp_path / "first")
    all_low = gate(tmp_path, config, "nothing.json", model, data, "0.5")
    assert all_low.returncode == 1, all_low.stderr
    assert "nonfinite from token 1" in all_low.stdout
    assert "non-finite" not in all_low.stdout, "the second step is not reached"


@pytest.mark.skipif(why_no_cuda() is None, reason="CUDA works here")
def test_a_machine_without_what_the_config_asks_for_ends_with_3(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    config.write_text(config.read_text().replace('kind = "cpu"', 'kind = "cuda"'))
    (tmp_path / "blocklist.json").write_text("{}")

    assert gate(tmp_path, str(config), "blocklist.json", "model", "test.txt", "1").returncode == 3


@pytest.mark.parametrize("code", [1, 2, 3, 4, 130])
@pytest.mark.parametrize("step", ["run", "verify"])
def test_the_code_is_that_of_the_step_that_fails(tmp_path: Path, code: int, step: str) -> None:
    command = f'echo "$2"; [ "$2" != {step} ] || exit {code}'

    done = gate(tmp_path, "my.toml", "blocklist.json", "model", "test.txt", "1", command=command)

    assert done.returncode == code
    assert done.stdout.split() == (["run"] if step == "run" else ["run", "verify"])
