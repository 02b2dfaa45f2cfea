"""The `run` command: what it asks of the search, what it says of the result, and real errors before any search."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from precision_search import api
from precision_search.api import RunResult
from precision_search.config import Requirement, to_toml
from precision_search.errors import InputError
from precision_search.records.pareto_table import pareto_table
from precision_search.strategies.pareto import choose_winner
from tests.cli_models import DEMO, FASTER, fails, invoke, raiser, write_run
from tests.conftest import DEMO_DATA, ROOT
from tests.search_models import latency, trial


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default directories are relative to the working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the search by one that leaves a run directory at once; what it was asked for ends up in the dict."""
    asked: dict[str, Any] = {"trials": FASTER, "interrupted": False}

    def search(config: Any, out: Path, **options: Any) -> RunResult:
        asked.update(options, config=config, out=out)
        options["reporter"].stage("searching")
        write_run(out, asked["trials"])
        trials = tuple(asked["trials"])
        choice = choose_winner(trials, Requirement(0.98))
        return RunResult(out, trials, choice, pareto_table(trials, Requirement(0.98)), asked["interrupted"])

    monkeypatch.setattr(api, "search", search)
    return asked


def test_a_run_prints_the_table_and_says_where_the_model_is(searched: dict[str, Any], tmp_path: Path) -> None:
    result = invoke("run", DEMO, "--out", tmp_path / "out", "--set", "search.max_trials=7")

    assert result.exit_code == 0, result.output
    assert "chosen: plan 1" in result.stdout
    assert "plan 1: 196 of 200 test samples exact, 98.0% (95% interval" in result.stdout
    assert "searching" not in result.stdout
    assert "searching" in result.stderr
    assert f"model:  {tmp_path / 'out' / 'model'}\n" in result.stderr
    assert searched["config"].search.max_trials == 7
    assert searched["out"] == tmp_path / "out"
    assert (searched["resume"], searched["blocklist"]) == (False, None)


@pytest.mark.parametrize("arguments", [("--quiet", "run", DEMO), ("run", DEMO, "-q")])
def test_quiet_works_before_and_after_the_command(searched: dict[str, Any], arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)

    assert result.exit_code == 0
    assert result.stderr == ""
    assert "chosen: plan 1" in result.stdout


def test_a_run_where_nothing_is_faster_is_1_and_says_what_the_model_is(searched: dict[str, Any]) -> None:
    searched["trials"] = (FASTER[0], trial(1, latency=latency(4.0, 0.5)))

    result = invoke("run", DEMO)

    assert result.exit_code == 1
    assert "(fp32: nothing is faster)" in result.stderr


def test_runs_go_to_a_directory_named_by_config_and_time(searched: dict[str, Any]) -> None:
    invoke("run", DEMO)

    assert re.fullmatch(r"runs/demo-\d{8}-\d{6}", searched["out"].as_posix())


def test_resume_takes_the_latest_run_of_that_config(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("demo-20260101-000000", "demo-20260102-000000", "other-20260103-000000", "demo-2-20260104-000000"):
        Path("artifacts/runs", name).mkdir(parents=True)
    asked: list[Path] = []

    def search(config: Any, out: Path, **options: Any) -> RunResult:
        asked.append(out)
        assert options["resume"]
        raise InputError("enough")

    monkeypatch.setattr(api, "search", search)

    fails(invoke("run", DEMO, "--resume"), 2)
    fails(invoke("run", DEMO, "--resume", "--out", "mine"), 2)

    assert asked == [Path("artifacts/runs/demo-20260102-000000"), Path("mine")]


def test_there_must_be_a_run_to_resume() -> None:
    assert "there is no run of demo to resume" in fails(invoke("run", DEMO, "--resume"), 2)


def test_a_dry_run_prints_what_it_would_do_and_searches_nothing(
    monkeypatch: pytest.MonkeyPatch, searched: dict[str, Any]
) -> None:
    monkeypatch.setattr(api, "dry_run", lambda config, reporter: to_toml(config) + "# the space\n")

    result = invoke("run", DEMO, "--dry-run", "--set", "search.seed=3")

    assert result.exit_code == 0
    assert tomllib.loads(result.stdout)["search"]["seed"] == 3
    assert "out" not in searched
    assert not Path("artifacts").exists()


@pytest.mark.parametrize("option", ["--blocklist", "--plan"])
def test_a_given_blocklist_is_passed_on(searched: dict[str, Any], option: str) -> None:
    """`--plan` is the former name of `--blocklist`: it still works, and no help shows it."""
    invoke("run", DEMO, option, "my.json")

    assert searched["blocklist"] == Path("my.json")
    assert "--plan" not in invoke("run", "--help").stdout


def test_a_former_name_is_not_given_beside_the_new_one() -> None:
    assert "give --blocklist alone" in fails(invoke("run", DEMO, "--blocklist", "a.json", "--plan", "b.json"), 2)


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(config: Any, out: Path, **options: Any) -> RunResult:
        out.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "search", search)

    message = fails(invoke("run", DEMO, "--out", "my run", "--set", "search.seed=1", "--blocklist", "b.json"), 130)

    expected = f"precision-search run {DEMO} --out 'my run' --resume --set search.seed=1 --blocklist b.json"
    assert message == f"interrupted; go on with: {expected}\n"


def test_ctrl_c_before_anything_was_written_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "search", raiser(KeyboardInterrupt()))

    assert fails(invoke("run", DEMO), 130) == "interrupted; nothing was written\n"


def test_an_interrupted_search_shows_what_it_has_and_ends_with_130(searched: dict[str, Any]) -> None:
    searched["interrupted"] = True

    result = invoke("run", DEMO, "--out", "out")

    assert result.exit_code == 130
    assert "chosen: plan 1" in result.stdout
    assert "interrupted; go on with: precision-search run" in result.stderr
    assert "model:" not in result.stderr


def config_with(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(text)
    return path


def demo_config(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = DEMO.read_text().replace('"../artifacts', f'"{ROOT}/artifacts').replace('"demo/', f'"{DEMO_DATA}/')
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return config_with(tmp_path, text)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    assert "nothing.toml" in fails(invoke("run", tmp_path / "nothing.toml"), 2)


def test_a_directory_is_no_config(tmp_path: Path) -> None:
    assert str(tmp_path) in fails(invoke("run", tmp_path), 2)


def test_broken_toml_is_told_with_its_place(tmp_path: Path) -> None:
    message = fails(invoke("run", config_with(tmp_path, "[model\npath = 3")), 2)

    assert "my.toml" in message
    assert "line 1" in message


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    message = fails(invoke("run", demo_config(tmp_path, ("max_trials", "max_trails"))), 2)

    assert "max_trails" in message
    assert "`max_trials`" in message


@pytest.mark.parametrize("override", ["search.seed", "seed=3", "search.sede=3", "search.seed=high"])
def test_a_bad_override_is_told(override: str) -> None:
    message = fails(invoke("run", DEMO, "--set", override), 2)

    assert override.partition("=")[0].rpartition(".")[2] in message


def test_an_existing_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")

    message = fails(invoke("run", DEMO, "--out", tmp_path / "out"), 2)

    assert "already exists" in message
    assert "--resume" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_out_below_a_file_is_the_machines_trouble(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    message = fails(invoke("run", DEMO, "--out", tmp_path / "file/out"), 3)

    assert "cannot be used" in message


def test_cuda_without_cuda_is_3_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])

    message = fails(invoke("run", DEMO, "--set", "device.kind=cuda", "--out", tmp_path / "out", "--quiet"), 3)

    assert "precision-search[cuda]" in message
