"""A model directory to run or to verify: three graphs in any mixture of precisions, checked before they are trusted.

In: a directory, ours or anybody's; to verify, the fp32 bundle that it claims to be a version of. Out: a `LoadedModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import onnx_ir as ir

from precision_search.device.cuda import process_gemm_options
from precision_search.errors import InputError, first_line
from precision_search.files import read_json, reason
from precision_search.judging.trial import Judged
from precision_search.model.bundle import Bundle
from precision_search.model.file_layouts import GraphFiles, graphs_in
from precision_search.model.generation_config import read_model_config
from precision_search.model.graph import GraphName
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.onnx_files import data_files, infer_types, load_model
from precision_search.model.rewrites.sizes_on_device import compute_sizes_on_device
from precision_search.model.tokenizer import Tokenizer, load_tokenizer
from precision_search.records.codec import from_json
from precision_search.runtime.session import OptimizationLevel, SessionSettings

if TYPE_CHECKING:
    import onnx

FACTS_FILE = "precision_search.json"
"""What a published model says of its verdict; other people's models have none."""

_MUST_AGREE = ("vocab_size", "num_decoder_layers", "num_heads", "d_kv")
OTHER_REFERENCE = "give the fp32 model that it was made from with --reference"


_SETTINGS: Mapping[str, tuple[tuple[object, ...], str]] = {
    "optimization_level": (get_args(OptimizationLevel), f"one of {', '.join(get_args(OptimizationLevel))}"),
    "use_tf32": ((False, True), "true or false"),
    "gemm_options": (tuple(map(str, range(8))), 'a text from "0" to "7"'),
}
"""What is read of the settings in `precision_search.json`: the values that there are, and how to say so."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model directory as found.

    Attributes:
        path: the directory.
        graphs: the three graphs as stored, but for sizes that device kernels read (see `compute_sizes_on_device`).
        tokenizer: its tokenizer.
        optimization_level: what it was judged at, None where it does not say.
        use_tf32: likewise.
        gemm_options: `ORT_CUDA_GEMM_OPTIONS` it was judged with, None where it does not say.
        content_hash: of the fp32 model it was made from, None where it does not say.
        judged: the batches that it was judged in, None where it does not say.
    """

    path: Path
    graphs: Mapping[GraphName, ir.Model]
    tokenizer: Tokenizer
    optimization_level: OptimizationLevel | None
    use_tf32: bool | None
    gemm_options: int | None
    content_hash: str | None
    judged: Judged | None = None


def open_published(path: Path, reference: Bundle) -> LoadedModel:
    """Reads a model directory and checks that it can be compared with the reference.

    Raises:
        InputError: see `load_published`; or vocabulary or cache differ from the reference's.
    """
    found = load_published(path)
    _check_sizes(path, reference)
    last = SEQ2SEQ.decoder_with_past
    _check_cache(path / last.file, found.graphs[last.name], reference.graphs[last.name].model)
    return found


def load_published(path: Path) -> LoadedModel:
    """Reads a model directory.

    Raises:
        InputError: a file is missing or corrupt, the graphs break ONNX's typing rules, or have other files than ours.
    """
    if not path.is_dir():
        raise InputError(f"there is no model directory {path}", fix="give a directory such as RUN/model")
    _refuse_other_layouts(path)
    graphs = {each.name: _load_graph(path / each.file) for each in SEQ2SEQ.graphs}
    facts = _read_facts(path / FACTS_FILE)
    settings = _read_settings(path / FACTS_FILE, facts)
    level, tf32, gemm = (settings.get(name) for name in _SETTINGS)
    made_from = facts.get("content_hash")
    return LoadedModel(
        path=path,
        graphs=graphs,
        tokenizer=load_tokenizer(path),
        optimization_level=level,
        use_tf32=tf32,
        gemm_options=None if gemm is None else int(gemm),
        content_hash=made_from if isinstance(made_from, str) else None,
        judged=_read_judged(path / FACTS_FILE, facts),
    )


def judged_settings(loaded: LoadedModel, settings: SessionSettings) -> SessionSettings:
    """`settings` with what the model was judged under; what it does not say stays as it is.

    GEMM options that it does not say are those of the process, where it has any.
    """
    gemm = loaded.gemm_options
    return replace(
        settings,
        optimization_level=loaded.optimization_level or settings.optimization_level,
        use_tf32=settings.use_tf32 if loaded.use_tf32 is None else loaded.use_tf32,
        gemm_options=process_gemm_options(settings.gemm_options) if gemm is None else gemm,
    )


