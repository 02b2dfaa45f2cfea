"""Proves that configs are read as documented, written back losslessly, and that every mistake is named with a fix."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.config import Config, load_config, to_toml
from precision_search.errors import ConfigError

ROOT = Path(__file__).parent.parent
MINIMAL = '[model]\npath = "org/model"\n[calibration]\npath = "calibration.txt"\n'


def write(directory: Path, text: str, name: str = "run.toml") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def error_of(path: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    error = caught.value
    assert error.what and error.why and error.fix, error
    return error


def test_a_minimal_config_gets_the_documented_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = load_config(write(tmp_path, MINIMAL))
    assert (config.name, config.path) == ("run", tmp_path / "run.toml")
    assert (config.model.path, config.model.cache) == ("org/model", tmp_path / "cache" / "precision-search")
    assert dataclasses.astuple(config.calibration) == (tmp_path / "calibration.txt", None, "", None, 16)
    assert config.validation is None and config.test is None
    assert config.generation.max_new_tokens is None
    assert dataclasses.astuple(config.device) == ("auto", 0, False, None, 2, None)
    assert dataclasses.astuple(config.search) == ("float16", "nodes", 0, 200, None, (), (), 2.0)
    assert dataclasses.astuple(config.workload) == (1, 128, 128)
    assert config.latency.profile == "t4"


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_the_cache_is_below_home_when_xdg_says_nothing_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(write(tmp_path, MINIMAL)).model.cache == tmp_path / ".cache" / "precision-search"


def test_the_demo_config_names_files_that_exist_and_asks_what_it_documents() -> None:
    config = load_config(ROOT / "configs" / "demo.toml")
    assert config.validation is not None and config.test is not None
    assert Path(config.model.path, "config.json").is_file()
    assert all(data.path.is_file() for data in (config.calibration, config.validation, config.test))
    assert config.validation.min_exact_match == 0.98
    assert config.workload.batch == 1024


def test_validation_and_test_inherit_from_calibration_what_they_do_not_set(tmp_path: Path) -> None:
    text = (
        MINIMAL + 'prefix = "translate: "\nmax_length = 40\nbatch_size = 4\n[validation]\npath = "v.txt"\nprefix = ""\n'
    )
    config = load_config(write(tmp_path, text), ["test.path=t.txt", "calibration.batch_size=8"])
    assert config.validation is not None and config.test is not None
    assert (config.validation.prefix, config.validation.max_length, config.validation.batch_size) == ("", 40, 8)
    assert (config.test.prefix, config.test.max_length, config.test.batch_size) == ("translate: ", 40, 8)


def test_paths_are_relative_to_the_config_and_those_of_overrides_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, work = tmp_path / "configs", tmp_path / "work"
    (configs / "models" / "tiny").mkdir(parents=True)
    (work / "models" / "tiny").mkdir(parents=True)
    text = '[model]\npath = "models/tiny"\n[calibration]\npath = "../c.txt"\n[latency]\nprofile = "mine.toml"\n'
    path = write(configs, text)
    monkeypatch.chdir(work)

    config = load_config(path)
    assert config.model.path == str(configs / "models" / "tiny")
    assert config.calibration.path == tmp_path / "c.txt"
    assert config.latency.profile == str(configs / "mine.toml")

    config = load_config(path, ["model.path=models/tiny", "calibration.path=c.txt", "latency.profile=p/q.toml"])
    assert config.model.path == str(work / "models" / "tiny")
    assert config.calibration.path == work / "c.txt"
    assert config.latency.profile == str(work / "p" / "q.toml")


@pytest.mark.parametrize("given_path", ["google-t5/t5-small", "t5-small"])
def test_a_model_that_is_no_directory_is_a_hub_id(tmp_path: Path, given_path: str) -> None:
    assert load_config(write(tmp_path, MINIMAL), [f"model.path={given_path}"]).model.path == given_path


def test_a_dotted_model_path_is_a_directory_even_if_absent(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.replace("org/model", "./org/model"))
    assert load_config(path).model.path == str(tmp_path / "org" / "model")


@pytest.mark.parametrize(
    ("override", "table", "key", "value"),
    [
        ("search.max_trials=50", "search", "max_trials", 50),
        ("search.timeout=90", "search", "timeout", 90.0),
        ("search.dtype=bfloat16", "search", "dtype", "bfloat16"),
        ('search.dtype="bfloat16"', "search", "dtype", "bfloat16"),
        ('search.keep_fp32=["Pow", "a = b"]', "search", "keep_fp32", ("Pow", "a = b")),
        ("device.use_tf32=true", "device", "use_tf32", True),
        (" device.kind =cpu", "device", "kind", "cpu"),
        ("calibration.prefix=translate English to German: ", "calibration", "prefix", "translate English to German: "),
        ("calibration.prefix=2024", "calibration", "prefix", "2024"),
        ("calibration.prefix=", "calibration", "prefix", ""),
        ("calibration.prefix=1\nx = 2", "calibration", "prefix", "1\nx = 2"),
    ],
)
def test_overrides_win_and_take_toml_values_or_bare_words(
    tmp_path: Path, override: str, table: str, key: str, value: object
) -> None:
    config = load_config(write(tmp_path, MINIMAL + 'prefix = "file"\n[search]\nmax_trials = 7\n'), [override])
    got = getattr(getattr(config, table), key)
    assert (got, type(got)) == (value, type(value))


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
LENGTHS = st.none() | st.integers(1, 10**6)
SEARCHES = st.fixed_dictionaries(
    {
        "keep_fp32": st.lists(TEXT.filter(str.strip), max_size=3).map(tuple),
        "range_safety": st.floats(1.0, 1e30),
        "timeout": st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    }
)


@settings(max_examples=60, deadline=None)
@given(prefix=TEXT, length=LENGTHS, search=SEARCHES, validated=st.booleans())
def test_to_toml_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    prefix: str,
    length: int | None,
    search: dict[str, Any],
    validated: bool,
) -> None:
    there, elsewhere = tmp_path_factory.mktemp("there"), tmp_path_factory.mktemp("elsewhere")
    base = load_config(write(there, MINIMAL), ["validation.path=v.txt"] if validated else [])
    validation = base.validation and replace(base.validation, prefix=prefix * 2, max_length=length)
    config = replace(
        base,
        calibration=replace(base.calibration, prefix=prefix, max_length=length),
        validation=validation,
        search=replace(base.search, **search),
        generation=replace(base.generation, max_new_tokens=length),
    )
    assert load_config(write(elsewhere, to_toml(config), "config.toml")) == config


def test_the_resolved_demo_config_reads_back_equal_from_elsewhere(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "demo.toml", ["search.seed=3"])
    again = load_config(write(tmp_path, to_toml(config), "config.toml"))
    assert again == config
    assert again.path != config.path


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("search.max_trials=0", "at least 1"),
        ("search.max_trials=true", "a whole number"),
        ("search.max_trials=1.5", "a whole number"),
        ("search.seed=-1", "between 0 and"),
        ("search.timeout=0", "more than 0"),
        ("search.timeout=inf", "finite"),
        ("search.timeout=nan", "finite"),
        ("search.timeout=false", "finite"),
        (f"search.timeout={10**400}", "finite"),
        ("search.range_safety=0.5", "at least 1"),
        ("search.keep_fp32=Pow", "a list of strings"),
        ("search.keep_fp32=[1]", "a list of strings"),
        ('search.keep_fp32=["Pow", " "]', "without empty strings"),
        ("search.strategy=exhaustiv", "one of nodes, op-types, exhaustive, random"),
        ("search.strategy=node", "one of nodes, op-types, exhaustive, random"),
        ("search.dtype=float32", "one of float16, bfloat16"),
        ("search.dtype=16", "one of float16, bfloat16"),
        ("device.kind=gpu", "one of auto, cpu, cuda"),
        ("device.id=-1", "at least 0"),
        ("device.threads=0", "between 1 and 1024"),
        ("device.use_tf32=1", "true or false"),
        ("device.gemm_options=8", "between 0 and 7"),
        ("device.memory_limit=0", "more than 0"),
        ("validation.min_exact_match=1.01", "between 0"),
        ("validation.min_exact_match=-0.1", "between 0"),
        ("generation.max_new_tokens=0", "at least 1"),
        ("calibration.max_length=0", "at least 1"),
        ("calibration.batch_size=0", "at least 1"),
        ("workload.batch=0", "at least 1"),
        ("calibration.path=", "a file or a directory"),
        ("latency.profile=", "a file or a directory"),
        ("model.path=", "hub id"),
        ("model.path=no/such/directory", "hub id"),
        ("model.path=no model", "hub id"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_what_it_must_be(
    tmp_path: Path, override: str, expected: str
) -> None:
    path = write(tmp_path, MINIMAL + '[validation]\npath = "v.txt"\n')
    error = error_of(path, override)
    assert f"`{override.partition('=')[0]}` cannot be" in error.what
    assert override in error.what
    assert expected in error.why


def test_a_wrong_value_in_the_file_names_the_file_and_the_nearest_word(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + '[search]\nstrategy = "exhaustve"\n')
    error = error_of(path)
    assert str(path) in error.what
    assert "`exhaustive`" in error.fix


def test_a_wrong_type_in_the_file_is_not_taken_as_text(tmp_path: Path) -> None:
    assert "a string" in error_of(write(tmp_path, MINIMAL + "prefix = 3\n")).why


@pytest.mark.parametrize(
    ("extra", "what", "fix"),
    [
        ("[serch]\nseed = 1\n", "unknown table `serch`", "did you mean `search`?"),
        ("[search]\nmax_trial = 1\n", "unknown key `search.max_trial`", "did you mean `max_trials`?"),
        ("[workload]\nmax_trials = 1\n", "unknown key `workload.max_trials`", "did you mean `search.max_trials`?"),
        ("[zzz]\n", "unknown table `zzz`", "remove it"),
        ("[search]\nqqqq = 1\n", "unknown key `search.qqqq`", "remove it"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(
    tmp_path: Path, extra: str, what: str, fix: str
) -> None:
    error = error_of(write(tmp_path, MINIMAL + extra))
    assert what in error.what
    assert error.fix == fix


def test_unknown_top_level_key_and_a_key_where_a_table_belongs(tmp_path: Path) -> None:
    assert "unknown key `seed`" in error_of(write(tmp_path, "seed = 1\n" + MINIMAL)).what
    assert "`search.seed`" in error_of(write(tmp_path, "seed = 1\n" + MINIMAL)).fix
    assert "must be a table" in error_of(write(tmp_path, 'search = "random"\n' + MINIMAL)).what


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("search.max_trials", "cannot use the override `search.max_trials`"),
        ("seed=1", "cannot use the override `seed=1`"),
        ("serch.seed=1", "unknown table `serch`"),
        ("search.sede=1", "unknown key `search.sede`"),
        ("search.seed.x=1", "unknown key `search.seed.x`"),
    ],
)
def test_a_broken_override_is_quoted(tmp_path: Path, override: str, what: str) -> None:
    assert what in error_of(write(tmp_path, MINIMAL), override).what


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ('[calibration]\npath = "c.txt"\n', "model.path"),
        ('[model]\npath = "m"\n', "calibration.path"),
        (MINIMAL + "[validation]\nbatch_size = 2\n", "validation.path"),
        (MINIMAL + "[test]\n", "test.path"),
    ],
)
def test_a_missing_required_key_is_named(tmp_path: Path, text: str, missing: str) -> None:
    table, key = missing.split(".")
    error = error_of(write(tmp_path, text))
    assert f"`{missing}` is missing" in error.what
    assert f"[{table}]" in error.fix and f"{key} =" in error.fix


def test_the_same_pin_both_ways_is_refused(tmp_path: Path) -> None:
    error = error_of(write(tmp_path, MINIMAL), 'search.keep_fp32=["Pow", "Add"]', 'search.force_low=["Pow"]')
    assert "Pow" in error.why and "Add" not in error.why


def test_broken_toml_names_line_and_column(tmp_path: Path) -> None:
    error = error_of(write(tmp_path, "[model]\npath = org/model\n"))
    assert "not valid TOML" in error.what
    assert "line 2, column" in error.why


@pytest.mark.parametrize("text", ["[model]\npath = " + "[" * 100_000, "[search]\nseed = " + "9" * 5000])
def test_toml_that_breaks_the_parser_is_still_a_config_error(tmp_path: Path, text: str) -> None:
    assert "not valid TOML" in error_of(write(tmp_path, text)).what


def test_files_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "absent.toml").what
    assert "is a directory" in error_of(tmp_path).what
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[model]\n# caf\xe9\n")
    error = error_of(latin)
    assert "not UTF-8" in error.what
    assert "0xe9 at offset 13 (line 2)" in error.why
    nested = write(tmp_path, MINIMAL) / "below.toml"
    assert "cannot be read" in error_of(nested).what


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_config(path).model.path == "org/model"


def test_no_cache_directory_without_a_home_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    path = write(tmp_path, MINIMAL)
    assert "cache = " in error_of(path).fix
    assert load_config(path, [f"model.cache={tmp_path}"]).model.cache == tmp_path


def test_a_config_is_hashable_and_frozen(tmp_path: Path) -> None:
    config: Config = load_config(write(tmp_path, MINIMAL))
    assert hash(config) == hash(load_config(write(tmp_path, MINIMAL, "other.toml")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.search.seed = 1  # type: ignore[misc]
