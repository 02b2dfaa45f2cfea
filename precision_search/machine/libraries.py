"""The CUDA libraries that ONNX Runtime's CUDA provider loads: which of them are here, and from where.

In: the CUDA version that ONNX Runtime was built for. Out: one `CudaLibrary` for each.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path

_LINK_MAP = 2
"""RTLD_DI_LINKMAP of `dlinfo`: the loader's own record of a library."""


class _LinkMap(ctypes.Structure):
    """The first fields of the loader's record (link.h): where a library was put and its path."""

    _fields_ = (("address", ctypes.c_void_p), ("path", ctypes.c_char_p))


@dataclass(frozen=True, slots=True)
class CudaLibrary:
    """A library.

    Attributes:
        name: its file name.
        package: the Python package that brings it.
        version: of that package, where the library found is the package's.
        path: where it is; the bare name where the system finds it and does not tell; None if it is missing.
    """

    name: str
    package: str
    version: str | None
    path: str | None


def find_libraries(cuda: str) -> tuple[CudaLibrary, ...]:
    """Looks for each library: what a program gets that asks for it by its name now, else what its package holds.

    Whoever loads the packaged libraries (`cuda.load_libraries`) does that first, so that they have those names.

    Args:
        cuda: the version, for example "13.0".
    """
    return tuple(_find(name, package) for name, package in _wanted(cuda.partition(".")[0]))


def _wanted(major: str) -> list[tuple[str, str]]:
    """File name and package of each library, as ONNX Runtime 1.31 and NVIDIA's wheels name them.

    From CUDA 13 on the packages carry no version in their names; cuRAND counts its own versions, cuFFT is one behind.
    """
    suffix = "" if int(major) >= 13 else f"-cu{major}"
    versions = {"cudart": major, "cublasLt": major, "cublas": major, "curand": "10", "cufft": str(int(major) - 1)}
    packages = {"cudart": "nvidia-cuda-runtime", "cublasLt": "nvidia-cublas"}
    wanted = [(_file(name, versions[name]), packages.get(name, f"nvidia-{name}") + suffix) for name in versions]
    return [*wanted, (_file("cudnn", "9"), f"nvidia-cudnn-cu{major}")]


def _file(name: str, version: str) -> str:
    return f"{name}64_{version}.dll" if sys.platform == "win32" else f"lib{name}.so.{version}"


def _find(name: str, package: str) -> CudaLibrary:
    packaged, version = _in_package(name, package)
    path = _load(name) or packaged
    is_packaged = packaged is not None and path is not None and path.resolve() == packaged.resolve()
    return CudaLibrary(name, package, version if is_packaged else None, None if path is None else str(path))


def _in_package(name: str, package: str) -> tuple[Path | None, str | None]:
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None, None
    for file in distribution.files or ():
        if file.name == name:
            path = Path(str(file.locate()))
            return (path, distribution.version) if path.is_file() else (None, None)
    return None, None


def _load(name: str) -> Path | None:
    """The path of the library that the name stands for in this process, the bare name where the loader hides it."""
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    record = ctypes.POINTER(_LinkMap)()
    try:
        failed = ctypes.CDLL(None).dlinfo(ctypes.c_void_p(library._handle), _LINK_MAP, ctypes.byref(record))
    except (AttributeError, TypeError):  # not on Windows
        return Path(name)
    return Path(name if failed else (record.contents.path or name.encode()).decode(errors="replace"))