def _refuse_other_layouts(path: Path) -> None:
    """Raises InputError where the graphs are laid out otherwise: they are made alike for a search only, in fp32."""
    plain = GraphFiles.plain().layout
    found = graphs_in(path)
    if found is not None and found.layout != plain:
        files = " and ".join(sorted({*found.names.values()}))
        raise InputError(
            f"{path} holds graphs as {found.layout.title} lays them out, which a search reads and nothing else does",
            why=f"a model to run or to verify has {SEQ2SEQ.files}; here are {files}",
            fix="put the three graphs beside config and tokenizer under these names; `precision_search.export_bundle` "
            "writes those of an fp32 model so",
        )


def _load_graph(path: Path) -> ir.Model:
    """A graph with every value's dtype known, which is what `widen` reads, and with sizes where kernels read them."""
    model = load_model(path)
    _check_types(model, path)
    problem = infer_types(model)
    for node in model.graph:
        if any(value.dtype is None and value.name for value in node.outputs):
            raise InputError(
                f"{path.name}: the type of what {node.name or node.op_type} gives is unknown",
                why=f"shape inference failed: {problem}"
                if problem
                else f"shape inference does not know the operator {node.op_type}",
                fix="save the graph with its value types",
            )
    compute_sizes_on_device(model)
    return model


def _check_types(model: ir.Model, path: Path) -> None:
    """Widening trusts the types that a graph declares, so declarations that contradict its operators end here."""
    import onnx

    try:
        onnx.checker.check_model(_checkable(model, path), full_check=True)
    except Exception as error:  # the checker raises its own classes and the protobuf library's
        raise InputError(
            f"{path.name} does not pass the ONNX checker",
            why=first_line(error),
            fix="convert the model again; ONNX Runtime may refuse it too",
        ) from error


def _checkable(model: ir.Model, path: Path) -> Path | onnx.ModelProto:
    """The file; where it has data outside, the model with inputs in their place: the checker follows no links to them,
    and reads no axes and shapes there."""
    if not data_files(path):
        return path
    model = model.clone()
    for name, value in list(model.graph.initializers.items()):
        if isinstance(value.const_value, ir.ExternalTensor):
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
    return ir.to_proto(model)


def _check_sizes(path: Path, reference: Bundle) -> None:
    config = read_model_config(path)
    different = [
        f"{name} is {getattr(config, name)}, the reference has {getattr(reference.config, name)}"
        for name in _MUST_AGREE
        if getattr(config, name) != getattr(reference.config, name)
    ]
    if different:
        raise InputError(
            f"{path} is not a version of the reference model",
            why="; ".join(different),
            fix=OTHER_REFERENCE,
        )


def _check_cache(path: Path, graph: ir.Model, reference: ir.Model) -> None:
    """The graph itself must keep the reference's cache: a config beside it proves nothing."""
    own, wanted = (
        {str(value.name) for value in model.graph.inputs if SEQ2SEQ.is_past(str(value.name))}
        for model in (graph, reference)
    )
    if odd := sorted(own ^ wanted):
        raise InputError(
            f"{path} keeps another cache than the reference",
            why=f"only one of the two has {', '.join(odd[:4])}{' and more' if len(odd) > 4 else ''}",
            fix=OTHER_REFERENCE,
        )


def _read_facts(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        fix = "restore the file, or remove it"
        raise InputError(f"{path} is not valid JSON", why=reason(error), fix=fix) from error
    if not isinstance(content, dict):
        raise _wrong_facts(path, "it holds", content, "an object")
    return content


def _read_settings(path: Path, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the model was judged under; a value that is not understood must not be taken for one that is not there."""
    settings = facts.get("settings", {})
    if not isinstance(settings, dict):
        raise _wrong_facts(path, "settings is", settings, "an object")
    for name, (known, expected) in _SETTINGS.items():
        value = settings.get(name)
        if value is not None and not (isinstance(value, type(known[0])) and value in known):
            raise _wrong_facts(path, f"settings.{name} is", value, expected)
    return settings


def _read_judged(path: Path, facts: Mapping[str, Any]) -> Judged | None:
    value = facts.get("judged")
    if value is None:
        return None
    try:
        return from_json(Judged, value, "judged")
    except ValueError as error:
        raise _wrong_facts(path, "judged is", value, f"as `run` writes it: {error}") from error


def _wrong_facts(path: Path, what: str, value: object, expected: str) -> InputError:
    return InputError(
        f"{path} does not say how the model was judged",
        why=f"{what} {value!r:.60}, and must be {expected}",
        fix="restore the file; without it the model runs as any other",
    )
