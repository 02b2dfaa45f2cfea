"""A latency says where it comes from, is relative to fp32, and is for the whole workload."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_search.errors import ConfigError
from precision_search.model.bundle import Bundle
from precision_search.precision.convert import convert
from precision_search.precision.cost import Workload
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.runtime.device_profile import load_profile
from precision_search.runtime.timing import Timing
from precision_search.search import latency as module
from precision_search.search.latency import EstimatedLatency, MeasuredLatency
from tests.conftest import DEMO_MODEL
from tests.plans import NORMS, SETTINGS, WO, keeping, lowering

OFFLINE, SINGLE = Workload(1024, 16, 16), Workload(1, 16, 16)


@pytest.fixture(scope="module")
def estimated(demo_bundle: Bundle) -> EstimatedLatency:
    return EstimatedLatency(demo_bundle, OFFLINE, load_profile("t4"))


def test_fp32_is_exactly_as_fast_as_itself(demo_bundle: Bundle, estimated: EstimatedLatency) -> None:
    """However it came about: a table in which fp32 is 0.99 of fp32 tells people that the tool is wrong."""
    unconverted = estimated.latency(demo_bundle.models)
    converted = estimated.latency(convert(demo_bundle.graphs, lowering(demo_bundle)).models)

    assert unconverted.speedup == converted.speedup == 1.0
    assert unconverted == converted


def test_an_estimate_says_so_and_names_its_profile(demo_bundle: Bundle, estimated: EstimatedLatency) -> None:
    found = estimated.latency(demo_bundle.models)

    assert (found.source, found.profile) == ("estimated", "t4")
    assert 0 < found.low_ms < found.p50_ms < found.high_ms


def test_speedup_is_the_time_of_fp32_by_that_of_the_plan(demo_bundle: Bundle, estimated: EstimatedLatency) -> None:
    fp32 = estimated.latency(demo_bundle.models)
    low = estimated.latency(convert(demo_bundle.graphs, keeping(demo_bundle)).models)
    mixed = estimated.latency(convert(demo_bundle.graphs, keeping(demo_bundle, NORMS, WO)).models)

    for found in (low, mixed):
        assert found.speedup == pytest.approx(fp32.p50_ms / found.p50_ms)
    assert low.speedup > mixed.speedup > 1.0


def test_at_batch_1_a_small_model_gains_nothing_from_a_mixture(demo_bundle: Bundle) -> None:
    """Each cast is one more kernel to launch, and launches are what such a step consists of."""
    single = EstimatedLatency(demo_bundle, SINGLE, load_profile("t4"))

    mixed = single.latency(convert(demo_bundle.graphs, keeping(demo_bundle, NORMS, WO)).models)

    assert mixed.speedup < 1.0


def random_plans(bundle: Bundle, count: int) -> list[Plan]:
    generator = np.random.default_rng(11)
    keys = sorted(all_compute_keys(bundle.graphs))
    fixed = keeping(bundle).fp32
    shares = generator.random(count)
    kept = [frozenset(key for key in keys if generator.random() < share) for share in shares]
    return [Plan("float16", "base", fixed | some) for some in kept]


def test_a_plan_is_estimated_without_converting_it_as_well_as_after(
    demo_bundle: Bundle, estimated: EstimatedLatency
) -> None:
    for plan in (keeping(demo_bundle), keeping(demo_bundle, NORMS, WO), *random_plans(demo_bundle, 4)):
        wanted = estimated.latency(convert(demo_bundle.graphs, plan).models).p50_ms
        assert estimated.plan_ms(plan) == pytest.approx(wanted, rel=1e-9)
    fp32 = lowering(demo_bundle)
    assert estimated.plan_ms(fp32) == pytest.approx(estimated.latency(demo_bundle.models).p50_ms, rel=1e-9)


def test_a_dtype_that_the_device_has_no_arithmetic_for_is_refused(
    demo_bundle: Bundle, estimated: EstimatedLatency
) -> None:
    one_low = Plan("bfloat16", "base", all_compute_keys(demo_bundle.graphs) - {"encoder.final_layer_norm/Mul"})

    with pytest.raises(ConfigError, match="bfloat16"):
        estimated.latency(convert(demo_bundle.graphs, one_low).models)


# Measured, with the clock made up.

TARGET_LENGTH = 5


class FakeInterleave:
    """Runs each side once, keeps what it returned, and says what the clock did."""

    def __init__(self, first_ms: float, second_ms: float) -> None:
        self.returned: list[Any] = []
        self.options: dict[str, Any] = {}
        self._times = (first_ms, second_ms)

    def __call__(
        self, first: Callable[[], object], second: Callable[[], object], **options: Any
    ) -> tuple[Timing, Timing]:
        self.returned += [first(), second()]
        self.options = options
        one, two = (Timing(ms, 0.9 * ms, 1.2 * ms, (ms,)) for ms in self._times)
        return one, two


def test_a_measurement_is_against_fp32_of_the_same_rounds(demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeInterleave(first_ms=30.0, second_ms=20.0)
    monkeypatch.setattr(module, "interleave", fake)
    measured = MeasuredLatency(demo_bundle, Workload(3, 4, TARGET_LENGTH), SETTINGS, seed=7)

    found = measured.latency(convert(demo_bundle.graphs, lowering(demo_bundle)).models)

    assert [found.p50_ms, found.low_ms, found.high_ms] == pytest.approx([20.0, 18.0, 24.0])
    assert found.speedup == pytest.approx(1.5)
    assert (found.source, found.profile) == ("measured", None)
    assert fake.options == {"seed": 7}


def test_both_sides_generate_the_whole_workload(demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random tokens end when they like; a plan that breaks them must not look fast because its sentences end early."""
    fake = FakeInterleave(1.0, 1.0)
    monkeypatch.setattr(module, "interleave", fake)
    measured = MeasuredLatency(demo_bundle, Workload(3, 4, TARGET_LENGTH), SETTINGS, seed=7)

    measured.latency(convert(demo_bundle.graphs, lowering(demo_bundle)).models)
    measured.latency(demo_bundle.models)

    assert len(fake.returned) == 4
    for generation in fake.returned:
        assert generation.lengths.tolist() == [TARGET_LENGTH] * 3
        np.testing.assert_array_equal(generation.tokens, fake.returned[0].tokens)


SAY_ESTIMATES = """
import sys
from pathlib import Path
from precision_search.model.bundle import open_bundle
from precision_search.precision.cost import Workload
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.runtime.device_profile import load_profile
from precision_search.search.latency import EstimatedLatency

bundle = open_bundle(sys.argv[1], Path(sys.argv[2]))
latency = EstimatedLatency(bundle, Workload(8, 16, 16), load_profile("t4"))
keys = sorted(all_compute_keys(bundle.graphs))
for step in range(2, 12):
    print(latency.plan_ms(Plan("float16", "base", frozenset(keys[::step]))).hex())
"""


@pytest.mark.slow
def test_estimates_are_the_same_to_the_last_bit_in_every_process(export_cache: Path, demo_bundle: Bundle) -> None:
    """A search sorts by them: a last bit that depends on the order of a set would make a resumed run another one."""
    said = {
        subprocess.run(
            [sys.executable, "-c", SAY_ESTIMATES, str(DEMO_MODEL), str(export_cache)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (0, 1, 2)
    }
    assert len(said) == 1
