"""A run that an older version made, before padding and requirements counted, can be used as one of today's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from precision_search.display.html import REPORT_FILE
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.layout import graph_file
from precision_search.records.run_files import read_run
from precision_search.records.run_json import Versions, tool_version
from tests.cli_models import invoke
from tests.conftest import ROOT

OLDER = ROOT / "tests/data/older_run"
"""See its README."""
CHOSEN = 3
"""What it chose: plan 4 is as good as equally fast and calmer, which decides since."""
KEPT = 4
"""Plans that an interrupted copy still has; two more are to come."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of it, with the versions of today, since verdicts of others are never mixed."""
    shutil.copytree(OLDER, tmp_path / "older")
    edit(tmp_path / "older", tool_version=tool_version())
    record = json.loads((OLDER / "run/run.json").read_text())["versions"]
    edit(tmp_path / "older", versions=record | {"onnxruntime": Versions.installed().onnxruntime})
    return tmp_path / "older"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "run/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def choice(folder: Path) -> dict[str, Any]:
    result = invoke("pareto", folder / "run", "--format", "json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout)["choice"])


def resumed(folder: Path) -> str:
    """What the run says on stderr when it is continued, to its end."""
    result = invoke("run", folder / "tiny.toml", "--out", folder / "run", "--resume")
    assert result.exit_code == 0, result.output
    return str(result.stderr)


def test_it_is_read_as_it_was_decided_and_new_keys_have_defaults(folder: Path) -> None:
    found = read_run(folder / "run")
    record = json.loads((folder / "run/run.json").read_text())
    assert not {"requirements_met", "judged"} & record["best"].keys() and "ceiling" not in record

    assert choice(folder) == {
        "id": CHOSEN,
        "reason": "the fastest stable plan that keeps at least 50.0% of the validation samples",
        "faster": True,
        "requirements_met": True,
    }
    assert found.info.ceiling is None
    assert [trial.judged for trial in found.trials] == [None] * 6
    counted = [(trial.fp32_decisions, trial.decisions) for trial in found.trials]
    assert counted == [(len(trial.plan.nodes), len(found.trials[0].plan.nodes)) for trial in found.trials]
    assert "the requirement is not met" not in invoke("pareto", folder / "run").stdout


def test_a_requirement_that_it_missed_is_not_called_met(folder: Path) -> None:
    lines = (folder / "run/trials.jsonl").read_text().replace('"validation_match":1.0', '"validation_match":0.25')
    (folder / "run/trials.jsonl").write_text(lines)
    assert choice(folder)["requirements_met"] is False
    assert choice(folder)["id"] == CHOSEN


def test_its_report_and_its_models_say_that_an_older_version_judged_it(folder: Path) -> None:
    assert invoke("report", folder / "run").exit_code == 0
    assert "an older version judged it" in (folder / "run" / REPORT_FILE).read_text()

    result = invoke("export", folder / "run", "--out", folder / "exported")

    assert result.exit_code == 0, result.output
    facts = json.loads((folder / "exported/precision_search.json").read_text())
    assert facts["judged"] is None
    assert facts["verdict"]["requirements_met"] is True
    assert "an older version judged it" in (folder / "exported/README.md").read_text()
    assert all((folder / "exported" / graph_file(name)).is_file() for name in GRAPH_NAMES)


@pytest.mark.slow
def test_an_interrupted_one_goes_on_and_says_what_was_judged_before(folder: Path) -> None:
    log = folder / "run/trials.jsonl"
    before = log.read_text().splitlines(keepends=True)[:KEPT]
    log.write_text("".join(before))
    edit(folder, status="interrupted", stopped="interrupted")
    assert choice(folder)["id"] == CHOSEN

    said = resumed(folder)

    assert "2 stable plans of this run had been judged by an older version" in said
    assert log.read_text().splitlines(keepends=True)[:KEPT] == before
    found = read_run(folder / "run")
    assert (found.info.status, len(found.trials)) == ("complete", 6)
    assert [trial.judged is None for trial in found.trials] == [True] * KEPT + [False] * 2
    assert found.info.ceiling is not None
    assert found.info.best is not None and found.info.best.requirements_met is True
    assert json.loads((folder / "run/model/precision_search.json").read_text())["verdict"]["requirements_met"] is True


@pytest.mark.slow
def test_a_complete_one_that_is_continued_is_decided_by_the_rule_of_today(folder: Path) -> None:
    log = (folder / "run/trials.jsonl").read_bytes()

    resumed(folder)

    assert (folder / "run/trials.jsonl").read_bytes() == log
    assert choice(folder)["id"] == CHOSEN + 1
    assert "within 2% of the fastest" in choice(folder)["reason"]
    assert choice(folder)["requirements_met"] is True
