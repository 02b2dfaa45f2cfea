"""What a run leaves is shown by the tools that people have: its study by optuna-dashboard, its models by Netron."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest

from precision_search import api
from precision_search.records.optuna_journal import METRIC_NAMES, STUDY_NAME
from tests.browser import require_browser
from tests.screenshots import dashboard, netron, select_node
from tests.tiny_model import write_tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_browser()
    folder = tmp_path_factory.mktemp("tiny")
    config = api.load_config(write_tiny_config(folder, "nodes", max_trials=8))
    return api.search(config, folder / "run").directory


def test_optuna_dashboard_shows_every_plan_of_a_run(run: Path) -> None:
    trials = len((run / "trials.jsonl").read_text().splitlines())
    assert trials > 3
    with dashboard(run) as (page, address):
        page.goto(address)
        page.get_by_text(f"0. {STUDY_NAME}").wait_for()
        assert "MINIMIZE, MINIMIZE" in page.inner_text("body")

        page.goto(f"{address}/studies/0/trials")
        page.get_by_text(f"{trials} Trials").wait_for()
        page.get_by_text("Trial 0 (trial_id=0)").wait_for()
        shown = page.inner_text("body")
        assert [name for name in ("verdict stable", "stage fp32", "exact_match 1", "id 0") if name not in shown] == []
        assert re.findall(r"^Trial (\d+)$", shown, re.MULTILINE) == [str(number) for number in range(trials)]

        page.goto(f"{address}/studies/0")
        page.get_by_text("Pareto Front").wait_for()
        page.get_by_text(METRIC_NAMES[0]).first.wait_for()
        shown = page.inner_text("body")
        assert [name for name in METRIC_NAMES if name not in shown] == []
        assert "Objective 0" not in shown


def test_netron_shows_the_key_of_a_node_and_its_metadata(run: Path) -> None:
    path = run / "model/encoder_model.onnx"
    metadata = {
        node.name: {prop.key: prop.value for prop in node.metadata_props} for node in onnx.load(path).graph.node
    }
    low = next(name for name, found in metadata.items() if found.get("precision") == "float16")
    kept = next(name for name, found in metadata.items() if found.get("precision") == "float32")
    with netron(path) as page:
        for key in (low, kept):
            assert metadata[key]["why"]
            shown = select_node(page, key)
            assert key in shown
            assert [value for value in metadata[key].values() if value not in shown] == []
