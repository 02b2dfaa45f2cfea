"""The damage finder names the node where a plan leaves fp32 behind, and nothing where there is only rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from precision_search.judging import damage
from precision_search.judging.damage import THRESHOLD, DamagedNode, DamageFinder
from precision_search.model.bundle import Bundle
from precision_search.model.graph import compute_keys_by_op_type
from precision_search.precision.plan import Plan, all_compute_keys, pinned_keys
from precision_search.precision.weights import WeightCache
from precision_search.runtime.backends import create_session
from precision_search.runtime.teacher_forcing import ForcedBatch, forced_batches
from tests.plans import CLASSIC, NORMS, SETTINGS, WO, keeping, lowering

Rows = tuple[tuple[int, ...], ...]
INF = float("inf")


@dataclass(frozen=True, slots=True)
class Demo:
    """The demo, its damage finder, and samples to run alone."""

    bundle: Bundle
    finder: DamageFinder
    batches: tuple[ForcedBatch, ...]

    def find(self, plan: Plan, sample: int = 0) -> DamagedNode | None:
        return self.finder.find(plan, self.batches[sample])

    def keys(self, family: Any) -> frozenset[str]:
        return frozenset().union(*compute_keys_by_op_type(self.bundle.graphs, family).values())


@pytest.fixture(scope="module")
def demo(demo_bundle: Bundle, demo_ids: Rows, demo_oracle_tokens: list[list[int]]) -> Demo:
    finder = DamageFinder(demo_bundle.graphs, WeightCache(), SETTINGS)
    return Demo(
        demo_bundle, finder, forced_batches(demo_ids[:3], demo_oracle_tokens[:3], demo_bundle.generation, batch_size=1)
    )


def test_all_low_breaks_in_the_first_norm(demo: Demo) -> None:
    """Squares of the residual stream overflow, long before anything that looks like NaN comes out."""
    assert demo.find(keeping(demo.bundle)) == DamagedNode("encoder.block.0.layer.0.layer_norm/Pow", INF)


def test_the_classic_list_keeps_the_square_and_loses_it_one_node_later(demo: Demo) -> None:
    assert demo.find(keeping(demo.bundle, CLASSIC)) == DamagedNode("encoder.block.0.layer.0.layer_norm/Add", INF)


@pytest.mark.parametrize("sample", range(3))
def test_a_single_overflowing_product_is_named(demo: Demo, sample: int) -> None:
    assert demo.find(lowering(demo.bundle, [WO[0]]), sample) == DamagedNode(WO[0], INF)
    assert demo.find(keeping(demo.bundle, NORMS), sample) == DamagedNode(WO[0], INF)


@pytest.mark.parametrize("sample", range(3))
def test_rounding_alone_is_no_damage(demo: Demo, sample: int) -> None:
    assert demo.find(keeping(demo.bundle, NORMS, WO), sample) is None
    assert demo.find(lowering(demo.bundle, ["lm_head/MatMul"]), sample) is None
    assert demo.find(lowering(demo.bundle), sample) is None


def test_damage_in_the_decoder_is_found_behind_a_sound_encoder(demo: Demo) -> None:
    kept = demo.keys("encoder") | pinned_keys(demo.bundle.graphs)

    found = demo.find(Plan("float16", "base", kept))

    assert found == DamagedNode("decoder.block.0.layer.0.layer_norm/Pow", INF)


def test_the_decoder_is_compared_on_what_its_own_encoder_says(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that lost everything without an outlier that stands out still shows in the decoder."""
    encoder_only = Plan("float16", "base", all_compute_keys(demo.bundle.graphs) - demo.keys("encoder"))
    found = demo.find(encoder_only)
    assert found is not None
    assert found.key.startswith("encoder")

    monkeypatch.setattr(damage, "_first_damaged", skip_the_encoder)
    behind = demo.find(encoder_only)

    assert behind is not None
    assert ".EncDecAttention" in behind.key
    assert behind.relative_error > THRESHOLD


