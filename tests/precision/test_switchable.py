"""One switchable graph computes what the static emulation of any plan computes, bit for bit, and what the converted
graphs compute; where operations come in another order it does not, and a test says how far apart that is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.errors import InputError
from precision_search.judging.screen import PreparedPlan, SampleScreen, Screener
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GRAPH_NAMES, Graph, GraphName, NodeKind, compute_keys_by_op_type, is_float
from precision_search.precision.convert import Converted, convert
from precision_search.precision.dtypes import assign
from precision_search.precision.emulate import emulate, widen
from precision_search.precision.kernels import kernel_for
from precision_search.precision.low import LOW_DTYPES, LowDtype, round_to
from precision_search.precision.plan import Plan, all_compute_keys, pinned_keys
from precision_search.precision.switchable import FLAG, switchable
from precision_search.precision.weights import WeightCache
from precision_search.runtime.backends import create_session
from precision_search.runtime.generator import Generator
from precision_search.runtime.teacher_forcing import ForcedBatch, ForcedDecoder, ForcedEncoder, forced_batches
from tests.conftest import Rows
from tests.graphs import (
    BOOL,
    CHOICES,
    FLOAT,
    INT64,
    MASK,
    RECIPES,
    Arrays,
    Choice,
    Recipe,
    Writer,
    entry_name,
    random_feeds,
    run,
    same,
    tiny_feeds,
    tiny_t5,
)
from tests.plans import NORMS, SETTINGS, WO, keeping, lowering, sample_rows

Graphs = Mapping[GraphName, Graph]
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


class Switched:
    """The sessions of switchable graphs."""

    def __init__(self, graphs: Graphs, dtype: LowDtype) -> None:
        made = {name: switchable(graph, dtype, WeightCache()) for name, graph in graphs.items()}
        self.graphs = graphs
        self.switches = {name: each.switches for name, each in made.items()}
        self.sessions = {name: create_session(each.model, SETTINGS) for name, each in made.items()}

    def run(self, name: GraphName, plan: Plan, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        switches = self.switches[name]
        return outputs_of(self.sessions[name], {**feeds, **switches.feed(switches.of(assign(self.graphs, plan)[name]))})


def outputs_of(session: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> Arrays:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {i.name: feeds[i.name] for i in session.get_inputs()}), strict=True))


def as_stored(arrays: Arrays, converted: ir.Model, dtype: LowDtype) -> Arrays:
    """Outputs in the dtypes in which the converted graph hands them over."""
    lows = {value.name for value in converted.graph.outputs if value.dtype != ir.DataType.FLOAT and is_float(value)}
    return {name: round_to(array, dtype, saturate=False) if name in lows else array for name, array in arrays.items()}


def check_chain(switched: Switched, plan: Plan, feeds: Arrays) -> None:
    """Runs the three graphs one after the other: switched, emulated, converted; all on what the emulated ones gave."""
    graphs, weights = switched.graphs, WeightCache()
    assignments = assign(graphs, plan)
    converted: Converted = convert(graphs, plan, weights)
    known = dict(feeds)
    for name in GRAPH_NAMES:
        ours = switched.run(name, plan, known)
        assert same(ours, run(emulate(graphs[name], plan, assignments[name], weights), known)), name
        model = converted.models[name]
        entering = {v.name: v.dtype for v in model.graph.inputs}
        stored = {
            key: array
            if entering.get(key) in (None, ir.DataType.FLOAT, ir.DataType.INT64)
            else round_to(array, plan.dtype, saturate=False)
            for key, array in known.items()
        }
        assert same(as_stored(ours, model, plan.dtype), run(widen(model, weights), stored)), name
        known.update({entry_name(output): array for output, array in ours.items()})


@PROPERTY
@given(recipe=RECIPES, choices=st.lists(CHOICES, min_size=1, max_size=3), seed=st.integers(0, 5))
def test_it_is_the_static_emulation_on_random_graphs(recipe: Recipe, choices: list[Choice], seed: int) -> None:
    graphs = recipe.graphs()
    switched = {dtype: Switched(graphs, dtype) for dtype in {choice.dtype for choice in choices}}

    for choice in choices:
        check_chain(switched[choice.dtype], choice.plan(graphs), random_feeds(seed))


@pytest.fixture(scope="module")
def tiny() -> Mapping[LowDtype, Switched]:
    return {dtype: Switched(tiny_t5(), dtype) for dtype in LOW_DTYPES}


def t5_feeds(seed: int) -> Arrays:
    feeds = tiny_feeds(seed)
    return {
        "input_ids": feeds["ids"],
        "attention_mask": feeds["mask"],
        "encoder_attention_mask": feeds["mask"],
    }


@settings(max_examples=10, deadline=None, derandomize=True)
@given(choice=CHOICES, seed=st.integers(0, 5))
def test_it_is_the_static_emulation_on_a_tiny_t5(tiny: Mapping[LowDtype, Switched], choice: Choice, seed: int) -> None:
    switched = tiny[choice.dtype]
    plan, weights = choice.plan(switched.graphs), WeightCache()
    tokens, feeds = tiny_feeds(seed)["tokens"], t5_feeds(seed)
    assignments = assign(switched.graphs, plan)
    for name, ids in zip(GRAPH_NAMES, (feeds["input_ids"], tokens, tokens[:, -1:]), strict=True):
        known = {**feeds, "input_ids": ids}
        ours = switched.run(name, plan, known)
        assert same(ours, run(emulate(switched.graphs[name], plan, assignments[name], weights), known)), name
        feeds.update({entry_name(output): array for output, array in ours.items()})


# What gets a flag.


def small(*, opset: int = 20) -> Graph:
    """A mask, a turned weight that two products read, one of them through a Reshape, and a norm with two outputs."""
    write = Writer("encoder", opset)
    x, ids = write.input("x", FLOAT, (3, 4)), write.input("ids", INT64, (3, 1))
    weight = write.weight("p.weight", np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4) / 3)
    turned = write.op("p", "Transpose", weight, perm=[1, 0])
    product = write.op("p", "MatMul", x, turned)
    flat = write.op("q", "Reshape", write.op("q", "Reshape", turned, write.integers(16)), write.integers(4, 4))
    product = write.op("q", "MatMul", product, flat)
    real = write.op("m", "Cast", ids, to=BOOL)
    mask = write.op("m", "Where", real, write.weight("zero", 0.0), write.weight("minimum", MASK))
    masked = write.op("m", "Add", product, mask)
    exact = write.op("e", "Where", real, masked, write.weight("one", 1.0))
    scale = write.weight("n.weight", np.full(4, 0.3, np.float32))
    write.op("n", "LayerNormalization", exact, scale, output="y", outputs=2)
    write.op("n", "Add", "y", "y:1", output="last_hidden_state")
    write.output("last_hidden_state", FLOAT, (3, 4))
    return write.graph()


def test_compute_nodes_and_changing_masks_have_flags() -> None:
    made = switchable(small(), "float16", WeightCache())

    assert made.switches.flags == (
        *("encoder.p/MatMul", "encoder.q/MatMul", "encoder.m/aux/Where", "encoder.m/Add"),
        *("encoder.n/LayerNormalization", "encoder.n/Add"),
    )
    inputs = {str(value.name): value for value in made.model.graph.inputs}
    assert list(inputs) == ["x", "ids", *(f"{FLAG}{key}" for key in made.switches.flags)]
    assert all(inputs[f"{FLAG}{key}"].dtype == ir.DataType.BOOL for key in made.switches.flags)
    assert made.switches.fixed == frozenset()


@pytest.mark.parametrize("low", ["p/MatMul", "q/MatMul", "m/Add", "n/LayerNormalization"])
def test_each_flag_makes_its_node_low(low: str) -> None:
    graphs: Graphs = {"encoder": small()}
    switched = Switched(graphs, "float16")
    feeds = {"x": np.linspace(-30, 30, 12, dtype=np.float32).reshape(3, 4), "ids": np.array([[1], [0], [1]])}
    plan = Plan("float16", "base", all_compute_keys(graphs) - {f"encoder.{low}"})

    ours = switched.run("encoder", plan, feeds)

    assignment = assign(graphs, plan)["encoder"]
    assert same(ours, run(emulate(graphs["encoder"], plan, assignment, WeightCache()), feeds))
    assert not same(ours, run(graphs["encoder"].model, feeds))


def test_weights_are_rounded_beforehand_and_once() -> None:
    graph, weights = small(), WeightCache()

    model = switchable(graph, "float16", weights).model

    stored = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
    assert {name for name in stored if name.endswith("/float16")} == {
        f"{name}/float16" for name in ("p.weight", "n.weight", "minimum", "zero")
    }
    np.testing.assert_array_equal(
        stored["p.weight/float16"].numpy(), round_to(stored["p.weight"].numpy(), "float16", saturate=True)
    )
    assert stored["minimum/float16"].numpy() == -65504
    # No branch rounds what comes of constants alone: it reads them moved, and the runtime moves them once.
    casts = [node for node in model.graph.all_nodes() if node.op_type == "Cast" and "/rounded" in str(node.name)]
    assert not [node.name for node in casts if "Transpose" in str(node.name) or "Reshape" in str(node.name)]
    moved = {f"encoder.{key}/float16" for key in ("p/aux/Transpose", "q/aux/Reshape", "q/aux/Reshape.1")}
    assert moved <= {str(node.name) for node in model.graph}


def test_the_graph_itself_stays_as_it_is_and_names_are_kept(demo_bundle: Bundle) -> None:
    graph = demo_bundle.graphs["decoder"]
    before = [(node.name, node.op_type) for node in graph.model.graph]

    made = switchable(graph, "float16", WeightCache())

    assert [(node.name, node.op_type) for node in graph.model.graph] == before
    known = {str(node.name): node for node in made.model.graph}
    assert {key for key, node in known.items() if node.op_type == "If"} == set(made.switches.flags)
    assert set(graph.nodes) <= set(known)
    assert [value.name for value in made.model.graph.outputs] == [value.name for value in graph.model.graph.outputs]
    movement = {key for key in made.switches.flags if graph.nodes[key].kind is NodeKind.MOVEMENT}
    assert made.switches.fixed == {node.key for node in graph.compute if node.pinned}
    assert set(made.switches.flags) - movement | made.switches.fixed == {node.key for node in graph.compute}
    assert movement == {key for key in movement if graph.nodes[key].op_type == "Where"}
    assert movement


def test_a_node_without_a_low_kernel_has_no_flag_and_cannot_be_low() -> None:
    graphs = tiny_t5()
    made = switchable(graphs["encoder"], "bfloat16", WeightCache())
    reciprocal = sorted(compute_keys_by_op_type(graphs, "encoder")["Reciprocal"])
    plan = Plan("bfloat16", "base", all_compute_keys(graphs) - set(reciprocal))

    assert set(reciprocal) <= made.switches.fixed
    with pytest.raises(InputError, match="layer_norm/Reciprocal low, which cannot be"):
        made.switches.of(assign(graphs, plan)["encoder"])


# The demo.


class Sessions:
    """A forced encoder and decoder."""

    def __init__(self, encoder: ir.Model, decoder: ir.Model) -> None:
        self.encoder = ForcedEncoder(encoder, SETTINGS)
        self.decoder = ForcedDecoder(decoder, SETTINGS)

    def run(self, batch: ForcedBatch, *extra: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        flags = extra or ({}, {})
        hidden = self.encoder.encode(batch, flags[0])
        return {"last_hidden_state": hidden, "margins": self.decoder.margins(batch, hidden, flags[1])}


@pytest.fixture(scope="module")
def forced(demo_bundle: Bundle, demo_ids: Rows, demo_oracle_tokens: list[list[int]]) -> ForcedBatch:
    return forced_batches(demo_ids[:4], demo_oracle_tokens[:4], demo_bundle.generation, 4)[0]


@dataclass(frozen=True, slots=True)
class Screeners:
    """A screener for each low dtype, made when a plan asks for it."""

    bundle: Bundle
    made: dict[LowDtype, Screener] = field(default_factory=dict)

    def prepare(self, plan: Plan) -> PreparedPlan:
        if plan.dtype not in self.made:
            self.made[plan.dtype] = Screener(self.bundle.graphs, plan.dtype, WeightCache(), SETTINGS)
        return self.made[plan.dtype].prepare(plan)


@pytest.fixture(scope="module")
def screener(demo_bundle: Bundle) -> Screeners:
    return Screeners(demo_bundle)


def check_the_demo(screener: Screeners, bundle: Bundle, forced: ForcedBatch, plan: Plan) -> Arrays:
    """The screener's sessions against static emulation and the converted graphs."""
    prepared, weights = screener.prepare(plan), WeightCache()
    hidden = prepared.encoder.encode(forced, prepared.encoder_flags)
    margins = prepared.decoder.margins(forced, hidden, prepared.decoder_flags)
    ours = {"last_hidden_state": hidden, "margins": margins}
    assignments, converted = assign(bundle.graphs, plan), convert(bundle.graphs, plan, weights)
    encoder, decoder = (
        emulate(bundle.graphs[name], plan, assignments[name], weights) for name in ("encoder", "decoder")
    )
    assert same(ours, Sessions(encoder, decoder).run(forced))
    wide = Sessions(*(widen(converted.models[name], weights) for name in ("encoder", "decoder"))).run(forced)
    assert same(as_stored(ours, converted.models["encoder"], plan.dtype), wide)
    return ours


