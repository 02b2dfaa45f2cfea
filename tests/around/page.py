"""The code on the page about other tools: tests run it as it stands there, so that the page cannot lie.

Blocks that run are marked `py`; what marks them `python` elsewhere would run them without what they need.
"""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGE = ROOT / "docs/how-to/other-tools.md"
_BLOCK = re.compile(r"^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_under(heading: str) -> list[str]:
    """The blocks between this heading of the second level and the next."""
    _, found, rest = PAGE.read_text().partition(f"\n## {heading}\n")
    assert found, f"{PAGE.name} has no heading {heading!r}"
    return _BLOCK.findall(rest.partition("\n## ")[0])
