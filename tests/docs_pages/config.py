"""The reference of the config file, made from its dataclasses: types, defaults, limits, and what each key means."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal

from precision_search import config
from precision_search.toml_tables import Rule
from tests.docs_pages.docstrings import attributes

HEAD = """# The config file

A TOML file with the tables below. Relative paths are relative to the file; those given with `--set` to the working
directory. An unknown table or key, a value of another type, and one beyond its limits are errors that name the key and
what it may be. `--set table.key=value` overrides a key, with a TOML value or a bare word.

`precision-search run CONFIG --dry-run` prints a config with every default filled in;
[the demo's](../../configs/demo.toml) has comments. What `[device]` changes on a GPU has [a page of its own](device.md).
"""

_TYPES = {str: "string", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def config_page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    hints, meanings = typing.get_type_hints(config.Config), attributes(config.Config)
    for name, hint in hints.items():
        kind = next(member for member in (*typing.get_args(hint), hint) if member is not types.NoneType)
        if not dataclasses.is_dataclass(kind):
            continue
        meaning = meanings[name]
        lead = f"{meaning[0].upper()}{meaning[1:]}" + (" *Optional.*" if kind is not hint else "")
        parent, fields = config.PARENTS.get(name), dataclasses.fields(kind)
        if parent is not None:
            shared = {field.name for field in dataclasses.fields(hints[parent])}
            fields = tuple(field for field in fields if field.name not in shared)
            lead += f" It has the keys of `[{parent}]`, from where what is not set here is taken; `path` is required."
        yield f"## `[{name}]`\n\n{lead}\n{_table(typing.cast(type, kind), fields)}"


def _table(kind: type, fields: Sequence[dataclasses.Field[Any]]) -> str:
    if not fields:
        return ""
    hints, said = typing.get_type_hints(kind), attributes(kind)
    rows = ["", "| key | type | default | limits | meaning |", "| --- | --- | --- | --- | --- |"]
    for field in fields:
        cells = (f"`{field.name}`", _type(hints[field.name]), _default(field), _limits(field), said[field.name])
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _type(hint: Any) -> str:
    kinds = [member for member in (typing.get_args(hint) or (hint,)) if member is not types.NoneType]
    if typing.get_origin(hint) is Literal:
        return " or ".join(f"`{json.dumps(word)}`" for word in kinds)
    return "list of strings" if typing.get_origin(hint) is tuple else _TYPES[kinds[0]]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return "see its meaning"
    if field.default is MISSING:
        return "required"
    if field.default is None:
        return "none"
    return f"`{json.dumps(field.default)}`"


def _limits(field: dataclasses.Field[Any]) -> str:
    rule: Rule | None = field.metadata.get("rule")
    return "" if rule is None else rule.expected
