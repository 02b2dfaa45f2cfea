"""TOML tables to and from dataclasses: the machinery behind `config`, which holds only declarations.

A class declares the document: each field that is a dataclass is a table (`| None`: an optional one). In a table a
field is a key, its annotation the type, its default the default; a field without one is required. Metadata add the
rest: `rule` (see `at_least` and its neighbours) and `resolve`, a function of the value and of the directory that
relative paths mean. Everything wrong is a ConfigError that names the place, the reason and the fix.
"""

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from precision_search.errors import ConfigError, did_you_mean
from precision_search.files import read_file, reason

_LARGEST = 1 << 20
"""Bytes of the largest TOML file that is read: who writes a megabyte of config gave another file's name."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must satisfy besides its type; `expected` completes the sentence "it must be ..."."""

    holds: Callable[[Any], bool]
    expected: str
    words: tuple[str, ...] = ()


def at_least(low: float, most: float = math.inf) -> Mapping[str, Rule]:
    """Metadata of a field whose value is `low` or more, and no more than `most`."""
    return {"rule": Rule(lambda value: low <= value <= most, f"at least {low}{_and_at_most(most)}")}


def more_than(low: float, most: float = math.inf) -> Mapping[str, Rule]:
    """Metadata of a field whose value is above `low`, and no more than `most`."""
    return {"rule": Rule(lambda value: low < value <= most, f"more than {low}{_and_at_most(most)}")}


def _and_at_most(most: float) -> str:
    return "" if math.isinf(most) else f" and at most {most}"


def between(low: float, high: float) -> Mapping[str, Rule]:
    """Metadata of a field whose value lies between `low` and `high`, both included."""
    return {"rule": Rule(lambda value: low <= value <= high, f"between {low} and {high}")}


def only(value: object, text: str) -> Mapping[str, Rule]:
    """Metadata of a field that is absent or says one thing; `text` is the value as TOML writes it."""
    return {"rule": Rule(lambda given: given == value, f"{text}, which is greedy decoding")}


def one_of(words: tuple[str, ...]) -> Mapping[str, Rule]:
    """Metadata of a field whose value is one of `words`."""
    return {"rule": Rule(lambda value: value in words, f"one of {', '.join(words)}", words)}


def without_blanks() -> Mapping[str, Rule]:
    """Metadata of a list of strings none of which is blank."""
    return {"rule": Rule(lambda value: all(item.strip() for item in value), "a list without empty strings")}


def absolute_path(text: str, base: Path) -> Path:
    """Gives `text` as an absolute path, relative ones from `base`; ValueError if it cannot be a path."""
    if not text.strip() or "\0" in text:
        raise ValueError("the path of a file or a directory")
    return (base / Path(text).expanduser()).resolve()


@dataclass(frozen=True, slots=True)
class _Entry:
    """One value as given: `origin` says where, `base` is what relative paths mean, `raw` is the text of an override."""

    value: object
    base: Path
    origin: str
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class _Table:
    kind: type
    optional: bool
    keys: Mapping[str, "dataclasses.Field[Any]"]
    hints: Mapping[str, object]

    def required(self, key: str) -> bool:
        return self.keys[key].default is MISSING and self.keys[key].default_factory is MISSING


def read_tables(
    document: type, path: Path, overrides: Sequence[str], parents: Mapping[str, str], text: str | None = None
) -> dict[str, Any]:
    """Reads the TOML file `path` as `document` declares it and gives each of its tables, checked and resolved.

    `text` is what the file holds, or will hold where it is still to be written; None reads it. `overrides` are
    `table.key=value` with a TOML value or a bare word; they win over the file, and their relative paths mean the
    working directory, not that of the file. A key that a table lacks is looked up in its parent, which
    `parents` names, unless it is required. Raises ConfigError.
    """
    tables = _declared(document)
    entries, present = _file_entries(path, _read_text(path) if text is None else text, tables)
    for override in overrides:
        table, key, entry = _override_entry(override, tables)
        entries[table, key] = entry
        present.add(table)
    sections: dict[str, Any] = {}
    for name, table_spec in tables.items():
        if table_spec.optional and name not in present:
            sections[name] = None
        else:
            sections[name] = _section(name, table_spec, entries, parents.get(name, ""), path)
    return sections


