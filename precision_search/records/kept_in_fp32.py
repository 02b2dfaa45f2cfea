"""What a plan keeps in fp32, in a few words: `both: Pow ReduceMean; enc: MatMul +3 nodes`, `enc: 60 of 119 nodes`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from precision_search.errors import counted
from precision_search.judging.trial import PlanRecord, Trial
from precision_search.model.graph import BASE_VARIANT, Family
from precision_search.precision.plan import FAMILIES

EVERYTHING = "everything"
NOTHING = "nothing"
FEW_NODES = 9
"""Up to so many nodes are told beside the op types; with more of them a plan is not about op types, and its nodes are
counted. What they are is in the blocklist."""
SHORT_KEY = 20
"""A single node's key is named up to this length: `lm_head/MatMul` says more than a count."""

_SHORT: Mapping[Family, str] = {"encoder": "enc", "decoder": "dec"}


def kept_text(trials: Sequence[Trial], pinned: Collection[str] = ()) -> Callable[[Trial], str]:
    """A function that says what a trial's plan keeps in fp32.

    Op types kept as a whole are named, other nodes counted (a single one is named if its key is short). Where these are
    more than a few, all nodes that the family keeps are counted instead, as in `Trial.fp32_decisions`. What both
    families keep is said once; a family that keeps most of its op types is said to keep all but the others. A variant
    other than `base` is named first.

    Args:
        trials: the judged plans of the run; the one of fp32 among them tells which op types there are.
        pinned: node keys that no plan can make low (index arithmetic); they count where all nodes do, and are not told
            beside op types.
    """
    fp32 = next((trial.plan for trial in trials if trial.is_fp32), None)
    skipped = frozenset(pinned)
    there = {family: None if fp32 is None else _Family.of(fp32, family, skipped) for family in FAMILIES}

    def text(trial: Trial) -> str:
        if trial.is_fp32:
            return EVERYTHING
        kept = _join(*(_Kept(_Family.of(trial.plan, family, skipped), there[family]) for family in FAMILIES))
        return kept if trial.plan.variant == BASE_VARIANT else f"{trial.plan.variant}; {kept}"

    return text


@dataclass(frozen=True, slots=True)
class _Family:
    """Op types of a family as a whole, the nodes beside them, and how many there are with pinned ones, of those that
    fp32 keeps or a plan."""

    op_types: frozenset[str]
    nodes: tuple[str, ...]
    count: int

    @classmethod
    def of(cls, record: PlanRecord, family: Family, pinned: frozenset[str]) -> _Family:
        whole = frozenset(record.op_types.get(family, ()))
        own = [key for key in record.nodes if _family(key) == family]
        beside = tuple(key for key in own if _op_type(key) not in whole and key not in pinned)
        return cls(whole, beside, len(own))


@dataclass(frozen=True, slots=True)
class _Kept:
    """What one family keeps, of all there is of it (None where nobody knows)."""

    kept: _Family
    all: _Family | None

    @property
    def op_types(self) -> frozenset[str]:
        return self.kept.op_types

    @property
    def others(self) -> frozenset[str]:
        return frozenset() if self.all is None else self.all.op_types - self.op_types

    @property
    def is_counted(self) -> bool:
        """Whether its nodes are counted, not its op types named."""
        return len(self.kept.nodes) > FEW_NODES

    @property
    def is_most(self) -> bool:
        """Whether naming what is not kept is shorter."""
        return self.all is not None and len(self.op_types) > 2 and len(self.others) * 2 <= len(self.op_types)

    def words(self, op_types: frozenset[str]) -> str:
        """`op_types`, those of its own that are still to be named, and the nodes."""
        if self.is_counted:
            return (
                counted(self.kept.count, "node")
                if self.all is None
                else f"{self.kept.count} of {counted(self.all.count, 'node')}"
            )
        named = _list(op_types)
        if self.is_most:
            named = f"all but {_list(self.others)}" if self.others else EVERYTHING
        nodes = self.kept.nodes
        if len(nodes) == 1 and len(nodes[0]) <= SHORT_KEY:
            beside = f"+{nodes[0]}"
        else:
            beside = f"+{len(nodes)} node{'s' * (len(nodes) > 1)}" if nodes else ""
        return f"{named} {beside}".strip()


def _join(encoder: _Kept, decoder: _Kept) -> str:
    nodes = encoder.kept.nodes + decoder.kept.nodes
    if not nodes and encoder.words(encoder.op_types) == decoder.words(decoder.op_types):
        words = encoder.words(encoder.op_types)
        return f"both: {words}" if words else NOTHING
    common = encoder.op_types & decoder.op_types
    if any(kept.is_most or kept.is_counted for kept in (encoder, decoder)):
        common = frozenset()
    parts = [("both", _list(common))]
    parts += [
        (_SHORT[family], kept.words(kept.op_types - common))
        for family, kept in zip(FAMILIES, (encoder, decoder), strict=True)
    ]
    return "; ".join(f"{who}: {words}" for who, words in parts if words)


def _list(op_types: frozenset[str] | None) -> str:
    return " ".join(sorted(op_types or ()))


def _op_type(key: str) -> str:
    return key.rsplit("/", 1)[-1].partition(".")[0]


def _family(key: str) -> Family:
    # The output projection has a root of its own and belongs to the decoder.
    return "encoder" if key.startswith("encoder") else "decoder"
