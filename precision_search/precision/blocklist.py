"""Blocklists: a plan as people read it, as JSON says it, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from precision_search.errors import InputError, did_you_mean, short
from precision_search.files import read_json, reason
from precision_search.model.graph import (
    BASE_VARIANT,
    GRAPH_NAMES,
    Family,
    Graph,
    GraphName,
    compute_keys_by_op_type,
)
from precision_search.model.variants import variant_names
from precision_search.precision.low import LOW_DTYPES, LowDtype
from precision_search.precision.patterns import LONGEST, PatternError, matched, time_limit
from precision_search.precision.plan import FAMILIES, Plan, all_compute_keys, pinned_keys

_LISTS_NAMES = "`precision-search inspect MODEL` lists op types and node keys"
_FORM_FIX = "see blocklist.json in any run directory for the form"


@dataclass(frozen=True, slots=True)
class Blocklist:
    """What stays in fp32: whole op types of a family, then patterns over node keys, then single nodes.

    Attributes:
        dtype: the low dtype of everything else.
        variant: the graph variant.
        op_types: op types that stay in fp32 wherever they occur in the family's graphs.
        patterns: regular expressions, each matched against the whole node key.
        nodes: single node keys, by graph.
    """

    dtype: LowDtype
    variant: str
    op_types: Mapping[Family, tuple[str, ...]]
    patterns: tuple[str, ...]
    nodes: Mapping[GraphName, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """The blocklist with the keys of `blocklist.json`."""
        return {
            "dtype": self.dtype,
            "variant": self.variant,
            "op_types": {family: list(self.op_types.get(family, ())) for family in FAMILIES},
            "patterns": list(self.patterns),
            "nodes": {name: list(self.nodes.get(name, ())) for name in GRAPH_NAMES},
        }


def blocklist_from_json(data: object, source: str, default_dtype: LowDtype = "float16") -> Blocklist:
    """Reads the content of a `blocklist.json`; missing keys mean "none", a missing dtype the default.

    Raises:
        InputError: the data is not of that form; `source` is named in the message.
    """
    if not isinstance(data, dict):
        raise InputError(f"{source} is not a blocklist", why="it holds no JSON object", fix=_FORM_FIX)
    known = {"dtype", "variant", "op_types", "patterns", "nodes"}
    if unknown := sorted(set(data) - known):
        raise InputError(
            f"{source} has the unknown key {short(unknown[0])}",
            why=f"known keys: {', '.join(sorted(known))}",
            fix=_FORM_FIX,
        )
    dtype = data.get("dtype", default_dtype)
    if dtype not in LOW_DTYPES:
        known_dtypes = " or ".join(LOW_DTYPES)
        raise InputError(
            f"{source} has the unknown dtype {short(dtype)}",
            why=f"a low dtype is {known_dtypes}",
            fix=did_you_mean(str(dtype), LOW_DTYPES, also=f"set dtype to {known_dtypes}", cutoff=0.5),
        )
    variant, variants = data.get("variant", BASE_VARIANT), variant_names()
    if variant not in variants:
        quoted = [repr(name) for name in variants]
        raise InputError(
            f"{source} has the unknown graph variant {short(variant)}",
            why=f"only {' and '.join(quoted)} exist{'s' * (len(quoted) == 1)}",
            fix=did_you_mean(str(variant), list(variants), also=f"set variant to {' or '.join(quoted)}", cutoff=0.5),
        )
    op_types = _lists_by_name(data.get("op_types", {}), FAMILIES, f"{source}: op_types")
    nodes = _lists_by_name(data.get("nodes", {}), GRAPH_NAMES, f"{source}: nodes")
    patterns = _strings(data.get("patterns", []), f"{source}: patterns")
    return Blocklist(
        dtype=cast(LowDtype, dtype),
        variant=variant,
        op_types=cast("Mapping[Family, tuple[str, ...]]", op_types),
        patterns=patterns,
        nodes=cast("Mapping[GraphName, tuple[str, ...]]", nodes),
    )


def read_blocklist(path: Path, default_dtype: LowDtype = "float16") -> Blocklist:
    """Reads a `blocklist.json`.

    Raises:
        InputError: it is missing, not JSON, or not a blocklist.
    """
    try:
        data = read_json(path)
    except OSError as error:
        raise InputError(f"cannot read the blocklist {path}", why=reason(error), fix="check the path") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON", why=str(error), fix=_FORM_FIX) from error
    return blocklist_from_json(data, str(path), default_dtype)


def plan_of_blocklist(blocklist: Blocklist, graphs: Mapping[GraphName, Graph], source: str = "the blocklist") -> Plan:
    """Resolves a blocklist to the plan it stands for on these graphs.

    Nodes that can never be low (`Node.pinned`) are part of every plan.

    Raises:
        InputError: an op type, pattern or node that the graphs do not hold; the nearest known one is named.
    """
    keys = all_compute_keys(graphs)
    fp32 = set(pinned_keys(graphs))
    for family in FAMILIES:
        by_type = compute_keys_by_op_type(graphs, family)
        for op_type in blocklist.op_types.get(family, ()):
            if op_type not in by_type:
                raise _unknown(f"op type {short(op_type)} ({family})", op_type, by_type, source)
            fp32 |= by_type[op_type]
    end = time_limit()
    for pattern in blocklist.patterns:
        fp32 |= match_keys(pattern, keys, source, end)
    for name, nodes in blocklist.nodes.items():
        known = frozenset(node.key for node in graphs[name].compute) if name in graphs else frozenset[str]()
        for key in nodes:
            if key not in known:
                raise _unknown(f"node {short(key)} ({name})", key, known, source)
            fp32.add(key)
    return Plan(blocklist.dtype, blocklist.variant, frozenset(fp32))


def blocklist_of_plan(plan: Plan, graphs: Mapping[GraphName, Graph]) -> Blocklist:
    """The shortest honest reading of a plan: op types kept whole, then roles kept in every layer, then single nodes.

    `plan_of_blocklist` gives the same plan back.
    """
    pinned = pinned_keys(graphs)
    left = set(plan.fp32) - pinned
    op_types: dict[Family, tuple[str, ...]] = {}
    for family in FAMILIES:
        by_type = compute_keys_by_op_type(graphs, family)
        whole = tuple(sorted(op for op, keys in by_type.items() if (keys - pinned) and (keys - pinned) <= plan.fp32))
        op_types[family] = whole
        for op in whole:
            left -= by_type[op]
    patterns = _layer_patterns(left, graphs, pinned)
    nodes = {name: tuple(sorted(left & {node.key for node in graph.compute})) for name, graph in graphs.items()}
    return Blocklist(plan.dtype, plan.variant, op_types, patterns, nodes)


def role_pattern(role: str) -> str:
    """The regular expression over node keys that matches a role in every layer, and nothing else."""
    return re.escape(role).replace(re.escape("*"), r"\d+")


def _layer_patterns(left: set[str], graphs: Mapping[GraphName, Graph], pinned: frozenset[str]) -> tuple[str, ...]:
    """Patterns for the roles that `left` holds in every layer, one for each module; takes what they match from `left`.

    They are written as people write them, dots and all, unless that matches other nodes too.
    """
    members: dict[str, set[str]] = {}
    for graph in graphs.values():
        for node in graph.compute:
            if node.key not in pinned:
                members.setdefault(node.role, set()).add(node.key)
    modules: dict[str, list[str]] = {}
    for role in sorted(role for role, keys in members.items() if len(keys) > 1 and keys <= left):
        if len(role_pattern(role)) > LONGEST:
            continue
        module, _, name = role.rpartition("/")
        modules.setdefault(module, []).append(name)
    everything, end = pinned.union(*members.values()), time_limit()
    patterns: list[str] = []
    for module, names in modules.items():
        roles = [f"{module}/{name}" for name in names]
        wanted = set[str]().union(*(members[role] for role in roles))
        left -= wanted
        ends = names[0] if len(names) == 1 else f"({'|'.join(names)})"
        readable = f"{module}/{ends}".replace("*", r"\d+")
        is_exact = _matched(readable, everything, end) - pinned == wanted
        patterns.extend([readable] if is_exact else map(role_pattern, roles))
    return tuple(patterns)


def _matched(pattern: str, keys: frozenset[str], end: float) -> set[str]:
    """The keys that the pattern matches as a whole; none if it is no pattern, or is not done at `end`."""
    try:
        return set(matched(pattern, keys, end))
    except PatternError:
        return set()


def match_keys(pattern: str, keys: frozenset[str], source: str, end: float | None = None) -> frozenset[str]:
    """The keys that the regular expression matches as a whole; `end` as for `matched`.

    Raises:
        InputError: the expression is broken, too large or too slow, or matches nothing.
    """
    try:
        found = matched(pattern, keys, end)
    except PatternError as error:
        raise InputError(
            f"{source}: pattern {short(pattern)} is not a regular expression, or not one that is allowed",
            why=str(error),
            fix=r"write it as in Python: `.` is any character, `\d+` a layer number, `.*` anything",
        ) from error
    if not found:
        raise _unknown(f"pattern {short(pattern)}: it matches no node key", pattern, keys, source)
    return found


def _unknown(what: str, word: str, known: Mapping[str, object] | frozenset[str], source: str) -> InputError:
    return InputError(
        f"{source} names the unknown {what}",
        why="the model's graphs hold no compute node of that name",
        fix=did_you_mean(word, sorted(known), also=_LISTS_NAMES, cutoff=0.5),
    )


def _strings(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where} is not a list of strings", fix=_FORM_FIX)
    return tuple(value)


def _lists_by_name(value: object, names: tuple[str, ...], where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is not an object", fix=_FORM_FIX)
    if unknown := sorted(set(value) - set(names)):
        raise InputError(
            f"{where} has the unknown key {short(unknown[0])}", why=f"known: {', '.join(names)}", fix=_FORM_FIX
        )
    return {name: _strings(value.get(name, []), f"{where}.{name}") for name in names}
