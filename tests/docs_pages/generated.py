"""Every file of the docs that is made from the code, or shows a file of the repository."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import ROOT
from tests.docs_pages.accepted import accepted_page
from tests.docs_pages.cli import cli_page
from tests.docs_pages.config import config_page
from tests.docs_pages.json_page import json_page
from tests.docs_pages.python_page import python_page
from tests.docs_pages.schemas import SCHEMAS, schema_text

REFERENCE = Path("docs/reference")

_SHOWN = re.compile(r"(<!-- file: (\S+) -->\n```\w+\n)(?:.*?\n)??```\n", re.DOTALL)


def generated() -> dict[Path, str]:
    """The content of each, by its path in the repository."""
    pages = {
        REFERENCE / "accepted.md": accepted_page(),
        REFERENCE / "cli.md": cli_page(),
        REFERENCE / "config.md": config_page(),
        REFERENCE / "json.md": json_page(),
        REFERENCE / "python.md": python_page(),
    }
    schemas = {REFERENCE / f"schemas/{schema.name}.schema.json": schema_text(schema) for schema in SCHEMAS}
    return pages | schemas | _with_files()


def _with_files() -> dict[Path, str]:
    """Pages in which a block shows a file: `<!-- file: PATH -->` stands before it."""
    pages = {path: path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
    return {path.relative_to(ROOT): _SHOWN.sub(_file, text) for path, text in pages.items() if _SHOWN.search(text)}


def _file(match: re.Match[str]) -> str:
    return f"{match[1]}{(ROOT / match[2]).read_text()}```\n"
