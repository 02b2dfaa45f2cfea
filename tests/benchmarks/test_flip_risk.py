"""The flip risk benchmark counts, draws and sums up as it says. What it finds is in docs/benchmarks.md."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.flip_coverage import (
    Outcome,
    PlanMargins,
    Summary,
    count_flips,
    draw_sets,
    is_beyond_rounding,
    rank_correlation,
    smallest_margins,
    take,
)
from benchmarks.flip_plans import DrawnPlan, draw_plans
from benchmarks.flip_plot import draw_plot
from benchmarks.flip_risk import DtypeResult, Judged, read_reference, report, write_reference
from precision_search.judging.flip_risk import TokenMargins
from precision_search.judging.trial import FlipRisk
from precision_search.model.bundle import Bundle
from precision_search.model.graph import compute_keys_by_op_type
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.runtime.reference import Reference
from precision_search.strategies.space import SpaceReport
from tests.plans import WO
from tests.strategies.test_space import space_of

INF, NAN = float("inf"), float("nan")


def margins_of(*sentences: Sequence[tuple[float, float]]) -> TokenMargins:
    """Sentences of (reference, plan) pairs."""
    reference, plan = np.array(list(itertools.chain(*sentences)), np.float64).T
    numbers = np.repeat(np.arange(len(sentences)), [len(tokens) for tokens in sentences])
    return TokenMargins(reference, plan, numbers, len(sentences))


def many(sentences: int, smallest: float = 0.0, seed: int = 0) -> TokenMargins:
    """Sentences of 1 to 5 tokens; each token's margin under the plan is its reference margin plus 100."""
    rng = np.random.default_rng(seed)
    drawn = [rng.exponential(1.0, rng.integers(1, 6)) + smallest for _ in range(sentences)]
    return margins_of(*([(float(margin), float(margin) + 100) for margin in tokens] for tokens in drawn))


def outcome(value: float, low: float, high: float, counted: float) -> Outcome:
    return Outcome(FlipRisk(value, low, high), counted)


def test_ties_and_values_that_are_not_finite_are_flips() -> None:
    margins = margins_of([(1.0, 0.5), (1.0, 0.0), (0.1, -0.1)], [(2.0, -INF), (3.0, 3.0)])
    assert count_flips(margins) == pytest.approx(600.0)


def test_nothing_is_counted_where_a_screen_stopped_early() -> None:
    with pytest.raises(ValueError, match="to the end"):
        count_flips(margins_of([(1.0, 1.0)], [(1.0, NAN)]))


@pytest.mark.parametrize(("plan", "damaged"), [(1.01, False), (0.7, False), (0.2, True), (2.0, True), (-INF, True)])
def test_damage_is_a_value_not_finite_or_margins_moved_far(plan: float, damaged: bool) -> None:
    sound = margins_of([(1.0, 1.0)])
    assert is_beyond_rounding([sound, margins_of([(1.0, plan)] * 9)], 0.5) is damaged


def test_one_far_token_is_no_damage_but_one_not_finite_is() -> None:
    assert not is_beyond_rounding([margins_of([(1.0, 1.0)] * 9 + [(9.0, 1.0)])], 0.5)
    assert is_beyond_rounding([margins_of([(1.0, 1.0)] * 9 + [(9.0, -INF)])], 0.5)


