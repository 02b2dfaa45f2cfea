"""Which nodes break a plan: prefix bisection over ordered units, then binary splitting, units before their nodes.

The functions are generators that know nothing of plans: they yield a set of node keys to make low and are sent whether
that was too much. Damage is taken as monotone (more low nodes never mend anything), which is used to skip questions;
whoever asks judges the result for real.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

Unit = tuple[str, ...]
"""Node keys that are tried together: those of a role, in the end single ones."""

Questions = Generator[frozenset[str], bool, frozenset[str]]
"""Yields keys to make low, is sent whether that is too much, returns keys."""


def find_culprits(units: Sequence[Unit]) -> Questions:
    """The keys that must not be low, given that all units together are too much and none at all is not.

    Args:
        units: disjoint, the ones most worth keeping low first.

    Returns:
        The culprits; what is left is not too much, as far as damage is monotone.
    """
    fits, breaks = 0, len(units)
    while breaks - fits > 1:
        middle = (fits + breaks) // 2
        if (yield keys_of(units[:middle])):
            breaks = middle
        else:
            fits = middle
    low = set(keys_of(units[:fits]))
    culprits = yield from split(units[fits:breaks], low, known=True)
    return culprits | (yield from split(units[breaks:], low, known=False))


def split(units: Sequence[Unit], low: set[str], *, known: bool) -> Questions:
    """Adds to `low`, which is changed, what can be added of the units; gives the keys that cannot.

    Args:
        units: what to add.
        low: keys that are low together without harm.
        known: whether all units together are known to be too much, so that they need not be asked about.
    """
    keys = keys_of(units)
    if not keys:
        return keys
    if not known and not (yield frozenset(low | keys)):
        low |= keys
        return frozenset()
    if len(keys) == 1:
        return keys
    parts = list(units) if len(units) > 1 else [(key,) for key in units[0]]
    middle = len(parts) // 2
    first = yield from split(parts[:middle], low, known=False)
    # Where the whole first half went in, the second half is what was too much.
    second = yield from split(parts[middle:], low, known=not first)
    return first | second


def keys_of(units: Sequence[Unit]) -> frozenset[str]:
    """All keys of the units."""
    return frozenset(key for unit in units for key in unit)
