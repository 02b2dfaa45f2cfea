"""Writes into console blocks what their commands print now.

All of a page is of one run on one processor, so that what it says in one place agrees with another: either all of it
is alike and stays, or all of it is written anew, with the kernels noted and the tutorial's run kept.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.conftest import ROOT
from tests.docs_pages import demo_run
from tests.docs_pages.alike import alike
from tests.docs_pages.blocks import RUN, Block, Stage, blocks, check, filled
from tests.docs_pages.kernels import note, written_here
from tests.docs_pages.stages import stage


def rewrite(page: Path) -> None:
    """Runs all blocks of a page and fills its console blocks, unless what they say is alike."""
    text, path = page.read_text(), page.relative_to(ROOT)
    exports = Path(os.environ.get("PRECISION_SEARCH_TEST_CACHE", ROOT / "build/test-cache"))
    with tempfile.TemporaryDirectory() as name:
        place = Stage(Path(name))
        stage(path, place.folder, exports)
        os.chdir(place.folder)
        changes = []
        for block in blocks(text):
            if block.language == "console":
                changes.append((block, filled(block, place)))
            elif block.language in RUN:
                check(block, place)
        os.chdir(ROOT)
        if written_here(str(path)) and all(_says(block, new) for block, new in changes):
            return
        if path == demo_run.PAGE:
            demo_run.keep(place.folder)
    for block, new in reversed(changes):
        text = text[: block.start] + new + text[block.end :]
    page.write_text(text)
    note(str(path))


def _says(block: Block, new: str) -> bool:
    """Whether the block says what is new, command by command."""
    pairs = zip(block.commands(), replace(block, text=new).commands(), strict=True)
    return all(alike(printed, expected) for (_, expected), (_, printed) in pairs)