def test_ends_of_an_interval_are_inside_it() -> None:
    assert [outcome(2.0, 1.0, 3.0, counted).inside for counted in (0.9, 1.0, 2.0, 3.0, 3.1)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_the_summary_counts_both_ways_to_miss() -> None:
    outcomes = [
        outcome(2.0, 1.0, 3.0, 2.0),
        outcome(2.2, 1.0, 6.6, 4.4),
        outcome(4.0, 3.0, 5.0, 8.0),
        outcome(1.0, 0.5, 2.0, 0.0),
    ]
    found = Summary.of(outcomes)
    assert (found.plans, found.inside, found.below) == (4, 2, 1)
    assert found.ratio == pytest.approx(0.5)  # of 1, 0.5 and 0.5: nothing counted has no ratio
    assert found.width == pytest.approx((1.5 + 2.0) / 2)
    assert found.rank == pytest.approx(1.0)


def test_rank_correlation_shares_ranks_among_equals() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 100, 1000, 1001]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5 over the root of 4.5 * 5.
    assert rank_correlation([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(rank_correlation([1, 1], [1, 2]))


def test_taken_sentences_are_whole_and_numbered_anew() -> None:
    margins = margins_of([(1.0, 1.5)], [(2.0, 2.5), (3.0, 3.5)], [(4.0, 4.5)])
    found = take(margins, np.array([2, 1]))
    np.testing.assert_array_equal(found.reference, [4.0, 2.0, 3.0])
    np.testing.assert_array_equal(found.plan, [4.5, 2.5, 3.5])
    np.testing.assert_array_equal(found.sentence, [0, 1, 1])
    assert found.sentences == 2


def test_other_draws_are_apart_and_choose_calibration_as_it_was_chosen() -> None:
    plans = [PlanMargins(many(20, 0.3), many(30), many(400, seed=1))] * 2
    first, second = draw_sets(plans, 5)
    sets = (first.calibration, first.validation, first.unlabelled)
    assert [part.sentences for part in sets] == [20, 30, 350]
    assert smallest_margins(first.calibration).min() >= smallest_margins(plans[0].calibration).min() > 0.3
    assert smallest_margins(first.validation).min() < 0.3
    together = np.concatenate([part.reference for part in sets])
    np.testing.assert_array_equal(np.sort(together), np.sort(plans[0].unlabelled.reference))
    np.testing.assert_allclose(first.unlabelled.plan, first.unlabelled.reference + 100)
    np.testing.assert_array_equal(first.validation.reference, second.validation.reference)
    assert not np.array_equal(first.validation.reference, draw_sets(plans, 6)[0].validation.reference)


HARD = dict.fromkeys(WO, 1e6)


def drawn_plans(bundle: Bundle, space: SpaceReport, count: int, seed: int = 0) -> list[DrawnPlan]:
    return list(itertools.islice(draw_plans(space, bundle.graphs, seed), count))


def test_drawn_plans_are_new_and_keep_what_does_not_fit(demo_bundle: Bundle) -> None:
    space = space_of(demo_bundle, largest=HARD)
    found = drawn_plans(demo_bundle, space, 40)
    assert len({each.plan.digest for each in found}) == 40
    kinds = [each.kind for each in found]
    assert min(kinds.count("op types"), kinds.count("roles")) >= 18
    every = all_compute_keys(demo_bundle.graphs)
    whole_type = compute_keys_by_op_type(demo_bundle.graphs, "encoder")["MatMul"]
    for each in found:
        assert each.plan.fp32 >= space.space.fixed | frozenset(WO)
        assert each.plan.fp32 < every
        if each.kind == "op types":
            assert each.plan.fp32 >= whole_type
    # The same op type is free elsewhere for a plan of roles.
    assert any(not each.plan.fp32 >= whole_type for each in found if each.kind == "roles")
    low = [len(every - each.plan.fp32) for each in found]
    assert min(low) < 0.05 * len(every)
    assert max(low) > 0.6 * len(every)


def test_a_role_is_low_in_all_layers_or_in_none(demo_bundle: Bundle) -> None:
    members: dict[str, set[str]] = {}
    for graph in demo_bundle.graphs.values():
        for node in graph.compute:
            members.setdefault(node.role, set()).add(node.key)
    space = space_of(demo_bundle)
    for each in drawn_plans(demo_bundle, space, 20):
        for keys in members.values():
            free = keys - space.space.fixed
            assert each.kind == "op types" or free <= each.plan.fp32 or not free & each.plan.fp32


def test_drawn_plans_follow_from_the_seed(demo_bundle: Bundle) -> None:
    space = space_of(demo_bundle)
    assert drawn_plans(demo_bundle, space, 6, seed=1) == drawn_plans(demo_bundle, space, 6, seed=1)
    assert drawn_plans(demo_bundle, space, 6, seed=1) != drawn_plans(demo_bundle, space, 6, seed=2)


def test_forced_low_nodes_are_low_in_every_plan(demo_bundle: Bundle) -> None:
    space = space_of(demo_bundle, force=["Relu"])
    assert space.space.forced_low
    for each in drawn_plans(demo_bundle, space, 10):
        assert not each.plan.fp32 & space.space.forced_low


def test_drawing_ends_where_there_are_no_more_plans(demo_bundle: Bundle) -> None:
    space = space_of(demo_bundle, keep=[r"(?!lm_head/MatMul).*"])
    found = list(draw_plans(space, demo_bundle.graphs, 0))
    assert [each.plan.fp32 for each in found] == [all_compute_keys(demo_bundle.graphs) - {"lm_head/MatMul"}]


def test_a_kept_reference_is_read_back_as_it_was(tmp_path: Path) -> None:
    reference = Reference(((5, 6, 1), (), (7,)), tuple(np.array(m, np.float32) for m in ([1, NAN, 3], [], [0.5])))
    write_reference(tmp_path / "kept" / "reference.npz", reference)
    found = read_reference(tmp_path / "kept" / "reference.npz")
    assert found.tokens == reference.tokens
    for one, other in zip(found.margins, reference.margins, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def test_the_report_names_every_plan_and_sums_up() -> None:
    drawn = DrawnPlan("roles", Plan("float16", "base", frozenset()))
    margins = PlanMargins(many(2), many(3), many(4))
    outcomes = [outcome(3.0, 2.0, 4.0, 9.0), outcome(1.0, 0.5, 2.0, 1.1)]
    judged = tuple(Judged(drawn, 12, index == 1, margins, each) for index, each in enumerate(outcomes))
    found = report("Machine: x.", [DtypeResult("float16", judged, 7)], [[outcomes[1]], [outcomes[1], outcomes[0]]])
    assert found.startswith("Machine: x.\n")
    assert "| 1 of 2 (50%) | 1 |" in found
    # One plan has no rank.
    assert "float16, exact on calibration | 1 of 1 (100%) | 0 | 0.91 | 2.00 | - |" in found
    assert "float16, 2 other draws of the samples | 2 of 3 (67%)" in found
    assert "left out for damage: 7" in found
    rows = [line for line in found.splitlines() if line.startswith("| roles")]
    assert rows == [
        "| roles | 12 | yes | 1.00 (0.50 to 2.00) | 1.10 | yes |",
        "| roles | 12 | no | 3.00 (2.00 to 4.00) | 9.00 | **no** |",
    ]


def test_the_plot_is_text_and_the_same_each_time() -> None:
    outcomes = [outcome(1.0 + n / 10, 0.5, 2.0 + n / 5, 0.1 * n) for n in range(40)]
    found = [draw_plot([("float16", outcomes), ("bfloat16", outcomes[:8])], 0.01) for _ in range(2)]
    assert found[0] == found[1]
    assert "<text" in found[0]
    assert "bfloat16" in found[0]
    assert len(found[0]) < 60_000