first_damaged = damage._first_damaged  # before a test replaces it


def skip_the_encoder(wanted: Any, found: Any, masked_from: float) -> DamagedNode | None:
    return None if any(key.startswith("encoder") for key in wanted) else first_damaged(wanted, found, masked_from)


def test_the_fp32_model_is_traced_once_for_plans_that_fail_on_the_same_sample(
    demo_bundle: Bundle, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def count(model: Any, *args: Any, **options: Any) -> Any:
        made.append(str(model.graph.name))
        return create_session(model, *args, **options)

    monkeypatch.setattr(damage, "create_session", count)
    finder = DamageFinder(demo_bundle.graphs, WeightCache(), SETTINGS)
    harmless, harmful = lowering(demo_bundle, ["lm_head/MatMul"]), lowering(demo_bundle, [WO[0]])

    sessions = []
    for plan, sample in [(harmful, 0), (harmful, 0), (harmless, 0), (harmless, 0), (harmless, 1), (harmful, 0)]:
        before = len(made)
        finder.find(plan, demo.batches[sample])
        sessions.append(len(made) - before)

    # fp32 and the plan; the plan; fp32 decoder and both of the plan; those; two of each; fp32 and the plan again.
    assert sessions == [2, 1, 3, 2, 4, 2]


def test_each_sample_is_compared_with_its_own_fp32_values(demo: Demo) -> None:
    """Kept values of the sample before would be of another shape, or make everything look damaged."""
    harmless = lowering(demo.bundle, ["lm_head/MatMul"])

    assert [demo.find(harmless, sample) for sample in (0, 1, 2, 1, 0)] == [None] * 5


# What counts as damage, on made-up values.


def compare(want: list[float], have: list[float], masked_from: float = INF) -> DamagedNode | None:
    wanted, found = np.array(want, np.float32), np.array(have, np.float32)
    return damage._first_damaged({"a": wanted}, {"a": found}, masked_from)


@pytest.mark.parametrize(
    ("want", "have", "error"),
    [
        ([8.0, -4.0], [8.0, -4.0], None),
        ([8.0, -4.0], [6.5, -4.0], None),
        ([8.0, -4.0], [6.0, -4.0], 0.25),
        ([8.0, -4.0], [8.0, 4.0], 1.0),
        ([-8.0, 0.01], [-8.0, 0.5], None),  # small beside the largest: noise
        ([8.0, -4.0], [0.0, 0.0], 1.0),
        ([8.0, -4.0], [8.0, float("nan")], INF),
        ([8.0, -4.0], [8.0, -INF], INF),
        ([0.0, 0.0], [0.0, 0.0], None),
        ([], [], None),
    ],
)
def test_damage_is_a_large_error_beside_the_largest_value(
    want: list[float], have: list[float], error: float | None
) -> None:
    found = compare(want, have)

    assert found == (None if error is None else DamagedNode("a", error))


def test_masked_values_do_not_count() -> None:
    """A mask saturates, and a score added to it may be anything."""
    lowest = float(np.finfo(np.float32).min)

    assert compare([1.0, lowest], [1.0, -65504.0], masked_from=0.99 * -lowest) is None
    assert compare([1.0, lowest], [1.0, -INF], masked_from=0.99 * -lowest) is None
    assert compare([1.0, lowest], [2.0, lowest], masked_from=0.99 * -lowest) == DamagedNode("a", 1.0)


def test_the_first_damaged_node_in_order_is_named_and_missing_ones_are_passed_over() -> None:
    wanted = {key: np.ones(2, np.float32) for key in "abcd"}
    found = {"a": wanted["a"], "c": np.full(2, 3, np.float32), "d": np.full(2, np.nan, np.float32)}

    assert damage._first_damaged(wanted, found, INF) == DamagedNode("c", 2.0)
