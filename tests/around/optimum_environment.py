"""An environment in which optimum loads models, built once and kept under build/.

optimum-onnx 0.1.0 needs transformers before 4.58, which this project's own environment has not. (Measured on two cores:
85 s to build, torch included.)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

REQUIREMENTS = Path(__file__).with_name("optimum-requirements.txt")


def optimum_python() -> Path:
    """The environment's Python. Where packages cannot be had, a test skips; in continuous integration it fails."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = ROOT / "build" / f"optimum-{wanted}"
    python, stamp = place / "bin/python", place / "installed"
    if stamp.is_file():
        return python
    for old in place.parent.glob("optimum-" + "?" * 12):
        shutil.rmtree(old)
    torch = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    # torch by itself and by its exact version first: a range may take a CUDA build of several gigabytes.
    for command in (
        [sys.executable, "-m", "venv", str(place)],
        [*pip, torch],
        [*pip, "--requirement", str(REQUIREMENTS)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}"
            if os.environ.get("PRECISION_SEARCH_NO_SKIP"):
                pytest.fail(reason)
            pytest.skip(reason)
    stamp.touch()
    return python


def run_with_optimum(*arguments: str) -> str:
    """What the environment's Python prints; of this project it sees nothing but the arguments."""
    command = [str(optimum_python()), *arguments]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=alone | {"HF_HUB_OFFLINE": "1"}, cwd=ROOT / "build"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
