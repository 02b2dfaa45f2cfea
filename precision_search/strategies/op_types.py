"""The search at op-type level: known lists first, each graph family by itself, then both joined.

Stages, as the log names them:

1. `fp32`, `all-low`, `classic` (the list that people keep by hand), `ranges` (what the range profile suggests);
2. `encoder`, with the whole decoder in fp32, then `decoder`, with the whole encoder in fp32;
3. `joined`: stable choices of both, combined;
4. `release`: the best plan so far with one of the suggested op types low after all, and so for laxer shares.

Up to stage 3 the op types that the range profile suggests stay in fp32: with one of them low a node exceeds the range,
or comes within the safety factor of it. Which of them had room to spare is what stage 4 finds out, if the budget lasts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import ClassVar

from precision_search.judging.noise import is_damaged
from precision_search.judging.trial import Proposal, Trial
from precision_search.model.graph import Family
from precision_search.precision.plan import FAMILIES
from precision_search.strategies.base import OpTypeSteps, Selection, Steps, StrategyContext
from precision_search.strategies.pareto import front, is_acceptable
from precision_search.strategies.scale import fp32_plan, scaled_ms
from precision_search.strategies.tpe import Choice, Sampler

MAX_IN_VAIN = 2048
"""Subsets left out in a row after which a family is done: with many op types, nearly all subsets save nothing."""

CLASSIC = frozenset({"Pow", "ReduceMean", "Sqrt", "Softmax", "Relu"})
"""The op types that teams keep in fp32 by hand: what overflows by itself, and the softmax."""

BUDGET_SHARES: tuple[tuple[Family, float], ...] = (("encoder", 1 / 3), ("decoder", 3 / 5))
"""Of the trials left when a family's stage begins, the share it may use; the rest is for what comes after."""


