"""Compares two captures: floats to 1e-12, everything else exactly.

In: JSON values, or two folders of JSON files. Out: one line for each difference, with the path to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

RELATIVE = 1e-12

SHOWN = 160
"""Characters of a value that a difference shows."""


def differences(golden: object, now: object, path: str = "") -> Iterator[str]:
    """What differs between two JSON values; numbers of one kind may differ by `RELATIVE`, integers not at all."""
    if isinstance(golden, dict) and isinstance(now, dict):
        for key in sorted(golden.keys() | now.keys()):
            where = f"{path}.{key}" if path else str(key)
            if key not in now:
                yield f"{where}: is missing, was {_shown(golden[key])}"
            elif key not in golden:
                yield f"{where}: is new, {_shown(now[key])}"
            else:
                yield from differences(golden[key], now[key], where)
    elif isinstance(golden, list) and isinstance(now, list):
        if len(golden) != len(now):
            yield f"{path}: has {len(now)} items, had {len(golden)}"
        for index, (old, new) in enumerate(zip(golden, now, strict=False)):
            yield from differences(old, new, f"{path}[{index}]")
    elif not _equal(golden, now):
        start = _common_start(golden, now)
        yield f"{path}: was {_shown(golden, start)}, now {_shown(now, start)}"


def compare_folders(golden: Path, now: Path, part: str | None = None) -> Iterator[str]:
    """What differs between two captures; with `part`, only that folder of them counts."""
    old, new = (_subjects(folder, part) for folder in (golden, now))
    if not old:
        yield f"{golden}: holds no golden files"
    for subject in sorted(old.keys() | new.keys()):
        if subject not in new:
            yield f"{subject}: is missing"
        elif subject not in old:
            yield f"{subject}: is new"
        else:
            yield from (f"{subject}: {line}" for line in differences(_read(old[subject]), _read(new[subject])))


def _subjects(folder: Path, part: str | None) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*.json")
        if part is None or path.relative_to(folder).parts[0].split("-")[0] == part
    }


def _read(path: Path) -> object:
    content: object = json.loads(path.read_text(encoding="utf-8"))
    return content


def _equal(old: object, new: object) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=RELATIVE, abs_tol=0.0) or (math.isnan(old) and math.isnan(new))
    return type(old) is type(new) and old == new


def _common_start(old: object, new: object) -> int:
    """Where long texts may begin to be shown: a little before the first character that differs."""
    if not isinstance(old, str) or not isinstance(new, str) or max(len(old), len(new)) <= SHOWN:
        return 0
    pairs = enumerate(zip(old, new, strict=False))
    parted = next((index for index, (one, other) in pairs if one != other), min(len(old), len(new)))
    return max(0, parted - SHOWN // 4)


def _shown(value: object, start: int = 0) -> str:
    text = json.dumps(value[start:] if isinstance(value, str) else value)
    return f"{'...' if start else ''}{text if len(text) <= SHOWN else f'{text[:SHOWN]}...'}"
