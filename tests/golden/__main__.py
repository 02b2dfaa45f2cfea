"""`python -m tests.golden write DIR | compare DIR | diff DIR DIR | wheel`; see the package."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.golden import door, runs, wheel
from tests.golden.commands import Place
from tests.golden.comparing import compare_folders

PARTS: Mapping[str, Callable[[Path], Mapping[str, object]]] = {
    "door": lambda folder: door.capture(Place(folder)),
    "tiny-nodes": runs.tiny_nodes,
    "tiny-op-types": runs.tiny_op_types,
    "demo": runs.demo,
}
"""Each is made in an empty folder with an empty cache, and stored in a folder of its name."""


def write(target: Path, part: str | None) -> None:
    """Makes everything anew and stores it, one file per subject; golden files of the same parts are replaced."""
    for name, capture in PARTS.items():
        if part not in (None, name.split("-")[0]):
            continue
        print(f"making {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="golden-") as folder:
            subjects = capture(Path(folder).resolve())
        home = target / name
        home.mkdir(parents=True, exist_ok=True)
        for old in home.glob("*.json"):
            old.unlink()
        for subject, content in subjects.items():
            text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False)
            (home / f"{subject}.json").write_text(text + "\n", encoding="utf-8")


def report(golden: Path, now: Path, part: str | None) -> int:
    """Prints what differs; the exit code."""
    found = list(compare_folders(golden, now, part))
    for line in found:
        print(line)
    print(f"{len(found)} differences" if found else "equal", file=sys.stderr)
    return 1 if found else 0


def main() -> int:
    """Does what the arguments ask for; the exit code, 1 where anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("what", choices=("write", "compare", "diff", "wheel"))
    parser.add_argument("folders", nargs="*", type=Path, help="one of golden files; two for diff")
    parser.add_argument("--part", choices=sorted({name.split("-")[0] for name in PARTS}), help="only this part")
    given = parser.parse_args()
    expected = {"write": 1, "compare": 1, "diff": 2, "wheel": 0}[given.what]
    if len(given.folders) != expected:
        parser.error(f"{given.what} takes {expected} folders")
    if given.what == "wheel":
        return wheel.check()
    if given.what == "write":
        write(given.folders[0], given.part)
        return 0
    if given.what == "diff":
        return report(given.folders[0], given.folders[1], given.part)
    with tempfile.TemporaryDirectory(prefix="golden-now-") as now:
        write(Path(now), given.part)
        return report(given.folders[0], Path(now), given.part)


if __name__ == "__main__":
    sys.exit(main())
