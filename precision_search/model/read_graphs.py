"""The three graphs of a model directory, however they are laid out: in files of our layout's names, inputs and types.

In: the files. Out: an fp32 model for each graph. What differs from our layout only in names, in integer types or in
where it stands is made alike here, so that nothing that comes after knows of other layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from precision_search.model.file_layouts import GraphFiles
from precision_search.model.graph import GraphName, retype
from precision_search.model.layout import SEQ2SEQ, CacheLink, GraphLayout
from precision_search.model.merged import free_name, split
from precision_search.model.onnx_files import as_fp32, data_files, flat, parsed, readable


def read_graphs(directory: Path, found: GraphFiles) -> dict[GraphName, ir.Model]:
    """Reads the graphs; those of our layout stay as `read_model` gives them.

    Raises:
        InputError: see `read_model`; a merged decoder is none.
    """
    paths = found.paths(directory)
    models: dict[GraphName, ir.Model] = {}
    for layout in SEQ2SEQ.graphs:
        if layout.name in models:
            continue
        path = paths[layout.name]
        if found.layout.is_merged and path == paths[SEQ2SEQ.decoder.name]:
            models |= {name: flat(part, path) for name, part in split(parsed(path), path).items()}
        else:
            models[layout.name] = flat(parsed(path), path)
    for layout in SEQ2SEQ.graphs:
        model, path = models[layout.name], paths[layout.name]
        with readable(path):
            if found.layout.tensors == "by position":
                _name_by_position(layout, model)
            if found.layout.is_merged or found.layout.tensors == "by position":
                _drop_surplus_ends(layout, model)
        as_fp32(model, path)
        _take_int64(layout, model)
    return models


def files_of(directory: Path, found: GraphFiles) -> list[Path]:
    """The ONNX files in the order of the graphs, each followed by its external data; none twice.

    Raises:
        InputError: one is corrupt.
    """
    paths = dict.fromkeys(found.paths(directory).values())
    return [file for path in paths for file in (path, *data_files(path))]


def _name_by_position(layout: GraphLayout, model: ir.Model) -> None:
    """Inputs that are no layout's are the cache, in its order; so are the outputs after the first."""
    others = [value for value in model.graph.inputs if value.name not in layout.known_inputs]
    for value, link in zip(others, _links(len(others), layout.reads == "all"), strict=False):
        value.name = link.past
    first, *presents = model.graph.outputs
    names = [layout.output, *(link.present for link in _links(len(presents), True))]
    wanted = list(zip((first, *presents), names, strict=False))
    for index, node in enumerate(model.graph):
        for value in node.outputs:
            if value.name in names:
                value.name = f"{value.name}/inner.{index}"
    for value, name in wanted:
        if value.producer() is not None:
            value.name = name


def _links(count: int, wanted: bool) -> Sequence[CacheLink]:
    """The cache of as many tensors: key and value of self- and cross-attention, layer by layer."""
    if not wanted or count % 4:
        return ()
    return SEQ2SEQ.caches(count // 4)


def _drop_surplus_ends(layout: GraphLayout, model: ir.Model) -> None:
    """Removes inputs of the other decoder that nothing here reads, and caches that the layout has no output for.

    A later step takes one token; a graph that both decoders were in cannot say so.
    """
    required = {each.name for each in layout.inputs if not each.is_optional}
    for value in list(model.graph.inputs):
        is_cache = SEQ2SEQ.is_past(str(value.name))
        if value.name not in required and not value.uses() and not (is_cache and layout.reads == "all"):
            model.graph.inputs.remove(value)
    if layout.writes == "self":
        for value in list(model.graph.outputs):
            suffix = SEQ2SEQ.crossing(str(value.name))
            link = SEQ2SEQ.cache_link(f"{SEQ2SEQ.past}.{suffix}")
            if link is not None and not link.is_self:
                model.graph.outputs.remove(value)
        common_passes.RemoveUnusedNodesPass()(model)
    for value in model.graph.inputs if layout.is_later_step else ():
        if value.name == layout.input("decoder_ids") and value.shape is not None and len(value.shape) == 2:
            value.shape = ir.Shape([value.shape[0], 1])


def _take_int64(layout: GraphLayout, model: ir.Model) -> None:
    """Lets ids and masks that the graph takes as int32 come in as int64, through a Cast: all graphs are fed alike."""
    integers = {each.name for each in layout.inputs if each.is_integer}
    taken = {*model.graph.initializers, *(value.name for node in model.graph for value in node.outputs)}
    for value in model.graph.inputs:
        if value.name in integers and value.dtype == ir.DataType.INT32:
            cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", ir.DataType.INT32)])
            narrow = cast.outputs[0]
            narrow.name, narrow.shape = free_name(f"{value.name}/int32", taken), value.shape
            retype(narrow, ir.DataType.INT32)
            ir.convenience.replace_all_uses_with(value, narrow)
            cast.replace_input_with(0, value)
            retype(value, ir.DataType.INT64)
            first = next(iter(model.graph))
            model.graph.insert_before(first, cast)
