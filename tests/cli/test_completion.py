"""What the shell offers at the tab key: through click, and in a real bash that runs the script click gives it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from precision_search.cli.commands import cli
from precision_search.records.pareto_table import COLUMNS
from tests.cli_models import FASTER, write_run
from tests.conftest import ROOT
from tests.search_models import trial

NAME, VARIABLE = "precision-search", "_PRECISION_SEARCH_COMPLETE"
TRIALS = (*FASTER, trial(2, verdict="mismatch"), *map(trial, range(3, 11)))
STABLE = ["0", "1", *map(str, range(3, 11))]


@pytest.fixture(autouse=True)
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with two runs, the second one written later, and a directory that is none."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("demo-1", "demo-2")):
        run = write_run(Path("artifacts/runs") / name, TRIALS)
        os.utime(run, (number, number))
    Path("artifacts/runs/mine").mkdir()


def offered(*words: str) -> list[str]:
    """What is offered for the last of the words."""
    complete = ShellComplete(cli, {}, NAME, VARIABLE)
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize("command", ["pareto", "export"])
def test_runs_are_offered_the_latest_first(command: str) -> None:
    assert offered(command, "") == ["artifacts/runs/demo-2", "artifacts/runs/demo-1"]
    assert offered(command, "artifacts/runs/demo-1") == ["artifacts/runs/demo-1"]


def test_elsewhere_the_shell_completes_directories() -> None:
    for words in (("pareto", "/tm"), ("inspect", "mod"), ("verify", "mod"), ("verify", "m", "--reference", "c")):
        complete = ShellComplete(cli, {}, NAME, VARIABLE)
        items = complete.get_completions(list(words[:-1]), words[-1])
        assert [(item.value, item.type) for item in items] == [(words[-1], "dir")]


def test_the_stable_plans_of_the_named_run_are_offered() -> None:
    assert offered("export", "artifacts/runs/demo-1", "--plan", "") == STABLE
    assert offered("export", "artifacts/runs/demo-1", "--plan", "1") == ["1", "10"]
    complete = ShellComplete(cli, {}, NAME, VARIABLE)
    items = complete.get_completions(["export", "artifacts/runs/demo-1", "--plan"], "0")
    assert [item.help for item in items] == ["fp32, 1.00x estimated"]


def test_a_plan_that_is_being_written_is_not_offered_yet() -> None:
    with Path("artifacts/runs/demo-1/trials.jsonl").open("a") as log:
        log.write('{"id": 14, "verdict": "sta')

    assert offered("export", "artifacts/runs/demo-1", "--plan", "") == STABLE


def test_a_shell_is_offered_no_control_characters() -> None:
    Path("artifacts/runs/demo-1/pareto.csv").write_text("a\x1b[2J,b\n")

    assert offered("pareto", "artifacts/runs/demo-1", "--sort", "") == [r"a\x1b[2J", "b"]


def test_columns_are_offered() -> None:
    header = ",".join(column.name for column in COLUMNS)
    Path("artifacts/runs/demo-1/pareto.csv").write_text(f"{header}\n")

    assert offered("pareto", "artifacts/runs/demo-1", "--sort", "") == [column.name for column in COLUMNS]
    assert offered("pareto", "artifacts/runs/demo-1", "--sort", "flip_risk_") == ["flip_risk_low", "flip_risk_high"]


def test_config_keys_are_offered_with_their_tables() -> None:
    assert "search.max_trials=" in offered("run", "my.toml", "--set", "")
    assert offered("run", "--set", "search.max_trials=5", "--set", "latency.") == ["latency.profile="]


def test_commands_and_their_options_are_offered() -> None:
    assert offered("ca") == ["calibrate"]
    assert {"--quiet", "--verbose", "--resume"} <= set(offered("run", "--"))


@pytest.mark.parametrize(
    "words",
    [
        ("export", "--plan", ""),
        ("export", "nowhere", "--plan", ""),
        ("export", "artifacts/runs/mine", "--plan", ""),
        ("pareto", "nowhere", "--sort", ""),
        ("pareto", "artifacts/runs/broken", "--sort", ""),
        ("export", "artifacts/runs/broken", "--plan", ""),
        ("run", "--set", "nothing."),
    ],
)
def test_what_cannot_be_completed_is_no_error(words: tuple[str, ...]) -> None:
    Path("artifacts/runs/broken").mkdir()
    Path("artifacts/runs/broken/trials.jsonl").write_bytes(b"\xff{\n[]\n")
    Path("artifacts/runs/broken/pareto.csv").write_bytes(b"")

    assert offered(*words) == []


def test_completion_loads_nothing_that_makes_a_shell_wait() -> None:
    heavy = ("numpy", "onnx", "onnxruntime", "optuna", "rich", "torch", "transformers", "precision_search.records")
    script = f"""
import sys
from click.shell_completion import ShellComplete
from precision_search.cli.commands import cli
for words in (["pareto"], ["export", "artifacts/runs/demo-1", "--plan"], ["pareto", "artifacts/runs/demo-1",
              "--sort"], ["run", "--set"]):
    assert ShellComplete(cli, {{}}, "{NAME}", "{VARIABLE}").get_completions(words, ""), words
print([name for name in {heavy} if name in sys.modules])
"""
    Path("artifacts/runs/demo-1/pareto.csv").write_text("id,stage\n")
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


BASH = r"""
source <({variable}=bash_source {name})
compopt() {{ echo compopt "$@"; }}  # outside of a real completion there is nothing to set
complete -p {name}
COMP_WORDS=("$@")
COMP_CWORD=$(( $# - 1 ))
_precision_search_completion {name}
printf '<%s>\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        (("pareto", ""), ["<artifacts/runs/demo-2>", "<artifacts/runs/demo-1>"]),
        (("export", "artifacts/runs/demo-2", "--plan", "1"), ["<1>", "<10>"]),
        (("run", "demo.toml", "--set", "search.see"), ["compopt -o nospace", "<search.seed=>"]),
        (("run", ""), ["compopt -o default", "<>"]),
        (("inspect", ""), ["compopt -o dirnames", "<>"]),
    ],
)
def test_a_real_bash_completes(tmp_path: Path, words: tuple[str, ...], reply: list[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        if os.environ.get("PRECISION_SEARCH_NO_SKIP"):
            pytest.fail("there is no bash")
        pytest.skip("there is no bash")
    command = tmp_path / "bin" / NAME
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m precision_search "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [bash, "--norc", "-c", BASH.format(name=NAME, variable=VARIABLE), "bash", NAME, *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )

    assert done.stderr == ""
    first, *rest = done.stdout.splitlines()
    assert first == f"complete -o nosort -F _precision_search_completion {NAME}"
    assert rest == reply
