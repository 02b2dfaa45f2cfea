"""What people see before anything runs: help pages, public names with their signatures, JSON schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tests.golden.commands import ROOT, Place
from tests.golden.hashes import sha256

_NAMES = """
import importlib, inspect, json, re, sys

def signature(value):
    try:  # without the modules that names live in: those may move
        return re.sub(r"precision_search\\.(\\w+\\.)*", "", str(inspect.signature(value)))
    except (TypeError, ValueError):
        return None

def described(value):
    if inspect.ismodule(value) or not callable(value):
        return type(value).__name__
    if not inspect.isclass(value):
        return signature(value)
    members = {name: getattr(value, name) for name in dir(value) if not name.startswith("_")}
    return {
        "class": signature(value),
        "bases": [base.__name__ for base in value.__mro__[1:-1]],
        "members": {name: signature(each) if callable(each) else type(each).__name__ for name, each in members.items()},
    }

for name in sys.argv[1:]:
    module = importlib.import_module(name)
    print(json.dumps({each: described(getattr(module, each)) for each in module.__all__}))
"""


def capture(place: Place) -> Mapping[str, object]:
    """Help of the command and of each of its commands, public names, hashes of the schemas."""
    names = place.python(_NAMES, "precision_search", "precision_search.api").out.splitlines()
    schemas = sorted((ROOT / "docs/reference/schemas").glob("*.json"))
    return {
        "help": _help(place),
        "names": dict(zip(("precision_search", "precision_search.api"), map(json.loads, names), strict=True)),
        "schemas": {path.name: sha256(path.read_bytes()) for path in schemas},
    }


def _help(place: Place) -> Mapping[str, object]:
    root = place.command("--help").out
    listed = root.split("\nCommands:\n", 1)[1]
    commands = re.findall(r"^  (\S+)", listed, flags=re.MULTILINE)
    pages = {name: place.command(name, "--help").out.splitlines() for name in commands}
    return {"precision-search": root.splitlines(), **pages}
