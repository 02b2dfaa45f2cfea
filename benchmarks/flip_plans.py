"""Random plans of very different flip risk, none of which makes low what the ranges say would overflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from precision_search.model.graph import Graph, GraphName
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.strategies.space import SpaceReport

Kind = Literal["op types", "roles"]

LOW_SHARES: dict[Kind, tuple[float, ...]] = {
    "op types": (0.15, 0.3, 0.5, 0.7, 0.9),
    "roles": (0.02, 0.05, 0.15, 0.4, 0.9),
}
"""Shares of the free op types, and of the free roles, that are low, taken in turn: from one or two low nodes to nearly
all that fit."""

PATIENCE = 200
"""Rounds without a new plan after which there are taken to be no more."""


@dataclass(frozen=True, slots=True)
class DrawnPlan:
    """A plan, and what was drawn: whole op types of a family, or roles, which are a node in every layer."""

    kind: Kind
    plan: Plan


def draw_plans(space: SpaceReport, graphs: Mapping[GraphName, Graph], seed: int) -> Iterator[DrawnPlan]:
    """New plans, from op types and from roles in turn, until there are no more; none is fp32.

    Beside `space.fixed`, a plan of op types keeps in fp32 those that hold a node of the hard set, a plan of roles only
    the nodes of the hard set: a role that is hard in some layers may be low in the others.

    Args:
        space: op types with a choice, the hard set, and what is never low.
        graphs: of the bundle.
        seed: equal input and seed give equal plans.
    """
    generator = np.random.default_rng(seed)
    seen = {Plan(space.space.dtype, space.space.variant, all_compute_keys(graphs)).digest}
    idle = number = 0
    while idle < PATIENCE:
        idle += 1
        for drawn in (_of_op_types(space, number, generator), _of_roles(space, graphs, number, generator)):
            if drawn.plan.digest not in seen:
                seen.add(drawn.plan.digest)
                idle = 0
                yield drawn
        number += 1


def _of_op_types(space: SpaceReport, number: int, generator: np.random.Generator) -> DrawnPlan:
    low = _low(len(space.space.choices), "op types", number, generator)
    kept = frozenset(choice for choice, mine in zip(space.space.choices, low, strict=True) if not mine)
    return DrawnPlan("op types", space.space.plan_of(kept | space.space.hard_choices))


def _of_roles(
    space: SpaceReport, graphs: Mapping[GraphName, Graph], number: int, generator: np.random.Generator
) -> DrawnPlan:
    kept = (frozenset(space.hard) - space.space.forced_low) | space.space.fixed
    role_of = {node.key: node.role for graph in graphs.values() for node in graph.compute if node.key not in kept}
    roles = sorted(set(role_of.values()))
    low = _low(len(roles), "roles", number, generator)
    chosen = {role for role, mine in zip(roles, low, strict=True) if mine}
    keys = frozenset(key for key, role in role_of.items() if role in chosen) | (space.space.forced_low - kept)
    return DrawnPlan("roles", Plan(space.space.dtype, space.space.variant, all_compute_keys(graphs) - keys))


def _low(count: int, kind: Kind, number: int, generator: np.random.Generator) -> list[bool]:
    shares = LOW_SHARES[kind]
    return [bool(mine) for mine in generator.random(count) < shares[number % len(shares)]]
