"""What golden files leave out, and why: the only table of it.

In: JSON values and texts as captured. Out: the same with what differs from run to run replaced by a mark, so that a key
that vanishes is still noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

MARK = "(left out)"

LONG_LIST = 40
"""Names in a list above which their number and hash stand for them: plans name hundreds of nodes."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A value that is left out: of which subjects, where in them (patterns of fnmatch), and why."""

    subject: str
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Replaced:
    """A part of a text that is replaced: of which subjects, a regular expression, what comes in its place, and why."""

    subject: str
    pattern: str
    by: str
    why: str


@dataclass(frozen=True, slots=True)
class Unread:
    """A file of which only the name is kept, and why."""

    name: str
    why: str


LEFT_OUT = (
    LeftOut("*", "*seconds", "how long a plan or a run took"),
    LeftOut("*/run", "started", "the time of day"),
    LeftOut("*/run", "finished", "the time of day"),
    LeftOut("*/run", "screen.*", "how fast plans were screened"),
    LeftOut("*/run", "peak_rss_bytes", "depends on the machine's load and on what is imported"),
    LeftOut("*/run", "config_hash", "the resolved config holds absolute paths of the temporary folder"),
    LeftOut("*", "*versions.*", "packages that are updated between two captures; the numbers decide"),
    LeftOut("*", "*tool_version", "a version may change with a release"),
)

_FACT = r"(<dt>{}</dt><dd><bdi>)[^<]*"

REPLACED = (
    Replaced("*/progress", r"^\[\d+\.\d s\]", "[- s]", "the clock of a stage"),
    Replaced("*/progress", r", \d+\.\d+ s(, \d+(\.\d+)? screens/s)?$", ", - s", "how long a plan took"),
    Replaced("*progress", r"\S*/golden-[^/\s]+/", "", "the folder that it was made in"),
    Replaced("*/page", _FACT.format("(?:started|finished|time)"), rf"\1{MARK}", "times"),
    Replaced("*/page", _FACT.format("(?:screens a second|peak memory)"), rf"\1{MARK}", "speed and load of the machine"),
    Replaced("*/page", _FACT.format("config, SHA-256"), rf"\1{MARK}", "the config holds absolute paths"),
    Replaced(
        "*/page",
        _FACT.format("(?:precision-search|python|onnx|onnxruntime|onnx-ir|torch|transformers|numpy)"),
        rf"\1{MARK}",
        "versions",
    ),
    Replaced(
        "*/page",
        r'(<td class="number">)\d+\.\d+(</td>\n<td class="reason")',
        rf"\1{MARK}\2",
        "how long a plan took: the column before the reason",
    ),
    Replaced("*/page", "(sha256-)[A-Za-z0-9+/=]{44}", r"\1(hash)", "hashes of scripts, which are kept by themselves"),
    Replaced("*/page", r'(content="precision-search )[^"]*', rf"\1{MARK}", "the version"),
    Replaced("*/card", r"(## Made with\n\n).*", rf"\1{MARK}", "versions"),
)

UNREAD = (
    Unread("report.html", "plotly's script; the data and the markup of the page are kept by themselves"),
    Unread("study.journal", "Optuna's own log, with the time of each line; trials.jsonl has what is in it"),
    Unread("config.toml", "absolute paths; the resolved config of a dry run is kept"),
)

ONNX_METADATA = re.compile(r"precision_search\.(versions\..*|tool_version)")
"""Metadata of a published graph that the second hash of it leaves out, as `producer_version`: versions."""


def settled(subject: str, content: object) -> object:
    """A JSON value without what differs from run to run; texts in it included."""
    return _settled(subject, content, "")


def settled_text(subject: str, text: str) -> str:
    """A text without what differs from run to run."""
    for entry in REPLACED:
        if fnmatchcase(subject, entry.subject):
            text = re.sub(entry.pattern, entry.by, text, flags=re.MULTILINE)
    return text


def settled_progress(subject: str, text: str) -> list[str]:
    """Lines of stderr without clocks, and without those that a long stage says once a minute."""
    lines: list[str] = []
    stage = None
    for line in settled_text(subject, text).splitlines():
        if line.startswith("[- s] "):
            if stage is not None and (line == stage or line.startswith(f"{stage}:")):
                continue
            stage = line
        lines.append(line)
    return lines


def unread(name: str) -> bool:
    """Whether only the name of a file is kept."""
    return any(name == entry.name for entry in UNREAD)


def _settled(subject: str, value: object, key: str) -> object:
    if value is not None and any(
        fnmatchcase(subject, entry.subject) and fnmatchcase(key, entry.key) for entry in LEFT_OUT
    ):
        if not isinstance(value, dict):
            return MARK
        return dict.fromkeys(value, MARK)
    if isinstance(value, dict):
        return {name: _settled(subject, item, f"{key}.{name}" if key else name) for name, item in value.items()}
    if isinstance(value, list):
        if len(value) > LONG_LIST and all(isinstance(item, str) for item in value):
            return {"count": len(value), "sha256": hashlib.sha256(json.dumps(value).encode()).hexdigest()}
        return [_settled(subject, item, f"{key}[]") for item in value]
    return value
