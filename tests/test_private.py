"""Secrets do not stay in texts that people pass on, and what is none stays."""

from __future__ import annotations

import pytest

from precision_search.private import hide_secrets

SECRET = "Zx81QwErTyUiOpAsDf"


@pytest.mark.parametrize(
    "text",
    [
        f"hf_{SECRET}",
        f"gho_{SECRET}",
        f"github_pat_{SECRET}",
        f"sk-{SECRET}",
        f"AKIA{SECRET.upper()}",
        f"https://me:{SECRET}@example.org/x",
        f'{{"password": "my {SECRET} pw"}}',
        f"--api-key={SECRET}",
        f"--hub-token {SECRET}",
        f"HF_TOKEN={SECRET}",
        f"Authorization: Basic {SECRET}",
        f"Bearer {SECRET}",
    ],
)
def test_a_secret_is_hidden(text: str) -> None:
    shown = hide_secrets(f"before {text} after")
    assert SECRET not in shown
    assert SECRET.upper() not in shown
    assert "***" in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")


@pytest.mark.parametrize(
    "text",
    [
        "the token 5 is not known",
        "token: ",
        "basic optimizations",
        "a/b.py, line 3",
        'File "x.py", line 5, in tokenize',
    ],
)
def test_other_text_stays(text: str) -> None:
    assert hide_secrets(text) == text
