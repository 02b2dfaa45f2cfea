"""The doctor says what is there, what is not and what to do, on healthy and on broken machines."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

from precision_search.errors import DeviceError, MissingPackageError
from precision_search.runtime import doctor, session
from precision_search.runtime.session import SessionSettings


def works(settings: SessionSettings) -> None:
    assert settings.device == "cuda"


def breaks(settings: SessionSettings) -> None:
    raise DeviceError("CUDA device 0 does not start.", why="no memory", fix="close other programs")


def test_a_working_cuda_device_is_named_and_latency_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "require_cuda", works)
    monkeypatch.setattr(doctor, "cuda_device_name", lambda: "Tesla T4")

    report = doctor.examine()

    assert report.cuda == doctor.CudaState(True, "Tesla T4")
    assert report.latency == "measured"
    assert report.fixes == ()


def test_a_device_that_does_not_start_brings_its_reason_and_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "require_cuda", breaks)
    monkeypatch.setattr(doctor, "cuda_device_name", lambda: "Tesla T4")

    report = doctor.examine()

    assert report.cuda == doctor.CudaState(
        False, "Tesla T4", "CUDA device 0 does not start.", "no memory", "close other programs"
    )
    assert report.latency == "estimated"
    assert report.fixes == ("close other programs",)


def test_without_a_driver_nobody_is_sent_to_install_libraries_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(settings: SessionSettings) -> None:
        raise MissingPackageError("no libraries", fix="pip install them")

    monkeypatch.setattr(session, "require_cuda", missing)
    monkeypatch.setattr(doctor, "cuda_device_name", lambda: None)

    (fix,) = doctor.examine().fixes

    assert fix.startswith("no NVIDIA driver answers here")
    assert fix.endswith("then pip install them")


def test_versions_are_those_of_the_distribution_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in {"onnxruntime-gpu", "torch"}:
            raise importlib.metadata.PackageNotFoundError(name)
        return f"{name} 1.0"

    monkeypatch.setattr(session, "require_cuda", breaks)
    monkeypatch.setattr(importlib.metadata, "version", version)

    report = doctor.examine()

    assert doctor.Package("onnxruntime", "onnxruntime 1.0") in report.packages
    assert report.missing == ("torch",)
    assert "missing: torch" in report.fixes[0]
    assert len(report.fixes) == 1  # one thing at a time: CUDA can wait


def test_it_works_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    report = doctor.examine()

    assert report.providers == ()
    assert not report.cuda.works
    assert report.cuda.why is not None
    assert "onnxruntime" in report.cuda.why


def test_it_knows_this_machine() -> None:
    report = doctor.examine()

    assert report.python == ".".join(str(part) for part in sys.version_info[:3])
    assert "CPUExecutionProvider" in report.providers
    assert 1 <= report.cores <= (os.cpu_count() or 1)
    assert report.memory_bytes is None or report.memory_bytes > 2**28
    assert "t4" in report.profiles
    assert report.cuda.works == (report.latency == "measured")


def test_a_control_group_limits_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session, "require_cuda", breaks)
    monkeypatch.setattr(doctor, "_CGROUP_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("max\n")
    whole = doctor.examine().memory_bytes
    (tmp_path / "memory.max").write_text("1048576\n")

    assert whole is not None
    assert whole > 1048576
    assert doctor.examine().memory_bytes == 1048576


def test_a_library_that_is_no_driver_gives_no_device_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CUDA_DRIVER", "libnothing-of-that-name.so")
    assert doctor.cuda_device_name() is None
    monkeypatch.setattr(doctor, "_CUDA_DRIVER", None)  # the interpreter itself: a library without cuInit
    assert doctor.cuda_device_name() is None
