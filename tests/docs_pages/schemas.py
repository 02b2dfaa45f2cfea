"""JSON Schemas (draft 2020-12) of what the command line writes, made from the dataclasses behind it.

A dataclass becomes an object with a definition of its own, as `records.codec` writes it: field names are keys, all
of them are there, and what each means is said in the class's docstring. A new file is one line in `SCHEMAS`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from precision_search.judging.inspect import InspectReport
from precision_search.judging.trial import Trial
from precision_search.machine.doctor import DoctorReport
from precision_search.precision.blocklist import Blocklist
from precision_search.published.facts import ModelFacts
from precision_search.published.verify import VerifyReport
from precision_search.records.landmarks_json import RunLandmarks
from precision_search.records.nodes_json import RunNodes
from precision_search.records.pareto_table import COLUMNS, Row
from precision_search.records.run_json import RunInfo
from precision_search.records.timings import TimingRecord
from precision_search.strategies.pareto import Choice
from tests.docs_pages.docstrings import attributes, summary

Json = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, slots=True)
class Schema:
    """One file or output.

    Attributes:
        name: of the schema's file, without its ending.
        what: the file or the command that writes it.
        kind: the dataclass behind it; None for the Pareto table, which has columns.
        report: whether numbers that are not finite become null wherever they stand.
        given: whether people write it too: then what is left out means "none", and an unknown key is an error.
    """

    name: str
    what: str
    kind: type | None
    report: bool = False
    given: bool = False


SCHEMAS: tuple[Schema, ...] = (
    Schema("run", "`run.json` of a run", RunInfo),
    Schema("trial", "a line of a run's `trials.jsonl`", Trial),
    Schema("nodes", "`nodes.json` of a run", RunNodes),
    Schema("landmarks", "`landmarks.json` of a run", RunLandmarks),
    Schema("timing", "a line of a run's `timings.jsonl`", TimingRecord),
    Schema("blocklist", "`blocklist.json` of a run or a model", Blocklist, given=True),
    Schema("precision_search", "`precision_search.json` of a model", ModelFacts),
    Schema("pareto", "`pareto --format json`", None),
    Schema("verify", "`verify --format json`", VerifyReport, report=True),
    Schema("inspect", "`inspect --format json`", InspectReport, report=True),
    Schema("doctor", "`doctor --format json`", DoctorReport, report=True),
)


def schema_json(schema: Schema) -> Json:
    """The schema as a JSON value."""
    definitions: dict[str, Json] = {}
    make = _Maker(schema, definitions)
    body = make.table() if schema.kind is None else make.of_class(schema.kind)
    head: Json = {"$schema": DRAFT, "$id": f"{schema.name}.schema.json", "title": schema.what.replace("`", "")}
    tail: Json = {"$defs": dict(sorted(definitions.items()))} if definitions else {}
    return {**head, **body, **tail}


def schema_text(schema: Schema) -> str:
    """The content of its file."""
    return json.dumps(schema_json(schema), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class _Maker:
    schema: Schema
    definitions: dict[str, Json]

    def of_class(self, kind: Any) -> Json:
        hints, said = typing.get_type_hints(kind), _in_json(attributes(kind))
        properties = {}
        for field in dataclasses.fields(kind):
            properties[field.name] = self.of_hint(hints[field.name])
            if field.name in said:
                properties[field.name]["description"] = said[field.name]
        made: Json = {"description": summary(kind), "type": "object", "properties": properties}
        return made | ({"additionalProperties": False} if self.schema.given else {"required": list(properties)})

    def of_hint(self, hint: Any) -> Json:
        members = typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            return _or_null(self.of_hint(next(member for member in members if member is not types.NoneType)))
        if typing.get_origin(hint) is Literal:
            return {"enum": list(members)}
        if typing.get_origin(hint) is tuple:
            return {"type": "array", "items": self.of_hint(members[0])}
        if typing.get_origin(hint) is Mapping:
            keys = {} if members[0] is str else {"propertyNames": self.of_hint(members[0])}
            return {"type": "object", **keys, "additionalProperties": self.of_hint(members[1])}
        if dataclasses.is_dataclass(hint):
            return self._reference(hint)
        plain: Json = {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[hint]}
        return _or_null(plain) if hint is float and self.schema.report else plain

    def table(self) -> Json:
        """The Pareto table: rows of columns, each of which is read from a row by attributes."""
        row = {column.name: self._column(column.value(typing.cast("Row", _Probe(Row)))) for column in COLUMNS}
        aside = _Maker(self.schema, {}).of_class(Choice)["properties"]
        chosen: Json = {"id": {"type": ["integer", "null"], "description": "the chosen plan's; null if there is none."}}
        chosen |= {name: aside[name] for name in ("reason", "faster")}
        return {
            "description": "The stable plans in the order of the table, then the rejected landmarks.",
            "type": "object",
            "properties": {
                "choice": _object("The chosen plan and why.", chosen),
                "rows": {
                    "description": "one for each plan shown; the names are those of the columns.",
                    "type": "array",
                    "items": _object("One judged plan.", row),
                },
            },
            "required": ["choice", "rows"],
        }

    def _column(self, value: Any) -> Json:
        found = self.of_hint(value.hint)
        return (_or_null(found) if value.optional else found) | {"description": value.meaning}

    def _reference(self, kind: Any) -> Json:
        made = self.of_class(kind)
        if self.definitions.setdefault(kind.__name__, made) != made:
            raise ValueError(f"{self.schema.name}: two classes are called {kind.__name__}")
        return {"$ref": f"#/$defs/{kind.__name__}"}


class _Probe:
    """Stands for a value of a type: its attributes are probes of the types of the fields."""

    def __init__(self, hint: Any, meaning: str = "", optional: bool = False) -> None:
        self.optional = optional or types.NoneType in typing.get_args(hint)
        self.hint: Any = next((kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)), hint)
        self.meaning = meaning

    def __getattr__(self, name: str) -> _Probe:
        return _Probe(typing.get_type_hints(self.hint)[name], _in_json(attributes(self.hint))[name], self.optional)


def _in_json(said: Mapping[str, str]) -> dict[str, str]:
    return {name: re.sub(r"\bNone\b", "null", text) for name, text in said.items()}


def _object(description: str, properties: Json) -> Json:
    return {
        "description": description,
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }


def _or_null(schema: Json) -> Json:
    match schema:
        case {"type": str(kind)} if kind != "null":
            return schema | {"type": [kind, "null"]}
        case {"enum": list(words)}:
            return {"enum": [*words, None]} if None not in words else schema
        case {"$ref": _}:
            return {"anyOf": [schema, {"type": "null"}]}
    return schema


def undescribed(value: Json, where: str) -> Iterator[str]:
    """The keys of objects in a schema that say nothing of themselves."""
    for part, content in (
        (where, value),
        *((f"{where}/{name}", item) for name, item in value.get("$defs", {}).items()),
    ):
        yield from (f"{part}.{key}" for key, item in content["properties"].items() if not item.get("description"))
