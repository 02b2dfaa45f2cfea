"""Facts about one ONNX graph: which nodes compute, what they are called, which can never be low.

In: an `onnx_ir.Model` in fp32 as an exporter wrote it. Out: a `Graph`, whose nodes carry unique, stable keys (module
path, op type, ordinal), the same for the same computation in both decoder graphs.
"""

from __future__ import annotations

import ast
import enum
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

import onnx_ir as ir

T = TypeVar("T")

GraphName = Literal["encoder", "decoder", "decoder_with_past"]
Family = Literal["encoder", "decoder"]
GRAPH_NAMES: tuple[GraphName, ...] = get_args(GraphName)
BASE_VARIANT = "base"
"""The graph variant that nothing was done to (see `model.variants`)."""

KEYED = "precision_search.keyed"
"""Model metadata key: the nodes are already named by their keys."""

OUTPUT_HEAD = "lm_head"
"""Module path of the output projection, which belongs to the decoder without being part of it."""

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})

MOVEMENT_OPS = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "Reshape",
        "ScatterElements",
        "ScatterND",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
    }
)
"""Op types that copy values and round nothing. A Gather from a weight is the exception: it decides how the weight is
stored, so it counts as compute."""

SOURCE_OPS = frozenset({"Cast", "CastLike", "Constant", "ConstantOfShape", "Range", "Shape", "Size", "EyeLike"})
"""Op types that make float values out of something else; they run as exported."""


LONGEST_SCOPES = 10_000
"""Characters of an exporter's list of scopes; real ones have some hundred."""

SHAPE_OPS = frozenset({"Shape", "Size"})
"""Op types that read how large a value is and never what it holds."""


class NodeKind(enum.Enum):
    """What a node is to a precision decision."""

    COMPUTE = "compute"
    """Float arithmetic: low or fp32, the plan decides."""
    MOVEMENT = "movement"
    """Copies float values: takes the dtype that its neighbours make cheapest."""
    OTHER = "other"
    """Integers, booleans, shapes, and where floats come from or end in them."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a graph.

    Attributes:
        key: unique name within the graph.
        op_type: ONNX op type.
        kind: what it is to a precision decision.
        role: the key without its layer number (`*` in its place).
        pinned: why this compute node can never be low, or None.
    """

    key: str
    op_type: str
    kind: NodeKind
    role: str
    pinned: str | None


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph of a bundle. Nobody modifies `model`; who edits takes `model.clone()`.

    Attributes:
        name: which of the three graphs.
        model: the fp32 graph, node names equal to the keys.
        nodes: by key, in topological order.
    """

    name: GraphName
    model: ir.Model
    nodes: Mapping[str, Node]
    _found: dict[Callable[[Graph], Any], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, read: Callable[[Graph], T]) -> T:
        """What `read` makes of the graph, made on the first call: nothing that it reads ever changes."""
        if read not in self._found:
            self._found[read] = read(self)
        found: T = self._found[read]
        return found

    @property
    def family(self) -> Family:
        """The family whose decisions hold for this graph."""
        return family_of(self.name)

    @property
    def compute(self) -> tuple[Node, ...]:
        """The compute nodes in topological order."""
        return tuple(node for node in self.nodes.values() if node.kind is NodeKind.COMPUTE)


def family_of(name: GraphName) -> Family:
    """The graph family: the two decoder graphs are one."""
    return "encoder" if name == "encoder" else "decoder"


def describe(name: GraphName, model: ir.Model) -> Graph:
    """Names the nodes of `model` by their keys (in place, unless they are so named already) and classifies them.

    Value dtypes must be known (`model_files.read_model` infers those that an exporter left out).
    """
    kinds = {node: node_kind(node) for node in model.graph}
    if model.metadata_props.get(KEYED) != "1" or not _names_are_keys(model):
        _rename(model, kinds, family_of(name))
        model.metadata_props[KEYED] = "1"
    index_arithmetic = _index_arithmetic(model, kinds)
    nodes = {}
    for node, kind in kinds.items():
        key = str(node.name)
        pinned = "index arithmetic" if node in index_arithmetic else None
        nodes[key] = Node(key, node.op_type, kind, role_of(key), pinned)
    return Graph(name, model, MappingProxyType(nodes))


_LAYER = re.compile(r"(?<=\.)\d+(?=[./])")


def role_of(key: str) -> str:
    """The node key with its layer number (the first number that is a whole path component) replaced by `*`."""
    return _LAYER.sub("*", key, count=1)


def layer_of(key: str) -> int | None:
    """The layer number in a node key, from 0; None for a node outside the layers."""
    found = _LAYER.search(key)
    return None if found is None else int(found.group())


def compute_keys_by_op_type(graphs: Mapping[GraphName, Graph], family: Family) -> dict[str, frozenset[str]]:
    """The compute-node keys of a family, grouped by op type."""
    found: dict[str, set[str]] = {}
    for graph in graphs.values():
        if graph.family == family:
            for node in graph.compute:
                found.setdefault(node.op_type, set()).add(node.key)
    return {op_type: frozenset(found[op_type]) for op_type in sorted(found)}


def is_float(value: ir.Value | None) -> bool:
    """Whether the value holds floating-point numbers of any width."""
    return value is not None and value.dtype in FLOATS


def retype(value: ir.Value, dtype: ir.DataType) -> None:
    """Gives a value another element type.

    `ir.Value.dtype = ...` would change the type object in place, which a cloned model shares with its original.
    """
    value.type = ir.TensorType(dtype)


def drop_unused_initializers(model: ir.Model) -> None:
    """Removes the initializers that nobody reads any more."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


