"""Placements against brute force over all plans, with costs added up from `assign` and `planned_casts`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_search.cost import placement as module
from precision_search.cost.estimate import Workload
from precision_search.cost.placement import Placement, PlacementCosts, Placer
from precision_search.device.profile import load_profile
from precision_search.judging.latency import EstimatedLatency
from precision_search.model.bundle import Bundle
from precision_search.model.graph import Graph, GraphName, compute_keys_by_op_type
from precision_search.precision.dtypes import assign, planned_casts
from precision_search.precision.plan import FAMILIES, Plan, all_compute_keys, pinned_keys
from precision_search.precision.wiring import wiring_of
from tests.graphs import BINARY, FLOAT, SPECIAL, UNARY, Recipe, Writer, tiny_t5
from tests.plans import WO, keeping

Graphs = Mapping[GraphName, Graph]
NONE: frozenset[str] = frozenset()
FREE = 7
PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)


def seconds_of(graphs: Graphs, costs: PlacementCosts, plan: Plan) -> float:
    """What a plan costs, from the dtypes and casts that its conversion has."""
    total = 0.0
    for name, assignment in assign(graphs, plan).items():
        total += sum(pair[key in assignment.low_nodes] for key, pair in costs.nodes[name].items())
        total += sum(costs.casts[name][value] for value, _ in planned_casts(graphs[name], assignment))
    return total


def values_of(graph: Graph) -> list[str]:
    """The float values that somebody reads, graph outputs included."""
    wiring = wiring_of(graph)
    return list(dict.fromkeys([*(name for node in wiring.nodes for name in node.reads), *wiring.outputs]))


def flat_costs(graphs: Graphs, cast: float, **saving: float) -> PlacementCosts:
    """Each node takes 10 s, low ones as much less as `saving` says for their op type; each cast takes `cast`."""
    nodes = {
        name: {key: (10.0, 10.0 - saving.get(node.op_type, 0.0)) for key, node in graph.nodes.items()}
        for name, graph in graphs.items()
    }
    casts = {name: dict.fromkeys(values_of(graph), cast) for name, graph in graphs.items()}
    return PlacementCosts(nodes, casts, {name: {} for name in graphs})


def placer(
    graphs: Graphs, costs: PlacementCosts, fixed: frozenset[str] = NONE, forced_low: frozenset[str] = NONE
) -> Placer:
    return Placer(graphs, "float16", "base", costs, fixed=fixed, forced_low=forced_low)


def low_of(graphs: Graphs, placement: Placement) -> set[str]:
    return set(all_compute_keys(graphs) - placement.plan.fp32)


# Brute force.

STEPS = st.lists(
    st.tuples(st.sampled_from((*UNARY, *BINARY, *SPECIAL)), st.integers(0, 4), st.integers(0, 4)), max_size=6
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Random graphs with random whole-numbered costs, all but a few keys pinned."""

    recipe: Recipe
    seed: int
    like_a_device: bool

    def draw(self) -> tuple[Graphs, PlacementCosts, frozenset[str], frozenset[str]]:
        """Graphs, costs, and what is pinned to fp32 and to low."""
        graphs = self.recipe.graphs()
        rng = np.random.default_rng(self.seed)
        keys = sorted(all_compute_keys(graphs) - pinned_keys(graphs))
        rng.shuffle(keys)
        pinned = keys[FREE:]
        fp32 = frozenset(key for key in pinned if rng.random() < 0.5)
        return graphs, self._costs(graphs, rng), fp32 | pinned_keys(graphs), frozenset(pinned) - fp32

    def _costs(self, graphs: Graphs, rng: np.random.Generator) -> PlacementCosts:
        def pair() -> tuple[float, float]:
            if not self.like_a_device:
                return float(rng.integers(0, 10)), float(rng.integers(0, 10))
            launch, elements = rng.choice([0, 2]), rng.choice([1, 1, 4, 16])
            return float(launch + 8 * elements), float(launch + 4 * elements)

        def cast() -> float:
            return float(2 + 6 * rng.choice([1, 1, 4, 16]) if self.like_a_device else rng.integers(0, 10))

        return PlacementCosts(
            {name: {key: pair() for key in graph.nodes} for name, graph in graphs.items()},
            {name: {value: cast() for value in values_of(graph)} for name, graph in graphs.items()},
            {name: {} for name in graphs},
        )


PROBLEMS = st.builds(
    Problem, st.builds(Recipe, st.integers(0, 9), STEPS, STEPS, STEPS), st.integers(0, 2**32 - 1), st.booleans()
)


