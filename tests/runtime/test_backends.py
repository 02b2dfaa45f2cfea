"""Backends: a new one is a class and a line in the table, and nobody else asks for a device by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import cast

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from precision_search.errors import UsageError
from precision_search.judging.judge import JudgeSettings, PlanJudge
from precision_search.judging.trial import Proposal
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.graph import GRAPH_NAMES
from precision_search.precision.convert import convert
from precision_search.precision.plan import all_compute_keys
from precision_search.precision.weights import WeightCache
from precision_search.runtime import backends
from precision_search.runtime.backends import (
    BACKENDS,
    Backend,
    EmulationOnCpu,
    Graphs,
    backend_of,
    evidence,
    resolve_device,
)
from precision_search.runtime.generator import Generator
from precision_search.runtime.session import DEFAULT_GEMM_OPTIONS, Device, SessionSettings
from precision_search.runtime.token_matrix import TokenMatrix
from tests.confirming import confirm
from tests.conftest import ROOT
from tests.plans import keeping, lowering, sample_rows
from tests.tiny_model import write_tiny_model

ROWS = ((3, 4, 5, 1), (6, 1), (7, 8, 9, 4, 1), (5, 5, 1))
LOUD = ("encoder.block.0.layer.1.DenseReluDense.wo/MatMul",)
"""Its weight does not fit into fp16."""

CPU = SessionSettings(threads=1)
COUNTING = SessionSettings(device=cast(Device, "counting"), threads=1)


class Counting(EmulationOnCpu):
    """The CPU once more, under another name, with a count of what is asked of it."""

    def __init__(self) -> None:
        self.prepared = 0
        self.sessions = 0

    def prepare(self, models: Graphs, weights: WeightCache) -> Graphs:
        self.prepared += 1
        return super().prepare(models, weights)

    def create_session(
        self, model: ir.Model, settings: SessionSettings, *, changing_shapes: bool
    ) -> onnxruntime.InferenceSession:
        self.sessions += 1
        return super().create_session(model, settings, changing_shapes=changing_shapes)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """The backend, by its line in the table."""
    backend = Counting()
    table: dict[str, Backend] = {**dict[str, Backend](BACKENDS.items()), "counting": backend}
    monkeypatch.setattr(backends, "BACKENDS", table)
    return backend


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("backends")
    return open_bundle(str(write_tiny_model(folder / "model", seed=3)), folder / "cache")


def test_a_new_backend_generates(bundle: Bundle, counting: Counting) -> None:
    ids, mask = np.array([ROWS[0], ROWS[2][:4]]), np.ones((2, 4), np.int64)

    wanted = Generator(bundle.models, bundle.generation, CPU).generate(ids, mask)
    found = Generator(bundle.models, bundle.generation, COUNTING, leave_out_finished=True).generate(ids, mask)

    assert counting.sessions == len(GRAPH_NAMES)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(np.asarray(TokenMatrix(found.tokens, COUNTING)), wanted.tokens)


def test_a_new_backend_confirms_a_plan(bundle: Bundle, counting: Counting) -> None:
    samples, weights = sample_rows(bundle, ROWS), WeightCache()
    models = convert(bundle.graphs, keeping(bundle, nodes=LOUD), weights).models

    wanted, found = (
        confirm(models, samples, bundle.generation, settings, batch_size=2, weights=weights)
        for settings in (CPU, COUNTING)
    )

    assert found == wanted
    assert (counting.prepared, counting.sessions) == (1, len(GRAPH_NAMES))


def test_a_new_backend_judges_plans_from_screen_to_verdict(bundle: Bundle, counting: Counting) -> None:
    samples = sample_rows(bundle, ROWS)

    class NoLatency:
        def latency(self, models: Graphs, variant: str) -> None:
            return None

    cpu, other = (
        PlanJudge(
            bundle,
            samples,
            samples,
            dtype="float16",
            latency=NoLatency(),
            weights=WeightCache(),
            settings=JudgeSettings(settings, batch_size=2, seed=0),
        )
        for settings in (CPU, COUNTING)
    )
    some = sorted(all_compute_keys(bundle.graphs))[:3]
    for number, plan in enumerate((lowering(bundle), lowering(bundle, some), keeping(bundle, nodes=LOUD))):
        wanted, found = (judge(Proposal(plan, "encoder"), number) for judge in (cpu, other))
        assert (found.verdict, found.exact_match, found.min_margin) == (
            wanted.verdict,
            wanted.exact_match,
            wanted.min_margin,
        )
        assert found.verdict_source == Counting.source
    assert counting.sessions > 0


# What the table says.


def test_emulation_takes_no_notice_of_what_only_a_device_has() -> None:
    asked = SessionSettings(use_tf32=True, gemm_options=0, threads=3)

    assert backend_of(asked).applied(asked) == SessionSettings(gemm_options=DEFAULT_GEMM_OPTIONS, threads=3)
    on_cuda = SessionSettings(device="cuda", use_tf32=True, gemm_options=0)
    assert backend_of(on_cuda).applied(on_cuda) == on_cuda


def test_every_source_of_verdicts_has_its_sentence() -> None:
    assert {evidence(backend.source) for backend in BACKENDS.values()} == {
        backend.evidence for backend in BACKENDS.values()
    }


def test_a_device_that_is_in_no_table_is_refused() -> None:
    with pytest.raises(UsageError, match="no device 'tpu'") as caught:
        resolve_device("tpu", warn=print)  # type: ignore[arg-type]
    assert caught.value.why == "known are auto, cpu and cuda"


# Nobody else asks.


def comparisons(tree: ast.AST) -> Iterator[int]:
    """Lines that compare anything with a name in the table of backends, or look something up by one."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare():
                parts: list[ast.expr] = [node.left, *node.comparators]
            case ast.Dict():
                parts = [key for key in node.keys if key is not None]
            case ast.MatchValue():
                parts = [node.value]
            case _:
                continue
        if any(
            isinstance(inner, ast.Constant) and inner.value in BACKENDS for part in parts for inner in ast.walk(part)
        ):
            yield node.lineno if isinstance(node, ast.expr) else node.value.lineno


def test_no_module_but_the_backends_and_the_device_compares_with_cuda() -> None:
    package = ROOT / "precision_search"
    may = {package / "runtime/backends.py", *(package / "device").rglob("*.py")}

    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted(package.rglob("*.py"))
        if path not in may
        for line in comparisons(ast.parse(path.read_text()))
    ]

    assert found == [], "ask backend_of(settings) instead"


@pytest.mark.parametrize(
    "text",
    [
        'x == "cuda"',
        'x != "cpu"',
        'x not in ("cpu", "cuda")',
        '{"cpu": 1, "cuda": 4}[x]',
        'match x:\n case "cuda": pass',
    ],
)
def test_such_comparisons_are_found_in_every_form(text: str) -> None:
    assert list(comparisons(ast.parse(text)))
    assert not list(comparisons(ast.parse('x: Literal["auto", "cuda"] = "cuda"; f(device="cuda")')))
