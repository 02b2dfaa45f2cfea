"""Runs inside the torch worker: a T5 checkpoint in, ONNX graphs and transformers' own greedy tokens out.

Nothing else of the package imports torch or transformers. The wrappers give each of the three graphs its usual inputs
and outputs; their module names become node keys.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from safetensors import SafetensorError
from transformers import MT5ForConditionalGeneration, T5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from precision_search.errors import InputError, first_line
from precision_search.model.graph import GraphName, describe
from precision_search.model.onnx_files import write_model

MODEL_CLASSES: dict[str, Any] = {"t5": T5ForConditionalGeneration, "mt5": MT5ForConditionalGeneration}
"""Model families by `model_type`: one line each."""

CACHE_PARTS = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")


def load_checkpoint(path: Path, model_type: str) -> Any:
    """Loads a checkpoint in fp32 whatever it is stored in, from safetensors only (a pickle can run code).

    Raises:
        InputError: the weights are missing, broken or not safetensors.
    """
    try:
        model, report = MODEL_CLASSES[model_type].from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(
            f"cannot load the checkpoint in {path}",
            why=first_line(error),
            fix="the directory needs config.json and model.safetensors of one T5 model; convert .bin weights with "
            "`model.save_pretrained(dir, safe_serialization=True)` where you trust them",
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"the checkpoint in {path} is not whole",
            why=f"it lacks {len(missing)} weights, the first is {missing[0]}; transformers would make them up",
            fix="copy all of its safetensors files, and the config.json that belongs to them",
        )
    return model.eval()


def export(model: Any, name: GraphName, target: Path) -> None:
    """Exports one of the three graphs, names its nodes by their keys and writes it to `target`."""
    module, arguments, inputs, outputs, dynamic_shapes = _trace_request(model, name)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
    assert program is not None  # None is what it gives where it writes a file
    graph = describe(name, program.model).model
    _strip(graph)
    write_model(graph, target)


def greedy_tokens(model: Any, rows: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> list[list[int]]:
    """What `model.generate(num_beams=1)` gives for each row of input ids: token ids with EOS, without start and pad."""
    generation, layers = model.generation_config, model.config.num_decoder_layers
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
                num_beams=1,
                do_sample=False,
                max_new_tokens=max_new_tokens,
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
    """The output projection with T5's scaling in front, as one module, so that both get `lm_head` as their path."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.weight = model.lm_head.weight
        self.scale = model.config.d_model**-0.5 if getattr(model.config, "scale_decoder_outputs", False) else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden if self.scale is None else hidden * self.scale, self.weight)


class _Encoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


class _Decoder(torch.nn.Module):
    """First step or whole prefix: no past, all caches out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.lm_head = _Head(model)
        self.layers = model.config.num_decoder_layers

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
        hidden = past[2].new_zeros((batch, length, self.decoder.config.d_model))
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


def _trace_request(
    model: Any, name: GraphName
) -> tuple[torch.nn.Module, tuple[Any, ...], list[str], list[str], tuple[Any, ...]]:
    """Module, example inputs, input and output names and dynamic axes. Sizes differ, so that no two axes merge."""
    batch, source, target, past_length = 3, 7, 5, 6
    config = model.config
    # Two tensors: the exporter takes one tensor in two places for one input.
    ids = torch.full((batch, source), 2, dtype=torch.int64)
    mask = torch.ones((batch, source), dtype=torch.int64)
    tokens = torch.ones((batch, target), dtype=torch.int64)
    source_axes = {0: "batch_size", 1: "encoder_sequence_length"}
    if name == "encoder":
        return (
            _Encoder(model),
            (ids, mask),
            ["input_ids", "attention_mask"],
            ["last_hidden_state"],
            (source_axes, source_axes),
        )
    layers = range(config.num_decoder_layers)
    present = [f"present.{layer}.{part}" for layer in layers for part in CACHE_PARTS]
    if name == "decoder":
        hidden = torch.zeros((batch, source, config.d_model))
        return (
            _Decoder(model),
            (tokens, hidden, mask),
            ["input_ids", "encoder_hidden_states", "encoder_attention_mask"],
            ["logits", *present],
            ({0: "batch_size", 1: "decoder_sequence_length"}, source_axes, source_axes),
        )
    past_names = [f"past_key_values.{layer}.{part}" for layer in layers for part in CACHE_PARTS]
    lengths = {"decoder": (past_length, "past_sequence_length"), "encoder": (source, "encoder_sequence_length")}
    sizes = [lengths[part.split(".")[2]] for part in past_names]
    past = [torch.zeros((batch, config.num_heads, length, config.d_kv)) for length, _ in sizes]
    past_axes = [{0: "batch_size", 2: axis} for _, axis in sizes]
    return (
        _DecoderWithPast(model),
        (tokens[:, :1], mask, past),
        ["input_ids", "encoder_attention_mask", *past_names],
        ["logits", *(p for p in present if ".decoder." in p)],
        ({0: "batch_size"}, source_axes, past_axes),
    )


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
