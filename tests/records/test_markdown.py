"""Text in Markdown: nothing that comes from data has a meaning there."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.printable import printable
from precision_search.records.markdown import block, code, escape


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, 1.5 times", "plain text, 1.5 times"),
        ("a|b", r"a\|b"),
        ("_x_ *y* `z`", r"\_x\_ \*y\* \`z\`"),
        ("[a](b) <b>", r"\[a\](b) \<b\>"),
        ("a\\|b", r"a\\\|b"),
        ("# title", r"\# title"),
        ("- item", r"\- item"),
        ("+ item", r"\+ item"),
        ("-5 degrees", "-5 degrees"),
        ("12. item", r"12\. item"),
        ("1) item", r"1\) item"),
        ("3.5", "3.5"),
        ("---", r"\---"),
        ("two\nlines\r\n and  more", "two lines and more"),
        ("\x1b[2J", r"\\x1b\[2J"),
    ],
)
def test_escape(text: str, expected: str) -> None:
    assert escape(text) == expected


@given(st.text())
def test_escaped_text_is_one_line_without_free_marks(text: str) -> None:
    escaped = escape(text)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)(\\\\)*[`*_\[\]<>|]", escaped.replace("\\\\", ""))
    assert re.sub(r"\\(.)", r"\1", escaped) == printable(" ".join(text.split()))


@pytest.mark.parametrize(
    ("text", "expected"), [("x", "`x`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("a```b``", "```` a```b`` ````")]
)
def test_code_holds_backticks(text: str, expected: str) -> None:
    assert code(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\nb", "```\na\nb\n```"), ("```", "````\n```\n````"), ("cat \x1b[2J\u202e", "```\ncat \\x1b[2J\\u202e\n```")],
)
def test_a_block_keeps_lines_and_holds_backticks_and_nothing_that_a_terminal_obeys(text: str, expected: str) -> None:
    assert block(text) == expected