def all_plans(graphs: Graphs, fp32: frozenset[str], low: frozenset[str]) -> Iterator[Plan]:
    free = sorted(all_compute_keys(graphs) - fp32 - low)
    for chosen in itertools.product((False, True), repeat=len(free)):
        yield Plan("float16", "base", fp32 | {key for key, is_fp32 in zip(free, chosen, strict=True) if is_fp32})


@PROPERTY
@given(problem=PROBLEMS)
def test_no_plan_is_cheaper(problem: Problem) -> None:
    graphs, costs, fp32, low = problem.draw()
    found = placer(graphs, costs).place(fp32, low)
    best = min(seconds_of(graphs, costs, plan) for plan in all_plans(graphs, fp32, low))
    assert seconds_of(graphs, costs, found.plan) == found.seconds == best
    assert fp32 <= found.plan.fp32
    assert not low & found.plan.fp32


@PROPERTY
@given(problem=PROBLEMS)
def test_one_cut_is_a_lower_bound_and_where_it_is_met_the_fewest_nodes_are_low(problem: Problem) -> None:
    """A single cut may promise what the dtype rules do not allow, never too little."""
    graphs, costs, fp32, low = problem.draw()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CUTS", 1)
        found = placer(graphs, costs).place(fp32, low)
    cost = {plan: seconds_of(graphs, costs, plan) for plan in all_plans(graphs, fp32, low)}
    best = min(cost.values())
    assert found.seconds <= best <= cost[found.plan]
    if found.seconds == cost[found.plan]:
        ties = [plan for plan, seconds in cost.items() if seconds == best]
        assert all(plan.fp32 <= found.plan.fp32 for plan in ties)


@PROPERTY
@given(problem=PROBLEMS, price_seed=st.integers(0, 2**32 - 1))
def test_prices_are_paid_for_low_nodes(problem: Problem, price_seed: int) -> None:
    graphs, costs, fp32, low = problem.draw()
    rng = np.random.default_rng(price_seed)
    prices = {key: float(rng.integers(0, 8)) for key in sorted(all_compute_keys(graphs) - low) if rng.random() < 0.5}

    def paid(plan: Plan) -> float:
        return seconds_of(graphs, costs, plan) + sum(prices[key] for key in prices.keys() - plan.fp32)

    found = placer(graphs, costs).place(fp32, low, prices)
    assert paid(found.plan) == min(map(paid, all_plans(graphs, fp32, low)))
    assert found.seconds == seconds_of(graphs, costs, found.plan)


# Single properties.


@pytest.fixture(scope="module")
def tiny() -> Graphs:
    return tiny_t5()


def fan(readers: int) -> dict[GraphName, Graph]:
    """`x` → Neg → as many Abs, all of them graph outputs."""
    write = Writer("encoder")
    negative = write.op("", "Neg", write.input("x", FLOAT, (4, 4)))
    for number in range(readers):
        write.op("", "Abs", negative, output=f"y{number}")
        write.output(f"y{number}", FLOAT, (4, 4))
    return {"encoder": write.graph()}


@pytest.mark.parametrize(("readers", "are_low"), [(1, False), (2, False), (3, True), (4, True)])
def test_readers_share_a_cast(readers: int, are_low: bool) -> None:
    graphs = fan(readers)
    found = placer(graphs, flat_costs(graphs, cast=5.0, Abs=2.0)).place(frozenset({"encoder/Neg"}))
    assert len(low_of(graphs, found)) == (readers if are_low else 0)
    assert found.seconds == 10.0 * (readers + 1) - (2.0 * readers - 5.0 if are_low else 0.0)


def test_a_cast_back_is_shared_too() -> None:
    graphs = fan(3)
    keys = frozenset(key for key in all_compute_keys(graphs) if "Abs" in key)
    into, out_of = (flat_costs(graphs, cast=4.0, Neg=saving) for saving in (9.0, 7.0))
    assert low_of(graphs, placer(graphs, into).place(keys)) == {"encoder/Neg"}
    assert not low_of(graphs, placer(graphs, out_of).place(keys))  # `x` is cast as well


def test_what_saves_nothing_stays_in_fp32(tiny: Graphs) -> None:
    assert not low_of(tiny, placer(tiny, flat_costs(tiny, cast=1.0)).place())
    assert not low_of(tiny, placer(tiny, flat_costs(tiny, cast=0.0)).place())


