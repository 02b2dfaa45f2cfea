"""Proves that any dataclass of the documented shape is read and written; `test_config` proves the project's own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import pytest

from precision_search.errors import ConfigError
from precision_search.toml_tables import (
    absolute_path,
    at_least,
    between,
    more_than,
    one_of,
    read_tables,
    without_blanks,
    write_tables,
)


@dataclass(frozen=True, slots=True)
class Engine:
    power: float = field(metadata=more_than(0))
    fuel: Literal["diesel", "none"] = "none"
    cylinders: int | None = field(default=None, metadata=at_least(2))
    electric: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    colour: str = field(default="red", metadata=one_of(("red", "blue")))
    doors: int = field(default=4, metadata=between(2, 5))
    parts: tuple[str, ...] = field(default=("roof",), metadata=without_blanks())
    drawing: Path = Path("/drawing")


@dataclass(frozen=True, slots=True)
class Car:
    label: str
    engine: Engine
    body: Body
    spare: Optional[Engine]  # noqa: UP045 (the old spelling must work too)


def read(directory: Path, text: str, *overrides: str) -> Car:
    path = directory / "car.toml"
    path.write_text(text)
    return Car(label="any", **read_tables(Car, path, overrides, {"spare": "engine"}))


def test_fields_that_are_no_tables_are_left_to_the_caller_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    assert read(tmp_path, "[engine]\npower = 3\n") == Car("any", Engine(3.0), Body(), None)


def test_a_parent_gives_what_is_not_required(tmp_path: Path) -> None:
    car = read(tmp_path, '[engine]\npower = 3\nfuel = "diesel"\n[spare]\npower = 1\n')
    assert car.spare == Engine(1.0, "diesel")
    with pytest.raises(ConfigError, match=r"`spare\.power` is missing"):
        read(tmp_path, "[engine]\npower = 3\n[spare]\n")


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    car = Car(
        "any",
        Engine(0.5, "diesel", 6, True),
        Body("blue", 2, ('a "b"\\\n\x7f', "ü"), tmp_path),
        Engine(1e-9, cylinders=8),
    )
    assert read(tmp_path, write_tables(car)) == car


@pytest.mark.parametrize("override", ["engine.power=0", "engine.cylinders=1", "body.doors=6", "body.colour=green"])
def test_the_limits_hold_at_their_edges(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        read(tmp_path, "[engine]\npower = 3\n", override)
    assert read(tmp_path, "[engine]\npower = 3\n", "engine.cylinders=2", "body.doors=5").body.doors == 5


@pytest.mark.parametrize("text", ["", "  ", "a\0b"])
def test_what_cannot_be_a_path_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="the path of"):
        absolute_path(text, tmp_path)


def test_paths_are_absolute_without_detours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_path("a/../b", tmp_path / "c") == tmp_path / "c" / "b"
    assert absolute_path("~/x", Path("/elsewhere")) == tmp_path / "x"
    assert absolute_path("/y", tmp_path) == Path("/y")


def test_a_home_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="home directory"):
        read(tmp_path, "[engine]\npower = 3\n", "body.drawing=~no-such-user/x")
