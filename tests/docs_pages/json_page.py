"""The page about JSON files and outputs: one section a schema, one table an object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.docs_pages.schemas import SCHEMAS, Json, Schema, schema_json

HEAD = """# JSON files and outputs

What programs read of a run, of a model and of the commands. Each form has a [JSON Schema](https://json-schema.org)
(draft 2020-12) beside this page; both are made from the dataclasses behind it, and tests hold real files against them.
Files with a `schema_version` are refused by a version that knows less. Within a version keys may be added, so ignore
those you do not know. A number that is NaN or infinite is `null`, as JSON has neither.

## The files of a run directory

| file | content |
| --- | --- |
| `config.toml` | the [config](config.md), resolved: every default filled in, every path absolute |
| `run.json` | [what ran, on what, with which result](#run) |
| `trials.jsonl` | [every judged plan](#trial), a line each, on the disk as soon as it is judged |
| `nodes.json` | [ranges of compute nodes, and which have no choice](#nodes); `nodes-NAME.json`: of variant NAME |
| `landmarks.json` | [what rejected landmarks make of sentences](#landmarks) |
| `timings.jsonl` | [every time that was measured](#timing); on a CUDA device only |
| `study.journal` | the same plans as an Optuna study |
| `pareto.csv` | the Pareto table, with the columns of [`pareto --format json`](#pareto) |
| `report.html` | all of it as [one page for a browser](../how-to/report.md) |
| `blocklist.json` | [what stays in fp32](#blocklist) in the best plan |
| `model/` | the chosen plan's three ONNX graphs, config, tokenizer, model card, its blocklist, and \
[how it was judged](#precision_search) |
"""


def json_page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *map(_section, SCHEMAS)])


def _section(schema: Schema) -> str:
    content = schema_json(schema)
    name = f"{schema.name}.schema.json"
    what = f"{schema.what[0].upper()}{schema.what[1:]}: [{name}](schemas/{name})."
    lines = [f"## {schema.name}", "", f"{what} {content['description']}", "", *_table(content)]
    for title, part in _parts(content):
        lines += ["", f"**{title}**: {part['description']}", "", *_table(part)]
    return "\n".join(lines) + "\n"


def _parts(content: Json) -> Iterator[tuple[str, Json]]:
    """Objects that stand within the first one, and the definitions."""
    for name, value in content["properties"].items():
        inner = value.get("items", value)
        if "properties" in inner:
            yield f"`{name}`", inner
    yield from content.get("$defs", {}).items()


def _table(content: Json) -> Iterator[str]:
    yield from ("| key | type | meaning |", "| --- | --- | --- |")
    for name, value in content["properties"].items():
        yield f"| `{name}` | {_type(value)} | {value['description']} |"


def _type(value: Json) -> str:
    match value:
        case {"$ref": str(target)}:
            return target.rpartition("/")[2]
        case {"anyOf": [first, _]}:
            return f"{_type(first)} or null"
        case {"enum": list(words)}:
            return " or ".join("null" if word is None else f"`{word}`" for word in words)
        case {"items": dict(items)}:
            return f"array of {_plural(items)}" + (" or null" if "null" in value["type"] else "")
        case {"additionalProperties": dict(items)}:
            return f"object of {_plural(items)}"
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    return " or ".join(kinds)


def _plural(items: dict[str, Any]) -> str:
    kind = _type(items)
    return f"{kind}s" if kind in ("string", "integer", "number") else kind.replace("array", "arrays")
