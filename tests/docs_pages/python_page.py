"""The page about Python: the public names of the package; autodoc adds their docstrings when the site is built."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping

import precision_search

HEAD = """# Python

Everything that the command line does is a function of the package `precision_search`, with what it takes and returns.
What is not named here may change in any version. Importing the package loads nothing heavy: a name is loaded when it is
first used. `precision_search.api` is the module of the functions and has them under the same names.

[Generating with a model](../how-to/generator.md) shows the generator at work,
[examples/search.py](../../examples/search.py) the way from a config to a model.
"""

RETURNED = """## What functions return

Frozen dataclasses. What they hold further has the names and meanings of [the JSON forms](json.md).
"""


def python_page() -> str:
    """The page as Markdown, with the blocks that Sphinx fills."""
    names = _public()
    rows = [f"| [`{name}`](#{_anchor(name)}) | {_first_line(value)} |" for name, value in names.items()]
    table = "\n".join(["| name | what it is |", "| --- | --- |", *rows]) + "\n"
    blocks = [_block(name, value, f"precision_search.{name}") for name, value in names.items()]
    returned = {kind.__name__: kind for kind in _returned(names)}
    more = [_block(name, kind, f"{kind.__module__}.{name}", "###") for name, kind in sorted(returned.items())]
    return "\n".join([HEAD, table, *blocks, RETURNED, *more])


def _public() -> dict[str, object]:
    """Functions and classes of the package by name."""
    values = {name: getattr(precision_search, name) for name in precision_search.__all__}
    return {name: value for name, value in values.items() if callable(value)}


def _returned(names: Mapping[str, object]) -> Iterator[type]:
    """The package's own dataclasses that public functions give and that are not public themselves."""
    for value in names.values():
        if inspect.isfunction(value):
            kind = typing.get_type_hints(value).get("return")
            if dataclasses.is_dataclass(kind) and kind not in names.values():
                yield typing.cast(type, kind)


def _first_line(value: object) -> str:
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def _block(name: str, value: object, target: str, level: str = "##") -> str:
    if inspect.isfunction(value):
        directive = f".. autofunction:: {target}"
    else:
        is_error = isinstance(value, type) and issubclass(value, Exception)
        directive = f".. auto{'exception' if is_error else 'class'}:: {target}\n   :members:"
    return f"{level} {name}\n\n```{{eval-rst}}\n{directive}\n```\n"


def _anchor(name: str) -> str:
    """As forges and MyST make it of a heading."""
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter in "_-")
