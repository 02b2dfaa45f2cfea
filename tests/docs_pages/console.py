"""Writes into console blocks what their commands print now."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.conftest import ROOT
from tests.docs_pages.blocks import RUN, Stage, blocks, check, filled
from tests.docs_pages.stages import stage


def rewrite(page: Path) -> None:
    """Runs all blocks of a page and fills its console blocks."""
    text = page.read_text()
    exports = Path(os.environ.get("PRECISION_SEARCH_TEST_CACHE", ROOT / "build/test-cache"))
    with tempfile.TemporaryDirectory() as name:
        place = Stage(Path(name))
        stage(page.relative_to(ROOT), place.folder, exports)
        os.chdir(place.folder)
        changes = []
        for block in blocks(text):
            if block.language == "console":
                changes.append((block, filled(block, place)))
            elif block.language in RUN:
                check(block, place)
        os.chdir(ROOT)
    for block, new in reversed(changes):
        text = text[: block.start] + new + text[block.end :]
    page.write_text(text)
