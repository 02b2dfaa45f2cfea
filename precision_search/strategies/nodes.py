"""The search at node level: the fastest completion by a minimum cut, mended where it breaks, calmed where it is cheap.

Stages, as the log names them:

1. `fp32`, `all-low`, `classic`: what people compare with;
2. `cut`: what exceeds the range stays in fp32, the minimum cut decides the rest;
3. `culprit`: on damage, which of the cut's low nodes cause it; they are pinned and the cut is made again. A role that
   alone is damage is pinned at once, others are found by bisection (see `culprits`);
4. `projection`: where tokens flip without damage, the output projection in fp32: low logits tie;
5. `calm`: where that is not enough, the fastest good plan on the curve of least latency at each level of noise, which
   the cut draws when low nodes have a price for the noise they make, and `refine`, between it and its faster neighbour;
6. `release`: pins against damage that fit into the range after all, those that save most first;
7. `calm` again, on what the curve without the projection has that is faster;
8. `front`: calmer corners of the curve, for the Pareto table.

Damage is monotone and is blamed on nodes; flips at near-ties are neither, so that whole plans answer for them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from precision_search.judging.noise import DAMAGE_NOISE, is_damaged
from precision_search.judging.trial import KeptFor, Proposal, Trial
from precision_search.precision.plan import Plan
from precision_search.strategies.base import NodeSpace, StrategyContext
from precision_search.strategies.culprits import Questions, Unit, find_culprits, keys_of, split
from precision_search.strategies.op_types import CLASSIC
from precision_search.strategies.pareto import LEAST_SPEEDUP, is_acceptable

BEYOND = 4
"""Plans judged that are calmer than the best one: the slow end of the Pareto table."""

LEAST_GAIN = 1e-3
"""Share of the latency that a pin must cost to be worth a trial."""

CURVE_STEP = 2e-3
"""Share of the latency by which neighbours on the curve differ at least."""

SUMMED = 6.0
"""Noise of a plan, as a multiple of the root of its roles' summed squares, up to which roundings alone explain it: the
99th percentile of a normal distribution is 2.6 times its root mean square (2.4 on the demo), and that twice over."""

Pins = frozenset[str]
Search = Generator[Proposal, Trial, None]
Asked = Generator[Proposal, Trial, Trial]


@dataclass(frozen=True, slots=True)
class _Point:
    """A plan with the keys that are pinned in it; others are fp32 because that is as fast.

    Attributes:
        plan: the plan.
        pins: keys that the cut had to keep in fp32, or kept for their noise.
        ms: its estimated latency.
        cut_ms: the same as the cut had it.
    """

    plan: Plan
    pins: Pins
    ms: float
    cut_ms: float


@dataclass(frozen=True, slots=True)
class _Step:
    """Where questions come from: stage, parent, and the keys they are about (None: the plan's low nodes)."""

    stage: str
    parent: int | None
    among: Pins | None = None


class NodeSearch:
    """Finds which nodes to keep in fp32."""

    name: ClassVar[str] = "nodes"

    def __init__(self, context: StrategyContext) -> None:
        self._context = context
        self._space = context.space
        self._nodes: NodeSpace = context.nodes()
        self._members: dict[str, list[str]] = {}
        for key, role in sorted(self._nodes.roles.items()):
            self._members.setdefault(role, []).append(key)
        # Nothing of a choice low: fp32 itself, unless something is forced low.
        self._kept = self._space.plan_of(frozenset(self._space.choices))
        self._trials: dict[str, Trial] = {}
        self._estimates: dict[str, float] = {}
        self._culprits: set[str] = set()
        self._blamed: set[str] = set()
        self._last: Trial | None = None
        self._remaining: int | None = None
        self._proposals = self._search()

    def propose(self) -> Proposal | None:
        """The next plan of the current stage."""
        try:
            if self._last is None:
                return next(self._proposals)
            return self._proposals.send(self._last)
        except StopIteration:
            return None

    def observe(self, trial: Trial) -> None:
        """Remembers the verdict; later proposals depend on it."""
        self._trials[trial.plan.plan.digest] = trial
        self._last = trial

    def remaining(self) -> int | None:
        """Known in the last stage only: what the others ask depends on the answers."""
        return self._remaining

    def _search(self) -> Search:
        everything = yield from self._ask(self._kept, self._space.stage_of_everything)
        yield from self._ask(self._space.plan_of(frozenset()), "all-low")
        classic = frozenset(choice for choice in self._space.choices if choice[1] in CLASSIC)
        yield from self._ask(self._space.plan_of(classic), "classic")
        # What is forced low may be the damage; then no plan is sound, and no node of a choice is to blame.
        start = None if is_damaged(everything) else (yield from self._heal(self._point(self._nodes.hard)))
        best = None if start is None else (yield from self._calm(start))
        if start is None or best is None:
            return
        best = yield from self._release(best, start.pins)
        better = yield from self._fastest_on([point for point in self._curve(start) if point.ms < best.ms])
        if better is not None:
            best = yield from self._release(better, start.pins)
        if self._trials[best.plan.digest].flip_risk is not None:  # without it there is nothing to trade latency for
            yield from self._front(self._curve(best)[1:], best)

    def _heal(self, point: _Point) -> Generator[Proposal, Trial, _Point | None]:
        """Pins culprits until the cut's plan is not damaged; None where nothing is left to blame."""
        parent = None
        while is_damaged(trial := (yield from self._ask_point(point, "cut", parent))):
            parent = trial.id
            low, noise = self._low_by_role(point.plan), self._noise(point)
            if not low:
                return None
            culprits = keys_of([keys for role, keys in low.items() if noise[role] == np.inf])
            if not culprits:
                if trial.noise is not None and trial.noise <= SUMMED * sum(noise[role] ** 2 for role in low) ** 0.5:
                    return point  # no node of it is to blame: it is all of them together that are too loud
                questions = find_culprits(self._worth_keeping_first(point))
                culprits = yield from self._answered(questions, point, is_damaged, _Step("culprit", trial.id))
                self._culprits |= culprits
            self._blamed |= culprits
            point = self._point(point.pins | culprits)
        return point

    def _worth_keeping_first(self, point: _Point) -> list[Unit]:
        """The low nodes of a plan by role, those first that save most latency for the damage they do by themselves."""
        worth, noise = {}, self._noise(point)
        for role, keys in self._low_by_role(point.plan).items():
            saved = max(self._point(point.pins | set(keys)).ms - point.ms, 0.0)
            worth[keys] = saved / max(noise[role], 1e-6)
        return sorted(worth, key=lambda keys: (-worth[keys], keys))

    def _calm(self, start: _Point) -> Generator[Proposal, Trial, _Point | None]:
        """The fastest good plan: the one given, else with the projection in fp32, else on the curve from there."""
        if self._is_good(self._trials[start.plan.digest]):
            return start
        if self._nodes.projection - start.plan.fp32:
            parent, start = self._parent(start), self._point(start.pins | self._nodes.projection)
            if self._is_good((yield from self._ask_point(start, "projection", parent))):
                return start
        return (yield from self._fastest_on(self._curve(start)))

    def _fastest_on(self, curve: Sequence[_Point]) -> Generator[Proposal, Trial, _Point | None]:
        """The fastest good plan on a curve, refined; None if none was found."""
        good = (yield from self._first_good(curve)) if curve else None
        if good is None:
            return None
        return curve[0] if good == 0 else (yield from self._refine(curve[good - 1], curve[good]))

    def _front(self, corners: Iterable[_Point], best: _Point) -> Search:
        """Judges some of the corners that are faster than fp32, evenly spaced."""
        corners = [point for point in corners if point.ms * LEAST_SPEEDUP <= self._estimate(self._kept)]
        numbers = np.unique(np.linspace(0, len(corners) - 1, min(BEYOND, len(corners))).round().astype(int))
        for count, number in enumerate(numbers, 1):
            self._remaining = len(numbers) - count
            yield from self._ask_point(corners[number], "front", self._parent(best))

    def _first_good(self, curve: Sequence[_Point]) -> Generator[Proposal, Trial, int | None]:
        """Index of the fastest good plan: strides that double from the fast end on, then bisection of the last one.

        Calmer plans flip less on the whole, though not each time: the plan before the one found was judged bad.
        """
        bad, index = -1, 0
        while not self._is_good((yield from self._ask_point(curve[index], "calm", self._parent(curve[0])))):
            if index == len(curve) - 1:
                return None
            bad, index = index, min(2 * index + 1, len(curve) - 1)
        while index - bad > 1:
            middle = (bad + index) // 2
            trial = yield from self._ask_point(curve[middle], "calm", self._parent(curve[0]))
            bad, index = (bad, middle) if self._is_good(trial) else (middle, index)
        return index

    def _curve(self, start: _Point) -> list[_Point]:
        """The convex front of latency and variance of noise, from the given plan to the slowest that still gains.

        Between two plans on it, the cut at the rate of exchange at which both weigh the same finds the one between them
        that sticks out most, or shows that there is none: each plan costs two cuts.
        """
        variance = self._variance(start)

        def of(plan: Plan) -> float:
            return sum(size for key, size in variance.items() if key not in plan.fp32)

        def between(fast: _Point, calm: _Point) -> list[_Point]:
            less = of(fast.plan) - of(calm.plan)
            if less <= 0 or calm.ms - fast.ms <= CURVE_STEP * start.ms:
                return []
            rate = (calm.ms - fast.ms) / less
            found = self._priced(start, {key: rate * size for key, size in variance.items()})
            weight = found.ms + rate * of(found.plan)
            if weight >= (fast.ms + rate * of(fast.plan)) * (1 - 1e-9):
                return []
            return [*between(fast, found), found, *between(found, calm)]

        slowest = self._estimate(self._kept)
        last = _Point(self._kept, start.pins, slowest, slowest)
        return [start, *between(start, last)]

    def _refine(self, before: _Point, good: _Point) -> Generator[Proposal, Trial, _Point]:
        """Lets go of as much as possible of what tells two plans apart, the roles first that save most."""
        apart = good.plan.fp32 - before.plan.fp32
        base = before.pins | apart
        units = self._by_saving(self._point(base), apart)
        if len(units) < 2:
            return good
        questions = find_culprits(units)
        step = _Step("refine", self._parent(good), apart)
        kept = yield from self._answered(questions, self._point(base), self._is_bad, step)
        return self._fastest_good([good, self._point(base - (keys_of(units) - kept))])

    def _release(self, best: _Point, pins: Pins) -> Generator[Proposal, Trial, _Point]:
        """Lets go of pins against damage that fit into the range after all, as far as plans stay good without them."""
        fitting = frozenset(key for key in pins - self._culprits if self._nodes.hard.get(key, 0.0) <= 1.0)
        low: set[str] = set()
        for unit in self._by_saving(best, fitting):
            step = _Step("release", self._parent(best), fitting)
            yield from self._answered(split([unit], low, known=False), best, self._is_bad, step)
        return self._point(best.pins - low)

    def _answered(
        self, questions: Questions, point: _Point, too_much: Callable[[Trial], bool], step: _Step
    ) -> Generator[Proposal, Trial, frozenset[str]]:
        """Answers questions about keys to make low by judging plans: of the keys asked about, all others are pinned."""
        everything = frozenset(self._nodes.roles) - point.plan.fp32 if step.among is None else step.among
        try:
            low = next(questions)
            while True:
                asked = self._point((point.pins | everything) - low)
                trial = yield from self._ask_point(asked, step.stage, step.parent)
                low = questions.send(too_much(trial))
        except StopIteration as done:
            culprits: frozenset[str] = done.value
            return culprits

    def _ask(self, plan: Plan, stage: str) -> Asked:
        """The trial of a plan: remembered, or judged now."""
        return (yield from self._asked(Proposal(plan, stage)))

    def _ask_point(self, point: _Point, stage: str, parent: int | None) -> Asked:
        return (yield from self._asked(Proposal(point.plan, stage, parent, point.cut_ms, self._kept_for(point, stage))))

    def _asked(self, proposal: Proposal) -> Asked:
        if proposal.plan.digest in self._trials:
            return self._trials[proposal.plan.digest]
        return (yield proposal)

    def _kept_for(self, point: _Point, stage: str) -> Mapping[KeptFor, tuple[str, ...]]:
        """The pins of a plan by their reason, without those beyond the range, of which everybody knows."""
        left = point.pins - self._nodes.hard.keys()
        # While culprits are looked for, whoever is kept is a suspect.
        culprits = left if stage == "culprit" else left & self._blamed
        projection = (left - culprits) & self._nodes.projection
        reasons: dict[KeptFor, Pins] = {
            "culprit": culprits,
            "projection": projection,
            "noise": left - culprits - projection,
        }
        return {reason: tuple(sorted(keys)) for reason, keys in reasons.items() if keys}

    def _by_saving(self, point: _Point, keys: Iterable[str]) -> list[Unit]:
        """Pinned keys by role, those first that save most when let go; those that save next to nothing are left out."""
        by_role: dict[str, list[str]] = {}
        for key in sorted(keys):
            by_role.setdefault(self._nodes.roles[key], []).append(key)
        units = {tuple(each): point.ms - self._point(point.pins - set(each)).ms for each in by_role.values()}
        worth = [unit for unit, saved in units.items() if saved > LEAST_GAIN * point.ms]
        return sorted(worth, key=lambda unit: (-units[unit], unit))

    def _fastest_good(self, points: Sequence[_Point]) -> _Point:
        good = [p for p in points if (t := self._trials.get(p.plan.digest)) is not None and self._is_good(t)]
        return min(good, key=lambda point: point.ms)

    def _is_good(self, trial: Trial) -> bool:
        return is_acceptable(trial, self._context.min_validation_match)

    def _is_bad(self, trial: Trial) -> bool:
        return not self._is_good(trial)

    def _noise(self, point: _Point) -> Mapping[str, float]:
        """The noise of each role that has low nodes in the plan; infinite where the role alone is damage."""
        return self._nodes.noise(frozenset(self._low_by_role(point.plan)))

    def _variance(self, point: _Point) -> dict[str, float]:
        """Each low node's share of its role's squared noise; what nobody measured, or is damage alone, goes first."""
        noise = self._noise(point)
        measured = {role: [key for key in keys if key not in self._nodes.hard] for role, keys in self._members.items()}
        return {
            key: noise[role] ** 2 / len(measured[role])
            if key not in self._nodes.hard and np.isfinite(noise[role])
            else DAMAGE_NOISE**2
            for role, keys in self._low_by_role(point.plan).items()
            for key in keys
        }

    def _low_by_role(self, plan: Plan) -> dict[str, Unit]:
        found = {role: tuple(key for key in keys if key not in plan.fp32) for role, keys in self._members.items()}
        return {role: keys for role, keys in found.items() if keys}

    def _point(self, pins: Iterable[str]) -> _Point:
        pinned = frozenset(pins)
        plan, cut_ms = self._nodes.place(pinned, {})
        return _Point(plan, pinned, self._estimate(plan), cut_ms)

    def _priced(self, start: _Point, price: Mapping[str, float]) -> _Point:
        """The cut at a price, with what the price keeps in fp32 as pins."""
        plan, cut_ms = self._nodes.place(start.pins, price)
        return _Point(plan, start.pins | (plan.fp32 - start.plan.fp32), self._estimate(plan), cut_ms)

    def _parent(self, point: _Point) -> int | None:
        trial = self._trials.get(point.plan.digest)
        return None if trial is None else trial.id

    def _estimate(self, plan: Plan) -> float:
        if plan.digest not in self._estimates:
            self._estimates[plan.digest] = self._context.estimate(plan)
        return self._estimates[plan.digest]
