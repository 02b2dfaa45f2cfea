"""The confirm run generates freely with the very graphs that were converted, and compares token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from precision_search.judging import confirm as module
from precision_search.judging.confirm import ConfirmResult
from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.screen import Parting, SampleScreen, Screener
from precision_search.model.bundle import Bundle
from precision_search.model.graph import FLOATS, GraphName
from precision_search.precision.convert import convert
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache
from precision_search.runtime.reference import Reference
from precision_search.runtime.session import SessionSettings
from tests.confirming import confirm
from tests.plans import NORMS, SETTINGS, WO, keeping, lowering, sample_rows

Rows = tuple[tuple[int, ...], ...]
SAMPLES = 6


@pytest.fixture(scope="module")
def samples(demo_bundle: Bundle, demo_ids: Rows) -> SampleRows:
    return sample_rows(demo_bundle, demo_ids[:SAMPLES])


def confirmed(bundle: Bundle, plan: Plan, samples: SampleRows, batch_size: int = 4) -> ConfirmResult:
    weights = WeightCache()
    models = convert(bundle.graphs, plan, weights).models
    return confirm(models, samples, bundle.generation, SETTINGS, batch_size=batch_size, weights=weights)


@pytest.mark.parametrize("batch_size", [1, SAMPLES])
def test_fp32_confirms_itself_in_batches_of_any_size(demo_bundle: Bundle, samples: SampleRows, batch_size: int) -> None:
    """The reference was made with another batch size: what padding does must not decide a verdict."""
    assert confirmed(demo_bundle, lowering(demo_bundle), samples, batch_size) == ConfirmResult(1.0, False, None)


@pytest.mark.parametrize("kept", [(*NORMS, "Softmax"), (*NORMS, "Gather", "Relu")])
def test_what_the_screen_calls_exact_is_confirmed(
    demo_bundle: Bundle, samples: SampleRows, kept: Sequence[str]
) -> None:
    plan = keeping(demo_bundle, kept, WO)
    screener = Screener(demo_bundle.graphs, "float16", WeightCache(), SETTINGS)
    assert screener.prepare(plan).screen(SampleScreen(samples, demo_bundle.generation, 4)).verdict == "exact"

    assert confirmed(demo_bundle, plan, samples) == ConfirmResult(1.0, False, None)


def test_a_plan_that_overflows_is_seen_to_be_non_finite(demo_bundle: Bundle, samples: SampleRows) -> None:
    result = confirmed(demo_bundle, keeping(demo_bundle, NORMS), samples)

    assert result.nonfinite
    assert result.exact_match < 1


def test_finite_garbage_is_a_mismatch(demo_bundle: Bundle, samples: SampleRows) -> None:
    assert confirmed(demo_bundle, keeping(demo_bundle), samples) == ConfirmResult(0.0, False, Parting(0, 0))


# Which graphs run.


class Recorder:
    """Stands in for the generator; remembers the models and generates with none."""

    def __init__(self) -> None:
        self.models: Mapping[GraphName, ir.Model] = {}

    def __call__(self, models: Mapping[GraphName, ir.Model], *_: Any) -> Recorder:
        self.models = models
        return self


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(module, "Generator", recorder)
    return recorder


def answer(monkeypatch: pytest.MonkeyPatch, tokens: Sequence[Sequence[int]], bad: Sequence[bool]) -> None:
    def generate_all(*_: Any) -> tuple[tuple[tuple[int, ...], ...], npt.NDArray[np.bool_]]:
        return tuple(map(tuple, tokens)), np.array(bad)

    monkeypatch.setattr(module, "generate_all", generate_all)


def run_recorded(bundle: Bundle, models: Mapping[GraphName, ir.Model], settings: SessionSettings) -> ConfirmResult:
    samples = SampleRows(((2,),), Reference(((5, 1),), (np.ones(2, np.float32),)))
    return confirm(models, samples, bundle.generation, settings, batch_size=1, weights=WeightCache())


def test_on_cuda_the_converted_graphs_run_as_they_are(
    demo_bundle: Bundle, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = convert(demo_bundle.graphs, keeping(demo_bundle, NORMS, WO)).models
    answer(monkeypatch, [[5, 1]], [False])

    assert run_recorded(demo_bundle, models, SessionSettings(device="cuda")).exact_match == 1.0

    assert recorder.models is models


def test_on_a_cpu_they_run_widened(demo_bundle: Bundle, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are, the CPU provider would compute them in fp32 and drop the rounding that is to be judged."""
    plan = keeping(demo_bundle, NORMS, WO)
    answer(monkeypatch, [[5, 1]], [False])

    run_recorded(demo_bundle, convert(demo_bundle.graphs, plan).models, SETTINGS)

    assert set(recorder.models) == set(demo_bundle.graphs)
    for name, widened in recorder.models.items():
        for node in widened.graph:
            if node.op_type != "Cast":
                floats = {value.dtype for value in node.outputs if value.dtype in FLOATS}
                assert floats <= {ir.DataType.FLOAT}, node.name
        casts = [int(node.attributes["to"].as_int()) for node in widened.graph if node.op_type == "Cast"]
        low = [node.key for node in demo_bundle.graphs[name].compute if node.key not in plan.fp32]
        assert casts.count(ir.DataType.FLOAT16) >= sum(not key.endswith("/Gather") for key in low) > 0


