"""Publishing: a complete directory that computes what was judged, there all at once or not at all, nothing private."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from precision_search.errors import EnvironmentProblemError, InternalError, OutputExistsError
from precision_search.model import onnx_files as model_files
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.graph import GRAPH_NAMES, GraphName
from precision_search.model.onnx_files import load_model
from precision_search.precision.blocklist import Blocklist, blocklist_from_json, plan_of_blocklist
from precision_search.precision.convert import convert
from precision_search.precision.emulate import widen
from precision_search.precision.low import LowDtype
from precision_search.precision.plan import Plan, all_compute_keys, pinned_keys
from precision_search.precision.weights import WeightCache
from precision_search.published import publish as publishing
from precision_search.published.facts import read_model_facts
from precision_search.published.publish import publish
from tests.graphs import run_t5, same, tiny_feeds
from tests.output_models import HF_CONTENT, publish_facts_of_a_run, tiny_bundle

FACTS = publish_facts_of_a_run()
ONNX_FILES = {"encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"}
OUR_FILES = {"precision_search.json", "blocklist.json", "README.md"}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "source")


def everything_in_fp32(bundle: Bundle) -> Plan:
    return Plan("float16", "base", all_compute_keys(bundle.graphs))


def norms_in_fp32(bundle: Bundle, dtype: LowDtype = "float16") -> Plan:
    op_types = ("Pow", "ReduceMean", "Sqrt", "Reciprocal", "Softmax")
    there = {node.op_type for graph in bundle.graphs.values() for node in graph.compute}
    kept = tuple(op_type for op_type in op_types if op_type in there)
    return plan_of_blocklist(Blocklist(dtype, "base", {"encoder": kept, "decoder": kept}, (), {}), bundle.graphs)


def models_in(directory: Path) -> dict[GraphName, ir.Model]:
    return {name: load_model(directory / f"{name}_model.onnx") for name in GRAPH_NAMES}


def widened(models: Mapping[GraphName, ir.Model]) -> dict[GraphName, ir.Model]:
    return {name: widen(model, WeightCache()) for name, model in models.items()}


def test_the_directory_has_the_usual_layout(bundle: Bundle, tmp_path: Path) -> None:
    out = publish(bundle, norms_in_fp32(bundle), FACTS, tmp_path / "runs" / "deep" / "model")
    assert {path.name for path in out.iterdir()} == ONNX_FILES | OUR_FILES | set(HF_CONTENT)
    for name, content in HF_CONTENT.items():
        assert (out / name).read_text() == content
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_each_file_passes_the_checker_and_loads(bundle: Bundle, tmp_path: Path) -> None:
    out = publish(bundle, norms_in_fp32(bundle), FACTS, tmp_path / "model")
    for name in ONNX_FILES:
        onnx.checker.check_model(str(out / name), full_check=True)
        onnxruntime.InferenceSession(str(out / name), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_published_computes_what_was_judged(bundle: Bundle, tmp_path: Path, dtype: LowDtype) -> None:
    plan = norms_in_fp32(bundle, dtype)
    out = publish(bundle, plan, FACTS, tmp_path / "model")
    published = run_t5(widened(models_in(out)), tiny_feeds())
    judged = run_t5(widened(convert(bundle.graphs, plan).models), tiny_feeds())
    assert all(same(published[name], judged[name]) for name in GRAPH_NAMES)
    fp32 = run_t5(bundle.models, tiny_feeds())
    assert not any(same(published[name], fp32[name]) for name in GRAPH_NAMES)


def test_the_published_blocklist_is_the_plan(bundle: Bundle, tmp_path: Path) -> None:
    plan = norms_in_fp32(bundle)
    out = publish(bundle, plan, FACTS, tmp_path / "model")
    content = json.loads((out / "blocklist.json").read_text())
    assert plan_of_blocklist(blocklist_from_json(content, "it"), bundle.graphs) == plan
    facts = read_model_facts(out)
    assert facts.plan.to_json() == content
    assert facts.plan_digest == plan.digest
    assert facts.content_hash == bundle.content_hash
    assert (facts.settings, facts.verdict, facts.samples) == (FACTS.settings, FACTS.verdict, FACTS.samples)
    assert f"`{plan.digest}`" in (out / "README.md").read_text()


def test_every_file_carries_its_provenance(bundle: Bundle, tmp_path: Path) -> None:
    plan = norms_in_fp32(bundle)
    reasons = {key: f"because of {key}" for key in sorted(all_compute_keys(bundle.graphs))[1:]}
    out = publish(bundle, plan, replace(FACTS, reasons=reasons), tmp_path / "model")
    for name, model in models_in(out).items():
        noted = model.metadata_props
        assert noted["precision_search.plan_digest"] == plan.digest
        assert noted["precision_search.content_hash"] == bundle.content_hash
        assert noted["precision_search.verdict.verdict"] == "stable"
        assert noted["precision_search.verdict.source"] == "emulated"
        assert noted["precision_search.verdict.test_match.value"] == "0.98"
        assert noted["precision_search.samples.test.hash"] == "ef" * 32
        assert noted["precision_search.samples.test.count"] == "200"
        assert noted["precision_search.versions.onnxruntime"] == "1.31.1"
        assert noted["precision_search.latency.source"] == "estimated"
        assert "precision_search.versions.transformers" not in noted
        assert noted["precision_search.tool_version"] == "0.1.0" == model.producer_version
        kept = blocklist_from_json(json.loads(noted["precision_search.blocklist"]), "it")
        assert plan_of_blocklist(kept, bundle.graphs) == plan
        compute = {node.key for node in bundle.graphs[name].compute}
        for node in model.graph:
            written = node.metadata_props.get("precision")
            dtype = node.outputs[0].dtype
            assert written == (dtype and {1: "float32", 10: "float16"}[dtype] if node.name in compute else None)
            assert node.metadata_props.get("why") == reasons.get(str(node.name))


def test_nothing_private_is_published(bundle: Bundle, tmp_path: Path) -> None:
    trace = 'File "/home/alice/secret/train.py", line 3'
    for model in bundle.models.values():
        for noted in (model, model.graph, *model.graph, *(value for node in model.graph for value in node.outputs)):
            noted.doc_string = trace
            noted.metadata_props["pkg.torch.onnx.stack_trace"] = trace
    out = publish(bundle, norms_in_fp32(bundle), FACTS, tmp_path / "model")
    for path in out.iterdir():
        content = path.read_bytes()
        assert b"alice" not in content
        assert str(tmp_path).encode() not in content
    # The bundle goes on being used: its own graphs are as they were.
    for model in bundle.models.values():
        assert model.doc_string == trace
        assert all(node.doc_string == trace for node in model.graph)


def test_the_same_plan_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    first, second = (publish(bundle, norms_in_fp32(bundle), FACTS, tmp_path / name) for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_everything_in_fp32_is_published_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    out = publish(bundle, everything_in_fp32(bundle), FACTS, tmp_path / "model")
    published = models_in(out)
    for name, graph in bundle.graphs.items():
        assert [node.name for node in published[name].graph] == list(graph.nodes)
    feeds = tiny_feeds()
    own, theirs = run_t5(published, feeds), run_t5(bundle.models, feeds)
    assert all(same(own[name], theirs[name]) for name in GRAPH_NAMES)
    plan = plan_of_blocklist(read_model_facts(out).plan, bundle.graphs)
    assert plan.fp32 == all_compute_keys(bundle.graphs)
    assert ", fp32\n" in (out / "README.md").read_text()


def test_large_weights_go_into_files_beside_the_graphs(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "EXTERNAL_DATA_THRESHOLD", 1000)
    plan = norms_in_fp32(bundle)
    out = publish(bundle, plan, FACTS, tmp_path / "model")
    assert {path.name for path in out.glob("*.onnx_data")} == {f"{name}_data" for name in ONNX_FILES}
    moved = out.rename(tmp_path / "moved")
    published = run_t5(widened(models_in(moved)), tiny_feeds())
    judged = run_t5(widened(convert(bundle.graphs, plan).models), tiny_feeds())
    assert all(same(published[name], judged[name]) for name in GRAPH_NAMES)


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_what_exists_is_never_touched(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "model"
    match kind:
        case "directory":
            out.mkdir()
        case "file":
            out.write_text("mine")
        case "link":
            out.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputExistsError, match="already exists") as caught:
        publish(bundle, everything_in_fp32(bundle), FACTS, out)
    assert caught.value.exit_code == 2
    assert sorted(tmp_path.iterdir()) == before
    assert kind != "file" or out.read_text() == "mine"


@pytest.mark.parametrize("error", [InternalError("broken"), KeyboardInterrupt(), OSError("disk full")])
def test_a_failure_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(publishing, "check_published", fail)
    expected = EnvironmentProblemError if isinstance(error, OSError) else type(error)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(expected):
        publish(bundle, everything_in_fp32(bundle), FACTS, tmp_path / "model")
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_that_appears_meanwhile_is_not_replaced(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    monkeypatch.setattr(publishing, "check_published", lambda *_: out.mkdir())
    with pytest.raises(OutputExistsError):
        publish(bundle, everything_in_fp32(bundle), FACTS, out)
    assert list(out.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentProblemError, match="cannot write") as caught:
        publish(bundle, everything_in_fp32(bundle), FACTS, tmp_path / "file" / "model")
    assert caught.value.exit_code == 3


def test_the_demo_model_is_published_and_opened_again(demo_bundle: Bundle, tmp_path: Path) -> None:
    plan = Plan("float16", "base", pinned_keys(demo_bundle.graphs))
    out = publish(demo_bundle, plan, FACTS, tmp_path / "low")
    assert sum(path.stat().st_size for path in out.glob("*.onnx")) < 0.6 * sum(
        path.stat().st_size for path in demo_bundle.path.glob("*.onnx")
    )
    again = open_bundle(
        str(publish(demo_bundle, everything_in_fp32(demo_bundle), FACTS, tmp_path / "fp32")), tmp_path / "cache"
    )
    for name, graph in demo_bundle.graphs.items():
        assert list(again.graphs[name].nodes.values()) == list(graph.nodes.values())
    assert again.config == demo_bundle.config
    assert again.generation == demo_bundle.generation
