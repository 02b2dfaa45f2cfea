"""Reading and writing single ONNX files: untrusted input checked before it is used, output whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from precision_search.errors import InputError, first_line
from precision_search.files import check_name, reason, writing
from precision_search.model.external_data import check_external_data, data_file, follow_links
from precision_search.model.graph import KEYED
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.onnx_limits import check_file, check_model
from precision_search.model.op_kinds import refuse_kinds

EXTERNAL_DATA_THRESHOLD = 1 << 30
"""Bytes of weights above which they go into a file of their own (a protobuf ends at 2 GB)."""

SMALL_TENSOR_BYTES = 1024
"""Tensors up to this size are read even where they are external: axes, shapes and scalars, which tools look into."""

OLDEST_OPSET, USUAL_OPSET, NEWEST_OPSET = 12, 18, 26
"""ONNX opsets of graphs that are searched. The limits are what is tested."""


def read_model(path: Path) -> ir.Model:
    """Reads an ONNX file whose floats are all fp32, with every value's dtype known.

    Weights stay where they are (external data is mapped, not read). Nodes that do nothing are dropped: an Identity,
    and a Cast from fp32 to fp32 (tracing exporters write one for each `.float()`).

    Raises:
        InputError: what `load_model` refuses; a graph that is quantized, fused or mixed already, or whose opset or
            types are unknown.
    """
    return as_fp32(load_model(path), path)


def as_fp32(model: ir.Model, path: Path) -> ir.Model:
    """What `read_model` makes of a flat model that was read from `path`; in place."""
    _refuse_opset(model, path)
    refuse_kinds(model.graph, path)
    problem = infer_types(model)
    _refuse_unknown_or_mixed(model, path, problem)
    _drop_idle_nodes(model)
    return model


def load_model(path: Path) -> ir.Model:
    """Reads any ONNX file, low dtypes included, as one flat, sorted graph whose constants are initializers.

    Raises:
        InputError: missing or corrupt file; external data that leaves the model's folder; control flow.
    """
    return flat(parsed(path), path)


def parsed(path: Path) -> ir.Model:
    """An ONNX file as it is, checked but for what `flat` makes of it.

    Raises:
        InputError: see `load_model`.
    """
    check_name(path)
    if not path.is_file():
        raise InputError(
            f"there is no file {path}",
            why="it is missing, or no regular file",
            fix=f"a model directory holds {SEQ2SEQ.files}",
        )
    with readable(path):
        model = _parse(path)
        tensors = list(_tensors(model))
        check_external_data(tensors, path)
        for tensor in tensors:
            _check_tensor(tensor)
        check_model(model)
    return model


def flat(model: ir.Model, path: Path) -> ir.Model:
    """The model as one flat, sorted graph whose constants are initializers, none of them an input; in place.

    Raises:
        InputError: see `load_model`.
    """
    with readable(path), _notes():
        return _flat(model, path)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What libraries do to a model that was read from `path`: their errors become ours."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # protobuf and onnx_ir raise a dozen unrelated types on broken bytes
        raise _unreadable(path, reason(error)) from error


def infer_types(model: ir.Model) -> str:
    """Adds the types and shapes that an exporter left out, if any; gives why that failed, where it did."""
    if all(value.dtype is not None for node in model.graph for value in node.outputs):
        return ""
    with _notes() as notes:
        common_passes.ShapeInferencePass()(model)
    errors = [note.exc_info[1] for note in notes if note.exc_info]
    return first_line(str(errors[0])) if errors else ""


def data_files(path: Path) -> list[Path]:
    """The external data files that an ONNX file refers to, sorted.

    Raises:
        InputError: the file is corrupt.
    """
    return sorted({data_file(path, location) for location in data_locations(path)})


def data_locations(path: Path) -> list[str]:
    """What an ONNX file calls its external data, sorted.

    Raises:
        InputError: the file is corrupt.
    """
    with readable(path):
        tensors = list(_tensors(_parse(path)))
    return sorted({str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})


def write_model(model: ir.Model, path: Path) -> None:
    """Writes an ONNX file (and `NAME.onnx_data` beside it for more than 1 GiB of weights), whole or not at all.

    The bytes depend on the model only, wherever its weights are stored.

    Raises:
        EnvironmentProblemError: the file cannot be written.
    """
    external = f"{path.name}_data" if weight_bytes(model) > EXTERNAL_DATA_THRESHOLD else None
    if external is None:
        model = model.clone()
        for value in model.graph.initializers.values():
            _read_into_memory(value)
    with writing(path), tempfile.TemporaryDirectory(prefix=".write-", dir=path.parent) as folder:
        written = Path(folder) / path.name
        ir.save(model, written, external_data=external)
        if external:
            (Path(folder) / external).replace(path.parent / external)
        written.replace(path)


def _parse(path: Path) -> ir.Model:
    """The file as onnx_ir reads it, without a word of onnx_ir's."""
    check_file(path)
    with _notes():
        return ir.load(path, format="protobuf")


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record."""
        self.records.append(record)


@contextlib.contextmanager
def _notes() -> Iterator[list[logging.LogRecord]]:
    """What onnx_ir has to say meanwhile, which it would print with its tracebacks; our own messages say it once."""
    logger, handler = logging.getLogger("onnx_ir"), _Kept()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


def strip_notes(model: ir.Model) -> None:
    """Removes documentation and metadata that an exporter left, of the model and all that is in it; our own mark stays.

    Exporters note stack traces, and with them paths on the machine that they ran on.
    """
    keyed = model.metadata_props.get(KEYED)
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs]
    for noted in (model, model.graph, *model.graph, *values):
        noted.metadata_props.clear()
        noted.doc_string = None
    if keyed is not None:
        model.metadata_props[KEYED] = keyed


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers as stored."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _flat(model: ir.Model, path: Path) -> ir.Model:
    """One graph without functions, control flow and Constant nodes, in topological order."""
    if model.functions:
        common_passes.InlinePass()(model)
    if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in _attributes(model)):
        raise InputError(
            f"{path.name} has nodes with subgraphs",
            why="precision is decided node by node in a flat graph (a merged decoder has an If)",
            fix="export the decoder and the decoder with past as two files",
        )
    if not len(model.graph):
        raise _unreadable(path, "its graph has no nodes")
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = follow_links(value.const_value, path)
        if value.const_value is not None and value.const_value.nbytes <= SMALL_TENSOR_BYTES:
            _read_into_memory(value)
        if value.is_graph_input():  # as files before ONNX 1.4 have it, and some tools until today
            model.graph.inputs.remove(value)
    model.graph.sort()
    _check_values(model, path)
    return model


def _check_values(model: ir.Model, path: Path) -> None:
    """Every value that is read is made, names are text, and the standard domain has its short name."""
    for node in model.graph:
        for read in node.inputs:
            if read is not None and read.producer() is None and not _comes_from_outside(read):
                raise _unreadable(path, f"{node.name or node.op_type} reads {read.name!r}, which nothing makes")
    opsets = model.graph.opset_imports
    if "ai.onnx" in opsets:  # the long name of the standard domain
        opsets[""] = opsets.pop("ai.onnx")
    if "" not in opsets:
        raise _unreadable(path, "it does not say which ONNX opset it uses")
    # Protobuf hands over what is no UTF-8 as bytes.
    texts = (
        text for node in model.graph for text in (node.name, node.op_type, *(value.name for value in node.outputs))
    )
    if strange := [text for text in texts if not isinstance(text, str | None)]:
        raise _unreadable(path, f"the name {strange[0]!r} is no text")


def _comes_from_outside(value: ir.Value) -> bool:
    return value.is_graph_input() or (value.is_initializer() and value.const_value is not None)


def _read_into_memory(value: ir.Value) -> None:
    tensor = value.const_value
    if isinstance(tensor, ir.ExternalTensor):
        value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of a model: initializers, and attributes of all nodes, those of subgraphs and functions included."""
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
    for nodes in (model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())):
        for attr in (attr for node in nodes for attr in node.attributes.values() if not attr.is_ref()):
            if attr.type == ir.AttributeType.TENSOR:
                yield attr.as_tensor()
            elif attr.type == ir.AttributeType.TENSORS:
                yield from attr.as_tensors()


