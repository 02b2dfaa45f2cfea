"""Runs inside the torch worker: a checkpoint in, ONNX graphs and transformers' own greedy tokens out.

Nothing else of the package imports torch or transformers. The wrappers give each of the three graphs its usual inputs
and outputs; their module names become node keys.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from precision_search.errors import InputError, counted, first_line
from precision_search.model.families.base import ModelFamily
from precision_search.model.generation_config import ModelConfig, read_model_config
from precision_search.model.graph import GraphName, describe
from precision_search.model.hf_files import weight_bytes
from precision_search.model.layout import SEQ2SEQ, SYMBOLS, Axes, InputKind
from precision_search.model.onnx_files import write_model
from precision_search.model.stored_weights import check_weights, refuse_surplus


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint: transformers' model, its family, and its sizes as we read them."""

    model: Any
    family: ModelFamily
    sizes: ModelConfig

    def part(self, path: str) -> Any:
        """The module or buffer at a dotted path."""
        found = self.model
        for name in path.split("."):
            found = getattr(found, name)
        return found


_BROKEN = (OSError, ValueError, TypeError, RuntimeError, LookupError, SafetensorError, StrictDataclassError)
"""What transformers and torch raise for a checkpoint that is not what they expect."""


def load_checkpoint(path: Path, family: ModelFamily) -> Checkpoint:
    """Loads a checkpoint in fp32 whatever it is stored in, from safetensors only (a pickle can run code).

    Raises:
        InputError: the weights are missing, broken or not safetensors.
    """
    sizes = read_model_config(path, family)
    _check_parameters(path, sizes)
    try:
        check_weights(path, _expected_weights(path, family), sizes, family)
        model, report = _class_of(family).from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except _BROKEN as error:
        raise InputError(
            f"cannot load the checkpoint in {path}",
            why=first_line(error),
            fix=f"the directory needs config.json and model.safetensors of one {family.title} model; convert .bin "
            "weights with `model.save_pretrained(dir, safe_serialization=True)` where you trust them",
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"the checkpoint in {path} is not whole",
            why=f"it lacks {counted(len(missing), 'weight')}, the first is {missing[0]}; transformers would make up "
            "what is missing",
            fix="copy all of its safetensors files, and the config.json that belongs to them",
        )
    refuse_surplus(path, sorted(report["unexpected_keys"]))
    return Checkpoint(model.eval(), family, sizes)


def _expected_weights(path: Path, family: ModelFamily) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a model that has the config's sizes, without room for one."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = _class_of(family)(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _check_parameters(path: Path, sizes: ModelConfig) -> None:
    """Raises InputError where weights cannot be as many as the config says; transformers makes room before it looks.

    Counted are the matrices that every model of these sizes has, at half a byte each.
    """
    attention = 4 * sizes.d_model * sizes.num_heads * sizes.d_kv
    feed_forward = 2 * sizes.d_model * sizes.d_ff
    layers = sizes.num_layers * (attention + feed_forward)
    layers += sizes.num_decoder_layers * (2 * attention + feed_forward)
    parameters = sizes.vocab_size * sizes.d_model + layers
    stored = weight_bytes(path)
    # Without any such file transformers says so before it makes room.
    if stored and parameters > 2 * stored:
        raise InputError(
            f"{path / 'config.json'} describes another model than its weights are",
            why=f"a model of its sizes has {parameters:,} weights or more; the safetensors files have {stored:,} bytes",
            fix="restore the checkpoint's own config.json, or copy all of its safetensors files",
        )


def _class_of(family: ModelFamily) -> Any:
    module, _, name = family.model_class.rpartition(".")
    return getattr(importlib.import_module(module), name)


def export(checkpoint: Checkpoint, name: GraphName, target: Path) -> None:
    """Exports one of the three graphs, names its nodes by their keys and writes it to `target`."""
    layout, layers = SEQ2SEQ.graph(name), checkpoint.sizes.num_decoder_layers
    arguments, dynamic_shapes = _trace_request(checkpoint.sizes, name)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _WRAPPERS[name](checkpoint),
            arguments,
            dynamo=True,
            input_names=list(SEQ2SEQ.input_names(layout, layers)),
            output_names=list(SEQ2SEQ.output_names(layout, layers)),
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    assert program is not None  # None is what it gives where it writes a file
    graph = describe(name, program.model).model
    _strip(graph)
    write_model(graph, target)


def greedy_tokens(
    checkpoint: Checkpoint,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    overrides: Mapping[str, object] = MappingProxyType({}),
) -> list[list[int]]:
    """What `model.generate(num_beams=1)` gives for each row of input ids: token ids with EOS, without start and pad.

    `overrides` replace values of the checkpoint's generation config.
    """
    model, layers = checkpoint.model, checkpoint.sizes.num_decoder_layers
    generation = model.generation_config
    eos = generation.eos_token_id
    eos_ids = set(eos if isinstance(eos, list) else [eos])
    found: list[list[int]] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        length = max(len(row) for row in part)
        ids = torch.full((len(part), length), generation.pad_token_id or 0, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(part):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                **{"num_beams": 1, "do_sample": False, **overrides},
                past_key_values=EncoderDecoderCache(_layers(layers), _layers(layers)),
            )
        found.extend(_until_eos(row[1:], eos_ids) for row in out.tolist())
    return found


