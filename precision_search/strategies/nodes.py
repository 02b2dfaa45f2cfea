"""The search at node level: the fastest completion by a minimum cut, mended where it breaks, calmed where it is cheap.

Stages, as the log names them:

1. `fp32`, `all-low`, `classic`: what people compare with;
2. `cut`: what exceeds the range stays in fp32, the minimum cut decides the rest;
3. `culprit`: on damage, which of the cut's low nodes cause it; they are pinned and the cut is made again. A role that
   alone is damage is pinned at once, others are found by bisection (see `culprits`);
4. `release`: pins against damage that fit into the range after all, those that save most first;
5. `projection`: the output projection in fp32, since low logits tie, without the pins that fit;
6. `calm`: from there along the curve of least latency at each level of noise, which the cut draws when low nodes have a
   price for the noise they make, until a plan is acceptable; then along the curve without the projection, as far as
   that is faster;
7. `front`: calmer plans of the curve, for the Pareto table.

Damage is monotone and is blamed on nodes; flips at near-ties are neither, so that whole plans answer for them.

The order of plans does not depend on the share of validation samples that a winner must keep. The share decides only
which plans are left out, namely those that are no faster than an acceptable plan. So a search for a stricter share
judges every plan of a laxer one that could win, and its winner is no slower than any of these that will do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from precision_search.judging.noise import DAMAGE_NOISE, is_damaged
from precision_search.judging.trial import KeptFor, Proposal, Trial
from precision_search.precision.plan import Plan
from precision_search.strategies.base import NodeSpace, StrategyContext
from precision_search.strategies.culprits import Questions, Unit, find_culprits, keys_of, split
from precision_search.strategies.op_types import CLASSIC
from precision_search.strategies.pareto import ALIKE, LEAST_SPEEDUP, is_acceptable

BEYOND = 4
"""Plans judged that are calmer than the best one: the slow end of the Pareto table."""

LEAST_GAIN = 1e-3
"""Share of the latency that a pin must cost to be worth a trial."""

LATER_STEP = 8
"""A step on a curve is that part of what the curve has given up so far, where that is more than `ALIKE`."""

NEVER = -1.0
"""The share of validation samples at which a plan that is not stable is acceptable: below all shares."""

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
        self._curves: dict[_Point, list[_Point]] = {}
        self._last: Trial | None = None
        self._best: Trial | None = None
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
        if is_acceptable(trial, self._context.min_validation_match):
            ms = self._estimate(trial.plan.plan)
            if self._best is None or ms < self._estimate(self._best.plan.plan):
                self._best = trial

    def remaining(self) -> int | None:
        """Known in the last stage only: what the others ask depends on the answers."""
        return self._remaining

    def _search(self) -> Search:
        everything = yield from self._ask(self._kept, self._space.stage_of_everything)
        yield from self._ask(self._space.plan_of(frozenset()), "all-low")
        classic = frozenset(choice for choice in self._space.choices if choice[1] in CLASSIC)
        yield from self._ask(self._space.plan_of(classic), "classic")
        # What is forced low may be the damage; then no plan is sound, and no node of a choice is to blame.
        cut = None if is_damaged(everything) else (yield from self._heal(self._point(self._nodes.hard)))
        if cut is None:
            return
        fits = yield from self._release(cut)
        starts = [self._point(cut.pins - fits)]
        if self._nodes.projection - starts[0].plan.fp32:
            start = self._point(starts[0].pins | self._nodes.projection)
            if self._gains(start):
                yield from self._ask_point(start, "projection", self._parent(cut))
                starts.insert(0, start)
        for start in starts:
            if self._gains(start):
                yield from self._calm(self._curve(start), fits)
        if self._best is not None and self._best.flip_risk is not None:  # else there is nothing to trade latency for
            yield from self._front(self._curve(starts[0]), self._best)

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

    def _release(self, cut: _Point) -> Generator[Proposal, Trial, Pins]:
        """The cut's pins that fit into the range after all, tried one by one, those first that save most.

        What one more pin lets flip is kept for those tried after it, but it does fit: calmer plans may do without it.
        None of that is about validation samples, so what is tried is the same for every share.
        """
        fitting = frozenset(key for key in cut.pins - self._culprits if self._nodes.hard.get(key, 0.0) <= 1.0)
        step = _Step("release", self._parent(cut), fitting)
        sound, fits = set[str](), set[str]()
        for unit in self._by_saving(cut, fitting) if not is_damaged(self._trials[cut.plan.digest]) else ():
            low = set(sound)
            yield from self._answered(split([unit], low, known=False), cut, is_damaged, step)
            fits |= low
            if self._trials[self._point(cut.pins - low).plan.digest].verdict == "stable":
                sound = low
        return frozenset(fits)

    def _calm(self, curve: Sequence[_Point], fits: Pins) -> Search:
        """Judges a curve from its fast end on until a plan is acceptable.

        A plan that keeps more validation samples than those before it is what a search for a laxer share may end with.
        It is tried without the pins that fit, too, whichever share is asked for.
        """
        most = NEVER
        for point in curve:
            if not self._gains(point):
                return
            kept = _kept_share((yield from self._ask_point(point, "calm", self._parent(curve[0]))))
            released = self._point(point.pins - fits)
            if kept > most and self._gains(released):
                yield from self._ask_point(released, "release", self._parent(point))
            most = max(most, kept)

    def _front(self, curve: Sequence[_Point], best: Trial) -> Search:
        """Judges some plans of a curve that are calmer than the best one, evenly spaced."""
        calmer = [p for p in curve if not self._gains(p) and p.plan.digest not in self._trials]
        numbers = np.unique(np.linspace(0, len(calmer) - 1, min(BEYOND, len(calmer))).round().astype(int))
        for count, number in enumerate(numbers, 1):
            self._remaining = len(numbers) - count
            yield from self._ask_point(calmer[number], "front", best.id)

    def _curve(self, start: _Point) -> list[_Point]:
        """Plans from the given one to the slowest that still gains, in steps of two percent and later longer ones.

        They are of the convex front of latency and variance of noise, and of what `_between` puts where that has gaps.
        """
        if start not in self._curves:
            corners = self._corners(start)
            points = [corners[0]]
            for fast, calm in pairwise(corners):
                points += [*self._between(fast, calm), calm]
            points = [point for point in points if point.ms * LEAST_SPEEDUP <= self._estimate(self._kept)]
            found, following = points[:1], [*(point.ms for point in points[2:]), np.inf]
            for point, after_ms in zip(points[1:], following, strict=False):
                here = found[-1].ms
                if after_ms > max(ALIKE * here, here + (here - start.ms) / LATER_STEP):
                    found.append(point)
            self._curves[start] = found
        return self._curves[start]

    def _corners(self, start: _Point) -> list[_Point]:
        """The convex front of latency and variance of noise, from the given plan to fp32, which is left out.

        Between two plans on it, the cut at the rate of exchange at which both weigh the same finds the one between them
        that sticks out most, or shows that there is none: each plan costs two cuts.
        """
        variance = self._variance(start)

        def of(plan: Plan) -> float:
            return sum(size for key, size in variance.items() if key not in plan.fp32)

        def between(fast: _Point, calm: _Point) -> list[_Point]:
            less = of(fast.plan) - of(calm.plan)
            if less <= 0 or calm.ms <= ALIKE * fast.ms:
                return []
            rate = (calm.ms - fast.ms) / less
            found = self._priced(start, {key: rate * size for key, size in variance.items()})
            weight = found.ms + rate * of(found.plan)
            if weight >= (fast.ms + rate * of(fast.plan)) * (1 - 1e-9):
                return []
            return [*between(fast, found), found, *between(found, calm)]

        slowest = self._estimate(self._kept)
        return [start, *between(start, _Point(self._kept, start.pins, slowest, slowest))]

    def _between(self, fast: _Point, calm: _Point) -> list[_Point]:
        """What lies between two corners that are far apart: roles of the calm one are let go of one after another.

        Those come first that save most for the noise they make.
        """
        if calm.ms <= ALIKE * fast.ms:
            return []
        apart, variance = calm.plan.fp32 - fast.plan.fp32, self._variance(fast)
        pins, found = fast.pins | apart, list[_Point]()
        worth = self._by_saving(self._point(pins), apart)
        for unit in sorted(worth, key=lambda unit: sum(variance.get(key, 0.0) for key in unit) / worth[unit]):
            pins -= set(unit)
            found.append(self._point(pins))
        return sorted((point for point in found if fast.ms < point.ms < calm.ms), key=lambda point: point.ms)

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

    def _by_saving(self, point: _Point, keys: Iterable[str]) -> dict[Unit, float]:
        """Pinned keys by role with the milliseconds that letting go saves, most first; next to nothing is left out."""
        by_role: dict[str, list[str]] = {}
        for key in sorted(keys):
            by_role.setdefault(self._nodes.roles[key], []).append(key)
        units = {tuple(each): point.ms - self._point(point.pins - set(each)).ms for each in by_role.values()}
        worth = [unit for unit, saved in units.items() if saved > LEAST_GAIN * point.ms]
        return {unit: units[unit] for unit in sorted(worth, key=lambda unit: (-units[unit], unit))}

    def _gains(self, point: _Point) -> bool:
        """Whether the point would be faster than every acceptable plan so far."""
        return self._best is None or point.ms < self._estimate(self._best.plan.plan)

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


def _kept_share(trial: Trial) -> float:
    """The largest share at which a plan is acceptable."""
    if trial.verdict != "stable":
        return NEVER
    return 1.0 if trial.validation_match is None else trial.validation_match