@settings(max_examples=3, deadline=None, derandomize=True)
@given(choice=CHOICES)
def test_margins_and_hidden_states_of_the_demo_are_those_of_the_converted_graphs(
    screener: Screeners, demo_bundle: Bundle, forced: ForcedBatch, choice: Choice
) -> None:
    check_the_demo(screener, demo_bundle, forced, choice.plan(demo_bundle.graphs))


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_all_low_is_all_low(screener: Screeners, demo_bundle: Bundle, forced: ForcedBatch, dtype: LowDtype) -> None:
    graphs = demo_bundle.graphs
    stuck = {n.key for g in graphs.values() for n in g.compute if kernel_for(n.op_type, dtype) is None}
    plan = Plan(dtype, "base", pinned_keys(graphs) | stuck)

    low = check_the_demo(screener, demo_bundle, forced, plan)

    fp32 = screener.prepare(lowering(demo_bundle))
    assert not np.array_equal(low["last_hidden_state"], fp32.encoder.encode(forced, fp32.encoder_flags))


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_with_all_flags_off_it_is_the_plain_graph(
    screener: Screeners, demo_bundle: Bundle, forced: ForcedBatch, dtype: LowDtype
) -> None:
    plain = Sessions(*(demo_bundle.graphs[name].model for name in ("encoder", "decoder"))).run(forced)

    fp32 = screener.prepare(lowering(demo_bundle, (), dtype))
    hidden = fp32.encoder.encode(forced, fp32.encoder_flags)

    ours = {"last_hidden_state": hidden, "margins": fp32.decoder.margins(forced, hidden, fp32.decoder_flags)}
    assert same(ours, plain)


