"""Text on its way to a terminal: what a terminal would obey, or show in another order than it stands, is spelled out.

In: any text; names of nodes, tokens, sentences and what libraries say come from anywhere. Out: the same with escapes in
place of such characters. Everything that the command line prints goes through here, at the place where it is printed.
"""

from __future__ import annotations

import re

_OBEYED = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, ESC and CSI among them; a tab and a line feed stay
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # order of writing: marks, embeddings, overrides, isolates
    r"\u2028\u2029"  # what some take for the end of a line
    r"\ud800-\udfff]"  # half a pair, or a byte of a file name that is no UTF-8
)


def printable(text: str) -> str:
    r"""The text with control characters and those that turn the order of writing as escapes, such as `\x1b`.

    Tabs, line feeds and all other characters stay as they are.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_json(text: str) -> str:
    """JSON text that means the same, with the same characters as escapes of JSON.

    Between its strings JSON has none of them but line ends.
    """
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printable_toml(text: str) -> str:
    """TOML basic strings that mean the same, with the same characters as escapes, but for halves of a surrogate pair.

    TOML cannot say those, escaped or not.
    """
    return _OBEYED.sub(lambda found: found[0] if "\ud800" <= found[0] <= "\udfff" else f"\\u{ord(found[0]):04x}", text)
