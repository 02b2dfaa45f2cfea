"""The whole job through the public door: a real search on the demo model, and everything that is done with its run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from precision_search import api
from precision_search.config import Config, load_config
from precision_search.errors import ConfigError, OutputExistsError, UsageError
from precision_search.judging.trial import SearchReporter
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.layout import graph_file
from precision_search.precision.blocklist import plan_of_blocklist, read_blocklist
from precision_search.records.trials import read_trials
from tests.conftest import DEMO_DATA, DEMO_MODEL, ROOT


class Silence(SearchReporter):
    """A reporter that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def stage(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def trial(self, trial: object, state: object = None) -> None: ...

    def progress(self, done: int, total: int, what: str) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first sentences of each demo file: enough for every verdict, little to generate."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("calibration", 24), ("validation", 24), ("test", 16)):
        lines = (DEMO_DATA / f"{name}.txt").read_text().splitlines()[:count]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def small(small_data: Path, export_cache: Path) -> list[str]:
    """What makes a config that of a small search."""
    sets = [f"{name}.path={small_data / name}.txt" for name in ("calibration", "validation", "test")]
    return [*sets, f"model.cache={export_cache}", "device.threads=1"]


@pytest.fixture(scope="module")
def config(small: list[str], demo_bundle: Bundle) -> Config:
    return load_config(ROOT / "configs/demo.toml", [*small, "search.max_trials=12"])


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> api.RunResult:
    return api.search(config, tmp_path_factory.mktemp("runs") / "run", reporter=Silence())


@pytest.mark.slow
def test_a_search_rejects_the_known_lists_and_finds_something_faster_that_is_stable(run: api.RunResult) -> None:
    by_stage = {trial.stage: trial for trial in run.trials}
    for landmark in ("all-low", "classic"):
        rejected = by_stage[landmark]
        assert rejected.verdict == "mismatch"
        assert rejected.exact_match == 0.0
        assert rejected.first_divergence is not None
        assert rejected.first_divergence.node is not None
        assert rejected.first_divergence.node.startswith("encoder.block.0.layer.0.layer_norm/")
    winner = run.choice.trial
    assert winner is not None
    assert winner.verdict == "stable"
    assert winner.exact_match == 1.0
    assert winner.latency is not None
    assert winner.latency.source == "estimated"
    assert winner.latency.speedup > 1.0
    assert run.exit_code == 0


@pytest.mark.slow
def test_plans_of_the_cut_cost_what_the_cut_expected(run: api.RunResult) -> None:
    expected = {trial.id: trial.expected_ms for trial in run.trials if trial.expected_ms is not None}
    # How many there are hangs on near-ties; the cut itself is always one.
    assert "cut" in {trial.stage for trial in run.trials if trial.id in expected}
    for trial in run.trials:
        if trial.id in expected and trial.latency is not None:
            assert trial.latency.p50_ms == pytest.approx(expected[trial.id], rel=0.01)


@pytest.mark.slow
def test_the_run_directory_holds_what_the_design_names(run: api.RunResult) -> None:
    names = {path.name for path in run.directory.iterdir()}
    assert {
        "config.toml",
        "run.json",
        "trials.jsonl",
        "pareto.csv",
        "blocklist.json",
        "model",
        "study.journal",
    } <= names
    info = json.loads((run.directory / "run.json").read_text())
    assert info["status"] == "complete"
    assert info["parity"]["status"] == "equal"
    assert info["best"]["test_match"]["value"] >= 0.8
    assert read_trials(run.directory / "trials.jsonl") == run.trials
    assert not [path for path in run.directory.rglob("*") if path.name.startswith(".")]


@pytest.mark.slow
def test_no_file_of_a_published_model_names_this_machine(run: api.RunResult) -> None:
    for path in (run.directory / "model").iterdir():
        assert str(ROOT).encode() not in path.read_bytes(), path.name


@pytest.mark.slow
def test_the_blocklist_stands_for_the_winner(run: api.RunResult, demo_bundle: Bundle) -> None:
    winner = run.choice.trial
    assert winner is not None
    blocklist = read_blocklist(run.directory / "blocklist.json")
    assert plan_of_blocklist(blocklist, demo_bundle.graphs) == winner.plan.plan


@pytest.mark.slow
def test_the_published_graphs_pass_the_checker_load_and_hold_low_weights(run: api.RunResult) -> None:
    low = 0
    for name in GRAPH_NAMES:
        path = run.directory / "model" / graph_file(name)
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert session.get_inputs()
        model = onnx.load(path)
        low += sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    assert low > 0


@pytest.mark.slow
def test_a_published_model_verifies_on_its_calibration_set(
    run: api.RunResult, small_data: Path, export_cache: Path
) -> None:
    report = api.verify(
        run.directory / "model",
        str(DEMO_MODEL),
        small_data / "calibration.txt",
        cache=export_cache,
        reporter=Silence(),
    )
    assert report.exact == report.samples == 24
    assert report.source == "emulated"


@pytest.mark.slow
def test_the_same_file_converted_all_low_fails_verification(
    run: api.RunResult, small_data: Path, export_cache: Path, demo_bundle: Bundle, tmp_path: Path
) -> None:
    from precision_search.precision.plan import Plan, pinned_keys
    from precision_search.published.publish import publish, publish_facts
    from precision_search.records.nodes_json import read_nodes
    from precision_search.records.run_files import read_run

    rejected = next(trial for trial in run.trials if trial.stage == "all-low")
    plan = Plan("float16", "base", pinned_keys(demo_bundle.graphs))
    facts = publish_facts(read_run(run.directory).info, read_nodes(run.directory), rejected)
    out = publish(demo_bundle, plan, facts, tmp_path / "low")
    data = small_data / "calibration.txt"
    report = api.verify(out, str(DEMO_MODEL), data, cache=export_cache, reporter=Silence())
    assert report.exact == 0
    assert len(report.differences) == 24
    assert report.differences[0].model != report.differences[0].reference


@pytest.mark.slow
def test_any_other_stable_plan_can_be_exported_and_no_other(run: api.RunResult, tmp_path: Path) -> None:
    other = next(trial for trial in run.trials if trial.verdict == "stable" and trial is not run.choice.trial)
    out = api.publish(run.directory, tmp_path / "other", plan=other.id, reporter=Silence())
    assert (out / "precision_search.json").is_file()
    assert read_blocklist(out / "blocklist.json").dtype == "float16"
    with pytest.raises(OutputExistsError):
        api.publish(run.directory, out, plan=other.id, reporter=Silence())
    with pytest.raises(UsageError, match="no stable plan 1"):
        api.publish(run.directory, tmp_path / "rejected", plan=1, reporter=Silence())
    with pytest.raises(UsageError, match="no stable plan 99"):
        api.publish(run.directory, tmp_path / "unknown", plan=99, reporter=Silence())


@pytest.mark.slow
def test_a_given_blocklist_is_judged_alone(run: api.RunResult, config: Config, tmp_path: Path) -> None:
    given = api.search(config, tmp_path / "given", blocklist=run.directory / "blocklist.json", reporter=Silence())
    assert [trial.stage for trial in given.trials] == ["fp32", "given"]
    winner = run.choice.trial
    assert winner is not None
    judged = given.trials[1]
    assert judged.plan == winner.plan
    assert (judged.verdict, judged.exact_match) == ("stable", 1.0)
    assert judged.min_margin is not None
    assert winner.min_margin is not None
    assert np.isclose(judged.min_margin, winner.min_margin, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_resuming_judges_nothing_twice_and_refuses_another_config(
    run: api.RunResult, config: Config, small_data: Path, export_cache: Path
) -> None:
    before = (run.directory / "trials.jsonl").read_bytes()
    again = api.search(config, run.directory, resume=True, reporter=Silence())
    assert (run.directory / "trials.jsonl").read_bytes() == before
    assert again.choice.trial == run.choice.trial
    other = load_config(run.directory / "config.toml", ["search.seed=5"])
    with pytest.raises(UsageError, match="config changed"):
        api.search(other, run.directory, resume=True, reporter=Silence())
    lines = (small_data / "calibration.txt").read_text().splitlines()
    (small_data / "calibration.txt").write_text("\n".join(lines[:-1]))
    try:
        with pytest.raises(UsageError, match="calibration file changed"):
            api.search(config, run.directory, resume=True, reporter=Silence())
    finally:
        (small_data / "calibration.txt").write_text("\n".join(lines))


@pytest.mark.slow
def test_pins_hold_in_every_plan(small: list[str], config: Config, tmp_path: Path) -> None:
    pinned = load_config(
        config.path,
        [
            *small,
            'search.keep_fp32=["lm_head/.*"]',
            'search.force_low=["decoder\\\\..*/Relu"]',
            "search.max_trials=4",
        ],
    )
    found = api.search(pinned, tmp_path / "run", reporter=Silence())
    assert [trial.stage for trial in found.trials][:2] == ["fp32", "forced-low"]
    for trial in found.trials[1:]:
        kept = set(trial.plan.nodes)
        assert {"lm_head/MatMul", "lm_head/Mul"} <= kept
        assert not [key for key in kept if key.startswith("decoder.") and key.endswith("/Relu")]


def test_a_dry_run_shows_config_and_space_and_writes_nothing(config: Config, tmp_path: Path) -> None:
    text = api.dry_run(config, reporter=Silence())
    assert "[search]" in text
    assert "# encoder: Add, Gather, MatMul" in text
    assert "encoder.block.0.layer.1.DenseReluDense.wo/MatMul" in text
    assert "decoder.block.0.layer.0.SelfAttention/Log: index arithmetic" in text


def test_an_existing_output_directory_is_left_alone(config: Config, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(OutputExistsError, match="already exists"):
        api.search(config, tmp_path, reporter=Silence())
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_resuming_where_no_run_is_says_so(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run to resume"):
        api.search(config, tmp_path / "nothing", resume=True, reporter=Silence())
    assert not (tmp_path / "nothing").exists()


def test_a_strategy_that_does_not_fit_the_budget_leaves_nothing_behind(
    small: list[str], config: Config, tmp_path: Path
) -> None:
    exhaustive = load_config(config.path, [*small, "search.strategy=exhaustive", "search.max_trials=5"])
    with pytest.raises(ConfigError, match="judges 2097152 plans"):
        api.search(exhaustive, tmp_path / "run", reporter=Silence())
    assert not (tmp_path / "run").exists()
