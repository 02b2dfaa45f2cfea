"""What other people's fp16 converters make of our blocklist: the page's code runs, and what comes out is what it says."""

from __future__ import annotations

import json
import shutil
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import pytest

from precision_search import api
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GRAPH_NAMES, GraphName
from precision_search.precision.convert import convert
from precision_search.precision.plan import pinned_keys, plan_of_blocklist, read_blocklist
from precision_search.search.candidate import load_candidate
from tests.around.page import PAGE, code_under
from tests.conftest import DEMO_DATA, DEMO_MODEL

pytestmark = pytest.mark.slow

BLOCKLIST = Path(__file__).parent / "around/demo_blocklist.json"
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


@pytest.fixture(scope="module")
def converted(page: Page) -> Callable[[str, GraphName, bool], Model]:
    """A graph by a converter, as the page calls it; the last argument is `keep_io_types`."""

    def run(converter: str, name: GraphName, keep_io_types: bool) -> Model:
        module = import_module(f"{converter}.float16")
        proxy = types.SimpleNamespace(
            DEFAULT_OP_BLOCK_LIST=module.DEFAULT_OP_BLOCK_LIST,
            convert_float_to_float16=lambda model, **options: module.convert_float_to_float16(
                model, **options | {"keep_io_types": keep_io_types}
            ),
        )
        result: Model = page["convert"](proxy, name)
        return result

    return run


def with_round_trips(page: Page, model: Model) -> Model:
    """The page's repair but for the fp16 round trips between fp32 nodes, which stay."""
    repair = types.FunctionType(page["repaired"].__code__, dict(page) | {"casts_to": lambda node, dtype: False})
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


def model_directory(folder: Path, bundle: Bundle, make: Callable[[GraphName], Model]) -> Path:
    folder.mkdir()
    for name in GRAPH_NAMES:
        onnx.save(make(name), folder / f"{name}_model.onnx")
    for file in bundle.path.glob("*.json"):
        shutil.copy(file, folder)
    return folder


def casts(models: Mapping[Any, Model]) -> int:
    return sum(node.op_type == "Cast" for model in models.values() for node in model.graph.node)


@pytest.mark.parametrize(("converter", "why"), [(CONVERTERS[0], STALE_TYPE), (CONVERTERS[1], SAME_NAME)])
@pytest.mark.parametrize("keep_io_types", [False, True])
@pytest.mark.parametrize("name", GRAPH_NAMES)
def test_what_they_write_does_not_load(
    converter: str, why: str, keep_io_types: bool, name: GraphName, converted: Callable[..., Model]
) -> None:
    assert why in (said_by_onnxruntime(converted(converter, name, keep_io_types)) or "it loads")


@pytest.mark.parametrize("converter", CONVERTERS)
def test_repaired_it_loads_but_for_fp32_inputs_and_outputs_with_one_of_them(
    converter: str, page: Page, converted: Callable[..., Model]
) -> None:
    for name in GRAPH_NAMES:
        assert said_by_onnxruntime(page["repaired"](converted(converter, name, False))) is None
        said = said_by_onnxruntime(page["repaired"](converted(converter, name, True)))
        if converter == CONVERTERS[0] and name != "encoder":
            assert BOUND_TWICE in (said or "it loads")
        else:
            assert said is None


@pytest.mark.parametrize(("converter", "exact", "added"), [(CONVERTERS[0], 98, 194), (CONVERTERS[1], 100, 393)])
def test_repaired_it_has_our_types_and_nearly_our_tokens(
    converter: str,
    exact: int,
    added: int,
    page: Page,
    converted: Callable[..., Model],
    demo_bundle: Bundle,
    tmp_path: Path,
) -> None:
    out = model_directory(tmp_path / "out", demo_bundle, lambda name: page["repaired"](converted(converter, name, False)))
    ours = convert(demo_bundle.graphs, plan_of_blocklist(read_blocklist(BLOCKLIST), demo_bundle.graphs))
    theirs = load_candidate(out).graphs
    for name, graph in demo_bundle.graphs.items():
        wanted, made = (
            {str(node.name): node.outputs[0].dtype for node in models[name].graph} for models in (ours.models, theirs)
        )
        assert {node.key: made.get(node.key) for node in graph.compute} == {
            node.key: wanted[node.key] for node in graph.compute
        }
    stored = {name: onnx.load(out / f"{name}_model.onnx") for name in GRAPH_NAMES}
    plain = {name: onnx.load(page["fp32"] / f"{name}_model.onnx") for name in GRAPH_NAMES}
    assert (ours.casts, casts(stored) - casts(plain)) == (68, added)
    report = api.verify(out, page["fp32"], DEMO_DATA / "calibration.txt", device="cpu")
    assert (report.exact, report.samples, report.nonfinite) == (exact, 100, 0)


@pytest.mark.parametrize(("converter", "nonfinite"), [(CONVERTERS[0], 100), (CONVERTERS[1], 0)])
def test_with_round_trips_between_fp32_nodes_it_is_garbage(
    converter: str, nonfinite: int, page: Page, converted: Callable[..., Model], demo_bundle: Bundle, tmp_path: Path
) -> None:
    out = model_directory(
        tmp_path / "out", demo_bundle, lambda name: with_round_trips(page, converted(converter, name, False))
    )
    report = api.verify(out, page["fp32"], DEMO_DATA / "calibration.txt", device="cpu")
    assert (report.exact, report.samples, report.nonfinite) == (0, 100, nonfinite)


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
