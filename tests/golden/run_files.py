"""What a run leaves: its files, tables, report and progress, as JSON values by subject.

In: a finished run directory. Out: subjects (see `volatile` for what is left out of each).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path

from tests.golden import hashes
from tests.golden.commands import Done, Place
from tests.golden.volatile import settled, settled_progress, settled_text, unread

_PAGE_PART = re.compile(r"<(script|style)\b([^>]*)>(.*?)</\1>", re.DOTALL)

_RECORDS = ("run", "nodes", "landmarks", "blocklist")


def capture(place: Place, run: str, done: Done, label: str) -> Mapping[str, object]:
    """The subjects of a run that the command just made, in the folder `run` of the place."""
    directory = place.folder / run
    found: dict[str, object] = {
        "files": sorted(path.name for path in directory.iterdir()),
        "trials": [json.loads(line) for line in _text(directory / "trials.jsonl").splitlines()],
        "pareto-csv": _table(_text(directory / "pareto.csv")),
        "pareto": json.loads(place.command("pareto", run, "--format", "json").out),
        "pareto-stdout": _table(place.command("pareto", run, "--format", "csv").out),
        "progress": done.err,
        "stdout": done.out.splitlines(),
        **{name: json.loads(_text(directory / f"{name}.json")) for name in _RECORDS},
        **_page(_text(directory / "report.html")),
        **model(directory / "model"),
    }
    found["other files"] = {
        path.name: hashes.sha256(path.read_bytes())
        for path in directory.iterdir()
        if path.is_file() and not unread(path.name) and path.stem not in (*_RECORDS, "trials", "pareto")
    }
    found["pareto-md"] = place.command("pareto", run, "--format", "md").out.splitlines()
    return {name: _settled(f"{label}/{name}", content) for name, content in found.items()}


def model(directory: Path) -> Mapping[str, object]:
    """Hashes of a published model, and its card as lines."""
    return {"model": hashes.of_directory(directory), "card": _text(directory / "README.md").splitlines()}


def _settled(subject: str, content: object) -> object:
    if subject.endswith("/progress"):
        return settled_progress(subject, str(content))
    if isinstance(content, list) and all(isinstance(line, str) for line in content):
        return settled_text(subject, "\n".join(content)).splitlines()
    return settled(subject, content)


def _page(html: str) -> Mapping[str, object]:
    """The data that a report carries, its markup as lines, and hashes of its scripts and styles."""
    parts = list(_PAGE_PART.finditer(html))
    data = [part[3] for part in parts if 'type="application/json"' in part[2]]
    return {
        "report-data": [json.loads(each) for each in data],
        "page": _PAGE_PART.sub(r"<\1\2></\1>", html).splitlines(),
        "assets": {
            f"{part[1]} {number}": hashes.sha256(part[3].encode())
            for number, part in enumerate(part for part in parts if part[3] not in data)
        },
    }


def _table(text: str) -> Mapping[str, object]:
    """A CSV table as its header and rows by column; numbers as numbers, so that they have a tolerance."""
    rows = csv.DictReader(text.splitlines())
    return {
        "header": list(rows.fieldnames or ()),
        "rows": [{name: _number(value) for name, value in row.items()} for row in rows],
    }


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