def float_inputs(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """The node's float inputs with their positions."""
    for index, value in enumerate(node.inputs):
        if value is not None and is_float(value):
            yield index, value


def is_weight(value: ir.Value | None) -> bool:
    """Whether the value is a float initializer of more than one dimension or element."""
    return value is not None and value.is_initializer() and is_float(value) and _size(value) > 1


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.size


def node_kind(node: ir.Node) -> NodeKind:
    """What a node is to a precision decision, from its op type and its values' dtypes."""
    if not any(is_float(output) for output in node.outputs) or node.op_type in SOURCE_OPS:
        return NodeKind.OTHER
    if node.op_type in MOVEMENT_OPS and not (node.op_type == "Gather" and is_weight(node.inputs[0])):
        return NodeKind.MOVEMENT
    return NodeKind.COMPUTE


def _names_are_keys(model: ir.Model) -> bool:
    """Whether every node has a name of its own; a file can say so and yet have been edited since."""
    names = {node.name for node in model.graph}
    return len(names) == len(model.graph) and all(names)


def _rename(model: ir.Model, kinds: Mapping[ir.Node, NodeKind], family: Family) -> None:
    """Gives every node its key: `path/Op`, `path/Op.1` for compute nodes, `path/aux/Op` for all others.

    Compute nodes are counted apart from the rest, because the two decoder graphs agree on them and on nothing else.
    """
    seen: Counter[str] = Counter()
    for node, kind in kinds.items():
        stem = _within_family(_module_path(node).replace("/", "."), family)
        stem = f"{stem}/{node.op_type}" if kind is NodeKind.COMPUTE else f"{stem}/aux/{node.op_type}"
        ordinal = seen[stem]
        seen[stem] += 1
        node.name = f"{stem}.{ordinal}" if ordinal else stem


def _within_family(path: str, family: Family) -> str:
    """The module path from the family's root on: some exporters trace each stack as a root of its own, and a key that
    encoder and decoder share would be one decision for both."""
    if not path:
        return family
    return path if path.split(".", maxsplit=1)[0] in (family, OUTPUT_HEAD) else f"{family}.{path}"


def _module_path(node: ir.Node) -> str:
    """The module that computed the node, from what the exporter left: name scopes, node name or a weight's name."""
    if scopes := node.metadata_props.get("pkg.torch.onnx.name_scopes"):
        module = _innermost(scopes)
        # The exporter puts a placeholder with a leading underscore where it lifted a size out of every module.
        return "" if module.startswith("_") else module
    if node.name and "/" in node.name:
        return ".".join(part for part in node.name.split("/")[:-1] if part)
    for value in node.inputs:
        if is_weight(value) and value is not None and value.name and "." in value.name:
            return value.name.rsplit(".", 1)[0]
    return ""


def _innermost(scopes: str) -> str:
    """The last module in the exporter's list of scopes, whose last entry is the operation; "" for anything else."""
    if len(scopes) > LONGEST_SCOPES:
        return ""
    try:
        names = ast.literal_eval(scopes)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ""
    return names[-2] if isinstance(names, list) and len(names) > 1 and isinstance(names[-2], str) else ""


def _index_arithmetic(model: ir.Model, kinds: Mapping[ir.Node, NodeKind]) -> set[ir.Node]:
    """Compute nodes on a path from integers through floats back to integers, such as relative-position buckets.

    They stay in fp32 in every plan: one rounding there changes an index, not a value.
    """
    found: set[ir.Node] = set()
    for sink in model.graph:
        if any(is_float(output) for output in sink.outputs):
            continue
        stack = [value.producer() for _, value in float_inputs(sink)]
        while stack:
            node = stack.pop()
            if node is None or node in found or kinds.get(node) not in (NodeKind.COMPUTE, NodeKind.MOVEMENT):
                continue
            if kinds[node] is NodeKind.COMPUTE and not _depends_on_integers_only(node, kinds):
                continue
            found.add(node)
            stack.extend(value.producer() for _, value in float_inputs(node))
    return {node for node in found if kinds[node] is NodeKind.COMPUTE}


def _depends_on_integers_only(node: ir.Node, kinds: Mapping[ir.Node, NodeKind]) -> bool:
    """Whether all float inputs come, over float nodes, from casts of integers and from constants of one element."""
    seen: set[ir.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        for _, value in float_inputs(current):
            producer = value.producer()
            if producer is None:
                if not value.is_initializer() or _size(value) > 1:
                    return False
            elif kinds.get(producer) is not NodeKind.OTHER:
                stack.append(producer)
    return True
