"""Reading and writing single ONNX files: untrusted input checked before it is used, output whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from precision_search.errors import InputError, InternalError
from precision_search.model.graph import FLOATS

EXTERNAL_DATA_THRESHOLD = 1 << 30
"""Bytes of weights above which they go into a file of their own (a protobuf ends at 2 GB)."""


def read_model(path: Path) -> ir.Model:
    """Reads an ONNX file whose floats are all fp32, with every value's dtype known.

    Weights stay where they are (external data is mapped, not read).

    Raises:
        InputError: missing, corrupt or already mixed file; external data outside the model's folder; control flow.
    """
    model = load_model(path)
    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in _attributes(model)):
        raise InputError(
            f"{path.name} has nodes with subgraphs",
            why="precision is decided node by node in a flat graph (a merged decoder has an If)",
            fix="export the decoder and the decoder with past as two files",
        )
    if model.functions:
        common_passes.InlinePass()(model)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        model = common_passes.ShapeInferencePass()(model).model
    _refuse_unknown_or_mixed(model, path)
    return model


def load_model(path: Path) -> ir.Model:
    """Reads any ONNX file, low dtypes included.

    Raises:
        InputError: missing or corrupt file; external data that leaves the model's folder.
    """
    if not path.is_file():
        raise InputError(
            f"there is no file {path}",
            fix="a model directory holds encoder_model.onnx, decoder_model.onnx and decoder_with_past_model.onnx",
        )
    try:
        model = ir.load(path)
        nodes = len(model.graph)
    except Exception as error:  # protobuf and onnx_ir raise a dozen unrelated types on broken bytes
        raise InputError(
            f"{path} is not a readable ONNX file", why=_first_line(error), fix="export it again"
        ) from error
    if not nodes:
        raise InputError(f"{path} is not a readable ONNX file", why="its graph has no nodes", fix="export it again")
    _check_external_data(model, path)
    return model


def write_model(model: ir.Model, path: Path) -> None:
    """Writes an ONNX file (and `NAME.onnx_data` beside it for more than 1 GiB of weights), whole or not at all.

    The bytes depend on the model only.

    Raises:
        InternalError: the file cannot be written.
    """
    nbytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    external = f"{path.name}_data" if nbytes > EXTERNAL_DATA_THRESHOLD else None
    try:
        with tempfile.TemporaryDirectory(prefix=".write-", dir=path.parent) as folder:
            written = Path(folder) / path.name
            ir.save(model, written, external_data=external)
            if external:
                (Path(folder) / external).replace(path.parent / external)
            written.replace(path)
    except OSError as error:
        raise InternalError(f"cannot write {path}", why=str(error), fix="check free space and permissions") from error


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers as stored."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _attributes(model: ir.Model) -> list[ir.Attr]:
    return [attr for node in model.graph for attr in node.attributes.values() if isinstance(attr, ir.Attr)]


def _check_external_data(model: ir.Model, path: Path) -> None:
    """Every external file must lie inside the model's folder, links followed."""
    folder = path.parent.resolve()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = Path(tensor.location)
        target = (folder / location).resolve()
        if location.is_absolute() or not target.is_relative_to(folder):
            raise InputError(
                f"{path.name} keeps the weight {value.name!r} outside its folder",
                why=f"its external data is {tensor.location!r}",
                fix="put the data file beside the ONNX file and save the model with a relative location",
            )
        if not target.is_file():
            raise InputError(
                f"{path.name} needs the file {tensor.location}",
                why="it is not beside the ONNX file",
                fix="copy it there",
            )
        if tensor.offset is not None and tensor.offset + tensor.nbytes > target.stat().st_size:
            raise InputError(
                f"the data file {tensor.location} is too short",
                why=f"the weight {value.name!r} of {path.name} ends behind its end",
                fix="copy it again, whole",
            )


def _refuse_unknown_or_mixed(model: ir.Model, path: Path) -> None:
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    for value in values:
        if value.dtype is None and (value.producer() is None or value.name):
            producer = value.producer()
            raise InputError(
                f"{path.name}: the type of {value.name!r} is unknown",
                why=f"shape inference does not know the operator {producer.op_type}" if producer else "it has no type",
                fix="export the graph with standard ONNX operators and value types",
            )
        if value.dtype in FLOATS and value.dtype is not ir.DataType.FLOAT:
            raise InputError(
                f"{path.name} is not an fp32 graph: {value.name!r} is {value.dtype.name}",
                why="a graph that is mixed already has lost the values the reference needs",
                fix="start from the fp32 export, or from the checkpoint",
            )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
