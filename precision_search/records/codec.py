"""Dataclasses to JSON values and back: one way to write and check every record of a run.

In: a tree of dataclasses, mappings and tuples. Out: what `json.dumps` takes. The field names are the keys, and the
annotations say what is accepted when it is read again.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

# A pure function of a handful of classes; asked for every value of logs with thousands of lines.
_hints = functools.cache(get_type_hints)


def to_json(value: object) -> object:
    """Dataclasses, mappings and tuples as JSON values; an optional field that is NaN or infinite becomes None.

    Any other number that is not finite stays: `json.dumps(allow_nan=False)` refuses it.
    """
    if is_dataclass(value):
        hints = _hints(value.__class__)
        return {
            field.name: None
            if _is_optional(hints[field.name]) and _not_finite(getattr(value, field.name))
            else to_json(getattr(value, field.name))
            for field in fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: object, where: str) -> T:
    """The JSON value as the dataclass `kind`; unknown keys are ignored, those with a default may be missing.

    Raises:
        ValueError: a key is missing or a value does not fit its annotation; the message starts with the place, which
            starts with `where`.
    """
    return cast(T, _decode(kind, value, where))


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, where) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {_decode(arguments[0], k, where): _decode(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if is_dataclass(hint) and isinstance(value, dict):
        return _decode_fields(hint, value, where)
    if value in arguments if origin is Literal else _is_plain(hint, value):
        return float(value) if hint is float else value
    raise ValueError(f"{where} is {json.dumps(value)[:60]}")


def _is_plain(hint: Any, value: Any) -> bool:
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return hint in (int, str) and isinstance(value, hint)


def _decode_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    found = {}
    for field in fields(kind):
        if field.name not in value:
            if field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"{where} lacks {field.name!r}")
            continue  # a key that came later, in what an earlier version wrote
        found[field.name] = _decode(hints[field.name], value[field.name], f"{where}.{field.name}")
    return kind(**found)