def write_tables(document: object) -> str:
    """Writes the tables of `document` as TOML that `read_tables` reads back to equal ones.

    Keys whose value is None are left out: TOML has no null, and what was read holds None only where neither the table
    nor its parent gives a value.
    """
    blocks = []
    for name, table in _declared(type(document)).items():
        section = getattr(document, name)
        values = {key: getattr(section, key, None) for key in table.keys}
        lines = [f"{key} = {toml_value(value)}\n" for key, value in values.items() if value is not None]
        if section is not None:
            blocks.append("".join([f"[{name}]\n", *lines]))
    return "\n".join(blocks)


def key_names(document: type) -> list[str]:
    """Every key that `document` declares, as `table.key`, in its order."""
    return [f"{name}.{key}" for name, table in _declared(document).items() for key in table.keys]


def toml_value(value: object) -> str:
    """A value as TOML writes it; paths are strings."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case tuple():
            return f"[{', '.join(toml_value(item) for item in value)}]"
        case _:
            # A JSON string is a TOML basic string, except that TOML wants DEL escaped.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _declared(document: type) -> dict[str, _Table]:
    tables = {}
    for name, hint in typing.get_type_hints(document).items():
        kind = _without_none(hint)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            keys = {spec.name: spec for spec in dataclasses.fields(kind)}
            tables[name] = _Table(kind, kind is not hint, keys, typing.get_type_hints(kind))
    return tables


def _without_none(hint: object) -> object:
    members = [member for member in typing.get_args(hint) if member is not types.NoneType]
    return members[0] if typing.get_origin(hint) in (types.UnionType, typing.Union) else hint


def _read_text(path: Path) -> str:
    try:
        # A byte order mark is harmless, but tomllib would refuse it as an invalid statement.
        return read_file(path, _LARGEST).decode().removeprefix("\ufeff")
    except FileNotFoundError as error:
        why = f"there is no such file, seen from {Path.cwd()}"
        raise ConfigError(f"config {path} does not exist", why=why, fix="check the path") from error
    except IsADirectoryError as error:
        why = "a TOML file is expected"
        raise ConfigError(f"config {path} is a directory", why=why, fix="name a file in it") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        why = f"byte 0x{error.object[error.start]:02x} at offset {error.start} (line {line}) is not valid there"
        raise ConfigError(f"config {path} is not UTF-8", why=why, fix="save it as UTF-8, as TOML asks") from error
    except OSError as error:
        fix = "check the path and its permissions"
        raise ConfigError(f"config {path} cannot be read", why=reason(error), fix=fix) from error


def _file_entries(
    path: Path, text: str, tables: Mapping[str, _Table]
) -> tuple[dict[tuple[str, str], _Entry], set[str]]:
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        fix = "strings need quotes; a table starts with [name]"
        raise ConfigError(f"config {path} is not valid TOML", why=str(error), fix=fix) from error
    entries = {}
    for table, content in document.items():
        kind = "table" if isinstance(content, dict) else "key"
        _check_known(table, tables, f"unknown {kind} `{table}` in {path}", tables)
        if not isinstance(content, dict):
            fix = f"write [{table}] and its keys below"
            raise ConfigError(f"`{table}` in {path} must be a table", why=f"it is {content!r}", fix=fix)
        for key, value in content.items():
            _check_known(key, tables[table].keys, f"unknown key `{table}.{key}` in {path}", tables)
            entries[table, key] = _Entry(value, path.parent.resolve(), str(path))
    return entries, set(document)


def _override_entry(override: str, tables: Mapping[str, _Table]) -> tuple[str, str, _Entry]:
    name, equals, raw = override.partition("=")
    table, dot, key = name.strip().partition(".")
    if not equals or not dot:
        why = f"`{name}` names no table" if equals else "it has no `=`"
        fix = "write table.key=value, for example search.max_trials=50"
        raise ConfigError(f"cannot use the override `{override}`", why=why, fix=fix)
    origin = f"the override `{override}`"
    _check_known(table, tables, f"unknown table `{table}` in {origin}", tables)
    _check_known(key, tables[table].keys, f"unknown key `{table}.{key}` in {origin}", tables)
    return table, key.strip(), _Entry(_override_value(raw), Path.cwd(), origin, raw)


def _override_value(raw: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        return raw
    return parsed["value"] if len(parsed) == 1 else raw


def _check_known(word: str, known: Iterable[str], what: str, tables: Mapping[str, _Table]) -> None:
    if word in known:
        return
    elsewhere = next((f"did you mean `{table}.{word}`?" for table in tables if word in tables[table].keys), "")
    raise ConfigError(
        what,
        why=f"known here: {', '.join(known)}",
        fix=did_you_mean(word, known) or elsewhere or "remove it",
    )


def _section(name: str, table: _Table, entries: Mapping[tuple[str, str], _Entry], parent: str, path: Path) -> object:
    values = {}
    for key in table.keys:
        entry = entries.get((name, key))
        if entry is None and table.required(key):
            fix = f'write, under [{name}]: {key} = "..."'
            raise ConfigError(f"`{name}.{key}` is missing in {path}", why="it has no default", fix=fix)
        entry = entry or entries.get((parent, key))
        if entry is not None:
            values[key] = _value(f"{name}.{key}", table.keys[key], table.hints[key], entry)
    return table.kind(**values)


def _value(name: str, spec: "dataclasses.Field[Any]", hint: object, entry: _Entry) -> object:
    rule: Rule | None = spec.metadata.get("rule")
    words = rule.words if rule else typing.get_args(hint)
    try:
        value = _convert(_without_none(hint), entry)
        if "resolve" in spec.metadata:
            value = spec.metadata["resolve"](value, entry.base)
        if rule is not None and not rule.holds(value):
            raise ValueError(rule.expected)
    except (ValueError, OSError, RuntimeError) as error:
        # Stricter than for names, so that nobody who writes gpu is sent to cpu.
        choices = [word for word in words if isinstance(word, str)]
        raise ConfigError(
            f"`{name}` cannot be {entry.value!r} (in {entry.origin})",
            why=f"it must be {error}" if isinstance(error, ValueError) else str(error),
            fix=did_you_mean(str(entry.value), choices, cutoff=0.7) or _how_to_set(spec),
        ) from error
    return value


def _how_to_set(spec: "dataclasses.Field[Any]") -> str:
    if spec.default in (MISSING, None):
        return "give it another value" if spec.default is MISSING else "give it another value, or leave it out"
    return f"give it another value, or leave it out for the default, {toml_value(spec.default)}"


def _convert(hint: object, entry: _Entry) -> object:
    """Gives `entry`'s value as the type `hint`; a ValueError says what was expected, to follow "it must be"."""
    if typing.get_origin(hint) is not Literal:
        return _CONVERTERS[hint](entry)
    words = typing.get_args(hint)
    if entry.value not in words:
        raise ValueError(f"one of {', '.join(words)}")
    return entry.value


