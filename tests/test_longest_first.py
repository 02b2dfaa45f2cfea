"""The list of what takes long names tests that are there, and units keep together what shares fixtures."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.longest_first import ALONE, SECONDS, unit_of


def test_a_unit_is_a_file_but_for_cases_that_share_nothing() -> None:
    page, killed = ALONE
    assert unit_of(f"{page}[README.md]") == f"{page}[README.md]"
    assert unit_of(f"{killed}[nodes]") != unit_of(f"{killed}[random]")
    assert unit_of("tests/test_api.py::test_one[a::b]") == unit_of("tests/test_api.py::TestClass::test_two")


@pytest.mark.parametrize("unit", SECONDS)
def test_what_is_said_to_take_long_is_there(unit: str) -> None:
    file, _, case = unit.partition("::")
    assert (ROOT / file).is_file()
    assert f"def {case.partition('[')[0]}(" in (ROOT / file).read_text() or not case
    assert unit_of(unit) == unit
