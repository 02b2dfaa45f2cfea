"""Every file of the docs that is made from the code."""

from __future__ import annotations

from pathlib import Path

from tests.docs_pages.cli import cli_page
from tests.docs_pages.config import config_page
from tests.docs_pages.json_page import json_page
from tests.docs_pages.python_page import python_page
from tests.docs_pages.schemas import SCHEMAS, schema_text

REFERENCE = Path("docs/reference")


def generated() -> dict[Path, str]:
    """The content of each, by its path in the repository."""
    pages = {
        REFERENCE / "cli.md": cli_page(),
        REFERENCE / "config.md": config_page(),
        REFERENCE / "json.md": json_page(),
        REFERENCE / "python.md": python_page(),
    }
    schemas = {REFERENCE / f"schemas/{schema.name}.schema.json": schema_text(schema) for schema in SCHEMAS}
    return pages | schemas
