"""What a plan keeps in fp32, in a few words: `both: Pow ReduceMean; enc: MatMul +3 nodes`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from precision_search.model.graph import Family
from precision_search.precision.plan import FAMILIES
from precision_search.search.trials import PlanRecord, Trial

EVERYTHING = "everything"
NOTHING = "nothing"
SHORT_KEY = 20
"""A single node's key is named up to this length: `lm_head/MatMul` says more than a count."""

_SHORT: Mapping[Family, str] = {"encoder": "enc", "decoder": "dec"}


def kept_text(trials: Sequence[Trial], pinned: Collection[str] = ()) -> Callable[[Trial], str]:
    """A function that says what a trial's plan keeps in fp32.

    Op types kept as a whole are named, other nodes counted (a single one is named if its key is short). What both
    families keep is said once; a family that keeps most of its op types is said to keep all but the others.

    Args:
        trials: the judged plans of the run; the one of fp32 among them tells which op types there are.
        pinned: node keys that no plan can make low (index arithmetic); they are not counted.
    """
    fp32 = next((trial.plan.op_types for trial in trials if trial.is_fp32), {})
    there = {family: frozenset(fp32.get(family, ())) for family in FAMILIES}
    skipped = frozenset(pinned)

    def text(trial: Trial) -> str:
        if trial.is_fp32:
            return EVERYTHING
        kept = {family: _Kept.of(trial.plan, family, there[family], skipped) for family in FAMILIES}
        return _join(kept["encoder"], kept["decoder"])

    return text


@dataclass(frozen=True, slots=True)
class _Kept:
    """What one family keeps: op types as a whole, the nodes beside them, and the op types it does not keep (None where
    nobody knows which there are)."""

    op_types: frozenset[str]
    nodes: tuple[str, ...]
    others: frozenset[str] | None

    @classmethod
    def of(cls, record: PlanRecord, family: Family, there: frozenset[str], pinned: frozenset[str]) -> _Kept:
        whole = frozenset(record.op_types.get(family, ()))
        own = (key for key in record.nodes if _family(key) == family and key not in pinned)
        return cls(whole, tuple(key for key in own if _op_type(key) not in whole), there - whole if there else None)

    @property
    def is_most(self) -> bool:
        """Whether naming what is not kept is shorter."""
        return self.others is not None and len(self.op_types) > 2 and len(self.others) * 2 <= len(self.op_types)

    def words(self, op_types: frozenset[str]) -> str:
        """`op_types`, those of its own that are still to be named, and the nodes."""
        named = _list(op_types)
        if self.is_most:
            named = f"all but {_list(self.others)}" if self.others else EVERYTHING
        if len(self.nodes) == 1 and len(self.nodes[0]) <= SHORT_KEY:
            beside = f"+{self.nodes[0]}"
        else:
            beside = f"+{len(self.nodes)} node{'s' * (len(self.nodes) > 1)}" if self.nodes else ""
        return f"{named} {beside}".strip()


def _join(encoder: _Kept, decoder: _Kept) -> str:
    nodes = encoder.nodes + decoder.nodes
    if not nodes and encoder.words(encoder.op_types) == decoder.words(decoder.op_types):
        words = encoder.words(encoder.op_types)
        return f"both: {words}" if words else NOTHING
    common = encoder.op_types & decoder.op_types
    if encoder.is_most or decoder.is_most:
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
