"""The bundle: three fp32 graphs with keyed nodes and the Hugging Face files beside them.

In: a checkpoint directory, a hub id, or a directory that already holds the three ONNX files. Out: a `Bundle`. Exports
are cached by the content of what they depend on.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.files import check_name, read_json, reason, writing
from precision_search.model.agreement import check_agreement
from precision_search.model.export_cache import Entry, file_hash, kept_answer, kept_export
from precision_search.model.export_worker import ExportJob, GenerateJob, Job, run_jobs
from precision_search.model.families import FAMILIES
from precision_search.model.file_layouts import GraphFiles, file_names, graphs_in, refuse_layout
from precision_search.model.generation_config import (
    GenerationSettings,
    ModelConfig,
    read_generation_settings,
    read_model_config,
    write_overridden,
)
from precision_search.model.graph import BASE_VARIANT, Graph, GraphName, describe
from precision_search.model.greedy import NEUTRAL, NOTHING_OVERRIDDEN, greedy_by_choice
from precision_search.model.hf_files import copy_hf_files, hf_files
from precision_search.model.hub import download
from precision_search.model.id_oracle import IdOracle
from precision_search.model.layout import SEQ2SEQ, GraphLayout, graph_file
from precision_search.model.onnx_files import strip_notes, write_model
from precision_search.model.pairing import aligned
from precision_search.model.read_graphs import files_of, read_graphs
from precision_search.model.rewrites.sizes_on_device import compute_sizes_on_device
from precision_search.model.snapshot import INDEX, WEIGHTS, Snapshot, unchanged
from precision_search.model.stored_weights import refuse_adapter, refuse_quantized
from precision_search.model.tokenizer import load_tokenizer
from precision_search.model.work_folder import work_folder
from precision_search.reporting import NOBODY, Reporter

ReadGeneration = Callable[[Path], GenerationSettings]

EXPORT_VERSION = "1"
"""Part of the cache key: raise it when the exported graphs change."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An encoder-decoder model as three fp32 ONNX graphs.

    Attributes:
        path: directory with the ONNX files and the Hugging Face files.
        graphs: the three graphs as they are, which is the variant `base`.
        content_hash: SHA-256 over the three ONNX files and their external data.
        config: the model's dimensions.
        generation: how it generates.
        checkpoint: directory of the torch checkpoint it must agree with, or None where there is none.
        files: the files in `path` as they were when they were read.
        source: likewise, those of the directory that it was opened from.
        variants: the graphs of other variants, by name (see `model.variants`).
    """

    path: Path
    graphs: Mapping[GraphName, Graph]
    content_hash: str
    config: ModelConfig
    generation: GenerationSettings
    checkpoint: Path | None
    files: Snapshot = field(default_factory=Snapshot)
    source: Snapshot = field(default_factory=Snapshot)
    variants: Mapping[str, Mapping[GraphName, Graph]] = field(default_factory=dict)

    @property
    def models(self) -> dict[GraphName, ir.Model]:
        """The fp32 graphs as `onnx_ir` models; not to be modified."""
        return {name: graph.model for name, graph in self.graphs.items()}

    @property
    def variant_names(self) -> tuple[str, ...]:
        """The variants that are there, the base graphs first."""
        return (BASE_VARIANT, *self.variants)

    def graphs_of(self, variant: str) -> Mapping[GraphName, Graph]:
        """The graphs that plans of a variant are about; KeyError for one that is not there."""
        return self.graphs if variant == BASE_VARIANT else self.variants[variant]


def open_bundle(
    source: str,
    cache: Path,
    *,
    max_new_tokens: int | None = None,
    overrides: Mapping[str, object] = NOTHING_OVERRIDDEN,
    texts: Sequence[str] = (),
    reporter: Reporter = NOBODY,
) -> Bundle:
    """Opens the model at `source`: a directory with ONNX files, a checkpoint directory, or a hub id.

    Args:
        source: directory or hub id.
        cache: directory for exports.
        max_new_tokens: overrides the generation config.
        overrides: what else of it gives way to greedy decoding; the reporter is warned where something does.
        texts: whose token ids must be those of transformers, where there is a checkpoint.
        reporter: told of each slow step before it begins.

    Raises:
        InputError: nothing usable there, and the message says what is missing; or it changed meanwhile.
        EnvironmentProblemError: the export cannot be written.
    """
    directory = Path(source)
    if not directory.is_dir():
        directory = download(source, reporter)
    with unchanged(directory) as found:
        how = partial(read_generation_settings, max_new_tokens=max_new_tokens, overrides=overrides)
        bundle = replace(_open(directory, cache, how, found, texts=texts, reporter=reporter), source=found)
    if bundle.generation.overridden:
        reporter.warn(greedy_by_choice(bundle.generation.overridden))
    return bundle


def _open(
    directory: Path, cache: Path, how: ReadGeneration, found: Snapshot, *, texts: Sequence[str], reporter: Reporter
) -> Bundle:
    has_graphs = (directory / SEQ2SEQ.encoder.file).is_file()
    if not has_graphs:
        refuse_adapter(directory)
    config = read_model_config(directory)
    has_weights = any(directory.glob(WEIGHTS))
    # A checkpoint says more than copies of it in a folder of its own.
    if has_graphs or (not has_weights and graphs_in(directory)):
        return _load(directory, config, how, directory if has_weights else None)
    if not has_weights:
        refuse_layout(directory, file_names(directory))
        raise InputError(
            f"{directory} holds neither ONNX graphs nor model.safetensors",
            why=f"found: {', '.join(sorted(p.name for p in directory.iterdir())[:10]) or 'nothing'}",
            fix=f"give a checkpoint saved with save_pretrained (safetensors), or a directory with {SEQ2SEQ.files}",
        )
    # Asked before the slow export: what we refuse should not cost a minute first.
    refuse_quantized(directory)
    how(directory)
    tokenizer = load_tokenizer(directory)
    check_index(directory)
    key = _checkpoint_key(directory)
    ids = IdOracle(directory, texts, cache, key) if texts and not tokenizer.is_transformers else None
    entry = kept_export(
        cache / "bundles" / key[:32],
        lambda work: _export(directory, config, work, ids, found=found, reporter=reporter),
        reporter,
    )
    if ids is not None:
        ids.check(tokenizer, reporter)
    return _load(entry.path, config, how, directory, entry)


def check_index(checkpoint: Path) -> None:
    """Weights that the index of a checkpoint names must lie in its directory: no others are hashed, or asked for.

    Raises:
        InputError: the index is broken, or names a file elsewhere.
    """
    for path in checkpoint.glob(INDEX):
        try:
            names = set(read_json(path)["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} does not say where the weights are",
                why=f"it is not a JSON object with a `weight_map`: {reason(error)}",
                fix="restore the file",
            ) from error
        for name in sorted(map(str, names)):
            if name != Path(name).name or not fnmatch.fnmatch(name, WEIGHTS):
                raise InputError(
                    f"{path} names weights outside its folder",
                    why=f"one of its files is {name!r}",
                    fix="put the safetensors files beside it, and name them there without a path",
                )


def oracle_tokens(
    bundle: Bundle,
    rows: tuple[tuple[int, ...], ...],
    cache: Path,
    *,
    batch_size: int = 32,
    reporter: Reporter = NOBODY,
) -> list[list[int]]:
    """Greedy tokens of transformers' own `generate` on the bundle's checkpoint, for rows of input ids.

    Answered from the cache when the same checkpoint, rows and library version were asked before. The reporter is warned
    if that answer is broken.

    Raises:
        ValueError: the bundle has no checkpoint.
        InputError: the checkpoint changed since the bundle was opened.
    """
    if bundle.checkpoint is None:
        raise ValueError("a bundle without a checkpoint has no oracle")
    bundle.source.check()
    key = hashlib.sha256()
    key.update(_checkpoint_key(bundle.checkpoint).encode())
    generation = bundle.generation
    neutral = {name: NEUTRAL[name][0] for name in generation.overridden}
    asked = [rows, generation.max_new_tokens, batch_size, *([neutral] if neutral else [])]
    key.update(json.dumps(asked).encode())
    family, checkpoint = FAMILIES[bundle.config.model_type], bundle.checkpoint

    def ask() -> list[list[int]]:
        job = GenerateJob(str(checkpoint), family, rows, generation.max_new_tokens, batch_size, neutral)
        tokens: list[list[int]] = run_jobs([job])[0]["tokens"]
        bundle.source.check()
        return tokens

    kept: list[list[int]] = kept_answer(cache / "oracle" / f"{key.hexdigest()[:32]}.json", ask, reporter)
    return kept


def write_bundle(bundle: Bundle, out: Path) -> Path:
    """Writes the fp32 graphs and the Hugging Face files to the new directory `out`, which appears whole or not at all.

    The exporter's notes, which tell paths on the machine it ran on, are left out.

    Raises:
        UsageError: its name is no text.
        EnvironmentProblemError: it cannot be written.
        InputError: the bundle's files changed.
    """
    check_name(out)
    with writing(out), work_folder(out.parent, f".{out.name}-new-") as work:
        for name, graph in bundle.graphs.items():
            model = graph.model.clone()
            strip_notes(model)
            write_model(model, work / graph_file(name))
        copy_hf_files(bundle.path, work)
        write_overridden(work, bundle.generation)
        bundle.files.check()  # weights are read when they are written
        work.rename(out)
    return out


def _load(
    directory: Path,
    config: ModelConfig,
    how: ReadGeneration,
    checkpoint: Path | None,
    entry: Entry | None = None,
) -> Bundle:
    """Reads a model directory; `entry` is what is known of it where it is one of the cache."""
    with unchanged(directory, None if entry is None else entry.files) as found:
        bundle = _read(directory, config, how, {} if entry is None else entry.hashes)
        return replace(bundle, checkpoint=checkpoint, files=found)


def _read(directory: Path, config: ModelConfig, how: ReadGeneration, hashes: Mapping[str, str]) -> Bundle:
    found = graphs_in(directory) or GraphFiles.plain()
    graphs = {}
    models = read_graphs(directory, found)
    for name, model in models.items():
        _check_names(SEQ2SEQ.graph(name), model, config, found.paths(directory)[name])
    check_agreement(models, config, FAMILIES[config.model_type], directory)
    for name, model in models.items():
        compute_sizes_on_device(model)
        graphs[name] = describe(name, model)
    later = SEQ2SEQ.decoder_with_past.name
    graphs[later] = aligned(graphs[SEQ2SEQ.decoder.name], graphs[later])
    files = files_of(directory, found)
    return Bundle(directory, graphs, _hash_files(files, known=hashes), config, how(directory), checkpoint=None)


def _export(
    checkpoint: Path, config: ModelConfig, target: Path, ids: IdOracle | None, *, found: Snapshot, reporter: Reporter
) -> None:
    reporter.stage(f"exporting {checkpoint.name or checkpoint} to ONNX (cached afterwards)")
    # The decoder takes longest, and a third job starts when the first ended: on 2 cores this order ends soonest.
    order = reversed(SEQ2SEQ.graphs)
    family = FAMILIES[config.model_type]
    jobs: list[Job] = [ExportJob(str(checkpoint), family, each.name, str(target / each.file)) for each in order]
    if ids is None:
        run_jobs(jobs)
    else:
        ids.take(run_jobs([*jobs, ids.job])[-1])
    copy_hf_files(checkpoint, target)
    found.check()  # what the key stands for must be what was exported


def _checkpoint_key(checkpoint: Path) -> str:
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers", "onnxscript")]
    files = [checkpoint / name for name in hf_files() if (checkpoint / name).is_file()]
    weights = (*checkpoint.glob(WEIGHTS), *checkpoint.glob(INDEX))
    return _hash_files([*files, *sorted(weights)], EXPORT_VERSION, *versions)


def _hash_files(files: Iterable[Path], *extra: str, known: Mapping[str, str] = MappingProxyType({})) -> str:
    """One SHA-256 of all; `known` holds those of single files that need not be read again."""
    digest = hashlib.sha256("\n".join(extra).encode())
    for path in files:
        digest.update(f"\n{path.name}\n".encode())
        digest.update(bytes.fromhex(known.get(path.name) or file_hash(path)))
    return digest.hexdigest()


_SIZES = {"batch": "batch size", "source": "source length", "target": "target length", "past": "past length"}


def _check_names(layout: GraphLayout, model: ir.Model, config: ModelConfig, path: Path) -> None:
    wanted_inputs = set(SEQ2SEQ.input_names(layout, config.num_decoder_layers))
    wanted_outputs = set(SEQ2SEQ.output_names(layout, config.num_decoder_layers))
    optional_inputs = layout.known_inputs - wanted_inputs
    integers = {each.name for each in layout.inputs if each.is_integer}
    inputs = {str(value.name) for value in model.graph.inputs}
    outputs = {str(value.name) for value in model.graph.outputs}
    problems = []
    if missing := sorted(wanted_inputs - inputs):
        problems.append(f"without the inputs {', '.join(missing[:4])}")
    if surplus := sorted(inputs - wanted_inputs - optional_inputs):
        problems.append(f"with the unknown inputs {', '.join(surplus[:4])}")
    if missing := sorted(wanted_outputs - outputs):
        problems.append(f"without the outputs {', '.join(missing[:4])}")
    known = wanted_inputs | optional_inputs | wanted_outputs
    axes = {each.name: each.axes for each in layout.inputs}
    axes |= {link.past: link.axes for link in SEQ2SEQ.caches(config.num_decoder_layers, layout.reads)}
    for value in (value for value in (*model.graph.inputs, *model.graph.outputs) if value.name in known):
        wanted = ir.DataType.INT64 if str(value.name) in integers else ir.DataType.FLOAT
        if value.dtype != wanted:
            problems.append(f"{value.name} is {value.dtype.name if value.dtype else 'of no type'}, not {wanted.name}")
        elif value.is_graph_input() and value.shape is not None:
            sizes = zip(axes.get(str(value.name), ()), value.shape, strict=False)
            fixed = [(axis, size) for axis, size in sizes if axis and isinstance(size, int)]
            problems += [f"{value.name} has the fixed {_SIZES[axis]} {size}" for axis, size in fixed]
    if problems:
        raise InputError(
            f"{path.name} is not the {layout.name} of the usual layout",
            why="; ".join(problems[:4]),
            fix="export with the names, types and dynamic axes that optimum uses, or start from the checkpoint",
        )
