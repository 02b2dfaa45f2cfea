"""Builds the stand-in CUDA libraries for the installed ONNX Runtime, with gcc.

In: ONNX Runtime's CUDA provider, whose undefined symbols say which functions there must be, and the C sources in
`src/`. What those do not define becomes a function that succeeds and does nothing; if its name says that it does work,
it is logged. Out: a folder with the libraries.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
CUDA = "13"
_CUDNN_VERSION = 92800
_NOT_SUPPORTED = 15  # CUBLAS_STATUS_NOT_SUPPORTED: callers go on with cublasGemmEx
_CUDNN_NAME = re.compile(rb"\x00(cudnn[A-Z]\w+)(?=\x00)")
_QUIET = re.compile(r"Create|Destroy|Set|Get|Register|Unregister|Init|Descriptor")


class UnavailableError(Exception):
    """The libraries cannot be built here; the message says why."""


def build(folder: Path) -> Path:
    """Builds the libraries into a folder of `folder` named by what goes in; one built before is taken as it is.

    Raises:
        UnavailableError: a tool, a header or the CUDA provider is missing.
    """
    provider, include = _provider(), _headers()
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"{tool} is missing")
    inputs = [*sorted(SOURCES.iterdir()), Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs))
    digest.update(f"{provider} {provider.stat().st_size} {include}".encode())
    built = folder / digest.hexdigest()[:16]
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _build(Path(scratch), provider, include)
            try:
                Path(scratch).rename(built)
            except OSError:  # another process was faster
                if not built.exists():
                    raise
            else:
                Path(scratch).mkdir()  # for the context manager to remove
    return built


def _provider() -> Path:
    spec = find_spec("onnxruntime")
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / "capi"
    library = None if path is None else path / "libonnxruntime_providers_cuda.so"
    if library is None or not library.exists():
        raise UnavailableError("the installed ONNX Runtime has no CUDA provider (pip install onnxruntime-gpu)")
    return library


def _headers() -> Path:
    for entry in sys.path:
        include = Path(entry) / "nvidia" / f"cu{CUDA}" / "include"
        if (include / "cuda_runtime_api.h").exists() and (include / "crt" / "host_config.h").exists():
            return include
    raise UnavailableError("the CUDA headers are missing (pip install nvidia-cuda-runtime nvidia-cuda-crt)")


def _build(out: Path, provider: Path, include: Path) -> None:
    wanted = _symbols("--undefined-only", provider)
    if f"libcudart.so.{CUDA}" not in wanted.values():
        raise UnavailableError(f"the installed ONNX Runtime is not built for CUDA {CUDA}")
    cudnn = {name.decode() for name in _CUDNN_NAME.findall(provider.read_bytes())}
    flags = ["-I", str(include), "-L", str(out), "-Wl,-rpath,$ORIGIN"]
    cudart, cublas = f"libcudart.so.{CUDA}", f"libcublas.so.{CUDA}"

    def named(pattern: str) -> set[str]:
        return {name for name in wanted if re.match(pattern, name)}

    runtime_sources = ("log.c", "memory.c", "kernels.c", "device.c")
    _library(out, cudart, named("_*cuda"), runtime_sources, [*flags, "-ldl", "-lpthread"], versioned=True)
    uses = [*flags, f"-l:{cudart}"]
    _library(out, cublas, named("cublas(?!Lt)"), ("cublas.c",), uses, versioned=True)
    _library(out, f"libcublasLt.so.{CUDA}", named("cublasLt"), (), uses, versioned=True)
    _library(out, "libcuda.so.1", named("cu[A-Z]"), ("driver.c",), uses)
    _library(out, "libcurand.so.10", named("curand"), (), uses)
    _library(out, "libcudnn.so.9", cudnn, (), uses)
    (out / "libcudnn.so").symlink_to("libcudnn.so.9")


def _library(
    out: Path,
    soname: str,
    names: Iterable[str],
    sources: Sequence[str],
    flags: Sequence[str],
    *,
    versioned: bool = False,
) -> None:
    objects = []
    for source in sources:
        objects.append(out / f"{source}.o")
        warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-attributes", "-Wno-deprecated-declarations"]
        _gcc("-c", "-fPIC", "-O1", *warnings, *flags[:2], SOURCES / source, "-o", objects[-1])
    defined = {name for each in objects for name in _symbols("--defined-only", each)}
    generated = out / f"{soname}.c"
    stubs = [_stub(name) for name in sorted(set(names) - defined)]
    generated.write_text("\n".join(["#include <stdlib.h>", '#include "dry.h"', *stubs, ""]))
    script: list[str] = []
    if versioned:  # the provider asks for symbols of this version
        (out / f"{soname}.map").write_text(f"{soname} {{ global: *; }};\n")
        script = [f"-Wl,--version-script={out / soname}.map"]
    shared = ["-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{soname}", "-I", str(SOURCES)]
    _gcc(*shared, *script, "-o", out / soname, generated, *objects, *flags)


def _stub(name: str) -> str:
    """A function that succeeds and does nothing; what creates things hands out a zeroed block."""
    if re.search(r"(GetErrorString|StatusString|StatusName|GetLastErrorString)$", name):
        return f'const char *{name}() {{ return "dry"; }}'
    if name == "cudnnGetVersion":
        return f"size_t {name}() {{ return {_CUDNN_VERSION}; }}"
    if name == "cublasLtMatmulAlgoGetHeuristic":
        return f"int {name}() {{ return {_NOT_SUPPORTED}; }}"
    if "Create" in name:
        return f"int {name}(void **handle) {{ *handle = calloc(1, 256); return 0; }}"
    log = "" if _QUIET.search(name) or name.startswith(("cuda", "__cuda")) else f'dry_log("L\\t{name}"); '
    return f"int {name}() {{ {log}return 0; }}"


def _symbols(which: str, library: Path) -> dict[str, str]:
    """The names of a library's or an object's symbols, with the version that each is wanted in (else empty)."""
    dynamic = ["-D"] if ".so" in library.name else []
    listed = _run("nm", *dynamic, which, str(library))
    fields = (line.split()[-1].partition("@") for line in listed.splitlines() if line.split())
    return {name: version.lstrip("@") for name, _, version in fields}


def _gcc(*arguments: str | Path) -> None:
    _run("gcc", *map(str, arguments))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout
