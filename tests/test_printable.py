"""Nothing reaches a terminal that it would obey."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from precision_search.printable import printable, printable_json

TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ANY_TEXT = st.text(st.one_of(st.characters(codec=None), st.sampled_from("\x1b\x07\r\x7f\x85\x9b\u2028" + TURNING)))


def is_harmless(text: str) -> bool:
    return not any(
        char in TURNING or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text if char not in "\n\t"
    )


@given(ANY_TEXT)
def test_what_is_printed_is_harmless_and_shows_what_stood_there(text: str) -> None:
    shown = printable(text)

    assert is_harmless(shown)
    assert printable(shown) == shown
    if is_harmless(text):
        assert shown == text
    if "\\" not in text and text.isascii():
        assert shown.encode().decode("unicode_escape") == text


def test_escapes_are_those_of_python_and_other_text_stays() -> None:
    assert printable("\x1b[2J\x9b\x7f\r\u202e\ud800") == r"\x1b[2J\x9b\x7f\r\u202e\ud800"
    assert printable("Größe\t日本語　x\u200d\u00a0\n") == "Größe\t日本語　x\u200d\u00a0\n"


@given(st.recursive(ANY_TEXT, lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner)))
def test_json_stays_the_same_json(value: object) -> None:
    for ascii_only in (True, False):
        shown = printable_json(json.dumps(value, indent=2, ensure_ascii=ascii_only))

        assert is_harmless(shown)
        assert json.loads(shown) == value