def _until_eos(row: list[int], eos_ids: set[int]) -> list[int]:
    for index, token in enumerate(row):
        if token in eos_ids:
            return row[: index + 1]
    return row


class _Head(torch.nn.Module):
    """Output projection, scale in front and bias behind as one module, so that all get `lm_head` as their path."""

    bias: torch.Tensor | None

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        parts, sizes = checkpoint.family.parts, checkpoint.sizes
        self.weight = checkpoint.part(parts.output_projection).weight
        self.register_buffer("bias", None if parts.output_bias is None else checkpoint.part(parts.output_bias))
        self.scale = sizes.d_model**-0.5 if sizes.scale_decoder_outputs else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scaled = hidden if self.scale is None else hidden * self.scale
        logits = torch.nn.functional.linear(scaled, self.weight)
        return logits if self.bias is None else logits + self.bias


class _Encoder(torch.nn.Module):
    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.encoder = checkpoint.part(checkpoint.family.parts.encoder)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


class _Decoder(torch.nn.Module):
    """First step or whole prefix: no past, all caches out."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.decoder = checkpoint.part(checkpoint.family.parts.decoder)
        self.lm_head = _Head(checkpoint)
        self.layers, self.width = checkpoint.sizes.num_decoder_layers, checkpoint.sizes.d_model

    def run(
        self, input_ids: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor, cache: EncoderDecoderCache
    ) -> torch.Tensor:
        out = self.decoder(
            input_ids=input_ids,
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        logits: torch.Tensor = self.lm_head(out.last_hidden_state)
        return logits

    def forward(
        self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, encoder_attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        cache = EncoderDecoderCache(_layers(self.layers), _layers(self.layers))
        logits = self.run(input_ids, encoder_hidden_states, encoder_attention_mask, cache)
        both = zip(_filled(cache.self_attention_cache), _filled(cache.cross_attention_cache), strict=True)
        return (logits, *(t for own, cross in both for t in (*own, *cross)))


class _DecoderWithPast(_Decoder):
    """One token on top of filled caches; only the decoder's own caches grow and come out."""

    def forward(  # type: ignore[override]
        self, input_ids: torch.Tensor, encoder_attention_mask: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        own, cross = _layers(self.layers), _layers(self.layers)
        for layer in range(self.layers):
            own.update(past[4 * layer], past[4 * layer + 1], layer)
            cross.update(past[4 * layer + 2], past[4 * layer + 3], layer)
        cache = EncoderDecoderCache(own, cross)
        # The block asks whether there are encoder states at all; a filled cross cache means it never reads them.
        batch, length = past[2].shape[0], past[2].shape[2]
        hidden = past[2].new_zeros((batch, length, self.width))
        logits = self.run(input_ids, hidden, encoder_attention_mask, cache)
        return (logits, *(t for layer in _filled(own) for t in layer))


def _layers(count: int) -> DynamicCache:
    """A cache with explicit layers: `DynamicCache(config=...)` counts the encoder's, not the decoder's."""
    cache = DynamicCache()
    make: Any = DynamicLayer
    cache.layers = [make() for _ in range(count)]
    return cache


def _filled(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Key and value of each layer."""
    return [(layer.keys, layer.values) for layer in cache.layers]


_WRAPPERS: Mapping[GraphName, type[_Encoder | _Decoder]] = {
    SEQ2SEQ.encoder.name: _Encoder,
    SEQ2SEQ.decoder.name: _Decoder,
    SEQ2SEQ.decoder_with_past.name: _DecoderWithPast,
}


def _trace_request(sizes: ModelConfig, name: GraphName) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Example inputs of a graph and their dynamic axes. Sizes differ, so that no two axes merge."""
    batch, source, target, past = 3, 7, 5, 6
    graph = SEQ2SEQ.graph(name)
    examples: dict[InputKind, torch.Tensor] = {
        # Two tensors: the exporter takes one tensor in two places for one input.
        "source_ids": torch.full((batch, source), 2, dtype=torch.int64),
        "source_mask": torch.ones((batch, source), dtype=torch.int64),
        "decoder_ids": torch.ones((batch, target), dtype=torch.int64)[:, : 1 if graph.is_later_step else target],
        "encoder_states": torch.zeros((batch, source, sizes.d_model)),
    }
    inputs = [each for each in graph.inputs if not each.is_optional]
    arguments: list[Any] = [examples[each.kind] for each in inputs]
    axes: list[Any] = [_dynamic(each.axes) for each in inputs]
    if links := SEQ2SEQ.caches(sizes.num_decoder_layers, graph.reads):
        lengths = [past if link.is_self else source for link in links]
        arguments.append([torch.zeros((batch, sizes.num_heads, length, sizes.d_kv)) for length in lengths])
        axes.append([_dynamic(link.axes) for link in links])
    return tuple(arguments), tuple(axes)


def _dynamic(axes: Axes) -> dict[int, str]:
    return {index: SYMBOLS[axis] for index, axis in enumerate(axes) if axis is not None}


def _strip(model: ir.Model) -> None:
    """Removes what the exporter notes about itself: stack traces carry this machine's paths."""
    model.doc_string = None
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
        node.meta.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's notes about itself; errors still pass."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
