"""The docs are true: generated pages are up to date, blocks do what they say, links lead somewhere, the site builds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs_pages.blocks import RUN, Stage, blocks, check
from tests.docs_pages.generated import generated
from tests.docs_pages.kernels import WRITTEN_WITH, written_here
from tests.docs_pages.links import anchors, broken, links, reachable
from tests.docs_pages.stages import stage

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
TO_RUN = [page for page in PAGES if any(block.language in RUN for block in blocks(page.read_text()))]
FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"((?:https?:)?//[^\"]*)\"")
FETCHED_BY_STYLE = re.compile(r"(?:@import|url\()\s*[\"']?((?:https?:)?//[^\"')]*)")


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.mark.parametrize("path", generated(), ids=str)
def test_what_is_made_from_the_code_is_up_to_date(path: Path) -> None:
    """Written by `python -m tests.docs_pages`."""
    assert (ROOT / path).read_text() == generated()[path]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert list(broken(page, ROOT)) == []


def test_every_page_can_be_reached_from_the_index() -> None:
    left_out = set(DOCS.rglob("*.md")) - reachable(DOCS / "index.md")
    assert names(sorted(left_out)) == [], "link them in docs/index.md"


def test_links_and_headings_are_found_and_broken_ones_told(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `two`: three!\n\n## Again\n\n## Again\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#one-two-three) [b](other.md#again-1) ![c](no.svg) [`d`](other.md#none) [e](https://x.org)\n"
        "`[f](code.md)`\n```text\n[g](code.md)\n```\n[h](#nowhere)\n"
    )

    assert anchors((tmp_path / "other.md").read_text()) == {"one-two-three", "again", "again-1"}
    assert "code.md" not in set(links(page.read_text()))
    assert [line.partition(":")[0] for line in broken(page, tmp_path)] == ["no.svg", "other.md#none", "#nowhere"]


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN, ids=names(TO_RUN))
def test_blocks_do_what_they_say(
    page: Path, tmp_path: Path, export_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filled by `python -m tests.docs_pages --console PAGE`. On another processor's kernels near-ties may differ."""
    place = Stage(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    stage(page.relative_to(ROOT), tmp_path, export_cache)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of packages that examples load
        may_part = not written_here(str(page.relative_to(ROOT)))
        for block in blocks(page.read_text()):
            if block.language in RUN and not check(block, place, may_part=may_part):
                break  # the rest is about the plans and sentences that another processor's near-ties led to


def test_the_kernels_that_a_page_was_written_with_are_known_of_pages_that_show_what_commands_print() -> None:
    """Of no page that is gone; a page that `--console` has not written yet may part at near-ties everywhere."""
    shown = [path for path in PAGES if any(block.language == "console" for block in blocks(path.read_text()))]
    assert set(json.loads(WRITTEN_WITH.read_text())) <= set(names(shown))


def test_a_block_that_says_something_else_fails(tmp_path: Path) -> None:
    place = Stage(tmp_path)
    page = "```console\n$ echo 'took 3.2 s, plan 6'\ntook 9 s, plan 6\n$ echo a; echo b\na\nb\n```\n"
    page += "```console\n$ false\n$ echo $?\n1\n```\n"
    page += "```python\n1 + 1  # 2: two\n```\n"

    for block in blocks(page):
        check(block, place)
    for wrong in (page.replace("\nb\n", "\n"), page.replace("9 s, plan", "9 s, plans"), page.replace("# 2", "# 3")):
        with pytest.raises(AssertionError):
            for block in blocks(wrong):
                check(block, place)


def test_a_page_is_left_where_this_processor_decides_a_near_tie_otherwise(tmp_path: Path) -> None:
    line = "plan 6: {} of 100 validation samples exact, {}.0% (95% interval 92.9% to 99.4%)"
    for kept, may_part, holds in ((98, False, True), (98, True, True), (97, True, False)):
        page = f"```console\n$ echo '{line.format(kept, kept)}'\n{line.format(98, 98)}\n```\n"
        assert check(blocks(page)[0], Stage(tmp_path), may_part=may_part) == holds
    with pytest.raises(AssertionError, match="the page says"):
        check(blocks(page)[0], Stage(tmp_path))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-d", str(tmp_path / "trees")]

    built = subprocess.run([*command, str(DOCS), str(site)], capture_output=True, text=True, check=False)

    assert built.returncode == 0, built.stderr
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file()
    pages = {path.relative_to(site): path.read_text() for path in site.rglob("*.html")}
    fetched = {str(path): found for path, text in pages.items() if (found := FETCHED.findall(text))}
    styles = {path.name: found for path in site.rglob("*.css") if (found := FETCHED_BY_STYLE.findall(path.read_text()))}
    assert (fetched, styles) == ({}, {})
    assert FETCHED.findall('<link rel="stylesheet" href="https://fonts.example/a.css" />'), "the test can see one"
    assert "fp32" in (site / "reference/python.html").read_text()
    assert "Seq2SeqGenerator" in (site / "genindex.html").read_text(), "autodoc found the package"
