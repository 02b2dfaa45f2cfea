"""A merged decoder, taken apart: the two branches of its If become the decoder and the decoder with past.

In: the graph of `decoder_model_merged.onnx` as optimum writes it: one If on an input that says whether there is a
cache. Out: two graphs that share the tensors of the file. What is outside the If (weights, constants, a few nodes) goes
to both, and each branch's outputs get the names that the merged graph's have.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from precision_search.errors import InputError
from precision_search.model.graph import GraphName
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.onnx_files import readable

SWITCH = "use_cache_branch"
"""The input that says whether there is a cache: the If's first branch is the decoder with past."""


def split(model: ir.Model, path: Path) -> dict[GraphName, ir.Model]:
    """Both decoders, whose inputs and outputs are not yet those of their layout; `model` stays as it is.

    Raises:
        InputError: it is no merged decoder.
    """
    _switched(model, path)
    branches = {SEQ2SEQ.decoder.name: "else_branch", SEQ2SEQ.decoder_with_past.name: "then_branch"}
    with readable(path):
        return {name: _with_branch(model.clone(), branch, path) for name, branch in branches.items()}


def _switched(model: ir.Model, path: Path) -> ir.Node:
    """The If, where it is the only one and an input of the known name decides it."""
    choices = [node for node in model.graph if node.op_type == "If"]
    if len(choices) == 1 and _decided_by(choices[0]) == SWITCH:
        branches = [choices[0].attributes.get(name) for name in ("then_branch", "else_branch")]
        graphs = [each for each in branches if each is not None and each.type == ir.AttributeType.GRAPH]
        if len(graphs) == 2 and all(len(each.as_graph().outputs) == len(choices[0].outputs) for each in graphs):
            return choices[0]
    raise InputError(
        f"{path.name} is no merged decoder",
        why=f"it is not one If with two branches, decided by the input {SWITCH}",
        fix=f"export with separate decoders ({SEQ2SEQ.files}), or start from the checkpoint",
    )


def _decided_by(choice: ir.Node) -> str | None:
    """The name of the input that the condition comes from, over nodes such as a Cast or a Squeeze."""
    value = choice.inputs[0] if choice.inputs else None
    while value is not None and (node := value.producer()) is not None and node.op_type != "If":
        value = node.inputs[0] if node.inputs else None
    return value.name if value is not None and value.is_graph_input() else None


def _with_branch(model: ir.Model, name: str, path: Path) -> ir.Model:
    """The model with one branch in the place of the If."""
    graph, choice = model.graph, _switched(model, path)
    branch = choice.attributes[name].as_graph()
    outer = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    outer |= {value.name for node in graph if node is not choice for value in node.outputs}
    results, own = list(branch.outputs), list(branch.initializers.values())
    branch.outputs.clear()
    branch.initializers.clear()
    for value in own:
        value.name = free_name(str(value.name), outer)
        graph.register_initializer(value)
    nodes = list(branch)
    for value in (value for node in nodes for value in node.outputs if value.name):
        value.name = free_name(str(value.name), outer)
    branch.remove(nodes)
    graph.insert_before(choice, nodes)
    _name_outputs(graph, choice, results)
    for unused in (each.as_graph() for each in choice.attributes.values() if each.type == ir.AttributeType.GRAPH):
        unused.outputs.clear()
        unused.remove(list(unused), safe=True)  # or what is outside would still count them as readers
    graph.remove(choice, safe=True)
    common_passes.RemoveUnusedNodesPass()(model)
    return model


def _name_outputs(graph: ir.Graph, choice: ir.Node, results: list[ir.Value]) -> None:
    """Gives what the branch makes the place and the name of what the If would have given."""
    names = [str(value.name) for value in choice.outputs]
    for index, value in enumerate(value for node in graph for value in node.outputs):
        if value.name in names:
            value.name = f"{value.name}/branch.{index}"
    named: set[ir.Value] = set()
    for name, old, made in zip(names, choice.outputs, results, strict=True):
        result = made
        if made.producer() is None or made in named:  # an input or a weight as it is, or one value twice
            copy = ir.Node("", "Identity", [made])
            graph.insert_before(choice, copy)
            result = copy.outputs[0]
        result.name = name
        result.type, result.shape = made.type or old.type, made.shape or old.shape
        named.add(result)
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)


def free_name(name: str, taken: Set[str | None]) -> str:
    """A name that no other value has, made from `name`."""
    while name in taken:
        name += "/branch"
    return name
