"""What other people's fp16 converters make of our blocklist: the page's code runs, and does what the page says."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import onnx
import pytest

from precision_search import api
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GRAPH_NAMES, GraphName
from precision_search.precision.blocklist import plan_of_blocklist, read_blocklist
from precision_search.precision.convert import convert
from precision_search.precision.plan import pinned_keys
from precision_search.published.load import load_published
from tests.around.page import PAGE, code_under
from tests.conftest import DEMO_DATA, DEMO_MODEL, ROOT

pytestmark = pytest.mark.slow

BLOCKLIST = ROOT / "tests/docs_pages/demo_blocklist.json"
"""What a run of the demo found."""

CONVERTERS = ("onnxconverter_common", "onnxruntime.transformers")
STALE_TYPE = "does not match expected type (tensor(float))"
SAME_NAME = "two nodes with same node name (scalar_tensor_default_cast_to_fp32_node)"
BOUND_TWICE = "Type parameter (T) of Optype (MatMul) bound to different types"

Model = onnx.ModelProto
Page = Mapping[str, Any]


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """The converters warn of every constant that they cut off, and say nothing with it that the results do not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def page(demo_bundle: Bundle, export_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The names that the first two blocks of the page define, run beside a run of the demo."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "RUN").mkdir()
    shutil.copy(BLOCKLIST, folder / "RUN/blocklist.json")
    pinned = {"model": {"pinned": sorted(pinned_keys(demo_bundle.graphs))}}
    (folder / "RUN/run.json").write_text(json.dumps(pinned))
    api.export_bundle(DEMO_MODEL, folder / "exported", cache=export_cache)
    defined: dict[str, Any] = {}
    for block in code_under("The fp16 converters")[:2]:
        here = block.replace('"RUN"', repr(str(folder / "RUN"))).replace('"MODEL"', repr(str(folder / "exported")))
        exec(here.replace('"fp32"', repr(str(folder / "fp32"))), defined)
    return defined


@dataclass(frozen=True, slots=True)
class Bench:
    """The page's names, the demo in fp32, and a folder to write to."""

    page: Page
    bundle: Bundle
    folder: Path

    def convert(self, converter: str, name: GraphName, *, keep_io_types: bool = False) -> Model:
        """A graph by a converter as the page calls it."""
        module = import_module(f"{converter}.float16")

        def run(model: Model, **options: Any) -> Model:
            result: Model = module.convert_float_to_float16(model, **options | {"keep_io_types": keep_io_types})
            return result

        defaults = module.DEFAULT_OP_BLOCK_LIST
        result: Model = self.page["convert"](
            SimpleNamespace(DEFAULT_OP_BLOCK_LIST=defaults, convert_float_to_float16=run), name
        )
        return result

    def write(self, converter: str, repair: Callable[[Model], Model]) -> Path:
        """A model directory of what the converter gives, repaired."""
        out = self.folder / "out"
        out.mkdir()
        for name in GRAPH_NAMES:
            onnx.save(repair(self.convert(converter, name)), out / f"{name}_model.onnx")
        for file in self.bundle.path.glob("*.json"):
            shutil.copy(file, out)
        return out

    def verify(self, model: Path) -> tuple[int, int, int]:
        """How many calibration sentences are exact, how many there are, how many were not finite."""
        report = api.verify(model, self.page["fp32"], DEMO_DATA / "calibration.txt", device="cpu")
        return report.exact, report.samples, report.nonfinite


@pytest.fixture
def bench(page: Page, demo_bundle: Bundle, tmp_path: Path) -> Bench:
    return Bench(page, demo_bundle, tmp_path)


def with_round_trips(page: Page, model: Model) -> Model:
    """The page's repair but for the fp16 round trips between fp32 nodes, which stay."""
    repair = FunctionType(page["repaired"].__code__, dict(page) | {"casts_to": lambda node, dtype: False})
    repaired: Model = repair(model)
    return repaired


def said_by_onnxruntime(model: Model) -> str | None:
    """Why ONNX Runtime does not load a graph, None where it does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # one class for each status code
        return str(error).splitlines()[0]
    return None


def casts(models: Mapping[Any, Model]) -> int:
    return sum(node.op_type == "Cast" for model in models.values() for node in model.graph.node)


@pytest.mark.parametrize(("converter", "why"), [(CONVERTERS[0], STALE_TYPE), (CONVERTERS[1], SAME_NAME)])
@pytest.mark.parametrize("keep_io_types", [False, True])
@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_what_they_write_does_not_load(
    name: GraphName, keep_io_types: bool, converter: str, why: str, bench: Bench
) -> None:
    model = bench.convert(converter, name, keep_io_types=keep_io_types)
    assert why in (said_by_onnxruntime(model) or "it loads")


@pytest.mark.parametrize("converter", CONVERTERS)
def test_repaired_it_loads_but_for_fp32_inputs_and_outputs_with_one_of_them(converter: str, bench: Bench) -> None:
    repaired = bench.page["repaired"]
    for name in GRAPH_NAMES:
        assert said_by_onnxruntime(repaired(bench.convert(converter, name))) is None
        said = said_by_onnxruntime(repaired(bench.convert(converter, name, keep_io_types=True)))
        if converter == CONVERTERS[0] and name != "encoder":
            assert BOUND_TWICE in (said or "it loads")
        else:
            assert said is None


@pytest.mark.parametrize(("converter", "exact", "added"), [(CONVERTERS[0], 98, 194), (CONVERTERS[1], 100, 393)])
def test_repaired_it_has_our_types_and_nearly_our_tokens(converter: str, exact: int, added: int, bench: Bench) -> None:
    out = bench.write(converter, bench.page["repaired"])
    graphs = bench.bundle.graphs
    ours = convert(graphs, plan_of_blocklist(read_blocklist(BLOCKLIST), graphs))
    theirs = load_published(out).graphs
    for name, graph in graphs.items():
        wanted, made = (
            {str(node.name): node.outputs[0].dtype for node in models[name].graph} for models in (ours.models, theirs)
        )
        assert {node.key: made.get(node.key) for node in graph.compute} == {
            node.key: wanted[node.key] for node in graph.compute
        }
    stored = {name: onnx.load(out / f"{name}_model.onnx") for name in GRAPH_NAMES}
    plain = {name: onnx.load(bench.page["fp32"] / f"{name}_model.onnx") for name in GRAPH_NAMES}
    assert (ours.casts, casts(stored) - casts(plain)) == (68, added)
    assert bench.verify(out) == (exact, 100, 0)


@pytest.mark.parametrize(("converter", "nonfinite"), [(CONVERTERS[0], 100), (CONVERTERS[1], 0)])
def test_with_round_trips_between_fp32_nodes_it_is_garbage(converter: str, nonfinite: int, bench: Bench) -> None:
    out = bench.write(converter, lambda model: with_round_trips(bench.page, model))
    assert bench.verify(out) == (0, 100, nonfinite)


def test_the_last_block_of_the_page_writes_a_model_that_verifies(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(code_under("The fp16 converters")[2], dict(page))
    (tmp_path / "few.txt").write_text("\n".join((DEMO_DATA / "test.txt").read_text().splitlines()[:30]))
    assert api.verify("converted", page["fp32"], "few.txt", device="cpu").exact_match > 0.9


def test_the_page_names_the_versions_and_messages_tried() -> None:
    text = PAGE.read_text()
    for package in ("onnxconverter-common", "optuna-dashboard", "netron"):
        assert version(package) in text
    assert version("onnxruntime-gpu") in text
    for said in (STALE_TYPE, SAME_NAME, BOUND_TWICE):
        assert said in " ".join(text.split())