def test_where_launches_are_all_nothing_is_low(demo_bundle: Bundle) -> None:
    """No bytes and no FLOPs: a low node saves nothing, and a cast costs a launch."""
    profile = load_profile("t4")
    datasheet = replace(profile.datasheet, fp32_tflops=1e30, fp16_tflops=1e30, memory_bandwidth=1e30)
    estimated = EstimatedLatency(demo_bundle, Workload(1, 16, 16), replace(profile, datasheet=datasheet))
    found = placer(demo_bundle.graphs, estimated.placement_costs("float16")).place()
    assert not low_of(demo_bundle.graphs, found)


def test_both_decoder_graphs_decide_together(tiny: Graphs) -> None:
    key = "decoder.block.0.layer.2.DenseReluDense.wi/MatMul"
    costs = flat_costs(tiny, cast=1.0)

    def with_savings(decoder: float, with_past: float) -> Placement:
        changed = {"decoder": (10.0, 10.0 - decoder), "decoder_with_past": (10.0, 10.0 - with_past)}
        nodes = {name: {**pairs, key: changed.get(name, (10.0, 10.0))} for name, pairs in costs.nodes.items()}
        return placer(tiny, replace(costs, nodes=nodes)).place(all_compute_keys(tiny) - {key})

    assert low_of(tiny, with_savings(-3.0, 7.5)) == {key}  # four casts, and 4.5 saved over both graphs
    assert not low_of(tiny, with_savings(-3.0, 6.5))
    assert not low_of(tiny, with_savings(8.0, -8.0))


CACHE_MAKER = "decoder.block.1.layer.0.SelfAttention.k/MatMul"
CACHE_READER = "decoder.block.1.layer.0.SelfAttention/MatMul"


@pytest.mark.parametrize("neighbour", [CACHE_MAKER, CACHE_READER])
def test_a_cache_that_is_cheap_to_move_pays_for_a_low_neighbour(tiny: Graphs, neighbour: str) -> None:
    """The cache follows its maker or its reader, and what it saves counts for them."""
    everything_else = all_compute_keys(tiny) - {neighbour}
    found = placer(tiny, flat_costs(tiny, cast=1.0, Concat=50.0)).place(everything_else)
    assert low_of(tiny, found) == {neighbour}
    assert crossing_low(tiny, found) == {"present.1.decoder.key"}
    assert not low_of(tiny, placer(tiny, flat_costs(tiny, cast=1.0)).place(everything_else))


def crossing_low(graphs: Graphs, placement: Placement) -> frozenset[str]:
    assignments = assign(graphs, placement.plan)
    return frozenset().union(*(assignment.low_outputs for assignment in assignments.values()))


def test_the_encoder_output_is_cast_where_it_is_made_or_where_it_is_read(tiny: Graphs) -> None:
    """Low readers make it low in both graphs if all of them are: then the cheap cast is the encoder's."""
    readers = {key for key in all_compute_keys(tiny) if ".EncDecAttention.k/" in key or ".EncDecAttention.v/" in key}
    assert len(readers) == 4
    costs = flat_costs(tiny, cast=1.0, MatMul=4.0)  # each reader has two casts behind it: in the decoder, of the cache
    dear = {**costs.casts["decoder"], "encoder_hidden_states": 7.0}
    costs = replace(costs, casts={**costs.casts, "decoder": dear})
    rest = all_compute_keys(tiny) - readers
    found = placer(tiny, costs).place(rest)
    assert low_of(tiny, found) == readers
    assert "last_hidden_state" in crossing_low(tiny, found)
    assert not low_of(tiny, placer(tiny, costs).place(rest | {min(readers)}))


def test_of_equally_fast_plans_the_one_that_stores_less() -> None:
    write = Writer("encoder")
    x, y = (write.input(name, FLOAT, (4, 4)) for name in "xy")
    weight = write.weight("weight", np.ones((4, 4), np.float32))
    for number, value in enumerate((x, y)):
        write.op("", "MatMul", value, weight, output=f"z{number}")
        write.output(f"z{number}", FLOAT, (4, 4))
    graphs: dict[GraphName, Graph] = {"encoder": write.graph()}
    costs = flat_costs(graphs, cast=1.0, MatMul=1.0)
    one, other = sorted(all_compute_keys(graphs))
    assert low_of(graphs, placer(graphs, costs, forced_low=frozenset({one})).place()) == {one}
    stored = replace(costs, duplicates={"encoder": {"weight": 1e-6}})
    found = placer(graphs, stored, forced_low=frozenset({one})).place()
    assert low_of(graphs, found) == {one, other}
    assert found.seconds == 20.0
    assert not low_of(graphs, placer(graphs, stored).place())


