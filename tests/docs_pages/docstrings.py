"""What a dataclass says of its fields: the `Attributes:` sections of its docstring and of those it inherits from."""

from __future__ import annotations

import inspect
import re

_ENTRY = re.compile(r"    ([\w, ]+): (.*)")


def summary(kind: type) -> str:
    """The docstring up to its sections, as one paragraph a paragraph."""
    text = inspect.getdoc(kind) or ""
    lead = text.split("\nAttributes:")[0].strip()
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in lead.split("\n\n"))


def attributes(kind: type) -> dict[str, str]:
    """The description of each field, one line each; those of a subclass win."""
    found: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__):
        if "__doc__" in vars(ancestor):
            found |= _own(inspect.cleandoc(ancestor.__doc__ or ""))
    return found


def _own(text: str) -> dict[str, str]:
    _, _, section = text.partition("\nAttributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if entry := _ENTRY.fullmatch(line):
            names = [name.strip() for name in entry[1].split(",")]
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith("        ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return found
