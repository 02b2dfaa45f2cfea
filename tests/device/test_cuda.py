"""Starting CUDA: every way to fail has a text and a remedy of its own; what a process has once is not set twice."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import onnxruntime
import pytest

from precision_search.device import cuda
from precision_search.device.cuda import CPU_PROVIDER, CUDA_PROVIDER, GEMM_VARIABLE, TF32_VARIABLE
from precision_search.errors import (
    DeviceError,
    DeviceMemoryError,
    MissingPackageError,
    PrecisionSearchError,
    UsageError,
)

INSTALL = "pip install 'precision-search[cuda]'"
MISSING = (
    "Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file: No such file or directory\n"
    "Failed to load /site-packages/nvidia/cu13/lib/libcurand.so.10: /site-packages/libcurand.so.10: file too short\n"
    "Failed to load libcurand.so.10: libcurand.so.10: cannot open shared object file: No such file or directory\n"
    "Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.\n"
)


class FallenBack:
    """A session as ONNX Runtime gives it when CUDA does not load: on the CPU, without an error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def get_providers(self) -> list[str]:
        return [CPU_PROVIDER]


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The driver libraries that load; nothing else is asked of the system."""
    there = {"libcuda.so.1", "nvcuda.dll"}

    def load(name: str) -> None:
        if name not in there:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    return there


def told(kind: type[PrecisionSearchError], device_id: int = 0) -> PrecisionSearchError:
    with pytest.raises(kind) as caught:
        cuda.require(device_id)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 3
    return caught.value


def test_a_runtime_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU_PROVIDER])
    error = told(MissingPackageError)
    assert "no CUDA provider" in error.what
    assert INSTALL in error.fix


def test_missing_libraries_are_named(
    monkeypatch: pytest.MonkeyPatch, driver: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(MISSING, end=""))
    error = told(MissingPackageError)
    assert error.what.endswith("do not load: libcublasLt.so.13, libcurand.so.10")
    assert "libcurand.so.10: file too short" in error.why
    assert error.why.count("libcurand") == 1
    assert error.fix == f"{INSTALL} (or run on the CPU)"
    driver.clear()
    error = told(MissingPackageError)
    assert "nor is there an NVIDIA driver" in error.why
    assert INSTALL in error.fix and "driver" in error.fix
    assert capsys.readouterr().out == ""


def test_a_missing_driver_is_no_missing_package(driver: set[str]) -> None:
    driver.clear()
    error = told(DeviceError)
    assert "no NVIDIA driver" in error.what
    assert "pip" not in error.fix


@pytest.mark.usefixtures("driver")
def test_a_provider_that_does_not_load_though_its_libraries_do() -> None:
    error = told(MissingPackageError)
    assert "cannot load its CUDA provider" in error.what
    assert "onnxruntime-gpu" in error.fix


@pytest.mark.parametrize(
    ("text", "kind", "what", "fix"),
    [
        ("CUDA failure 35: driver is insufficient ; GPU=0", DeviceError, "driver is too old for CUDA", "update"),
        ("CUDA failure 100: no CUDA-capable device ; GPU=0", DeviceError, "driver finds no device", "container"),
        ("CUDA failure 101: invalid device ordinal ; GPU=0", DeviceError, "there is no CUDA device 3", "device.id"),
        ("CUDA failure 209: no kernel image ; GPU=0", DeviceError, "has no kernels for that GPU", "another GPU"),
        ("CUDA failure 803: driver mismatch ; GPU=0", DeviceError, "do not fit together", "restart"),
        ("CUDA failure 999: unknown error ; GPU=0", DeviceError, "CUDA device 3 does not start", "nvidia-smi"),
        ("something else\nand a stack", DeviceError, "CUDA device 3 does not start", "nvidia-smi"),
        ("CUDA failure 2: out of memory ; GPU=0", DeviceMemoryError, "has no memory left", "free"),
        ("cuDNN is unavailable for CUDA Execution Provider", MissingPackageError, "libcudnn.so.9", INSTALL),
    ],
)
def test_what_the_driver_answers(
    monkeypatch: pytest.MonkeyPatch, text: str, kind: type[PrecisionSearchError], what: str, fix: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"x.cc:63 {text}")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    error = told(kind, device_id=3)
    assert what in error.what
    assert fix in error.fix
    assert "\n" not in error.why and "GPU=0" not in error.why


def test_a_device_that_is_not_there_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Invalid device ID: 3, must be between 0 (inclusive) and 2 (exclusive).")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    error = told(DeviceError, device_id=3)
    assert error.what == "there is no CUDA device 3"
    assert error.why == "ONNX Runtime sees 2, numbered from 0; CUDA_VISIBLE_DEVICES is 4,5"


def test_gemm_options_are_set_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GEMM_VARIABLE, "0")  # so that what follows is undone
    monkeypatch.delenv(GEMM_VARIABLE)
    cuda.apply_process_settings(2, use_tf32=False)
    assert os.environ[GEMM_VARIABLE] == "2"
    cuda.apply_process_settings(2, use_tf32=False)
    with pytest.raises(UsageError, match="GEMM options are to be 0, but ORT_CUDA_GEMM_OPTIONS is 2"):
        cuda.apply_process_settings(0, use_tf32=False)
    assert os.environ[GEMM_VARIABLE] == "2"


@pytest.mark.parametrize(
    ("override", "use_tf32", "fits"), [("0", False, True), ("0", True, False), ("1", False, False)]
)
def test_tf32_that_the_process_overrides_is_refused(
    monkeypatch: pytest.MonkeyPatch, override: str, use_tf32: bool, fits: bool
) -> None:
    monkeypatch.setenv(GEMM_VARIABLE, "2")
    monkeypatch.setenv(TF32_VARIABLE, override)
    if fits:
        cuda.apply_process_settings(2, use_tf32=use_tf32)
        return
    with pytest.raises(UsageError, match="NVIDIA_TF32_OVERRIDE is"):
        cuda.apply_process_settings(2, use_tf32=use_tf32)


def test_memory_that_is_shared_has_one_limit_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_shared_memory", {3: 2 << 30})
    cuda.share_memory(3, 2 << 30)
    with pytest.raises(UsageError) as caught:
        cuda.share_memory(3, 1 << 30)
    assert "the memory that sessions share on CUDA device 3 has" in caught.value.what
    assert "the first limit in a process holds until it ends" in caught.value.why
    assert "device.memory_limit" in caught.value.fix
    assert caught.value.exit_code == 2
