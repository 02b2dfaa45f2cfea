"""What commands share."""

from __future__ import annotations

import io
import sys

import pytest

from precision_search.cli import support


def test_tables_are_wide_where_no_terminal_limits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    for columns in (None, "70"):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns:
            monkeypatch.setenv("COLUMNS", columns)
        support.print_rich(lambda console: widths.append(console.width))

    assert widths == [support.PIPED_WIDTH, 70]
