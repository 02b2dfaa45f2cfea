"""Patterns match what `re` matches, in bounded time."""

from __future__ import annotations

import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.precision import patterns
from precision_search.precision.patterns import PatternError, matched

KEYS = ("encoder.block.0.layer.0.SelfAttention/MatMul", "encoder.block.1.layer.0.SelfAttention/MatMul.1", "lm_head/Add")
_PIECES = (
    *"ab/.*+?()|[]^${}10-,Ae ",
    *(
        "\\.",
        "\\d",
        "\\w",
        "\\b",
        "\\1",
        "\\[",
        "{2}",
        "{,2}",
        "{1,}",
        "{,}",
        "{e}",
        "{e<=1}",
        "(?:",
        "(?=",
        "(?!",
        "(?<=a)",
    ),
    *(
        "(?<!b)",
        "(?i)",
        "(?P<n>",
        "(?P=n)",
        "[[:alpha:]]",
        "[a-c]",
        "[^]a]",
        "[a&&b]",
        "--",
        "*?",
        "++",
        "(?>",
        "(?x)",
        "#",
        "(?#",
    ),
)
_TEXTS = (
    "a",
    "b",
    "ab",
    "aab",
    "a/b",
    "a.b",
    "1",
    "a1",
    "A",
    "a{e}",
    "{}",
    "x",
    "[",
    "a]",
    ":",
    "-",
    "&",
    "a\n",
    " ",
    "l:]",
)


@given(st.lists(st.sampled_from(_PIECES), max_size=9).map("".join))
def test_a_pattern_matches_what_re_matches(pattern: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            expression = re.compile(pattern)
    except re.error:
        with pytest.raises(PatternError):
            matched(pattern, _TEXTS)
        return
    try:
        found = matched(pattern, _TEXTS)
    except PatternError as error:
        assert "comment in verbose mode" in str(error) and "x" in pattern and "#" in pattern
        return

    assert found == frozenset(filter(expression.fullmatch, _TEXTS))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r"(?=.*/MatMul)encoder\.block\.\d+\..*(?<!\.1)", KEYS[:1]),
        (r"(?!lm_head).*", KEYS[:2]),
        (r".*(?<=/)Add", KEYS[2:]),
        (r"(?i)LM_HEAD/add", KEYS[2:]),
        (r"(a+)+$", ()),
        (r"(\w+\.?)*!", ()),
        ("lm_head/Ad{e<=1}", ()),
        ("[[:alpha:]]+.*", ()),
    ],
)
def test_lookarounds_work_and_known_traps_end(pattern: str, found: tuple[str, ...]) -> None:
    assert matched(pattern, KEYS) == frozenset(found)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(a{1,9999}){1,9999}", "it repeats up to {1,9999}, and 1000 times are the most"),
        ("a{99999999999}", "it repeats up to {99999999999}, and 1000 times are the most"),
        ("(" * 5000, "it has 5000 characters, and 1000 are the most"),
        ("(" * 300 + ")" * 300, "it has more than 20 groups inside each other"),
        ("(?:(?:(?:a?){1000}){1000}){1000}b", "its repeats multiply to more than 10000 copies of what they repeat"),
        (
            "(?#[)(?:(?:(?:a?){1000}){1000}){1000}b(?#])",
            "its repeats multiply to more than 10000 copies of what they repeat",
        ),
        (
            "(?x)#[\n(?:(?:(?:a?){1000}){1000}){1000}b #]",
            "it has a comment in verbose mode, which is not supported; write it without",
        ),
        ("*(", "nothing to repeat at position 0"),
        (r"\p{L}", "bad escape \\p at position 0"),
    ],
)
def test_what_is_too_large_or_no_pattern_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(PatternError) as caught:
        matched(pattern, KEYS)

    assert str(caught.value) == why


def test_a_pattern_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.1)

    with pytest.raises(PatternError, match=r"it does not end within 0\.1 seconds"):
        matched(r"(\w{1,9}[./]?){1,1000}(?<!\w)", KEYS)


def test_patterns_of_a_list_share_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PatternError, match="it does not end"):
        matched(r"(\w{1,9}[./]?){1,1000}(?<!\w)", KEYS, end=0.0)


def test_patterns_of_a_list_share_their_time_however_fast_each_is() -> None:
    with pytest.raises(PatternError, match="it does not end"):
        matched("a", KEYS, end=0.0)
