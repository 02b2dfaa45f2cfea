"""The promises on models other than the demo, and as people run them: published, or exported by somebody else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from precision_search import Seq2SeqGenerator
from precision_search.cost.estimate import CostModel, Workload
from precision_search.cost.shapes import Point
from precision_search.device.profile import load_profile
from precision_search.model.bundle import open_bundle
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.hf_files import copy_hf_files
from precision_search.model.layout import graph_file
from precision_search.model.onnx_files import write_model
from precision_search.precision.convert import convert
from precision_search.published.load import FACTS_FILE
from tests.checkpoints import SPECS, open_once, saved_checkpoints, trace
from tests.dry_cuda.conftest import PlainRuns
from tests.dry_cuda.host import DryCuda
from tests.dry_cuda.recorder import Recorder
from tests.dry_cuda.scenarios import PLANS, Demo, Node, run_plain
from tests.dry_cuda.trace import Section

pytestmark = pytest.mark.slow

CHECKPOINTS = tuple(name for name, *_ in SPECS if name != "t5-float16")  # its fp32 graphs are those of t5-bfloat16
"""A checkpoint with a deeper decoder, and gated ones with untied embeddings or a single layer."""

POINTS = (Point(3, 5, target=1, past=2), Point(1, 1, target=1, past=1))
STEPS = 6
CHECK_EVERY = 4

by_checkpoint = pytest.mark.parametrize("checkpoint", CHECKPOINTS)


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a published model: where it lies and which rows it is given; the second call is the one recorded."""

    directory: Path
    rows: tuple[int, ...]
    with_margins: bool = False


@dataclass(frozen=True, slots=True)
class Used:
    """What the second call did, the level it ran at, and by graph the nodes of both."""

    level: str
    sections: tuple[Section, ...]
    nodes: Mapping[str, tuple[Node, ...]]


def use(uses: Sequence[Use], folder: Path) -> list[Used]:
    """Loads each model on the device and generates with it; in the child."""
    found = []
    for each in uses:
        with Recorder(folder) as recorder:
            generator = Seq2SeqGenerator.from_pretrained(each.directory, device="cuda")
            rows = [[5] * length for length in each.rows]
            for _ in range(2):
                recorder.take()
                generator.generate(rows, max_new_tokens=STEPS, with_margins=each.with_margins)
            sections = recorder.take()
        nodes = {graph: tuple(Node(*node) for node in ran) for graph, ran in recorder.nodes.items()}
        found.append(Used(generator.optimization_level, sections, nodes))
    return found


@pytest.fixture(scope="module")
def sources(export_cache: Path) -> dict[str, Demo]:
    folder = saved_checkpoints(export_cache).resolve()
    for name in CHECKPOINTS:
        open_once(folder / name, export_cache.resolve())  # before a child exports it
    return {name: Demo(folder / name, export_cache.resolve()) for name in CHECKPOINTS}


@pytest.fixture(scope="module")
def plain(dry_cuda: DryCuda, sources: dict[str, Demo]) -> dict[str, PlainRuns]:
    return {name: dry_cuda.call(run_plain, demo=source, points=POINTS) for name, source in sources.items()}


@by_checkpoint
@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"batch {point.batch}")
def test_the_cost_model_counts_every_launch(
    sources: dict[str, Demo], plain: dict[str, PlainRuns], checkpoint: str, point: Point
) -> None:
    bundle = sources[checkpoint].open()
    model = CostModel(bundle.models, Workload(point.batch, point.source, 5), load_profile("a100"))
    for plan, make in PLANS.items():
        models = convert(bundle.graphs, make(bundle)).models
        counted = {name: plain[checkpoint][plan, name, point].section.launches for name in GRAPH_NAMES}
        assert model.launches(models) == counted


@by_checkpoint
def test_every_compute_node_runs_on_the_device_and_none_is_merged_away(
    sources: dict[str, Demo], plain: dict[str, PlainRuns], checkpoint: str
) -> None:
    graphs = sources[checkpoint].open().graphs
    for (_, name, _), run in plain[checkpoint].items():
        on_device = {node.name for node in run.nodes if node.provider == "CUDAExecutionProvider"}
        assert {node.key for node in graphs[name].compute} <= on_device


