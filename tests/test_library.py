"""The library as people use it: each step of a run as a function, plain paths, no reporter, nothing private left."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import onnx
import pytest

import precision_search
from precision_search import api, load_config
from precision_search.config import default_cache
from precision_search.display.reporters import QuietReporter
from precision_search.errors import EnvironmentProblemError, InputError, OutputExistsError, UsageError
from precision_search.model import bundle as bundle_module
from precision_search.model.bundle import open_bundle
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.layout import graph_file
from precision_search.precision.blocklist import plan_of_blocklist, read_blocklist
from precision_search.precision.plan import all_compute_keys
from precision_search.published.facts import read_model_facts
from precision_search.records.nodes_json import NODES_FILE, read_nodes
from tests.cli_models import invoke
from tests.tiny_model import write_tiny_config, write_tiny_model

PLACE = "/home/alice/private/checkpoint-7"
SECRET = "hf_" + "q9Z8" * 9
FUNCTIONS = (
    "calibrate",
    "doctor",
    "dry_run",
    "export_bundle",
    "inspect",
    "optimize",
    "pareto",
    "publish",
    "report",
    "search",
    "verify",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose configs tell where it came from and with which token, and a run of it."""
    folder = tmp_path_factory.mktemp("home-of-alice")
    config = write_tiny_config(folder, "nodes")
    model = folder / "model"
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**content, "_name_or_path": PLACE, "use_auth_token": SECRET}))
    (model / "tokenizer_config.json").write_text(json.dumps({"name_or_path": PLACE, "model_max_length": 64}))
    api.search(load_config(config), str(folder / "run"))
    return folder


def test_every_function_of_the_command_line_is_there_and_documented() -> None:
    assert set(FUNCTIONS) <= set(api.__all__)
    assert set(api.__all__) <= set(precision_search.__all__)
    for name in FUNCTIONS:
        function = getattr(api, name)
        assert getattr(precision_search, name) is function
        assert function.__doc__
        assert "return" in function.__annotations__
    assert api.Seq2SeqGenerator is precision_search.Seq2SeqGenerator


