"""Stand-ins for the search tests: trials made by hand, an op-type space, and a judge that knows the truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from precision_search.judging.trial import FlipRisk, PlanRecord, Proposal, Trial, TrialLatency
from precision_search.model.graph import Family
from precision_search.precision.plan import Plan
from precision_search.strategies.base import NodeSpace, SearchSpace

ENCODER = ("Add", "MatMul", "Mul", "Pow", "Softmax")
DECODER = ("Add", "MatMul", "Relu", "Softmax")
NODES_PER_TYPE = 3
DECISIONS = 40
"""Nodes that the plan of a trial decides about, unless it says otherwise."""


def record(*nodes: str) -> PlanRecord:
    return PlanRecord.of(Plan("float16", "base", frozenset(nodes)), {})


def latency(ms: float, speedup: float | None = None) -> TrialLatency:
    """Of a workload that takes fp32 ten milliseconds, unless a speedup says otherwise."""
    return TrialLatency(ms, ms, ms, 10.0 / ms if speedup is None else speedup, "estimated", "t4")


def trial(id: int = 0, **changes: Any) -> Trial:
    """A stable trial whose plan is its own; `changes` replace fields."""
    values: dict[str, Any] = {
        "id": id,
        "parent": None,
        "stage": "joined",
        "plan": record(f"node{id}"),
        "verdict": "stable",
        "verdict_source": "emulated",
        "exact_match": 1.0,
        "validation_match": 1.0,
        "min_margin": 0.01,
        "flip_risk": FlipRisk(1.0, 0.5, 2.0),
        "first_divergence": None,
        "latency": latency(1.0),
        "size_bytes": 1000,
        "fp32_nodes": 5,
        "low_nodes": 5,
        "casts": 2,
        "seconds": 0.5,
        "decisions": DECISIONS,
    }
    values |= changes
    return Trial(**({"fp32_decisions": len(values["plan"].nodes)} | values))


def space(
    encoder: tuple[str, ...] = ENCODER,
    decoder: tuple[str, ...] = DECODER,
    hard: Mapping[Family, frozenset[str]] | None = None,
    fixed: frozenset[str] = frozenset({"encoder.bias/Log"}),
    forced_low: frozenset[str] = frozenset(),
) -> SearchSpace:
    op_types: dict[Family, tuple[str, ...]] = {"encoder": encoder, "decoder": decoder}
    keys_of: dict[Family, dict[str, frozenset[str]]] = {
        family: {op: frozenset(f"{family}.{n}/{op}" for n in range(NODES_PER_TYPE)) for op in ops}
        for family, ops in op_types.items()
    }
    return SearchSpace("float16", "base", op_types, keys_of, hard or {}, fixed, forced_low)


def every_key(of: SearchSpace) -> frozenset[str]:
    return frozenset(key for ops in of.keys_of.values() for keys in ops.values() for key in keys)


def node_space(
    of: SearchSpace,
    hard: Mapping[str, float] | None = None,
    noise: Mapping[str, float] | None = None,
    projection: Iterable[str] = (),
) -> NodeSpace:
    """The same space at node level: casts cost nothing, so that every node is low whose price is below its saving."""
    free = every_key(of) - of.fixed - of.forced_low
    roles = {key: f"{key.split('.')[0]}.*/{key.split('/')[1]}" for key in free}

    def place(fp32: frozenset[str], price_ms: Mapping[str, float]) -> tuple[Plan, float]:
        dear = {key for key, price in price_ms.items() if price >= saving(key)}
        plan = Plan(of.dtype, of.variant, of.fixed | ((fp32 | dear) & free))
        return plan, estimate(plan)

    sizes = dict.fromkeys(roles.values(), 1.0) | dict(noise or {})
    projection = frozenset(projection) & free
    return NodeSpace(roles, hard or {}, projection, lambda wanted: {role: sizes[role] for role in wanted}, place)


def estimate(plan: Plan) -> float:
    """Each fp32 node costs a little more than the one before it in the alphabet, so that no two types cost the same."""
    return 10.0 + sum(saving(key) for key in plan.fp32)


def saving(key: str) -> float:
    return 1.0 + (hash_of(key) % 97) / 97


def hash_of(key: str) -> int:
    return sum((index + 1) * ord(letter) for index, letter in enumerate(key))


@dataclass
class Oracle:
    """A judge for which a plan is broken if a node of one of the `needed` op types is low, and stable otherwise.

    `needed` are (family, op type) pairs; `needed_keys` are single nodes for which the same holds. Flip risk is the
    number of low nodes.
    """

    space: SearchSpace
    needed: frozenset[tuple[Family, str]]
    judged: list[str] = field(default_factory=list)
    needed_keys: frozenset[str] = frozenset()

    def __call__(self, proposal: Proposal, trial_id: int) -> Trial:
        plan = proposal.plan
        self.judged.append(plan.digest)
        every = every_key(self.space)
        low = every - plan.fp32
        broken = any(self.space.keys_of[family][op] & low for family, op in self.needed) or bool(self.needed_keys & low)
        ms = estimate(plan)
        return trial(
            trial_id,
            parent=proposal.parent,
            stage=proposal.stage,
            plan=PlanRecord.of(plan, {}),
            verdict="nonfinite" if broken else "stable",
            exact_match=0.0 if broken else 1.0,
            validation_match=None if broken else 1.0,
            min_margin=None if broken else 0.01,
            flip_risk=None if broken else FlipRisk(0.5 * len(low), 0.0, float(len(low))),
            latency=latency(ms, estimate(Plan("float16", "base", frozenset(every))) / ms),
            fp32_nodes=len(plan.fp32),
            low_nodes=len(low),
            kept_for=proposal.kept_for,
        )
