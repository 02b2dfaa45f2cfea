"""What a search strategy is: it proposes plans one at a time and is told what became of each.

A strategy knows nothing of sessions or files of the run; the runner (`run.loop`) judges what it proposes. To add
one, write a module with a class of this form and name it in `strategies`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from precision_search.judging.trial import Proposal, Trial
from precision_search.model.graph import Family
from precision_search.precision.low import LowDtype
from precision_search.precision.plan import FAMILIES, Plan

Selection = frozenset[tuple[Family, str]]
"""Op types kept in fp32, each with its family: a decision at op-type level."""


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What may be decided at op-type level.

    Attributes:
        dtype: the low dtype.
        variant: the graph variant.
        op_types: the op types with a choice, by family, in a fixed order.
        keys_of: the compute-node keys of each of them.
        hard: those of `op_types` that the range profile suggests to keep in fp32, because a node of that type exceeds
            the low dtype's range.
        fixed: node keys that stay in fp32 in every plan (index arithmetic, no low kernel, the user's pins).
        forced_low: node keys that the user wants low; `fixed` wins over it.
    """

    dtype: LowDtype
    variant: str
    op_types: Mapping[Family, tuple[str, ...]]
    keys_of: Mapping[Family, Mapping[str, frozenset[str]]]
    hard: Mapping[Family, frozenset[str]]
    fixed: frozenset[str]
    forced_low: frozenset[str]

    @property
    def choices(self) -> tuple[tuple[Family, str], ...]:
        """Every op type with a choice, the encoder's first."""
        return tuple((family, op_type) for family in FAMILIES for op_type in self.op_types.get(family, ()))

    @property
    def stage_of_everything(self) -> str:
        """The stage of the plan that keeps every choice in fp32: it is fp32 itself only where nothing is forced low."""
        return "fp32" if not self.forced_low - self.fixed else "forced-low"

    @property
    def hard_choices(self) -> Selection:
        """The choices that the range profile suggests to keep in fp32."""
        return frozenset(choice for choice in self.choices if choice[1] in self.hard.get(choice[0], frozenset()))

    def plan_of(self, selection: Selection) -> Plan:
        """The plan that keeps the selected op types in fp32."""
        keys: set[str] = set()
        for family, op_type in selection:
            keys |= self.keys_of.get(family, {}).get(op_type, frozenset())
        return Plan(self.dtype, self.variant, (frozenset(keys) - self.forced_low) | self.fixed)


@dataclass(frozen=True, slots=True)
class NodeSpace:
    """What may be decided at node level, and what is known of it before the first plan.

    Attributes:
        roles: role of each node key that has a choice.
        hard: those of them that exceed the low dtype's range with the safety factor: their largest magnitude as a share
            of the range.
        projection: those of them that make the logits.
        noise: gives the noise of roles, each low by itself without its hard nodes, in rounding units; infinite where
            that alone is damage (see `judging.sensitivity`), 0 where all its nodes are hard. Costs a small screen for
            each role that was not asked about before.
        place: the plan of least estimated latency that keeps given keys in fp32, and that latency as the placement has
            it, in milliseconds. A key with a price, in milliseconds, is low only where that saves more.
    """

    roles: Mapping[str, str]
    hard: Mapping[str, float]
    projection: frozenset[str]
    noise: Callable[[frozenset[str]], Mapping[str, float]]
    place: Callable[[frozenset[str], Mapping[str, float]], tuple[Plan, float]]


@dataclass(frozen=True, slots=True)
class StrategyContext:
    """What a strategy is made from.

    Attributes:
        space: what may be decided.
        seed: of everything random; the same seed and the same verdicts give the same proposals.
        max_trials: how many plans may be judged in the whole run.
        estimate: the estimated latency of a plan in milliseconds; cheap, and the same at each call.
        nodes: gives the space at node level.
        min_validation_match: share of the validation samples that a winner must keep, 0 to 1.
        fp32_ms: the estimate of the base graphs in fp32, which speedups are over; None for that of the space's graphs.
    """

    space: SearchSpace
    seed: int
    max_trials: int
    estimate: Callable[[Plan], float]
    nodes: Callable[[], NodeSpace]
    min_validation_match: float = 0.0
    fp32_ms: float | None = None


class Strategy(Protocol):
    """Proposes plans, best guesses first, and never one plan twice.

    The runner calls `propose` and `observe` in turn. After a restart the same calls are made again with the verdicts
    from the log, and must lead to the same proposals.
    """

    name: ClassVar[str]

    def __init__(self, context: StrategyContext) -> None:
        """Raises ConfigError if the space and the budget do not fit the strategy."""

    def propose(self) -> Proposal | None:
        """The next plan to judge, None when there is nothing left to try."""

    def observe(self, trial: Trial) -> None:
        """Takes in what became of the plan that was proposed last."""

    def remaining(self) -> int | None:
        """The most plans that it will propose after the last one; None while it does not know its end."""


Steps = Iterator[tuple[Selection, str, int | None]]
"""Selections with their stage and parent, as the op-type strategies generate them."""


class OpTypeSteps:
    """The part that strategies at op-type level share: turns steps into proposals and drops plans that came before.

    Two selections can be one plan, where pins leave an op type no free node.
    """

    def __init__(self, space: SearchSpace, steps: Steps) -> None:
        self._space = space
        self._steps = steps
        self._proposed: set[str] = set()

    @property
    def remaining(self) -> int:
        """Subsets of the choices that are no proposals yet: an upper bound, since steps may leave some out."""
        return int(2 ** len(self._space.choices)) - len(self._proposed)

    def next(self) -> Proposal | None:
        """The next proposal whose plan is new."""
        for selection, stage, parent in self._steps:
            plan = self._space.plan_of(selection)
            if plan.digest not in self._proposed:
                self._proposed.add(plan.digest)
                return Proposal(plan, stage, parent)
        return None
