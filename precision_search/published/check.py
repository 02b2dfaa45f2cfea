"""Proof that a written model directory is what it claims to be: read back from the disk and held against the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from precision_search.device.cuda import LOG_FATAL
from precision_search.errors import InternalError, first_line
from precision_search.model.graph import SHAPE_OPS, Graph, GraphName, NodeKind, is_weight, node_kind
from precision_search.model.layout import graph_file
from precision_search.model.onnx_files import load_model
from precision_search.precision.convert import check_boundaries, check_round_trips, check_types
from precision_search.precision.emulate import widen
from precision_search.precision.low import DTYPE_NAMES, IR_DTYPES
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache
from precision_search.runtime.backends import create_session
from precision_search.runtime.session import SessionSettings


def check_published(directory: Path, graphs: Mapping[GraphName, Graph], plan: Plan) -> None:
    """Checks the three files in `directory`, one after the other, and then how they fit together.

    Args:
        directory: with the ONNX files as published.
        graphs: the fp32 graphs they were made from.
        plan: what stays in fp32.

    Raises:
        InternalError: the first thing that is wrong.
    """
    written = {}
    for name, graph in graphs.items():
        path = directory / graph_file(name)
        _check_onnx(path)
        written[name] = load_model(path)
        check_types(written[name], name)
        check_round_trips(written[name], name)
        check_plan(written[name], graph, plan)
        check_weights(written[name], name)
        _check_loads(written[name], path)
    check_boundaries(written)


def check_plan(model: ir.Model, graph: Graph, plan: Plan) -> None:
    """Every compute node is there and gives the dtype that the plan says.

    Raises:
        InternalError: the first node for which that does not hold.
    """
    made = {str(node.name): node.outputs[0].dtype for node in model.graph}
    for node in graph.compute:
        wanted = ir.DataType.FLOAT if node.key in plan.fp32 else IR_DTYPES[plan.dtype]
        if made.get(node.key) != wanted:
            raise InternalError(
                f"{graph.name}: {node.key} was not written as planned",
                why=f"it gives {made.get(node.key, 'nothing')}, the plan says {wanted}",
            )


def check_weights(model: ir.Model, name: GraphName) -> None:
    """No fp32 weight is stored that only low nodes read, and none that nobody reads.

    Raises:
        InternalError: the first such weight.
    """
    for value in model.graph.initializers.values():
        if is_weight(value) and value.dtype == ir.DataType.FLOAT and not any(_fp32_readers(value)):
            raise InternalError(f"{name}: the weight {value.name} is stored in fp32, but no fp32 node reads it")


def _fp32_readers(value: ir.Value) -> Iterator[bool]:
    """For everybody who reads `value`, behind data movement too, whether it is used there in fp32."""
    yield value.is_graph_output()
    for node, _ in value.uses():
        if node.op_type == "Cast":
            yield node.outputs[0].dtype not in DTYPE_NAMES
        elif node_kind(node) is NodeKind.MOVEMENT:
            for output in node.outputs:
                yield from _fp32_readers(output)
        else:
            yield node.op_type not in SHAPE_OPS


def _check_onnx(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker raises its own classes and those of shape inference
        raise InternalError(f"{path.name} does not pass the ONNX checker", why=first_line(error)) from error


def _check_loads(model: ir.Model, path: Path) -> None:
    """ONNX Runtime takes the file as it is; in bfloat16 its widened graph, since its CPU provider has no kernels."""
    import onnxruntime

    try:
        if any(value.dtype == IR_DTYPES["bfloat16"] for node in model.graph for value in node.outputs):
            create_session(widen(model, WeightCache()), SessionSettings())
            return
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = LOG_FATAL
        options.intra_op_num_threads = 1
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own, one for each status code
        raise InternalError(f"{path.name} does not load in ONNX Runtime", why=first_line(error)) from error
