"""What this machine can run, and how to get the rest.

In: nothing. Out: a `DoctorReport`. It must work where nothing else does, so nothing but the standard library is
imported before it is known to be there.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from precision_search.device.driver import CudaDriver, read_driver
from precision_search.device.profile import available_profiles, load_profile
from precision_search.device.state import DeviceState, device_state
from precision_search.errors import EnvironmentProblemError, MissingPackageError
from precision_search.machine.libraries import CudaLibrary, find_libraries

REQUIRED = (
    "click",
    "huggingface_hub",
    "jinja2",
    "ml-dtypes",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "plotly",
    "regex",
    "rich",
    "safetensors",
    "scipy",
    "sentencepiece",
    "tokenizers",
    "torch",
    "transformers",
)
"""Distributions that a run needs: the project's dependencies."""
_INSTALL = "pip install precision-search"
_ALTERNATIVES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
"""Distributions that bring the same package."""

VARIABLES = ("CUDA_VISIBLE_DEVICES", "ORT_CUDA_GEMM_OPTIONS", "NVIDIA_TF32_OVERRIDE")
"""Of the environment: which devices there are, and how their matrix products round."""

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Package:
    """An installed distribution.

    Attributes:
        name: its name.
        version: None where it is missing.
    """

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
        lacking: what is in the way: a package, or a driver with a device; None if nothing is.
    """

    works: bool
    device: str | None
    problem: str | None = None
    why: str | None = None
    fix: str | None = None
    lacking: Literal["package", "driver"] | None = None


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable that is set.

    Attributes:
        name: its name.
        value: what it is set to.
    """

    name: str
    value: str


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
        cuda_build: the CUDA version that ONNX Runtime was built for, None if for none.
        libraries: the CUDA libraries that this ONNX Runtime loads.
        driver: the NVIDIA driver and its devices, None where there is none.
        states: the condition of each device of the driver, in their order.
        profile: the built-in profile of the first device's kind, None if there is none.
        variables: those of `VARIABLES` that are set.
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
    cuda_build: str | None = None
    libraries: tuple[CudaLibrary, ...] = ()
    driver: CudaDriver | None = None
    states: tuple[DeviceState, ...] = ()
    profile: str | None = None
    variables: tuple[Variable, ...] = ()

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
    cuda_build = _cuda_build()
    driver = read_driver()
    cuda = _cuda_state(driver, cuda_build)
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
        cuda_build=cuda_build,
        # After the session, which has loaded what it could.
        libraries=() if cuda_build is None else find_libraries(cuda_build),
        driver=driver,
        states=() if driver is None else tuple(device_state(device.number) for device in driver.devices),
        profile=None if cuda.device is None else matching_profile(cuda.device),
        variables=tuple(Variable(name, os.environ[name]) for name in VARIABLES if name in os.environ),
    )


def matching_profile(device: str) -> str | None:
    """The built-in profile of a device's kind, by its model among the words of its name, as in `NVIDIA L4`.

    Variants (memory size, PCIe or SXM) are not told apart: a profile describes one of them.
    """
    words = set(_words(device))
    models = {name: _words(load_profile(name).datasheet.device)[1] for name in available_profiles()}
    return next((name for name, model in models.items() if model in words), None)


def _words(device: str) -> list[str]:
    return device.lower().replace("-", " ").split()


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


def _cuda_build() -> str | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    return getattr(onnxruntime, "cuda_version", None) or None


def _cuda_state(driver: CudaDriver | None, cuda_build: str | None) -> CudaState:
    name = driver.devices[0].name if driver is not None and driver.devices else None
    try:
        from precision_search.device import cuda

        cuda.require(0)
    except EnvironmentProblemError as error:
        if not isinstance(error, MissingPackageError):
            return CudaState(False, name, error.what, error.why or None, error.fix or None, "driver")
        # The libraries are gigabytes: nobody should install them where no driver would run them.
        driver_first = _driver_fix(driver, cuda_build)
        fix = error.fix if driver_first is None else f"{driver_first}: {error.fix}"
        return CudaState(
            False, name, error.what, error.why or None, fix or None, "package" if driver_first is None else "driver"
        )
    except ImportError as error:
        return CudaState(False, name, "CUDA cannot be tried", str(error), _INSTALL, "package")
    return CudaState(True, name)


def _driver_fix(driver: CudaDriver | None, cuda_build: str | None) -> str | None:
    """What is wrong with the driver, so that no package would help, and what to do; None if nothing is."""
    if driver is None:
        return "no NVIDIA driver answers here; on a machine with a GPU"
    if driver.problem is not None:
        return f"the NVIDIA driver gives no device ({driver.problem}); see what nvidia-smi says, then"
    if driver.cuda and cuda_build and int(driver.cuda.partition(".")[0]) < int(cuda_build.partition(".")[0]):
        return f"the NVIDIA driver runs CUDA up to {driver.cuda}, this ONNX Runtime needs {cuda_build}; update it, then"
    return None


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
