"""One run judges plans of two graph variants, survives an interruption, and exports and publishes plans of each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from precision_search import api
from precision_search.config import load_config
from precision_search.errors import InputError
from precision_search.judging.trial import NOTHING_KNOWN, SearchState, Trial
from precision_search.model.graph import BASE_VARIANT
from precision_search.model.layout import graph_file
from precision_search.records.nodes_json import read_nodes
from precision_search.records.run_files import read_run
from precision_search.run.dry_run import dry_run
from precision_search.run.search import search
from tests.tiny_model import write_tiny_config
from tests.told import Told
from tests.toy_variant import NEW, TOY, register_toy

pytestmark = pytest.mark.slow
PLANS = 8


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        register_toy(patch)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy: None) -> Path:
    """A run of both variants."""
    folder = tmp_path_factory.mktemp("variants")
    config = load_config(write_tiny_config(folder, max_trials=PLANS))
    search(config, folder / "run", reporter=Told())
    return folder


def trials_of(run: Path) -> list[Trial]:
    return [dataclasses.replace(trial, seconds=0.0) for trial in read_run(run).trials]


def stable_of(run: Path, variant: str) -> Trial:
    found = [t for t in trials_of(run) if t.plan.variant == variant and t.verdict == "stable" and t.low_nodes]
    return found[-1]


def halved(model: Path) -> int:
    """How many nodes of a published model only the toy variant has."""
    graphs = [onnx.load(model / graph_file(name)).graph for name in ("encoder", "decoder", "decoder_with_past")]
    return sum(node.name.endswith(NEW) for graph in graphs for node in graph.node)


def test_plans_of_both_are_judged_under_ids_of_one_log(folder: Path) -> None:
    trials = trials_of(folder / "run")

    assert [trial.id for trial in trials] == list(range(PLANS))
    assert [trial.plan.variant for trial in trials] == [BASE_VARIANT] * 4 + [TOY] * 4
    first, other = trials[0], trials[4]
    assert (first.is_fp32, other.is_fp32) == (True, False)
    assert (first.low_nodes, other.low_nodes) == (0, 0)
    # Against the same reference, and to the same last bit.
    assert (other.verdict, other.min_margin, other.noise) == ("stable", first.min_margin, 0.0)
    assert other.fp32_nodes > first.fp32_nodes
    # One speedup for all: over the base graphs in fp32.
    assert other.latency is not None
    assert other.latency.speedup < 1.0
    assert any(key.endswith(NEW) for key in other.plan.nodes)
    assert {t.verdict for t in trials if t.plan.variant == TOY} >= {"stable", "nonfinite"}


def test_each_variant_has_a_record_of_its_nodes(folder: Path) -> None:
    base, toy = (read_nodes(folder / "run", variant) for variant in (BASE_VARIANT, TOY))

    new = {node.key for node in toy.nodes} - {node.key for node in base.nodes}
    assert new
    assert all(key.endswith(NEW) for key in new)
    assert all(node.largest for node in toy.nodes if node.key in new)


def test_a_dry_run_shows_both_spaces(folder: Path) -> None:
    told = Told()
    shown = dry_run(load_config(folder / "tiny.toml"), told)

    assert "# The search space of strategy op-types\n" in shown
    assert "# The search space of strategy op-types, variant toy\n" in shown
    assert told.stages[-2:] == ["measuring activation ranges", "measuring activation ranges of the variant toy"]


class Interrupting(Told):
    """Ctrl-C after so many plans."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def trial(self, trial: Trial, state: SearchState = NOTHING_KNOWN) -> None:
        super().trial(trial, state)
        if len(self.trials) == self._after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [2, 6])
def test_an_interrupted_run_goes_on_to_the_same_end(folder: Path, tmp_path: Path, after: int) -> None:
    config = load_config(folder / "tiny.toml")
    assert search(config, tmp_path / "run", reporter=Interrupting(after)).interrupted

    result = search(config, tmp_path / "run", resume=True, reporter=Told())

    assert len(result.trials) == PLANS
    assert trials_of(tmp_path / "run") == trials_of(folder / "run")
    for name in ("blocklist.json", "nodes-toy.json", f"model/{graph_file('encoder')}"):
        assert (tmp_path / "run" / name).read_bytes() == (folder / "run" / name).read_bytes(), name


@pytest.mark.parametrize("variant", [BASE_VARIANT, TOY])
def test_a_plan_of_each_is_published_and_verified(folder: Path, tmp_path: Path, variant: str) -> None:
    trial = stable_of(folder / "run", variant)

    model = api.publish(folder / "run", tmp_path / "model", candidate=trial.id)

    assert (halved(model) > 0) == (variant == TOY)
    facts = json.loads((model / "precision_search.json").read_text())
    blocklist = json.loads((model / "blocklist.json").read_text())
    assert facts["plan"]["variant"] == blocklist["variant"] == variant
    assert facts["plan_digest"] == trial.plan.plan.digest
    assert facts["numbers"]["compute_nodes"] == trial.fp32_nodes + trial.low_nodes
    report = api.verify(model, folder / "model", folder / "calibration.txt", device="cpu")
    assert report.exact_match == trial.exact_match == 1.0


def test_the_run_publishes_the_graphs_of_its_winner(folder: Path) -> None:
    run = read_run(folder / "run")
    assert run.info.best is not None
    best = run.trials[run.info.best.id]

    assert best.plan.variant == TOY  # halving in fp16 costs less than what it leaves low
    assert halved(folder / "run/model") > 0
    assert json.loads((folder / "run/blocklist.json").read_text())["variant"] == TOY


def test_a_given_blocklist_is_about_the_variant_that_it_names(folder: Path, tmp_path: Path) -> None:
    blocklist = folder / "run/blocklist.json"

    result = search(load_config(folder / "tiny.toml"), tmp_path / "run", blocklist=blocklist, reporter=Told())

    assert [trial.plan.variant for trial in result.trials] == [BASE_VARIANT, TOY]
    assert result.trials[1].plan == stable_of(folder / "run", TOY).plan
    (tmp_path / "odd.json").write_text(json.dumps(json.loads(blocklist.read_text()) | {"variant": "tot"}))
    with pytest.raises(InputError, match="unknown graph variant 'tot'") as caught:
        search(load_config(folder / "tiny.toml"), tmp_path / "odd", blocklist=tmp_path / "odd.json", reporter=Told())
    assert caught.value.why == "only 'base' and 'toy' exist"
    assert caught.value.fix == "did you mean `toy`? set variant to 'base' or 'toy'"


def test_the_search_at_node_level_cuts_the_graphs_of_each(folder: Path, tmp_path: Path) -> None:
    config = load_config(folder / "tiny.toml", ["search.strategy=nodes"])

    result = search(config, tmp_path / "run", reporter=Told())

    cut = {trial.plan.variant for trial in result.trials if trial.stage == "cut"}
    assert cut == {BASE_VARIANT, TOY}
