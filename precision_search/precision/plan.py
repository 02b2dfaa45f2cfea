"""The plan, which is the decision itself, and the blocklist, which is the plan as people read and write it.

A plan is a set of compute-node keys kept in fp32; every other compute node is low. Data movement is no part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from precision_search.model.graph import Family, Graph, GraphName
from precision_search.precision.low import LowDtype

FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which compute nodes stay in fp32 while all others run in `dtype`.

    Attributes:
        dtype: the low dtype.
        variant: the graph variant (set of rewrites) the node keys belong to.
        fp32: keys of the compute nodes kept in fp32; a key that both decoder graphs hold is one decision.
    """

    dtype: LowDtype
    variant: str
    fp32: frozenset[str]

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the plan; equal for equal plans in every process."""
        text = "\n".join([self.dtype, self.variant, *sorted(self.fp32)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class NodeCounts:
    """How much of a model a plan keeps in fp32.

    Attributes:
        fp32_nodes: compute nodes in fp32 over the three graphs.
        low_nodes: compute nodes in the low dtype over the three graphs.
        fp32_decisions: node keys in fp32, pinned ones included: what both decoder graphs hold counts once.
        decisions: all node keys of compute nodes.
    """

    fp32_nodes: int
    low_nodes: int
    fp32_decisions: int
    decisions: int


def count_nodes(graphs: Mapping[GraphName, Graph], plan: Plan) -> NodeCounts:
    """Counts what the plan keeps, of the graphs of its variant."""
    keys = [node.key for graph in graphs.values() for node in graph.compute]
    fp32, decisions = sum(key in plan.fp32 for key in keys), frozenset(keys)
    return NodeCounts(fp32, len(keys) - fp32, len(decisions & plan.fp32), len(decisions))


def all_compute_keys(graphs: Mapping[GraphName, Graph]) -> frozenset[str]:
    """The keys of all compute nodes of the three graphs."""
    return frozenset(node.key for graph in graphs.values() for node in graph.compute)


def pinned_keys(graphs: Mapping[GraphName, Graph]) -> frozenset[str]:
    """The keys of compute nodes that no plan may make low (index arithmetic)."""
    return frozenset(node.key for graph in graphs.values() for node in graph.compute if node.pinned)