def test_without_a_reporter_nothing_is_printed_but_warnings(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown = api.dry_run(load_config(folder / "tiny.toml"))
    assert "[workload]" in shown
    assert "\n# ceiling: at most 1." in shown
    said = capfd.readouterr()
    assert said.out == ""
    assert all(line.startswith("warning: ") for line in said.err.splitlines())


def test_the_steps_of_a_run_take_plain_paths(folder: Path, tmp_path: Path) -> None:
    run, data = str(folder / "run"), str(folder / "test.txt")
    table = api.pareto(run)
    winner = table.choice.trial
    assert winner is not None
    model = api.publish(run, str(tmp_path / "model"), plan=winner.id)
    assert model == tmp_path / "model"
    report = api.verify(str(model), str(folder / "model"), data, cache=str(tmp_path / "cache"))
    stored = json.loads((folder / "run/run.json").read_text())
    assert report.exact_match == stored["best"]["test_match"]["value"]
    assert report.data_hash == stored["samples"]["test"]["hash"]
    assert api.inspect(str(folder / "model"), data=data).samples == report.samples
    generator = api.Seq2SeqGenerator.from_pretrained(str(model), device="cpu")
    lines = Path(data).read_text().splitlines()
    differing = {sample.index for sample in report.differences}
    fp32 = api.Seq2SeqGenerator.from_pretrained(api.export_bundle(folder / "model", tmp_path / "fp32"), device="cpu")
    pairs = zip(generator.generate(lines).ids, fp32.generate(lines).ids, strict=True)
    assert {index for index, (low, full) in enumerate(pairs) if low != full} == differing


def test_table_card_and_report_count_what_stays_in_fp32_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node key once, pinned ones included."""
    run = folder / "run"
    winner = api.pareto(run).choice.trial
    assert winner is not None
    every = all_compute_keys(open_bundle(str(folder / "model"), folder / "cache").graphs)
    kept = f"{len(every & winner.plan.plan.fp32)} of {len(every)}"

    assert f"{winner.fp32_decisions} of {winner.decisions}" == kept
    monkeypatch.setenv("COLUMNS", "200")  # else the column is among those that a narrow terminal does without
    chosen = next(line for line in invoke("pareto", run).stdout.splitlines() if line.startswith(">"))
    assert f" {kept} " in chosen
    assert f"{kept} nodes in fp32" in (run / "model/README.md").read_text()
    numbers = json.loads((run / "model/precision_search.json").read_text())["numbers"]
    assert f"{numbers['fp32_decisions']} of {numbers['decisions']}" == kept
    report = (run / "report.html").read_text()
    assert f'"in_fp32":"{kept}"' in report.replace('": "', '":"')
    assert re.search(rf"In fp32\W[^0-9]*{kept}\b", report)


def test_a_plan_to_publish_is_named_once(folder: Path, tmp_path: Path) -> None:
    """`candidate` is the former name of `plan`."""
    with pytest.raises(UsageError, match="plan and candidate are given"):
        api.publish(folder / "run", tmp_path / "model", plan=0, candidate=0)
    with pytest.raises(UsageError, match="has no stable plan 99"):
        api.publish(folder / "run", tmp_path / "model", candidate=99)


def test_a_bundle_is_exported_with_keyed_nodes_and_opens_as_the_same(folder: Path, tmp_path: Path) -> None:
    out = api.export_bundle(folder / "model", tmp_path / "deep/fp32")
    before, after = (open_bundle(str(path), tmp_path) for path in (folder / "model", out))
    for name in GRAPH_NAMES:
        assert list(after.graphs[name].nodes.values()) == list(before.graphs[name].nodes.values())
        onnx.checker.check_model(str(out / graph_file(name)), full_check=True)
    names = {node.name for name in GRAPH_NAMES for node in onnx.load(out / graph_file(name)).graph.node}
    plan = plan_of_blocklist(read_blocklist(folder / "run/blocklist.json"), before.graphs)
    assert plan.fp32 <= names
    assert after.config == before.config
    assert [path.name for path in out.parent.iterdir()] == ["fp32"]


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_an_export_overwrites_nothing(folder: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    match kind:
        case "directory":
            out.mkdir()
        case "file":
            out.write_text("mine")
        case "link":
            out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError, match="already exists") as caught:
        api.export_bundle(folder / "model", out)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_fails_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "copy_hf_files", full)
    with pytest.raises(EnvironmentProblemError, match="cannot write") as caught:
        api.export_bundle(folder / "model", tmp_path / "out")
    assert "No space left" in str(caught.value)
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no model directory"):
        api.export_bundle(tmp_path / "nothing", tmp_path / "out")


def test_every_compute_node_of_a_published_model_says_why(folder: Path) -> None:
    reasons = set()
    keys = {node.key for node in read_nodes(folder / "run").nodes}
    for name in GRAPH_NAMES:
        model = onnx.load(folder / "run/model" / graph_file(name))
        noted = {node.name: {prop.key: prop.value for prop in node.metadata_props} for node in model.graph.node}
        compute = {key: note for key, note in noted.items() if note}
        assert compute.keys() == noted.keys() & keys
        assert all(note.keys() == {"precision", "why"} for note in compute.values())
        reasons |= {note["why"] for note in compute.values()}
    assert any("beyond the range" in reason for reason in reasons)
    assert any("within range" in reason for reason in reasons)


def test_the_metadata_of_each_graph_tells_the_facts_of_the_model(folder: Path) -> None:
    facts = read_model_facts(folder / "run/model")
    for name in GRAPH_NAMES:
        model = onnx.load(folder / "run/model" / graph_file(name))
        noted = {prop.key.removeprefix("precision_search."): prop.value for prop in model.metadata_props}
        assert noted["samples.calibration.hash"] == facts.samples.calibration.hash
        assert noted["samples.calibration.count"] == str(facts.samples.calibration.count)
        assert facts.verdict.test_match is not None
        assert json.loads(noted["verdict.test_match.low"]) == facts.verdict.test_match.low
        assert noted["versions.onnxruntime"] == facts.versions.onnxruntime
        assert json.loads(noted["numbers.casts"]) == facts.numbers.casts
        assert noted["latency.source"] == "estimated"
        assert json.loads(noted["blocklist"]) == facts.plan.to_json()


def test_neither_places_nor_secrets_are_in_what_a_run_leaves_for_others(folder: Path, tmp_path: Path) -> None:
    """`config.toml` is a run's own: it names paths, so that the run can go on."""
    api.export_bundle(folder / "model", tmp_path / "fp32")
    files = [path for path in (folder / "run").rglob("*") if path.is_file() and path.name != "config.toml"]
    files += [path for path in (tmp_path / "fp32").iterdir() if path.is_file()]
    assert {"run.json", "README.md", "config.json", "encoder_model.onnx"} <= {path.name for path in files}
    private = (PLACE, SECRET, str(folder), str(Path.home()), str(Path(precision_search.__file__).parent))
    for path in files:
        content = path.read_bytes()
        assert not any(text.encode() in content for text in private), path.name


def test_the_default_cache_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "precision-search"


def test_another_seed_is_another_model_that_a_run_does_not_publish(folder: Path, tmp_path: Path) -> None:
    """What was searched is published, not what lies there now."""
    config = write_tiny_config(tmp_path, "op-types", max_trials=1)
    api.search(load_config(config), tmp_path / "run")
    for path in (tmp_path / "model").iterdir():
        path.unlink()
    (tmp_path / "model").rmdir()
    write_tiny_model(tmp_path / "model", seed=1)
    with pytest.raises(precision_search.PrecisionSearchError, match="is not the one that") as caught:
        api.publish(tmp_path / "run", tmp_path / "out")
    assert caught.value.exit_code == 2


def test_a_reporter_is_closed_whatever_happens(folder: Path, tmp_path: Path) -> None:
    """A live line hides the cursor: an error must not leave a terminal without one."""

    class Watched(QuietReporter):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    watched = Watched(io.StringIO())
    with pytest.raises(InputError):
        api.verify(tmp_path / "nothing", folder / "model", folder / "test.txt", reporter=watched)
    assert watched.closed == 1
    with pytest.raises(OutputExistsError):
        api.search(load_config(folder / "tiny.toml"), folder / "run", reporter=watched)
    assert watched.closed == 2
    api.inspect(folder / "model", reporter=watched)
    assert watched.closed == 3


def test_a_run_without_the_record_of_its_nodes_is_published_without_reasons(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    (run / NODES_FILE).unlink()
    model = onnx.load(api.publish(run, tmp_path / "model") / graph_file("encoder"))
    noted = [{prop.key for prop in node.metadata_props} for node in model.graph.node]
    assert {"precision"} in noted
    assert not any("why" in names for names in noted)


def test_an_export_of_the_winner_is_the_run_s_own_model(folder: Path, tmp_path: Path) -> None:
    out = api.publish(folder / "run", tmp_path / "model")
    for path in (folder / "run/model").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