def test_it_is_the_given_graphs_that_decide(demo_bundle: Bundle, samples: SampleRows) -> None:
    """With negated logits in the later steps everything is wrong, although no plan and no screen knows of it."""
    models = dict(convert(demo_bundle.graphs, lowering(demo_bundle)).models)
    later = models["decoder_with_past"].clone()
    head = next(node for node in later.graph if node.name == "lm_head/MatMul")
    negative = ir.node("Neg", [head.inputs[0]])
    negative.outputs[0].name, negative.outputs[0].type = "negated", ir.TensorType(ir.DataType.FLOAT)
    later.graph.insert_before(head, negative)
    head.replace_input_with(0, negative.outputs[0])
    models["decoder_with_past"] = later

    result = confirm(models, samples, demo_bundle.generation, SETTINGS, batch_size=4, weights=WeightCache())

    assert result.exact_match == 0.0
    assert result.divergence == Parting(0, 1)  # the first token is the other decoder's


# What counts as the same.


@pytest.mark.parametrize(
    ("found", "bad", "wanted"),
    [
        ([[5, 6, 1], [7, 1]], [False, False], ConfirmResult(1.0, False, None)),
        ([[5, 6, 1], [8, 1]], [False, False], ConfirmResult(0.5, False, Parting(1, 0))),
        ([[5, 9, 1], [8, 1]], [False, False], ConfirmResult(0.0, False, Parting(0, 1))),
        ([[5, 6, 6, 1], [7, 1]], [False, False], ConfirmResult(0.5, False, Parting(0, 2))),
        ([[5, 6, 1], [7, 1]], [False, True], ConfirmResult(0.5, True, Parting(1, 0))),
        ([[5, 6, 1], [8, 1]], [True, False], ConfirmResult(0.0, True, Parting(0, 0))),
    ],
)
@pytest.mark.usefixtures("recorder")
def test_a_sample_is_exact_if_all_tokens_are_and_all_values_finite(
    demo_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    found: list[list[int]],
    bad: list[bool],
    wanted: ConfirmResult,
) -> None:
    answer(monkeypatch, found, bad)
    samples = SampleRows(((2,), (2,)), Reference(((5, 6, 1), (7, 1)), (np.ones(3, np.float32), np.ones(2, np.float32))))

    result = confirm({}, samples, demo_bundle.generation, SETTINGS, batch_size=1, weights=WeightCache())

    assert result == wanted
