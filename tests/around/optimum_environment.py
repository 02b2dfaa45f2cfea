"""The packages in which optimum loads models, laid over this environment's own and kept under build/.

optimum-onnx 0.1.0 needs transformers before 4.58, which this project's environment has not. What both need in the same
version, torch before all, is not installed a second time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.conftest import ROOT

REQUIREMENTS = Path(__file__).with_name("optimum-requirements.txt")


def optimum_packages() -> Path:
    """The folder of the packages. Where they cannot be had, a test skips; in continuous integration it fails."""
    missing = missing_packages(REQUIREMENTS.read_text())
    wanted = hashlib.sha256("\n".join([*missing, sys.version]).encode()).hexdigest()[:12]
    place = ROOT / "build" / f"optimum-{wanted}"
    stamp = place / "installed"
    if stamp.is_file():
        return place
    for old in place.parent.glob("optimum-" + "?" * 12):
        shutil.rmtree(old)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(place)]
    done = subprocess.run([*pip, *missing], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"{' '.join(pip)} failed: {done.stderr.strip()[-500:]}"
        if os.environ.get("PRECISION_SEARCH_NO_SKIP"):
            pytest.fail(reason)
        pytest.skip(reason)
    stamp.touch()
    return place


def missing_packages(requirements: str) -> list[str]:
    """Those of the pinned requirements that this environment has not, or in another version."""
    lines = [line for line in requirements.splitlines() if line and not line.startswith("#")]
    return [line for line in lines if not _is_installed(*line.split("=="))]


def _is_installed(name: str, pinned: str) -> bool:
    """A local build, such as 2.13.0+cpu, is the version; onnxruntime is there under the name of its CUDA build, too."""
    for each in (name, f"{name}-gpu"):
        try:
            return version(each).partition("+")[0] == pinned
        except PackageNotFoundError:
            continue
    return False


def run_with_optimum(*arguments: str) -> str:
    """What a Python with these packages in front of its own prints."""
    environment = os.environ | {"PYTHONPATH": str(optimum_packages()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT / "build")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
