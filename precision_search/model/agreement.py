"""Whether a model's config and its graphs are of one model: sizes read from the graphs, held against `config.json`.

In: the three graphs and the sizes that the config names. Out: nothing, or the error that names key and both values.
Buffers are made by the config's sizes, so a config of another model would ask for memory without end, or fill the
report with numbers of a model that is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.model.families.base import ModelFamily
from precision_search.model.generation_config import ModelConfig
from precision_search.model.graph import MOVEMENT_OPS, GraphName
from precision_search.model.layout import SEQ2SEQ

Found = tuple[str, int, int, str]
"""A key of the config, its value there, the value in a graph, and what of the graph has it."""


def check_agreement(
    models: Mapping[GraphName, ir.Model], config: ModelConfig, family: ModelFamily, directory: Path
) -> None:
    """Checks every size that a graph tells.

    Told are: rows and width of embeddings, width of the encoder's output, tokens of the logits, heads and head size of
    the cache, layers of the encoder by its softmaxes, and the inner width of feed-forward layers by the weights. What
    a graph does not tell is not asked.

    Args:
        models: the graphs.
        config: the sizes.
        family: what the config calls them.
        directory: where the config is.

    Raises:
        InputError: a size is another one.
    """
    for key, ours, theirs, where in _told(models, config, family):
        if ours != theirs:
            raise InputError(
                f"{directory / 'config.json'} is not the config of the graphs",
                why=f"it says {key} = {ours}, and {where} {theirs or 'no such size'}",
                fix="restore the config.json of the model that was exported, or export it again",
            )


def _told(models: Mapping[GraphName, ir.Model], config: ModelConfig, family: ModelFamily) -> Iterator[Found]:
    names = family.sizes
    for name, model in models.items():
        layout = SEQ2SEQ.graph(name)
        ids = [layout.input(each.kind) for each in layout.inputs if each.kind in ("source_ids", "decoder_ids")]
        for rows, width in _embeddings(model, frozenset(ids)):
            yield names.vocabulary, config.vocab_size, rows, f"the embedding of {layout.name} has"
            yield names.width, config.d_model, width, f"the embedding of {layout.name} has"
        is_encoder = layout.writes == "none"
        for value in model.graph.outputs:
            sizes = [size if isinstance(size, int) else None for size in value.shape or ()]
            if value.name == layout.output and sizes and sizes[-1] is not None:
                key, ours = (names.width, config.d_model) if is_encoder else (names.vocabulary, config.vocab_size)
                yield key, ours, sizes[-1], f"{value.name} of {layout.name} has"
            elif value.name != layout.output and len(sizes) == 4:
                head = (names.head_size or f"{names.width} / {names.heads}", config.d_kv, sizes[3])
                for key, ours, theirs in ((names.heads, config.num_heads, sizes[1]), head):
                    if theirs is not None:
                        yield key, ours, theirs, f"{value.name} of {layout.name} has"
    yield from _told_by_layers(models[SEQ2SEQ.encoder.name], config, family)


def _told_by_layers(encoder: ir.Model, config: ModelConfig, family: ModelFamily) -> Iterator[Found]:
    where = SEQ2SEQ.encoder.name
    if softmaxes := sum(node.op_type == "Softmax" for node in encoder.graph):
        yield family.sizes.encoder_layers, config.num_layers, softmaxes, f"the softmaxes of {where} are"
    # What is as wide as the stream or a whole attention (its three projections may be one weight) tells nothing.
    known = {config.d_model, *(parts * config.num_heads * config.d_kv for parts in (1, 2, 3))}
    widths = {size for size in _product_widths(encoder) if size not in known}
    if softmaxes and widths and config.d_ff not in widths:
        yield family.sizes.inner_width, config.d_ff, max(widths), f"the widest product of {where} has"


def _product_widths(model: ir.Model) -> Iterator[int]:
    """The sizes of the weights that matrix products read."""
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        for value in node.inputs:
            if value is not None and value.const_value is not None and len(value.const_value.shape) == 2:
                yield from value.const_value.shape.numpy()


def _embeddings(model: ir.Model, ids: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Rows and width of each table from which rows are gathered by token ids."""
    for node in model.graph:
        if node.op_type != "Gather" or len(node.inputs) < 2:
            continue
        table, index = node.inputs[0], node.inputs[1]
        shape = None if table is None or table.const_value is None else table.const_value.shape
        if shape is not None and len(shape) == 2 and _source(index) in ids:
            rows, width = shape.numpy()
            yield rows, width


def _source(value: ir.Value | None) -> str | None:
    """The name of the graph input that a value is, moved or cast or not."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in MOVEMENT_OPS and node.op_type != "Cast":
            return None
        value = node.inputs[0] if node.inputs else None
    return value.name if value is not None and value.is_graph_input() else None
