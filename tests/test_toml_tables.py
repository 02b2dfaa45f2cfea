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


def test_what_a_terminal_obeys_is_written_as_escapes_and_reads_back(tmp_path: Path) -> None:
    part = "\x1b[2J \u202e \u2028 \x9b \x7f \x00 tab\t line\n \\u202e ü \U0001f600"
    car = Car("any", Engine(1.0), Body(parts=(part,)), None)
    text = write_tables(car)
    assert r'"\u001b[2J \u202e \u2028 \u009b \u007f \u0000 tab\t line\n \\u202e ü ' in text
    assert "\x1b" not in text and "\u202e" not in text
    assert read(tmp_path, text) == car
    # TOML has no halves of a pair, escaped or not: whoever writes the file says so.
    assert "\udcff" in write_tables(Car("any", Engine(1.0), Body(parts=("\udcff",)), None))


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


LONG = "a" * 20_000
MANY = ".".join("a" * 20_000)
HUGE_INTEGER = f"0x{'f' * 20_000}"


@pytest.mark.parametrize(
    "text",
    [f"{MANY} = 1", f"[{MANY}]", f"[[ {MANY} ]]", f"x = {{b = 1, {MANY} = 1}}", f'[x]\n\'a\' . "b\\"" . {MANY} = 1'],
)
def test_a_dotted_key_of_many_parts_is_refused_before_it_is_parsed(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(text: str) -> None:
        raise AssertionError("it was parsed, which takes the square of its parts")

    monkeypatch.setattr("precision_search.toml_tables.tomllib.loads", parsed)
    with pytest.raises(ConfigError, match="is not valid TOML") as caught:
        read(tmp_path, f"# {LONG}\n{text}\n")
    assert caught.value.why == f"the key at line {3 if '[x]' in text else 2} has more than 50 parts"
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="cannot be"):  # in an override it is a text that nobody takes
        read(tmp_path, "[engine]\npower = 3\n", f"engine.power={{{MANY} = 1}}")


def test_dots_in_texts_are_no_parts(tmp_path: Path) -> None:
    dots = ".".join("a" * 60)
    text = f'[engine]\npower = 3\n[body]\nparts = [\'{dots}\', "{dots}", "{"." * 99}"] # {dots}\n'
    assert read(tmp_path, text).body.parts == (dots, dots, "." * 99)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f'power = "{LONG}"', f"`engine.power` cannot be '{'a' * 100}'..."),
        (f"power = [{'1, ' * 20_000}]", "`engine.power` cannot be [1, 1, 1, 1, 1, 1, ...]"),
        (f"power = {'{a = ' * 200}1{'}' * 200}", "`engine.power` cannot be {'a': {'a': {'a': {...}}}}"),
        (f"power = 1\nelectric = {HUGE_INTEGER}", "`engine.electric` cannot be a whole number of 80000 bits"),
        (f"power = {HUGE_INTEGER}", "`engine.power` cannot be a whole number of 80000 bits"),
        (f"power = {'9' * 5000}", "is not valid TOML"),
        (f"power = {'[' * 20_000}", "is not valid TOML"),
        (f"{LONG} = 1", f"unknown key `engine.{'a' * 100}...`"),
        (f"power = 1\n[{LONG}]", f"unknown table `{'a' * 100}...`"),
        (f"a = {{{LONG} = 1, {LONG} = 2}}", "is not valid TOML"),
    ],
)
def test_values_are_cut_where_they_are_shown(tmp_path: Path, text: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"[engine]\n{text}\n")
    assert shown in caught.value.what
    assert len(str(caught.value)) < 1000 + 2 * len(str(tmp_path))


@pytest.mark.parametrize("override", [LONG, f"{LONG}=1", f"{LONG}.a=1", f"engine.{LONG}=1", f"engine.power={LONG}"])
def test_overrides_are_cut_where_they_are_shown(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "[engine]\npower = 3\n", override)
    assert "a" * 50 in str(caught.value)
    assert len(str(caught.value)) < 1000 + 2 * len(str(tmp_path))
