"""CUDA asked for on a machine without it, through the public door and with nothing stood in."""

from __future__ import annotations

from pathlib import Path

import pytest

from precision_search.runtime.backends import resolve_device
from tests.cli_models import DEMO, fails, invoke


def test_a_run_on_a_machine_without_cuda_says_what_is_missing_and_writes_nothing(tmp_path: Path) -> None:
    if resolve_device("auto", warn=print) == "cuda":
        pytest.skip("CUDA works here")
    out = tmp_path / "out"
    message = fails(invoke("run", DEMO, "--set", "device.kind=cuda", "--out", out), 3)
    # Which of them depends on the machine; every text has its own test in test_cuda.py.
    causes = ("has no CUDA provider", "libraries do not load: lib", "no NVIDIA driver", "finds no device")
    assert any(cause in message for cause in causes)
    assert "fix:" in message
    assert list(tmp_path.iterdir()) == []
