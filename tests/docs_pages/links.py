"""The links of a Markdown page: what they name, and the anchors that a page has, as forges make them of headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_FENCED = re.compile(r"^(```+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
_HEADING = re.compile(r"^#+ +(.*?)\s*$", re.MULTILINE)


def links(page: str) -> Iterator[str]:
    """The targets of links and images, those in code left out."""
    prose = _CODE.sub("code", _FENCED.sub("", page))
    yield from (match[1] for match in _LINK.finditer(prose))


def anchors(page: str) -> frozenset[str]:
    """The anchors of the headings: lower case, no punctuation, dashes for spaces, `-1` at the second of a name."""
    found: dict[str, int] = {}
    names = set()
    for match in _HEADING.finditer(_FENCED.sub("", page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = found.get(name, 0)
        names.add(f"{name}-{count}" if count else name)
        found[name] = count + 1
    return frozenset(names)


def broken(path: Path, root: Path) -> Iterator[str]:
    """The links of the page at `path` that lead to no file below `root` or to no heading of it."""
    for link in links(path.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.is_file() or not file.is_relative_to(root):
            yield f"{link}: there is no such file"
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text())):
            yield f"{link}: there is no such heading"


def reachable(start: Path) -> frozenset[Path]:
    """The pages that links lead to from a page, over any number of others."""
    found, left = {start}, [start]
    while left:
        page = left.pop()
        for link in links(page.read_text()):
            file = (page.parent / link.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_file() and file not in found:
                found.add(file)
                left.append(file)
    return frozenset(found)
