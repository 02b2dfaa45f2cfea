"""The door: what every command prints, on which stream, and its exit codes; `run` has a file of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from precision_search import api
from precision_search.cli.commands import cli
from precision_search.cost.ceiling import Ceiling
from precision_search.judging.differences import DifferingSample
from precision_search.machine import doctor as doctor_module
from precision_search.published.verify import VerifyReport
from precision_search.records.run_json import Best, WorkloadInfo
from tests.cli_models import FASTER, fails, invoke, write_run
from tests.conftest import ROOT
from tests.search_models import latency, trial
from tests.tiny_model import write_tiny_model


def test_every_command_and_option_says_what_it_does() -> None:
    for command in cli.commands.values():
        assert command.help
        assert command.short_help
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["rn"], "'run'"),
        (["run", "x.toml", "--resum"], "--resume"),
        (["run"], "CONFIG"),
        (["verify", "m", "--reference", "r", "--data", "d", "--min-exact-match", "2"], "--min-exact-match"),
        (["-q", "doctor", "-v"], "--quiet and --verbose"),
        (["export", "r", "--plan", "best", "--out", "o"], "--plan"),
    ],
)
def test_wrong_usage_is_2_with_a_hint(arguments: list[str], hint: str) -> None:
    assert hint in fails(invoke(*arguments), 2)


def test_the_table_of_a_run_is_shown_again(tmp_path: Path) -> None:
    result = invoke("pareto", write_run(tmp_path / "run"))

    assert result.exit_code == 0
    assert "chosen: plan 1" in result.stdout
    assert "plan 1: 196 of 200 test samples exact" in result.stdout
    assert result.stderr == ""


def test_the_table_comes_in_other_formats_and_orders(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")

    rows = json.loads(invoke("pareto", run, "--format", "json").stdout)["rows"]
    assert [row["id"] for row in rows] == [1, 0]
    rows = json.loads(invoke("pareto", run, "--format", "json", "--sort", "id").stdout)["rows"]
    assert [row["id"] for row in rows] == [0, 1]
    assert invoke("pareto", run, "--format", "csv").stdout.startswith("id,")
    assert invoke("pareto", run, "--format", "md").stdout.startswith("| ")


@pytest.mark.parametrize(
    ("from_batch", "where"), [(14, "worth it from batch 14"), (None, "not worth it at any batch up to 4,096")]
)
def test_where_nothing_is_faster_the_last_line_says_what_could_be(
    tmp_path: Path, from_batch: int | None, where: str
) -> None:
    ceiling = Ceiling(1.067, "base", "estimated", "t4", 0.91, from_batch)
    best = Best(0, "no plan other than fp32 is stable", faster=False, test_match=None, validation_match=None)
    workload = WorkloadInfo(8, 128, 128)
    slow = write_run(tmp_path / "slow", FASTER[:1], best=best, ceiling=ceiling, workload=workload)
    fast = write_run(tmp_path / "fast", ceiling=ceiling, workload=workload)
    older = write_run(tmp_path / "older", FASTER[:1], best=best)

    said = "nothing is faster than fp32: at most 1.07x could be gained at batch 8, 128/128 on T4, estimated"
    assert invoke("pareto", slow).stdout.splitlines()[-1] == f"{said}; {where}"
    assert "could be gained" not in invoke("pareto", fast).stdout + invoke("pareto", older).stdout


def test_all_shows_every_stable_plan(tmp_path: Path) -> None:
    others = [trial(number, latency=latency(1.0 + number, 1.0)) for number in range(2, 20)]
    run = write_run(tmp_path / "run", (*FASTER, *others))

    assert "more stable plans not shown" in invoke("pareto", run).stdout
    assert "not shown" not in invoke("pareto", run, "--all").stdout


def test_an_unknown_column_names_the_nearest(tmp_path: Path) -> None:
    assert "`latency_ms`" in fails(invoke("pareto", write_run(tmp_path / "run"), "--sort", "latency"), 2)


def test_what_is_no_run_is_told_with_the_runs_there_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs/demo-1")

    for wrong, why in ((tmp_path / "runs", "no run.json"), (tmp_path / "runs/demo-2", "no such directory")):
        message = fails(invoke("pareto", wrong), 2)
        assert why in message
        assert str(run) in message
    assert "it is a file" in fails(invoke("pareto", run / "run.json"), 2)


@pytest.mark.parametrize("option", ["--plan", "--candidate"])
def test_export_gives_the_model_directory_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """`--candidate` is the former name of `--plan`: it still works, and no help shows it."""
    asked: list[Any] = []

    def publish(run: Path, out: Path, *, plan: int | None, reporter: Any) -> Path:
        asked.extend((run, plan, out))
        reporter.stage("writing")
        return out

    monkeypatch.setattr(api, "publish", publish)
    run = write_run(tmp_path / "run")

    result = invoke("export", run, option, "1", "--out", "my-model")

    assert (result.exit_code, result.stdout) == (0, "my-model\n")
    assert asked == [run, 1, Path("my-model")]
    assert "--candidate" not in invoke("export", "--help").stdout


def test_export_takes_one_plan(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    given = invoke("export", run, "--plan", "1", "--candidate", "2", "--out", tmp_path / "model")
    assert "give --plan alone" in fails(given, 2)


def test_export_overwrites_nothing_and_wants_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")

    assert "already exists" in fails(invoke("export", run, "--out", tmp_path), 2)
    assert "not a run directory" in fails(invoke("export", tmp_path, "--out", tmp_path / "new"), 2)


@pytest.mark.parametrize(("plan", "why"), [("7", "it judged 3 plans"), ("2", "its verdict is mismatch")])
def test_export_wants_a_stable_plan(tmp_path: Path, plan: str, why: str) -> None:
    run = write_run(tmp_path / "run", (*FASTER, trial(2, verdict="mismatch")))

    assert why in fails(invoke("export", run, "--plan", plan, "--out", tmp_path / "new"), 2)
    assert not (tmp_path / "new").exists()


DIFFERENCE = DifferingSample(3, 4, "a source", "eine Quelle", "eine [Welle]", 1, 1e-4, near_tie=True, nonfinite=False)


VERIFIED = VerifyReport(100, 99, 0.99, 0.9455, 0.9982, 0, (DIFFERENCE,), "emulated", ("a doubt",), "ab" * 32)


VERIFY = ("verify", "model", "--reference", "fp32", "--data", "data.txt")


def verified(monkeypatch: pytest.MonkeyPatch, report: VerifyReport) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def verify(*arguments: Any, **options: Any) -> VerifyReport:
        asked.update(options, arguments=arguments)
        return report

    monkeypatch.setattr(api, "verify", verify)
    return asked


def test_verify_shows_each_difference_and_fails_below_the_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    verified(monkeypatch, VERIFIED)

    result = invoke(*VERIFY)

    assert result.exit_code == 1
    for text in (
        "a source",
        "eine Quelle",
        "eine [Welle]",
        "near-tie",
        "99 of 100, 99.0% (95% interval 94.5% to 99.8%",
    ):
        assert text in result.stdout
    assert "warning: a doubt" in result.stderr
    assert "error: model keeps 99.0% of the samples exactly" in result.stderr


def test_verify_passes_at_the_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = verified(monkeypatch, VERIFIED)

    result = invoke(
        *VERIFY, "--min-exact-match", "0.99", "--prefix", "translate: ", "--device", "cpu", "--device-id", "2"
    )

    assert result.exit_code == 0
    assert asked["arguments"] == (Path("model"), "fp32", Path("data.txt"))
    assert (asked["prefix"], asked["device"], asked["batch_size"]) == ("translate: ", "cpu", 32)
    assert asked["device_id"] == 2


def test_verify_speaks_json(monkeypatch: pytest.MonkeyPatch) -> None:
    verified(monkeypatch, replace(VERIFIED, differences=(replace(DIFFERENCE, margin=None),)))

    result = invoke(*VERIFY, "--format", "json")

    found = json.loads(result.stdout)
    assert (found["exact"], found["source"], found["differences"][0]["margin"]) == (99, "emulated", None)
    assert result.exit_code == 1


def test_verify_and_inspect_name_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert "data.txt" in fails(invoke(*VERIFY), 2)
    assert "config.json" in fails(invoke("inspect", tmp_path / "empty"), 2)


def test_inspect_of_the_demo_lists_what_is_searchable(export_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "default_cache", lambda: export_cache)
    model = ROOT / "artifacts/models/t5-debian-en-de"

    text = invoke("inspect", model, "--quiet")
    found = json.loads(invoke("inspect", model, "--format", "json", "--dtype", "bfloat16", "-q").stdout)

    assert text.exit_code == 0, text.output
    assert "t5-debian-en-de: t5, 4+4 layers" in text.stdout
    assert "encoder.block.*.layer.1.DenseReluDense.wo/MatMul" in text.stdout
    assert "index arithmetic" in text.stdout
    assert (found["dtype"], found["ceiling"]["profile"]) == ("bfloat16", "a10g")
    assert "encoder.final_layer_norm/Pow" in [node["key"] for node in found["nodes"]]


def test_inspect_says_what_could_be_gained_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model at batch 8 is all launches; a device with many units asks for larger batches still."""
    monkeypatch.setattr(api, "default_cache", lambda: tmp_path / "cache")
    model, lengths = write_tiny_model(tmp_path / "model"), ("--source-length", "16", "--target-length", "4")

    lines = invoke("inspect", model, "-q", "--batch", "8", *lengths, "--gpu", "h100").stdout.splitlines()
    found = json.loads(invoke("inspect", model, "-q", "--batch", "4096", *lengths, "--format", "json").stdout)

    line = "ceiling: no gain, at most 1.00x at batch 8, 16/4 on H100, estimated; 100% of the time is launches; "
    assert [each for each in lines if each.startswith("ceiling")] == [f"{line}not worth it at any batch up to 4,096"]
    assert found["workload"] == {"batch": 4096, "source_length": 16, "target_length": 4}
    assert list(found["ceiling"]) == ["speedup", "variant", "source", "profile", "launch_share", "from_batch"]
    assert found["ceiling"]["profile"] == "t4"
    assert found["ceiling"]["speedup"] > 1.1
    assert 8 < found["ceiling"]["from_batch"] < 4096


def test_inspect_takes_no_unknown_device_and_no_dtype_that_it_lacks(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    assert "did you mean `h100`" in fails(invoke("inspect", model, "--gpu", "h10"), 2)
    assert "has no bfloat16 units" in fails(invoke("inspect", model, "--gpu", "t4", "--dtype", "bfloat16"), 2)
    assert "--batch" in fails(invoke("inspect", model, "--batch", "0"), 2)


def test_the_doctor_tells_people_and_programs() -> None:
    text, found = invoke("doctor"), json.loads(invoke("doctor", "--format", "json").stdout)

    assert text.exit_code == 0
    assert "latency" in text.stdout
    assert found["latency"] in text.stdout
    assert "CPUExecutionProvider" in found["providers"]


def test_the_doctor_ends_with_3_if_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    report = doctor_module.examine()
    broken = replace(report, packages=(*report.packages, doctor_module.Package("torch", None)))
    monkeypatch.setattr(doctor_module, "examine", lambda: broken)

    result = invoke("doctor")

    assert result.exit_code == 3
    assert "torch MISSING" in result.stdout
    assert "pip install" in result.stdout
