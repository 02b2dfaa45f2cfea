"""The doctor says what is there, what is not and what to do, on healthy and on broken machines."""

from __future__ import annotations

import ast
import ctypes
import importlib.metadata
import os
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precision_search.device import cuda
from precision_search.device import driver as cuda_driver
from precision_search.device.driver import CudaDevice, CudaDriver
from precision_search.device.state import DeviceState
from precision_search.errors import DeviceError, MissingPackageError
from precision_search.machine import doctor
from precision_search.machine.libraries import find_libraries
from tests.conftest import ROOT

T4 = CudaDriver("580.65", "13.0", (CudaDevice(0, "Tesla T4", "7.5", 2**34, 2**33, bfloat16=False),), None)


def works(device_id: int) -> None:
    assert device_id == 0


def breaks(device_id: int) -> None:
    raise DeviceError("CUDA device 0 does not start.", why="no memory", fix="close other programs")


def lacks(device_id: int) -> None:
    raise MissingPackageError("no libraries", fix="pip install them")


def test_a_working_cuda_device_is_named_and_latency_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "require", works)
    monkeypatch.setattr(doctor, "read_driver", lambda: T4)
    monkeypatch.setattr(doctor, "device_state", lambda number: DeviceState(temperature_c=40.0 + number))

    report = doctor.examine()

    assert report.states == (DeviceState(temperature_c=40.0),)
    assert report.cuda == doctor.CudaState(True, "Tesla T4")
    assert report.latency == "measured"
    assert report.profile == "t4"
    assert report.driver == T4
    assert report.fixes == ()


def test_a_device_that_does_not_start_brings_its_reason_and_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "require", breaks)
    monkeypatch.setattr(doctor, "read_driver", lambda: T4)

    report = doctor.examine()

    assert report.cuda == doctor.CudaState(
        False, "Tesla T4", "CUDA device 0 does not start.", "no memory", "close other programs", "driver"
    )
    assert report.latency == "estimated"
    assert report.fixes == ("close other programs",)


def test_packages_are_what_is_missing_where_the_driver_would_run_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "require", lacks)
    monkeypatch.setattr(doctor, "read_driver", lambda: T4)

    report = doctor.examine()

    assert (report.cuda.lacking, report.fixes) == ("package", ("pip install them",))


@pytest.mark.parametrize(
    ("driver", "beginning"),
    [
        (None, "no NVIDIA driver answers here"),
        (CudaDriver(None, "13.0", (), "it has no device"), "the NVIDIA driver gives no device (it has no device)"),
        (replace(T4, cuda="12.4"), "the NVIDIA driver runs CUDA up to 12.4, this ONNX Runtime needs 13.0; update it"),
    ],
)
def test_without_a_driver_nobody_is_sent_to_install_libraries_first(
    monkeypatch: pytest.MonkeyPatch, driver: CudaDriver | None, beginning: str
) -> None:
    monkeypatch.setattr(cuda, "require", lacks)
    monkeypatch.setattr(doctor, "read_driver", lambda: driver)
    monkeypatch.setattr(doctor, "_cuda_build", lambda: "13.0")

    report = doctor.examine()

    assert report.cuda.lacking == "driver"
    (fix,) = report.fixes
    assert fix.startswith(beginning)
    assert fix.endswith(": pip install them")


def test_versions_are_those_of_the_distribution_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in {"onnxruntime-gpu", "torch"}:
            raise importlib.metadata.PackageNotFoundError(name)
        return f"{name} 1.0"

    monkeypatch.setattr(cuda, "require", breaks)
    monkeypatch.setattr(importlib.metadata, "version", version)

    report = doctor.examine()

    assert doctor.Package("onnxruntime", "onnxruntime 1.0") in report.packages
    assert report.missing == ("torch",)
    assert "missing: torch" in report.fixes[0]
    assert len(report.fixes) == 1  # one thing at a time: CUDA can wait


