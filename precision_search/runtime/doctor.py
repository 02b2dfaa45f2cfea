"""What this machine can run, and how to get the rest.

In: nothing. Out: a `DoctorReport`. It must work where nothing else does, so nothing but the standard library is
imported before it is known to be there.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from precision_search.errors import EnvironmentProblemError, PrecisionSearchError

REQUIRED = (
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "ml-dtypes",
    "optuna",
    "tokenizers",
    "torch",
    "transformers",
)
_INSTALL = "pip install precision-search"
_ALTERNATIVES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
"""Distributions that bring the same package."""

_CUDA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Package:
    """An installed distribution; `version` is None where it is missing."""

    name: str
    version: str | None


@dataclass(frozen=True, slots=True)
class CudaState:
    """Whether a one-node graph runs on CUDA device 0.

    Attributes:
        works: whether it ran.
        device: the device's name, None where the driver does not tell it.
        problem: what went wrong, None if nothing did.
        why: the cause.
        fix: what to do.
    """

    works: bool
    device: str | None
    problem: str | None = None
    why: str | None = None
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What this machine can run.

    Attributes:
        python: version of the interpreter.
        platform: operating system and architecture.
        packages: what the project is built on.
        providers: execution providers that ONNX Runtime offers, in its order; offering is not yet starting.
        cuda: whether CUDA starts.
        cores: processor cores this process may use.
        memory_bytes: memory this process may use (the machine's or its container's), None where unknown.
        latency: whether a run here measures latency or estimates it.
        profiles: device profiles that an estimate can use.
    """

    python: str
    platform: str
    packages: tuple[Package, ...]
    providers: tuple[str, ...]
    cuda: CudaState
    cores: int
    memory_bytes: int | None
    latency: Literal["measured", "estimated"]
    profiles: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Packages that a run needs and that are not installed."""
        return tuple(package.name for package in self.packages if package.version is None)

    @property
    def fixes(self) -> tuple[str, ...]:
        """What to do, most urgent first; empty if there is nothing."""
        install = (f"{_INSTALL}  (missing: {', '.join(self.missing)})",) if self.missing else ()
        return install + ((self.cuda.fix,) if self.cuda.fix and not self.missing else ())


def examine() -> DoctorReport:
    """Looks at the machine; starts a one-node CUDA session where ONNX Runtime offers CUDA."""
    from precision_search.runtime.device_profile import available_profiles

    cuda = _cuda_state()
    return DoctorReport(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=tuple(_package(name) for name in REQUIRED),
        providers=_providers(),
        cuda=cuda,
        cores=_cores(),
        memory_bytes=_memory_bytes(),
        latency="measured" if cuda.works else "estimated",
        profiles=available_profiles(),
    )


def cuda_device_name(device_id: int = 0) -> str | None:
    """The name of a CUDA device as its driver gives it, for example `Tesla T4`; None without driver or device."""
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER)
        device = ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), device_id)
            or driver.cuDeviceGetName(name, len(name), device)
        )
    except (OSError, AttributeError):
        return None
    return None if failed else name.value.decode(errors="replace")


def _package(name: str) -> Package:
    for distribution in _ALTERNATIVES.get(name, (name,)):
        try:
            return Package(distribution, importlib.metadata.version(distribution))
        except importlib.metadata.PackageNotFoundError:
            continue
    return Package(name, None)


def _providers() -> tuple[str, ...]:
    try:
        import onnxruntime
    except ImportError:
        return ()
    return tuple(onnxruntime.get_available_providers())


def _cuda_state() -> CudaState:
    try:
        from precision_search.runtime.session import SessionSettings, require_cuda

        require_cuda(SessionSettings(device="cuda"))
    except EnvironmentProblemError as error:
        return _broken(error)
    except ImportError as error:
        return CudaState(False, cuda_device_name(), "CUDA cannot be tried.", str(error), _INSTALL)
    return CudaState(True, cuda_device_name())


def _broken(error: PrecisionSearchError) -> CudaState:
    device = cuda_device_name()
    fix = error.fix
    if device is None:
        # The libraries are gigabytes: nobody should install them where there is no GPU to use them.
        fix = f"no NVIDIA driver answers here; on a machine with a GPU install its driver, then {error.fix}"
    return CudaState(False, device, error.what, error.why or None, fix or None)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    """The machine's memory, or the limit of the process's control group where that is less."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = int(_CGROUP_LIMIT.read_text())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return machine
    return min(machine, limit)
