"""Why each compute node has the precision that a plan gives it, in a sentence.

In: what a run knew of its nodes, and a judged plan. Out: a sentence for each node key.
"""

from __future__ import annotations

from collections.abc import Mapping

from precision_search.errors import counted
from precision_search.judging.trial import KeptFor, Trial
from precision_search.records.nodes_json import NodeRecord, RunNodes
from precision_search.strategies.given import GivenPlan

_KEPT_FOR: Mapping[KeptFor, str] = {
    "culprit": "in {dtype}, alone or together with others, it damages the model",
    "projection": "it makes the logits, and logits in {dtype} tie",
    "noise": "its rounding would flip more near-ties than its time is worth",
}


def node_reasons(nodes: RunNodes, trial: Trial) -> Mapping[str, str]:
    """Why the plan of `trial` keeps each node in fp32 or makes it low, by key."""
    kept = frozenset(trial.plan.nodes)
    searched = {key: _KEPT_FOR[why].format(dtype=nodes.dtype) for why, keys in trial.kept_for.items() for key in keys}
    whole = {(family, op_type) for family, op_types in trial.plan.op_types.items() for op_type in op_types}
    reasons = {}
    for node in nodes.nodes:
        if node.key not in kept:
            reasons[node.key] = _why_low(node, nodes)
        elif node.fixed is not None:
            reasons[node.key] = f"{node.fixed}: in fp32 in every plan"
        elif trial.is_fp32:
            reasons[node.key] = "this plan is fp32 itself"
        elif trial.stage == GivenPlan.name:
            reasons[node.key] = "the given blocklist keeps it in fp32"
        elif node.key in searched:
            reasons[node.key] = searched[node.key]
        elif node.beyond_range:
            reasons[node.key] = _beyond(node, nodes)
        elif trial.expected_ms is not None:
            reasons[node.key] = "the casts around it would cost more than it saves (minimum cut)"
        elif (node.family, node.op_type) in whole:
            reasons[node.key] = f"the plan keeps every {node.op_type} of the {node.family} in fp32"
        else:
            reasons[node.key] = "the plan keeps it in fp32"
    return reasons


def _why_low(node: NodeRecord, nodes: RunNodes) -> str:
    if node.forced_low:
        return "search.force_low"
    if node.largest is None:
        return "the plan makes it low"
    fits = f"largest value {node.largest:.4g} on {_holds(nodes)}"
    if node.beyond_range:
        return f"{fits}: beyond the range with the safety factor {nodes.range_safety:g}, tried and stable all the same"
    return f"{fits}: within range"


def _beyond(node: NodeRecord, nodes: RunNodes) -> str:
    largest = "not finite" if node.largest is None else f"{node.largest:.4g}"
    return f"largest value {largest} on {_holds(nodes)}: beyond the range with the safety factor {nodes.range_safety:g}"


def _holds(nodes: RunNodes) -> str:
    return f"{counted(nodes.samples, 'sample')}, {nodes.dtype} holds {nodes.largest_number:.5g}"
