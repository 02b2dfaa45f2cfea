"""What an ONNX file may be before anything is made of it: its size, and that of the graph its functions unfold to.

In: a path, or a model as it was read. Out: nothing, or the error that says which limit it is beyond. A file of a few
kilobytes can hold functions that call each other twice each, forty deep: inlined they are more nodes than atoms.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from precision_search.files import check_size

LARGEST_FILE = (1 << 31) - 1
"""Bytes of an ONNX file without external data: where protobuf ends."""

MOST_NODES = 200_000
"""Nodes after inlining; the largest known graphs of these families have a tenth of them."""

DEEPEST_CALLS = 100
"""Functions that call each other, one inside the other."""


def check_file(path: Path) -> None:
    """Raises OSError for what is no regular file that protobuf can read."""
    check_size(path, LARGEST_FILE)


def check_model(model: ir.Model) -> None:
    """Raises ValueError for functions that unfold without measure, and for nodes that make nothing."""
    known: dict[ir.OperatorIdentifier, tuple[int, int]] = {}

    def unfolded(nodes: Iterable[ir.Node], depth: int) -> tuple[int, int]:
        """How many nodes there are after inlining, and how deep functions call each other."""
        if depth > DEEPEST_CALLS:
            raise ValueError(f"its functions call each other more than {DEEPEST_CALLS} deep, or in a circle")
        count, deepest = 0, 0
        for node in nodes:
            if not node.outputs:
                raise ValueError(f"the node {node.name or node.op_type!r} has no outputs")
            called = node.op_identifier()
            if called in model.functions and called not in known:
                known[called] = unfolded(model.functions[called].all_nodes(), depth + 1)
            size, calls = known.get(called, (1, -1))
            count, deepest = count + size, max(deepest, calls + 1)
        return count, deepest

    count, deepest = unfolded(model.graph.all_nodes(), 0)
    if deepest > DEEPEST_CALLS:
        raise ValueError(f"its functions call each other more than {DEEPEST_CALLS} deep")
    if count > MOST_NODES:
        raise ValueError(f"it has {count} nodes once its functions are inlined, and {MOST_NODES} are the most")