class OpTypeSearch:
    """Finds which op types to keep in fp32, in each family, with a limited number of trials."""

    name: ClassVar[str] = "op-types"

    def __init__(self, context: StrategyContext) -> None:
        self._context = context
        self._space = context.space
        self._trials: dict[str, Trial] = {}
        self._selections: dict[str, Selection] = {}
        self._estimates: dict[Selection, float] = {}
        self._steps = OpTypeSteps(self._space, self._remembered(self._stages()))

    def propose(self) -> Proposal | None:
        """The next plan of the current stage."""
        return self._steps.next()

    def observe(self, trial: Trial) -> None:
        """Remembers the verdict; later proposals depend on it."""
        self._trials[trial.plan.plan.digest] = trial

    def remaining(self) -> int:
        """Every subset that was not proposed yet; most are left out, and the budget may end the search before."""
        return self._steps.remaining

    def _stages(self) -> Steps:
        yield from self._landmarks()
        for family, share in BUDGET_SHARES:
            yield from self._family(family, share)
        yield from self._joined()
        yield from self._release()

    def _landmarks(self) -> Steps:
        choices = self._space.choices
        yield frozenset(choices), self._space.stage_of_everything, None
        yield frozenset(), "all-low", None
        yield frozenset(choice for choice in choices if choice[1] in CLASSIC), "classic", None
        yield self._space.hard_choices, "ranges", None

    def _family(self, family: Family, share: float) -> Steps:
        """One family with the other one in fp32.

        First each op type low by itself: where that alone is damage, the type is needed in fp32 and its half of the
        subsets is out. (Where that would take more than half of the family's trials, it is left out.) Then all subsets
        of what is left, fastest first, or samples where they are too many. A plan in which some low op type saves no
        time is left out throughout: the plan without it is as fast and rounds less.
        """
        last = len(self._trials) + int(share * (self._context.max_trials - len(self._trials)))
        everything = frozenset(self._space.choices)
        free = [c for c in self._space.choices if c[0] == family and c not in self._space.hard_choices]
        if 2 * len(free) <= last - len(self._trials):
            for choice in sorted(free, key=lambda c: self._estimate(everything - {c})):
                if self._every_low_type_saves(everything - {choice}, free):
                    yield everything - {choice}, family, None
            free = [choice for choice in free if not self._known_damage(everything - {choice})]
        base = everything - frozenset(free)
        if 2 ** len(free) <= last - len(self._trials):
            subsets = self._fastest_first(base | extra for extra in _subsets(free, range(len(free) + 1)))
        else:
            first = self._fastest_first(base | extra for extra in _subsets(free, range(2)))
            subsets = chain(first, self._sampled(base, free, last))
        in_vain = 0
        for selection in subsets:
            if len(self._trials) >= last or in_vain >= MAX_IN_VAIN:
                return
            in_vain += 1
            if self._every_low_type_saves(selection, free) and not self._known_damage(selection):
                in_vain = 0
                yield selection, family, None

    def _every_low_type_saves(self, selection: Selection, free: Sequence[Choice]) -> bool:
        """Whether each op type of `free` that is low makes the plan faster, by the estimate."""
        low = [choice for choice in free if choice not in selection]
        if low and self._estimate(selection) >= self._estimate(frozenset(self._space.choices)):
            return False
        return all(self._estimate(selection) < self._estimate(selection | {choice}) for choice in low)

    def _fp32_ms(self) -> float:
        known = self._context.fp32_ms
        return self._context.estimate(fp32_plan(self._space)) if known is None else known

    def _sampled(self, base: Selection, free: Sequence[Choice], last: int) -> Iterator[Selection]:
        """Samples of the subsets of `free` until `last` trials are used; a repeat gives way to its nearest new one."""
        sampler = Sampler(free, self._context.seed)
        told: set[str] = set()
        tried = {selection - base for selection in self._selections.values() if base <= selection}
        while len(self._trials) < last and len(tried) < 2 ** len(free):
            for digest, trial in self._trials.items():
                selection = self._selections[digest]
                if digest not in told and base <= selection:
                    sampler.add(trial, selection, scaled_ms(trial, self._fp32_ms(), self._context.estimate))
                told.add(digest)
            chosen = self._nearest_new(sampler.suggest(len(self._trials)), free, tried, base)
            tried.add(chosen)
            yield base | chosen

    def _nearest_new(
        self, wish: Selection, free: Sequence[Choice], tried: set[Selection], base: Selection
    ) -> Selection:
        for distance in range(len(free) + 1):
            around = {wish ^ change for change in _subsets(free, (distance,))} - tried
            if around:
                return min(around, key=lambda s: (self._estimate(base | s), sorted(s)))
        raise AssertionError("called only while some subset is untried")

    def _joined(self) -> Steps:
        """Combinations of a stable encoder choice and a stable decoder choice, the promising ones first.

        Promise is the latency that the two savings add up to, and the sum of their flip risks: front after front of
        these, each from the fastest. A combination is left out where a better one by both has been judged acceptable.
        """
        both = [self._stable_choices(family) for family in FAMILIES]
        pairs = {
            encoder | decoder: (encoder_ms + decoder_ms, encoder_risk + decoder_risk)
            for encoder, encoder_ms, encoder_risk in both[0]
            for decoder, decoder_ms, decoder_risk in both[1]
        }
        accepted: list[tuple[float, float]] = []
        left = list(pairs)
        while left:
            layer = [left[index] for index in front([pairs[selection] for selection in left])]
            for selection in sorted(layer, key=lambda s: (pairs[s], sorted(s))):
                ms, risk = pairs[selection]
                if any(ms >= good_ms and risk >= good_risk for good_ms, good_risk in accepted):
                    continue
                yield selection, "joined", self._parent(selection)
                if self._acceptable(self._trial(selection)):
                    accepted.append((ms, risk))
            done = set(layer)
            left = [selection for selection in left if selection not in done]

    def _stable_choices(self, family: Family) -> list[tuple[Selection, float, float]]:
        """The family's stable choices, judged with the other family in fp32: selection, latency saved, flip risk."""
        others = frozenset(choice for choice in self._space.choices if choice[0] != family)
        everything = frozenset(self._space.choices)
        found = []
        for digest, trial in self._trials.items():
            selection = self._selections[digest]
            if trial.verdict == "stable" and others <= selection:
                risk = trial.flip_risk.high if trial.flip_risk is not None and selection != everything else 0.0
                found.append((selection - others, self._estimate(selection) - self._estimate(everything), risk))
        return found

    def _parent(self, selection: Selection) -> int | None:
        """The trial that tried the selection's encoder half."""
        decoder = frozenset(choice for choice in self._space.choices if choice[0] == "decoder")
        trial = self._trial(selection | decoder)
        return None if trial is None else trial.id

    def _release(self) -> Steps:
        """Suggested op types low after all in the fastest acceptable plan, and in those of all laxer shares.

        Flips at near-ties are luck: what a laxer search would find that way may keep more than the share asked for.
        """
        share: float | None = self._context.min_validation_match
        done: set[float] = set()
        while share is not None:
            yield from self._release_at(share)
            done.add(share)
            kept = {t.validation_match for t in self._trials.values() if t.verdict == "stable"} - done - {None}
            laxer = [each for each in kept if each is not None and each < self._context.min_validation_match]
            share = max(laxer, default=None)

    def _release_at(self, share: float) -> Steps:
        """Suggested op types made low one by one in the best plan at a share, those that save most first."""
        good = [trial for trial in self._trials.values() if is_acceptable(trial, share)]
        if not good:
            return
        best = min(good, key=lambda trial: (self._estimate(self._selections[trial.plan.plan.digest]), trial.id))
        kept = self._selections[best.plan.plan.digest]
        for choice in sorted(kept & self._space.hard_choices, key=lambda c: (self._estimate(kept - {c}), c)):
            released = kept - {choice}
            if self._estimate(released) < self._estimate(kept) and not self._known_damage(released):
                yield released, "release", best.id
                trial = self._trial(released)
                if trial is not None and is_acceptable(trial, share):
                    best, kept = trial, released

    def _fastest_first(self, selections: Iterator[Selection]) -> Iterator[Selection]:
        return iter(sorted(selections, key=lambda s: (self._estimate(s), sorted(s))))

    def _known_damage(self, selection: Selection) -> bool:
        """Whether a plan that keeps at least this much in fp32 was damaged; damage is as good as monotone."""
        return any(is_damaged(trial) and selection <= self._selections[d] for d, trial in self._trials.items())

    def _acceptable(self, trial: Trial | None) -> bool:
        return trial is not None and is_acceptable(trial, self._context.min_validation_match)

    def _trial(self, selection: Selection) -> Trial | None:
        return self._trials.get(self._space.plan_of(selection).digest)

    def _estimate(self, selection: Selection) -> float:
        if selection not in self._estimates:
            self._estimates[selection] = self._context.estimate(self._space.plan_of(selection))
        return self._estimates[selection]

    def _remembered(self, steps: Steps) -> Steps:
        for selection, stage, parent in steps:
            self._selections.setdefault(self._space.plan_of(selection).digest, selection)
            yield selection, stage, parent


def _subsets(choices: Sequence[Choice], sizes: Sequence[int]) -> Iterator[Selection]:
    return (frozenset(subset) for size in sizes for subset in combinations(choices, size))
