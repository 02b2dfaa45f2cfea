"""What must not leave this machine: how secrets and absolute paths look, in texts and in JSON.

In: an error's text, or a config that is to be published. Out: the same without them. Patterns find what is written in
the usual ways; no pattern finds everything.
"""

from __future__ import annotations

import re
from typing import Any

_NAMES = r"(?:token|password|passwd|secret|credential|api[_-]?key|access[_-]?key|auth[_-]?key)"
# Tokens of the Hugging Face Hub, GitHub, OpenAI and AWS begin so.
_VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{10,}|gh[pousr]_\w{10,}|github_pat_\w{10,}|sk[-_][\w-]{16,}|AKIA[A-Z0-9]{12,})"
)
_TEXT = (
    (re.compile(r"(?<=://)[^/@\s]+(?=@)"), "***"),
    (_VALUE, "***"),
    (re.compile(rf"(?i)({_NAMES}[\"']?\s*[:=]\s*)([\"'])(?:(?!\2).)*\2"), r"\1\2***\2"),
    (re.compile(rf"(?i)({_NAMES}[\"']?\s*[:=]\s*)(?![\"'\s])[^\s'\"&,;]+"), r"\1***"),
    (re.compile(rf"(?i)(--[\w-]*{_NAMES}\s+)[^\s'\"&,;]+"), r"\1***"),
    (re.compile(r"(?i)\b(authorization\W{1,4}\w+\s+)[^\s'\"]+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer\s+)\S+"), r"\1***"),
)

_SECRET_NAME = re.compile(r"(?i)(auth|access|hub|hf|api)_?(token|key)$|^token$|secret|password|credential")
_PLACE_NAME = re.compile(r"(^|_)(path|file|dir|directory|folder|cache)s?(_|$)")
_ABSOLUTE = re.compile(r"^(/|~|file:|[A-Za-z]:[\\/]|\\\\)")
# Two folders deep, so that a slash or a closing tag is none.
_PATH_IN_TEXT = re.compile(r"(?:^|[\s\"'(=,])(?:/[\w.@+-]+/[\w.@+-]|~/\w|file:/|[A-Za-z]:\\\w|\\\\\w)")
_VOCABULARY_NAME = re.compile(r"(_tokens?|^content|^chat_template)$")
"""Names of settings whose texts are part of a vocabulary."""


def hide_secrets(text: str) -> str:
    """The text with three stars where a secret stood."""
    for pattern, shown in _TEXT:
        text = pattern.sub(shown, text)
    return text


def without_private(value: Any, name: str = "") -> Any:
    """A JSON value without the entries and items that hold an absolute path, or what looks like a secret.

    A place that is a name on the Hub or a relative path stays, and so does what belongs to a vocabulary.
    """
    if isinstance(value, dict):
        return {key: without_private(item, key) for key, item in value.items() if not _is_private(key, item)}
    if isinstance(value, list):
        return [without_private(item, name) for item in value if not _is_private(name, item)]
    return value


def _is_private(name: str, value: object) -> bool:
    if isinstance(value, str | list | dict) and value and _SECRET_NAME.search(name):
        return True
    if not isinstance(value, str) or (_VOCABULARY_NAME.search(name) and not _PLACE_NAME.search(name)):
        return isinstance(value, str) and _VALUE.search(value) is not None
    is_place = _PLACE_NAME.search(name) is not None and _ABSOLUTE.match(value) is not None
    return is_place or _PATH_IN_TEXT.search(value) is not None or _VALUE.search(value) is not None
