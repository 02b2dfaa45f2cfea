"""What the page about accepted models says of tests is true, and it has every row of the tables."""

from __future__ import annotations

import re

from precision_search.model.file_layouts import FILE_LAYOUTS, REFUSED_LAYOUTS
from precision_search.model.op_kinds import REFUSED_KINDS
from tests.conftest import ROOT
from tests.docs_pages.accepted import accepted_page


def test_every_test_that_it_names_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", accepted_page()))
    assert len(named) > 4
    assert [each for each in sorted(named) if not (ROOT / each).exists()] == []


def test_it_has_every_row() -> None:
    page = accepted_page()
    titles = [each.title for each in FILE_LAYOUTS] + [each.title for each in REFUSED_LAYOUTS]
    assert all(f"| {title} |" in page for title in titles)
    assert all(f"| {each.title}: " in page for each in REFUSED_KINDS)