def _attributes(model: ir.Model) -> Iterator[ir.Attr]:
    return (attr for node in model.graph for attr in node.attributes.values())


def _check_tensor(tensor: ir.TensorProtocol) -> None:
    """Raises for a tensor whose data are not what its shape says; onnx_ir would find out late, or take zeros."""
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        tensor.numpy()
        fields = ("raw_data", "float_data", "int32_data", "int64_data", "uint64_data", "double_data", "string_data")
        if tensor.size and not any(len(getattr(tensor.raw, field)) for field in fields):
            raise ValueError(f"the tensor {tensor.name!r} has no data")


def _refuse_opset(model: ir.Model, path: Path) -> None:
    opset = model.graph.opset_imports[""]
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise InputError(
            f"{path.name} uses ONNX opset {opset}",
            why=f"opsets {OLDEST_OPSET} to {NEWEST_OPSET} are read",
            fix=f"export it again with an opset between them, such as {USUAL_OPSET}",
        )


def _refuse_unknown_or_mixed(model: ir.Model, path: Path, problem: str) -> None:
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    for value in values:
        if value.dtype is None and (value.producer() is None or value.name):
            producer = value.producer()
            unknown = f"shape inference does not know the operator {producer.op_type}" if producer else "it has no type"
            raise InputError(
                f"{path.name}: the type of {value.name!r} is unknown",
                why=f"shape inference failed: {problem}" if problem else unknown,
                fix="export the graph with standard ONNX operators and value types",
            )
        if value.dtype is not None and value.dtype.is_floating_point() and value.dtype != ir.DataType.FLOAT:
            raise InputError(
                f"{path.name} is not an fp32 graph: {value.name!r} is {value.dtype.name}",
                why="plans are of fp32 graphs, and rounded to fp32 a float64 graph is another model"
                if value.dtype == ir.DataType.DOUBLE
                else "a graph that is mixed already has lost the values the reference needs",
                fix="start from the fp32 export, or from the checkpoint",
            )


def _drop_idle_nodes(model: ir.Model) -> None:
    """Removes Identity nodes and casts from fp32 to fp32; where they name a graph output, an Identity stays."""
    for node in list(model.graph):
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type == "Cast" and source is not None and source.dtype == ir.DataType.FLOAT == result.dtype:
            node.op_type = "Identity"
            node.attributes.clear()
        if node.op_type == "Identity" and source is not None and not result.is_graph_output():
            ir.convenience.replace_all_uses_with(result, source)
            model.graph.remove(node, safe=True)


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(f"{path} is not a readable ONNX file", why=why, fix="export it again")
