"""How exporters lay out the ONNX files of an encoder-decoder model: which of these are read, and which are told apart.

In: the names of a directory's files, here or on the Hub. Out: the file of each graph, or the error that says what the
files are. Another layout that is only a renaming is one line in `FILE_LAYOUTS`, another one that people bring and that
holds other graphs is one line in `REFUSED_LAYOUTS`.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from precision_search.errors import InputError
from precision_search.model.graph import GRAPH_NAMES, GraphName
from precision_search.model.layout import SEQ2SEQ, graph_file

Tensors = Literal["by name", "by position"]
"""How inputs and outputs are told: by the names of our layout, or by their order."""

FOLDER = "onnx"
"""Where transformers.js keeps the graphs, beside configs and tokenizer."""

MERGED = "decoder_model_merged.onnx"
"""Both decoders as the two branches of one If."""


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Where the three graphs are.

    Attributes:
        title: who writes it.
        files: the file of each graph, from the model's directory on; `*` stands for the name of the model. Two decoders
            in one file are a merged decoder.
        tensors: how inputs and outputs are told.
    """

    title: str
    files: Mapping[GraphName, str]
    tensors: Tensors = "by name"

    @property
    def is_merged(self) -> bool:
        """Whether one file holds both decoders."""
        return self.files[SEQ2SEQ.decoder.name] == self.files[SEQ2SEQ.decoder_with_past.name]


@dataclass(frozen=True, slots=True)
class RefusedLayout:
    """Files of a kind that we cannot search.

    Attributes:
        title: what they are.
        patterns: names that tell them, as the shell has them; all of them must be there.
        why: why they are refused.
        fix: what to do.
    """

    title: str
    patterns: tuple[str, ...]
    why: str
    fix: str


def _files(encoder: str, decoder: str, decoder_with_past: str) -> Mapping[GraphName, str]:
    return dict(zip(GRAPH_NAMES, (encoder, decoder, decoder_with_past), strict=True))


_PLAIN = tuple(graph_file(name) for name in GRAPH_NAMES)
_MERGED = (graph_file("encoder"), MERGED, MERGED)

FILE_LAYOUTS: tuple[FileLayout, ...] = (
    FileLayout("optimum", _files(*_PLAIN)),
    FileLayout("transformers.js", _files(*(f"{FOLDER}/{name}" for name in _PLAIN))),
    FileLayout("optimum, merged decoder", _files(*_MERGED)),
    FileLayout("transformers.js, merged decoder", _files(*(f"{FOLDER}/{name}" for name in _MERGED))),
    FileLayout("fastT5", _files("*-encoder.onnx", "*-init-decoder.onnx", "*-decoder.onnx"), "by position"),
)
"""What is read; the first that is there whole."""

_AGAIN = "export it with optimum (`--task text2text-generation-with-past`), or start from the checkpoint"

REFUSED_LAYOUTS: tuple[RefusedLayout, ...] = (
    RefusedLayout(
        "a model of onnxruntime.transformers",
        ("*_encoder_decoder_init*.onnx",),
        "its first graph is the encoder and the decoder's first step in one, and no graph decodes a whole prefix",
        _AGAIN,
    ),
    RefusedLayout(
        "a model of onnxruntime.transformers",
        ("*_encoder*.onnx", "*_decoder*.onnx"),
        "its encoder gives cross-attention keys and values, and no graph decodes a whole prefix",
        _AGAIN,
    ),
    RefusedLayout(
        "a quantized model of fastT5",
        ("*-encoder-quantized.onnx",),
        "a quantized graph has lost the values that the reference needs",
        "give the directory with the graphs that were quantized, or start from the checkpoint",
    ),
    RefusedLayout(
        "a model of transformers.js without its fp32 graphs",
        ("encoder_model_*.onnx",),
        "copies that are quantized or in fp16 have lost the values that the reference needs",
        f"put {graph_file('encoder')} and the decoders in fp32 there, too, or start from the checkpoint",
    ),
    RefusedLayout(
        "a decoder without its encoder",
        ("decoder*.onnx",),
        f"there is no {_PLAIN[0]}",
        f"give a directory with {SEQ2SEQ.files}, or start from the checkpoint",
    ),
    RefusedLayout("one graph in a file", ("*.onnx",), "encoder and decoders must be graphs of their own", _AGAIN),
    RefusedLayout(
        "a model in ONNX Runtime's own format",
        ("*.ort",),
        "such a file holds a graph as one device runs it, after its optimizations",
        "start from the ONNX files that it was made from, or from the checkpoint",
    ),
)
"""What is told apart; the first that fits."""


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """The ONNX files of a directory.

    Attributes:
        layout: how they are laid out.
        names: the file of each graph, from the directory on.
    """

    layout: FileLayout
    names: Mapping[GraphName, str]

    @classmethod
    def plain(cls) -> GraphFiles:
        """Those that a directory has at least."""
        return cls(FILE_LAYOUTS[0], FILE_LAYOUTS[0].files)

    def paths(self, directory: Path) -> dict[GraphName, Path]:
        """The path of each graph's file."""
        return {name: directory / file for name, file in self.names.items()}


def find_graphs(names: Iterable[str]) -> GraphFiles | None:
    """The graphs among the files of these names, None where there are none; a lone encoder may lack its decoders.

    Raises:
        InputError: several models are there.
    """
    known = frozenset(names)
    for layout in FILE_LAYOUTS:
        if found := _found(layout, known):
            return found
    lone = (layout for layout in FILE_LAYOUTS if not layout.is_merged and layout.files["encoder"] in known)
    return next((GraphFiles(layout, layout.files) for layout in lone), None)


def graphs_in(directory: Path) -> GraphFiles | None:
    """The graphs in a directory (see `find_graphs`)."""
    return find_graphs(file_names(directory))


def refuse_layout(source: str | Path, files: Iterable[str]) -> None:
    """Raises InputError where the files of a directory, here or on the Hub, are of a kind that is told apart."""
    names = sorted(name.rpartition("/")[2] for name in files)
    for layout in REFUSED_LAYOUTS:
        matches = [fnmatch.filter(names, pattern) for pattern in layout.patterns]
        if all(matches):
            raise InputError(
                f"{source} holds {layout.title}",
                why=f"it has {', '.join(dict.fromkeys(each[0] for each in matches))}: {layout.why}",
                fix=layout.fix,
            )


def _found(layout: FileLayout, names: frozenset[str]) -> GraphFiles | None:
    first = layout.files["encoder"]
    if "*" not in first:
        return GraphFiles(layout, layout.files) if names.issuperset(layout.files.values()) else None
    start, end = first.split("*")
    stems = sorted(name[len(start) : -len(end)] for name in names if name.startswith(start) and name.endswith(end))
    complete = [
        GraphFiles(layout, files)
        for files in ({graph: file.replace("*", stem) for graph, file in layout.files.items()} for stem in stems)
        if names.issuperset(files.values())
    ]
    if len(complete) > 1:
        raise InputError(
            f"there are {len(complete)} models in one directory",
            why=f"{' and '.join(sorted(each.names['encoder'] for each in complete)[:2])} are encoders of two",
            fix="give each a directory of its own",
        )
    return complete[0] if complete else None


def file_names(directory: Path) -> list[str]:
    """The names of the files in a directory that may hold graphs, from the directory on."""
    names = []
    for folder, prefix in ((directory, ""), (directory / FOLDER, f"{FOLDER}/")):
        with contextlib.suppress(OSError):  # who reads a file there says so
            names += [f"{prefix}{path.name}" for path in folder.iterdir() if path.is_file()]
    return names
