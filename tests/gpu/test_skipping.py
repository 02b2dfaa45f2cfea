"""Without a device the tests for one are skipped with the reason; where one was promised they fail."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import GPU_VARIABLE, ROOT

NO_DEVICE = {"CUDA_VISIBLE_DEVICES": "", "PRECISION_SEARCH_NO_SKIP": "1"}


def run_pytest(**variables: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != GPU_VARIABLE}
    command = [sys.executable, "-m", "pytest", "-rs", "-m", "gpu", "tests/gpu/test_kernels.py", "-k", "mean_overflows"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment | NO_DEVICE | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
def test_a_machine_without_a_gpu_skips_and_says_why() -> None:
    """Also where nothing else may be skipped: continuous integration has no GPU."""
    code, printed = run_pytest()

    assert code == 0
    assert "3 skipped" in printed
    assert "needs a CUDA device." in printed
    assert "Fix: " in printed


@pytest.mark.slow
def test_a_machine_that_should_have_a_gpu_fails() -> None:
    code, printed = run_pytest(**{GPU_VARIABLE: "1"})

    assert code == 1
    assert "3 errors" in printed
    assert f"{GPU_VARIABLE} is set, but: " in printed