def publish(source: Demo, plan: str, level: str, directory: Path, **generation: object) -> Path:
    """A model directory as a run writes it, as far as loading reads it."""
    bundle = open_bundle(str(source.model), source.cache)
    directory.mkdir()
    for name, model in convert(bundle.graphs, PLANS[plan](bundle)).models.items():
        write_model(model, directory / graph_file(name))
    copy_hf_files(bundle.path, directory)
    (directory / FACTS_FILE).write_text(json.dumps({"settings": {"optimization_level": level, "use_tf32": False}}))
    settings = directory / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | generation))
    return directory


@pytest.fixture(scope="module")
def used(
    dry_cuda: DryCuda, sources: dict[str, Demo], export_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Use, Used]]:
    folder = tmp_path_factory.mktemp("published")
    trace(sources["t5-bfloat16"].model, folder / "traced", export_cache)
    (folder / "traced/tokenizer.json").write_bytes((sources["t5-bfloat16"].model / "tokenizer.json").read_bytes())
    gated, mt5, half = sources["t5-v1_1"], sources["mt5"], sources["t5-bfloat16"]
    forced = {"forced_bos_token_id": 7, "forced_eos_token_id": 1}
    rules = {"suppress_tokens": [5, 6], "begin_suppress_tokens": [8, 9], "min_new_tokens": 2}
    uses = {
        "gated, basic": Use(publish(gated, "all low", "basic", folder / "gated"), (1, 4, 7)),
        "one layer, all": Use(publish(mt5, "fp32", "all", folder / "mt5"), (1,)),
        "forced, rules, margins": Use(
            publish(half, "cut", "basic", folder / "half", **forced, **rules), (3, 3), with_margins=True
        ),
        "exported by another tool": Use(folder / "traced", (2, 5)),
    }
    (folder / "profiles").mkdir()
    found = dry_cuda.call(use, uses=list(uses.values()), folder=folder / "profiles")
    return dict(zip(uses, zip(uses.values(), found, strict=True), strict=True))


USES = ("gated, basic", "one layer, all", "forced, rules, margins", "exported by another tool")
by_use = pytest.mark.parametrize("name", USES)


@by_use
def test_published_models_move_nothing_in_a_run(used: dict[str, tuple[Use, Used]], name: str) -> None:
    _, found = used[name]
    runs = [section for section in found.sections if section.phase == "run"]
    assert [section.graph for section in runs] == ["encoder", "decoder", *["decoder_with_past"] * (STEPS - 1)]
    for section in runs:
        assert section.launches > 50
        assert (section.moved("h2d"), section.moved("d2h")) == ((), ())
    for graph in GRAPH_NAMES:
        assert not [node for node in found.nodes[graph] if node.op_type.startswith("Memcpy")]
    assert found.level == ("all" if name.endswith("all") else "basic")


def test_no_norm_of_a_model_from_another_tool_is_merged(used: dict[str, tuple[Use, Used]]) -> None:
    use, found = used["exported by another tool"]
    config = json.loads((use.directory / "config.json").read_text())
    for graph in GRAPH_NAMES:
        norms = 2 * config["num_layers"] + 1 if graph == "encoder" else 3 * config["num_decoder_layers"] + 1
        written = {
            node.name
            for node in onnx.load(use.directory / graph_file(graph)).graph.node
            if "norm" in node.name.lower() and node.op_type in {"Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"}
        }
        assert len(written) == 7 * norms  # Pow, ReduceMean, Add, Sqrt, Div, and Mul twice
        assert sorted(written - {node.name for node in found.nodes[graph]}) == []


@by_use
def test_published_models_upload_ids_and_read_flags_and_histories(used: dict[str, tuple[Use, Used]], name: str) -> None:
    use, found = used[name]
    batch, ids = len(use.rows), len(use.rows) * max(use.rows) * 8
    copies = [copy for section in found.sections if section.phase == "binding" for copy in section.copies]
    assert [copy.bytes for copy in copies if copy.direction == "h2d"] == [ids, ids]
    reads = [copy.bytes for copy in copies if copy.direction == "d2h"]
    assert reads[: (STEPS - 1) // CHECK_EVERY] == [batch] * ((STEPS - 1) // CHECK_EVERY)
    assert len(reads) == (STEPS - 1) // CHECK_EVERY + (4 if use.with_margins else 3)
    assert [size for section in found.sections for size in section.tensors] == [ids, ids]