def test_what_a_run_needs_is_what_the_project_depends_on() -> None:
    """`onnxruntime` and `onnxruntime-gpu` are one package, by platform."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[^\w-]", dependency)[0].removesuffix("-gpu") for dependency in dependencies}

    assert set(doctor.REQUIRED) == names


def imported(root: Path) -> set[str]:
    """Top-level packages that the modules under `root` import, wherever in them."""
    nodes = [node for path in root.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def test_what_the_package_imports_is_what_it_depends_on() -> None:
    foreign = imported(ROOT / "precision_search") - set(sys.stdlib_module_names) - {"precision_search"}

    needed = {name.replace("-", "_") for name in doctor.REQUIRED}
    # Torch's exporter needs the first, transformers' tokenizers the second; what reads Parquet is not needed.
    assert foreign == needed - {"onnxscript", "sentencepiece"} | {"pyarrow"}


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
    monkeypatch.setattr(cuda, "require", breaks)
    monkeypatch.setattr(doctor, "_CGROUP_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("max\n")
    whole = doctor.examine().memory_bytes
    (tmp_path / "memory.max").write_text("1048576\n")

    assert whole is not None
    assert whole > 1048576
    assert doctor.examine().memory_bytes == 1048576


def test_what_rounds_products_otherwise_is_shown_where_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert doctor.examine().variables == ()
    monkeypatch.setenv("ORT_CUDA_GEMM_OPTIONS", "2")

    assert doctor.examine().variables == (doctor.Variable("ORT_CUDA_GEMM_OPTIONS", "2"),)


@pytest.mark.parametrize(
    ("device", "profile"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA L40S", None),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_device_of_a_known_kind_has_a_profile(device: str, profile: str | None) -> None:
    assert doctor.matching_profile(device) == profile


def test_libraries_are_named_as_the_cuda_version_names_them() -> None:
    names = {cuda: [(found.name, found.package) for found in find_libraries(cuda)] for cuda in ("12.8", "13.0")}

    if sys.platform == "linux":
        assert ("libcufft.so.11", "nvidia-cufft-cu12") in names["12.8"]
        assert ("libcublasLt.so.12", "nvidia-cublas-cu12") in names["12.8"]
        assert ("libcublasLt.so.13", "nvidia-cublas") in names["13.0"]
        assert ("libcudnn.so.9", "nvidia-cudnn-cu13") in names["13.0"]
    assert all(len(found) == 6 for found in names.values())


@pytest.mark.skipif(sys.platform != "linux", reason="a loader that tells where a library is from")
def test_a_library_of_an_installed_package_comes_with_its_version() -> None:
    """The development dependencies bring one of the libraries, for its headers."""
    version = importlib.metadata.version("nvidia-cuda-runtime")
    found = {library.name: library for library in find_libraries("13.0")}
    cudart = found["libcudart.so.13"]

    assert cudart.path is not None
    assert Path(cudart.path).is_file()
    assert cudart.version == version or "site-packages" not in cudart.path
    missing = [library for library in found.values() if library.path is None]
    assert all(library.version is None for library in missing)


class FakeDriver:
    """A driver's library with two devices; any function may be made to fail with a code."""

    def __init__(self, **failures: int) -> None:
        self.failures = failures
        self.contexts = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        answers: dict[str, Callable[..., None]] = {
            "cuInit": lambda flags: None,
            "cuDriverGetVersion": lambda version: put(version, 12040),
            "cuDeviceGetCount": lambda count: put(count, 2),
            "cuDeviceGet": lambda handle, number: put(handle, number + 10),
            "cuDeviceGetName": lambda text, size, handle: put_text(text, f"GPU {handle.value}"),
            "cuDeviceGetAttribute": lambda value, which, handle: put(value, {75: 7, 76: 5}[which]),
            "cuDeviceTotalMem_v2": lambda size, handle: put(size, 1 << 34),
            "cuDevicePrimaryCtxRetain": lambda context, handle: self.count(1),
            "cuDevicePrimaryCtxRelease_v2": lambda handle: self.count(-1),
            "cuCtxPushCurrent_v2": lambda context: None,
            "cuCtxPopCurrent_v2": lambda context: None,
            "cuMemGetInfo_v2": lambda free, size: put(free, 1 << 33),
            "cuGetErrorString": lambda code, text: put(text, b"it does not want to"),
        }

        def call(*arguments: Any) -> int:
            answers[name](*arguments)
            return self.failures.get(name, 0)

        return call

    def count(self, change: int) -> None:
        self.contexts += change


def put(target: Any, value: object) -> None:
    target._obj.value = value


def put_text(target: Any, value: str) -> None:
    target.value = value.encode()


def driven(monkeypatch: pytest.MonkeyPatch, **failures: int) -> CudaDriver:
    fake = FakeDriver(**failures)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)
    found = cuda_driver.read_driver()
    assert fake.contexts == 0
    assert found is not None
    return found


def test_a_driver_tells_its_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_driver, "_VERSION_FILE", tmp_path / "version")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2026\n")

    found = driven(monkeypatch)

    assert (found.version, found.cuda, found.problem) == ("580.65.06", "12.4", None)
    first, second = found.devices
    assert first == CudaDevice(0, "GPU 10", "7.5", 1 << 34, 1 << 33, bfloat16=False)
    assert (second.number, second.name) == (1, "GPU 11")
    assert cuda_driver.cuda_device_name(1) == "GPU 11"


def test_a_driver_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for function, code in (("cuInit", 803), ("cuDeviceGetCount", 100)):
        found = driven(monkeypatch, **{function: code})
        assert (found.cuda, found.devices) == ("12.4", ())
        assert found.problem == f"it does not want to (error {code})"
    assert driven(monkeypatch, cuInit=999, cuGetErrorString=1).problem == "unknown error (error 999)"


@pytest.mark.parametrize("function", ["cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemGetInfo_v2"])
def test_a_device_that_is_taken_keeps_its_free_memory_to_itself(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    if function == "cuDevicePrimaryCtxRetain":
        monkeypatch.setattr(FakeDriver, "count", lambda self, change: None)
    assert [device.free_bytes for device in driven(monkeypatch, **{function: 2}).devices] == [None, None]


def test_a_library_that_is_no_driver_gives_no_device_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libnothing-of-that-name.so")
    assert cuda_driver.cuda_device_name() is None
    assert cuda_driver.read_driver() is None
    monkeypatch.setattr(cuda_driver, "LIBRARY", None)  # the interpreter itself: a library without cuInit
    assert cuda_driver.cuda_device_name() is None
    assert cuda_driver.read_driver() is None
