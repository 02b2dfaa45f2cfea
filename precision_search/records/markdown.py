"""Text from data inside Markdown."""

from __future__ import annotations

import re

from precision_search.printable import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!$&])")
# A list item, or a line that underlines a heading: only at the start of a line, where text is letters otherwise.
_BLOCK_START = re.compile(r"^(\d*)(?=[-+.)](\s|$)|[-=]+$)")


def escape(text: str) -> str:
    """The text as one line that GitHub-flavoured Markdown shows as it stands, in a table cell too.

    Line breaks become spaces; what would start a list, a heading, a link, HTML, code or emphasis is escaped.
    """
    line = printable(" ".join(text.split()))
    return _BLOCK_START.sub(r"\1\\", _SPECIAL.sub(r"\\\1", line))


def code(text: str) -> str:
    """The text as inline code, whatever backticks it holds."""
    line = printable(" ".join(text.split()))
    fence = "`" * (_longest_run(line) + 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def block(text: str) -> str:
    """The text as a code block, line breaks kept, whatever backticks it holds."""
    lines = printable(text)
    fence = "`" * max(3, _longest_run(lines) + 1)
    return f"{fence}\n{lines}\n{fence}"


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
