"""Whether CUDA runs what it was given: every node of a session that takes and gives floats.

In: a graph before its session is made, and that session. Out: an error that names the nodes which would run on the CPU;
ONNX Runtime itself leaves them there without a word. It may keep arithmetic on shapes on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from precision_search.device import cuda
from precision_search.device.cuda import CUDA_PROVIDER
from precision_search.errors import DeviceError, NoKernelError, counted

if TYPE_CHECKING:
    import onnxruntime

RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""The session config entry of ONNX Runtime that `check_float_nodes` needs, set to 1."""


def name_float_nodes(model: ir.Model) -> frozenset[str]:
    """The names of the nodes, those within other nodes included, that take floats and give floats.

    Nodes without a name get one, in place: ONNX asks for none, and by its name ONNX Runtime says where a node runs.
    Where the graph does not say what a node gives, floats are taken to give floats, except for sizes.
    """
    _name_nodes(model)
    return frozenset(
        str(node.name)
        for node in model.graph.all_nodes()
        if node.op_type not in {"Shape", "Size"}
        and any(value is not None and _is_float(value) for value in node.inputs)
        and any(value.dtype is None or _is_float(value) for value in node.outputs)
    )


def check_float_nodes(session: onnxruntime.InferenceSession, name: str, floats: frozenset[str], device_id: int) -> None:
    """Holds the session of the graph `name` to the CUDA device.

    Raises:
        DeviceError, MissingPackageError: it runs on the CPU.
        NoKernelError: nodes among `floats` do.
    """
    if session.get_providers()[0] != CUDA_PROVIDER:
        cuda.require(device_id)
        raise DeviceError("The session fell back to the CPU.", why="CUDA started in a probe but not for this graph.")
    elsewhere = sorted(
        str(node.name)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != CUDA_PROVIDER
        for node in part.get_nodes()
        if node.name in floats
    )
    if elsewhere:
        raise NoKernelError(
            f"{counted(len(elsewhere), 'node')} of the graph {name!r} would run on the CPU.",
            why=f"ONNX Runtime's CUDA provider has no kernel for {', '.join(elsewhere[:3])}"
            f"{' and others' if len(elsewhere) > 3 else ''} in the types that they have.",
            fix="Keep these nodes in fp32, or run on the CPU.",
        )


def _name_nodes(model: ir.Model) -> None:
    nodes = list(model.graph.all_nodes())
    taken = {node.name for node in nodes}
    for number, node in enumerate(nodes):
        if not node.name:
            name = f"{node.op_type}.{number}"
            node.name = name if name not in taken else f"{name}.unnamed"


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