def test_pins_hold_and_fp32_wins(tiny: Graphs) -> None:
    saving = flat_costs(tiny, cast=0.1, MatMul=5.0, Pow=-5.0)
    one, other = "encoder.block.0.layer.0.SelfAttention.q/MatMul", "encoder.final_layer_norm/Pow"
    free = low_of(tiny, placer(tiny, saving).place())
    assert one in free
    assert other not in free
    assert one not in low_of(tiny, placer(tiny, saving, fixed=frozenset({one})).place())
    assert one not in low_of(tiny, placer(tiny, saving, forced_low=frozenset({one})).place(frozenset({one})))
    assert one not in low_of(tiny, placer(tiny, saving, fixed=frozenset({one})).place(low=frozenset({one})))
    for found in (
        placer(tiny, saving, forced_low=frozenset({other})).place(),
        placer(tiny, saving).place(low=frozenset({other, "no such node"}), fp32=frozenset({"nor this"})),
        placer(tiny, saving, forced_low=frozenset({other})).place(prices={other: float("inf")}),
    ):
        assert other in low_of(tiny, found)
        assert np.isfinite(found.seconds)
        assert found.plan.fp32 <= all_compute_keys(tiny)


def test_index_arithmetic_is_never_low(tiny: Graphs) -> None:
    pinned = pinned_keys(tiny)
    assert pinned
    assert placer(tiny, flat_costs(tiny, cast=0.0, Log=5.0, Div=5.0, Mul=5.0)).place(low=pinned).plan.fp32 >= pinned


def test_the_same_costs_give_the_same_plan_in_any_order(tiny: Graphs) -> None:
    costs = flat_costs(tiny, cast=1.0, MatMul=3.0, Transpose=1.0, Mul=1.0)
    turned = {name: tiny[name] for name in reversed(list(tiny))}
    pins = frozenset(key for key in all_compute_keys(tiny) if "Add" in key)
    first = placer(tiny, costs).place(pins)
    assert first == placer(tiny, costs).place(pins) == placer(turned, costs).place(pins)


# The demo, by the cost model.


@pytest.fixture(scope="module")
def estimated(demo_bundle: Bundle) -> EstimatedLatency:
    return EstimatedLatency(demo_bundle, Workload(1024, 16, 16), load_profile("t4"))


@pytest.fixture(scope="module")
def demo_placer(demo_bundle: Bundle, estimated: EstimatedLatency) -> Placer:
    return placer(demo_bundle.graphs, estimated.placement_costs("float16"))


def test_on_the_demo_the_cost_of_a_cut_is_that_of_the_plan(
    demo_bundle: Bundle, estimated: EstimatedLatency, demo_placer: Placer
) -> None:
    rng = np.random.default_rng(3)
    keys = sorted(all_compute_keys(demo_bundle.graphs))
    for share in (0.0, 0.02, 0.02, 0.1, 0.1, 0.3, 0.3, 0.6, 0.6, 1.0):
        fp32 = frozenset(key for key in keys if rng.random() < share)
        low = frozenset(key for key in keys if rng.random() < 0.02)
        found = demo_placer.place(fp32, low)
        assert found.seconds == pytest.approx(estimated.plan_ms(found.plan) / 1e3, rel=1e-9)
        assert fp32 <= found.plan.fp32
        assert low & found.plan.fp32 <= fp32 | pinned_keys(demo_bundle.graphs)


@pytest.mark.parametrize(("batch", "profile"), [(1024, "t4"), (64, "a100")])
def test_on_the_demo_no_plan_of_op_types_is_faster(demo_bundle: Bundle, batch: int, profile: str) -> None:
    estimated = EstimatedLatency(demo_bundle, Workload(batch, 16, 16), load_profile(profile))
    pins = frozenset(WO)
    found = placer(demo_bundle.graphs, estimated.placement_costs("float16")).place(pins)
    placed_ms = estimated.plan_ms(found.plan)
    assert found.seconds == pytest.approx(placed_ms / 1e3, rel=1e-9)
    rng = np.random.default_rng(7)
    groups = [keys for family in FAMILIES for keys in compute_keys_by_op_type(demo_bundle.graphs, family).values()]
    fixed = keeping(demo_bundle).fp32 | pins
    for _ in range(200):
        share = rng.random()
        kept = frozenset[str]().union(*(keys for keys in groups if rng.random() < share))
        assert placed_ms <= estimated.plan_ms(Plan("float16", "base", fixed | kept)) * (1 + 1e-9)