def _string(entry: _Entry) -> str:
    # `--set calibration.path=2024` means the file of that name, though 2024 is a TOML number too.
    value = entry.value if isinstance(entry.value, str) else entry.raw
    if value is None:
        raise ValueError("a string")
    return value


def _integer(entry: _Entry) -> int:
    if not isinstance(entry.value, int) or isinstance(entry.value, bool):
        raise ValueError("a whole number")
    return entry.value


def _number(entry: _Entry) -> float:
    try:
        if isinstance(entry.value, int | float) and not isinstance(entry.value, bool) and math.isfinite(entry.value):
            return float(entry.value)
    except OverflowError:  # an int that no float holds
        pass
    raise ValueError("a finite number")


def _boolean(entry: _Entry) -> bool:
    if not isinstance(entry.value, bool):
        raise ValueError("true or false")
    return entry.value


def _strings(entry: _Entry) -> tuple[str, ...]:
    if not isinstance(entry.value, list) or not all(isinstance(item, str) for item in entry.value):
        raise ValueError('a list of strings, for example ["Pow", "ReduceMean"]')
    return tuple(entry.value)


_CONVERTERS: Mapping[object, Callable[[_Entry], object]] = {
    str: _string,
    int: _integer,
    float: _number,
    bool: _boolean,
    Path: lambda entry: absolute_path(_string(entry), entry.base),
    tuple[str, ...]: _strings,
}