def rms(array: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


@pytest.mark.parametrize("kept", [(), WO], ids=["fp32", "norms and wo in fp32"])
def test_with_a_past_the_order_of_operations_is_another_and_margins_differ_by_less_than_rounding_moves_them(
    screener: Screeners, demo_bundle: Bundle, demo_ids: Rows, kept: Collection[str]
) -> None:
    """Generation decodes one position at a time: its matrix products have other shapes, so that sums come in another
    order, and it reads keys and values from a cache. In fp32 that is noise of a few units in the last place of logits
    around 10, 1e-6 each: the bound is 1e-4. In a plan with low nodes such noise now and then carries a value over a
    border between two low numbers, which is a rounding error like those the plan makes anyway, but rarer: so the root
    mean square difference stays below that by which the plan moves the margins, and the largest below twice theirs.
    """
    plan = keeping(demo_bundle, NORMS, kept) if kept else lowering(demo_bundle)
    samples = sample_rows(demo_bundle, demo_ids[:12])
    screened = screener.prepare(plan).screen(SampleScreen(samples, demo_bundle.generation, 8), to_the_end=True)
    assert screened.verdict == "exact"  # the signed margin is then the best logit minus the second best
    models = {name: widen(model, WeightCache()) for name, model in convert(demo_bundle.graphs, plan).models.items()}
    generator = Generator(models, demo_bundle.generation, SETTINGS)

    differences, shifts = [], []
    for number, (row, tokens) in enumerate(zip(samples.rows, samples.reference.tokens, strict=True)):
        ids = np.array([row], np.int64)
        free = generator.generate(ids, np.ones_like(ids), with_margins=True)
        assert free.margins is not None
        assert free.tokens[0].tolist() == list(tokens)
        differences.append(free.margins[0] - screened.margins[number])
        shifts.append(screened.margins[number] - samples.reference.margins[number])

    difference, shift = np.concatenate(differences), np.concatenate(shifts)
    if kept:
        assert 1e-4 < rms(difference) < rms(shift)
        assert np.abs(difference).max() < 2 * np.abs(shift).max()
    else:
        assert 0 < np.abs(difference).max() < 1e-4
