"""Hashes of model directories: each file as it is, and of ONNX graphs what is in them without versions.

In: a directory. Out: JSON values; a graph whose file differs says by its other hashes what of it does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import onnx

from tests.golden.volatile import MARK, ONNX_METADATA, settled


def sha256(content: bytes) -> str:
    """As hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def of_directory(directory: Path) -> dict[str, object]:
    """What stands for each file of a model directory, external data included, by its name."""
    found: dict[str, object] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = str(path.relative_to(directory))
        if path.suffix == ".onnx":
            found[name] = of_graph(path)
        elif name == "README.md":
            found[name] = "kept as card.json"
        elif name == "precision_search.json":
            found[name] = settled("model/facts", json.loads(path.read_bytes()))
        else:
            found[name] = sha256(path.read_bytes())
    return found


def of_graph(path: Path) -> dict[str, object]:
    """Hashes of an ONNX file: raw, without versions, and of its parts by themselves."""
    raw = path.read_bytes()
    model = onnx.load_from_string(raw)
    parts: dict[str, object] = {
        "file": sha256(raw),
        "nodes": _all(node.SerializeToString(deterministic=True) for node in model.graph.node),
        "weights": _all(weight.SerializeToString(deterministic=True) for weight in model.graph.initializer),
        "metadata": {
            entry.key: MARK if ONNX_METADATA.fullmatch(entry.key) else sha256(entry.value.encode())[:16]
            for entry in model.metadata_props
        },
        "node count": len(model.graph.node),
    }
    kept = [entry for entry in model.metadata_props if not ONNX_METADATA.fullmatch(entry.key)]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.producer_version = ""
    return {**parts, "without versions": sha256(model.SerializeToString(deterministic=True))}


def _all(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
