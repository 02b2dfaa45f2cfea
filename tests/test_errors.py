"""Proves that every error carries its three parts, its exit code, and survives pickling."""

import pickle

import pytest

from precision_search import errors
from precision_search.errors import PrecisionSearchError

EXIT_CODES = {
    errors.PrecisionSearchError: 4,
    errors.UsageError: 2,
    errors.ConfigError: 2,
    errors.InputError: 2,
    errors.OutputExistsError: 2,
    errors.EnvironmentProblemError: 3,
    errors.MissingPackageError: 3,
    errors.DeviceError: 3,
    errors.DeviceMemoryError: 3,
    errors.NoKernelError: 3,
    errors.VerificationError: 1,
    errors.InternalError: 4,
}


@pytest.mark.parametrize(
    ("why", "fix", "shown"),
    [
        ("", "", "the file is gone"),
        ("no such path", "", "the file is gone\n  why: no such path"),
        ("", "write it", "the file is gone\n  fix: write it"),
        ("no such path", "write it", "the file is gone\n  why: no such path\n  fix: write it"),
    ],
)
def test_str_shows_the_parts_that_are_there(why: str, fix: str, shown: str) -> None:
    error = PrecisionSearchError("the file is gone", why=why, fix=fix)
    assert str(error) == shown
    assert (error.what, error.why, error.fix) == ("the file is gone", why, fix)


def test_every_error_of_the_module_has_the_documented_exit_code() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    defined = [kind for kind in classes if issubclass(kind, PrecisionSearchError)]
    assert {kind: kind.exit_code for kind in defined} == EXIT_CODES
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in defined)


@pytest.mark.parametrize("kind", EXIT_CODES)
def test_pickling_keeps_all_parts(kind: type[PrecisionSearchError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("a", why="b", fix="c")))
    assert type(copy) is kind
    assert str(copy) == "a\n  why: b\n  fix: c"


def test_the_first_line_of_what_a_library_says() -> None:
    assert errors.first_line(ValueError("\nno such node\n  at 0x1\n")) == "no such node"
    assert errors.first_line(MemoryError()) == "MemoryError"
    assert errors.first_line("  ") == ""


def test_the_nearest_known_word_is_suggested() -> None:
    known = ["float16", "bfloat16"]
    assert errors.did_you_mean("flaot16", known) == "did you mean `float16`?"
    assert errors.did_you_mean("flaot16", known, also="see the form") == "did you mean `float16`? see the form"
    assert errors.did_you_mean("int8", known, also="see the form") == "see the form"
    assert errors.did_you_mean("int8", known) == ""


def test_values_and_parts_of_messages_are_cut_where_they_are_too_long_to_read() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert errors.short(deep) == "[[[[...]]]]"
    while deep:  # or the interpreter takes it apart by recursion
        (deep,) = deep  # type: ignore[assignment]
    assert errors.short("a" * 101) == f"'{'a' * 100}'..."
    assert errors.short(["a" * 101, 1 << 64, None]) == f"['{'a' * 100}'..., {1 << 64}, None]"
    assert errors.short(1 << 20_000) == "a whole number of 20001 bits"
    assert errors.cut("a" * 100) == "a" * 100
    names = ", ".join("a" * 100_000)
    error = PrecisionSearchError(names, why=names, fix=names)
    assert len(str(error)) < 13_000
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert errors.did_you_mean("stringg" * 100_000, ["string"]) == ""


def test_one_is_no_plural() -> None:
    counts = (0, 1, 2)
    assert [errors.counted(count, "more plan") for count in counts] == ["0 more plans", "1 more plan", "2 more plans"]
