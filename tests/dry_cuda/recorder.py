"""Reads the dry CUDA runtime from the process that runs on it, section by section.

While a recorder is open, `onnxruntime.InferenceSession` is one that tells it when a session is made and when it runs,
and the functions that make tensors or bind outputs tell it what they were asked for.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import inspect
import json
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import onnxruntime
import pytest

from tests.dry_cuda.trace import Phase, Section, parse, short_name

FOLDER_VARIABLE = "DRY_CUDA_LIBRARIES"
"""Where the libraries are, for the child process."""


_RUNS = ("run", "run_with_iobinding", "run_with_ort_values")
_MAKERS = ("ortvalue_from_numpy", "ortvalue_from_numpy_with_onnx_type", "ortvalue_from_shape_and_type")


@functools.cache
def load_libraries() -> ctypes.CDLL:
    """Loads the stand-ins before anything can load real ones of the same name; returns the CUDA runtime."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    names = sorted(path.name for path in folder.glob("lib*.so.*") if path.suffix[1:].isdigit())
    loaded = {name: ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL) for name in names}
    (runtime,) = (library for name, library in loaded.items() if name.startswith("libcudart"))
    for function in ("dry_take", "dry_kernel_name", "dry_first_error"):
        getattr(runtime, function).restype = ctypes.c_char_p
    runtime.dry_errors.restype = ctypes.c_long
    runtime.dry_set_memory.argtypes = [ctypes.c_size_t]
    return runtime


def check_errors() -> None:
    """Fails if the device was given memory that is not what it takes."""
    runtime = load_libraries()
    count = runtime.dry_errors()
    assert count == 0, f"{count} errors, the first: {runtime.dry_first_error().decode()}"


def forgive_errors() -> None:
    """Forgets the errors so far, which a test provoked."""
    load_libraries().dry_forgive()


@functools.cache
def _kernel_name(number: int) -> str:
    return short_name(load_libraries().dry_kernel_name(number).decode())


class Recorder:
    """Cuts the log into sections.

    Attributes:
        sections: what was recorded since the recorder opened, or since `take`.
        nodes: with `profile`, after the recorder closed: by graph name, for each run the nodes as ONNX Runtime's
            profile lists them: name, op type and provider.
    """

    def __init__(self, profile_folder: Path | None = None) -> None:
        self.sections: list[Section] = []
        self.nodes: dict[str, list[tuple[str, str, str]]] = {}
        self._runtime = load_libraries()
        self._profile_folder = profile_folder
        self._profiled: list[tuple[str, Any]] = []
        self._tensors: list[int] = []
        self._unplaced: list[str] = []
        self._patches = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        self._runtime.dry_take()
        watched = _watched(self, onnxruntime.InferenceSession, self._profile_folder)
        self._patches.setattr(onnxruntime, "InferenceSession", watched)
        for maker in _MAKERS:
            self._patches.setattr(onnxruntime.OrtValue, maker, staticmethod(_counting(self._tensors, maker)))
        bind = _noting(self._unplaced, onnxruntime.IOBinding.bind_output)
        self._patches.setattr(onnxruntime.IOBinding, "bind_output", bind)
        return self

    def __exit__(self, *error: object) -> None:
        self.cut("binding", "")
        self._patches.undo()
        for graph, session in self._profiled:
            self.nodes.setdefault(graph, []).extend(_read_profile(Path(session.end_profiling())))

    def take(self) -> tuple[Section, ...]:
        """The sections since the last call; the recorder starts again without them."""
        self.cut("binding", "")
        taken = tuple(self.sections)
        self.sections.clear()
        return taken

    def cut(self, phase: Phase, graph: str) -> None:
        """Ends a section: what was logged since the last one belongs to it. Empty ones are left out."""
        log, tensors, unplaced = self._runtime.dry_take().decode(), tuple(self._tensors), tuple(self._unplaced)
        self._tensors.clear()
        self._unplaced.clear()
        if log or tensors or unplaced or phase == "run":
            found = parse(log, phase, graph, _kernel_name)
            self.sections.append(dataclasses.replace(found, tensors=tensors, unplaced=unplaced))

    def profiled(self, graph: str, session: Any) -> None:
        """Notes a session whose profile is read at the end."""
        self._profiled.append((graph, session))


def set_device_memory(size: int) -> None:
    """How many bytes the device has from now on."""
    load_libraries().dry_set_memory(size)


def _watched(recorder: Recorder, base: Any, profile_folder: Path | None) -> Any:
    """A subclass of InferenceSession that cuts the recorder's log around what a session does."""

    def init(self: Any, graph: Any, sess_options: Any = None, **options: Any) -> None:
        recorder.cut("binding", "")
        if profile_folder is not None and sess_options is not None:
            sess_options.enable_profiling = True
            sess_options.profile_file_prefix = str(profile_folder / "profile")
        base.__init__(self, graph, sess_options, **options)
        self.graph_name = _graph_name(self)
        recorder.cut("session", self.graph_name)
        if profile_folder is not None:
            recorder.profiled(self.graph_name, self)

    def watch(name: str) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            recorder.cut("binding", "")
            try:
                return getattr(base, name)(self, *arguments, **options)
            finally:
                recorder.cut("run", self.graph_name)

        return call

    body: Mapping[str, Any] = {"__init__": init, **{name: watch(name) for name in _RUNS}}
    return types.new_class("WatchedSession", (base,), exec_body=lambda namespace: namespace.update(body))


def _counting(tensors: list[int], maker: str) -> Callable[..., Any]:
    """A function of OrtValue that notes the bytes of each tensor it makes on a device."""
    make = getattr(onnxruntime.OrtValue, maker)

    def counted(*arguments: Any, **options: Any) -> Any:
        value = make(*arguments, **options)
        if value.device_name() != "cpu":
            tensors.append(value.tensor_size_in_bytes())
        return value

    return counted


def _noting(names: list[str], bind: Callable[..., None]) -> Callable[..., None]:
    """A `bind_output` that notes the names of outputs it is given no memory for."""
    parameters = inspect.signature(bind)

    def noted(*arguments: Any, **options: Any) -> None:
        bind(*arguments, **options)
        given = parameters.bind(*arguments, **options).arguments
        if given.get("buffer_ptr") is None:
            names.append(given["name"])

    return noted


def _graph_name(session: Any) -> str:
    """Which of a bundle's graphs a session runs, told by its inputs; else the graph's own name."""
    inputs = {value.name for value in session.get_inputs()}
    if any(name.startswith("past_key_values.") for name in inputs):
        return "decoder_with_past"
    if "encoder_hidden_states" in inputs:
        return "decoder"
    return "encoder" if "attention_mask" in inputs else str(session.get_modelmeta().graph_name)


def _read_profile(path: Path) -> list[tuple[str, str, str]]:
    """Name, op type and provider of every node that ran, in order."""
    events = json.loads(path.read_text())
    path.unlink()
    return [
        (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"], event["args"]["provider"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
