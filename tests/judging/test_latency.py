"""A latency says where it comes from, is relative to fp32, and is for the whole workload."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_search.cost.estimate import Workload
from precision_search.device.profile import load_profile
from precision_search.device.state import DeviceState
from precision_search.errors import ConfigError, DeviceMemoryError
from precision_search.judging import latency as module
from precision_search.judging.latency import EstimatedLatency, MeasuredLatency, PlanTiming
from precision_search.model.bundle import Bundle
from precision_search.precision.convert import convert
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.runtime.timing import Comparison, Interval, Timing, TimingRules, compare_times
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
    assert found.speedup_low is found.speedup_high is None
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


class FakeCompare:
    """Runs each side once, keeps what it returned, and says what the clock did."""

    def __init__(self, first_ms: float, second_ms: float, *, stable: bool = True, narrow: bool = True) -> None:
        self.returned: list[Any] = []
        self.options: dict[str, Any] = {}
        first, second = (Timing(ms, 0.9 * ms, 1.2 * ms, (ms,)) for ms in (first_ms, second_ms))
        # The rounds' own ratio, which need not be that of the medians.
        self.found = Comparison(first, second, Interval(1.04 * first_ms / second_ms, 1.0, 2.0), stable, narrow)

    def __call__(self, first: Callable[[], object], second: Callable[[], object], **options: Any) -> Comparison:
        self.returned += [first(), second()]
        self.options = options
        return self.found


WORKLOAD = Workload(3, 4, TARGET_LENGTH)


def measuring(bundle: Bundle) -> MeasuredLatency:
    """Its device gets warmer with each look."""
    temperatures = iter(range(40, 99))
    return MeasuredLatency(
        bundle, WORKLOAD, SETTINGS, seed=7, state=lambda device_id: DeviceState(temperature_c=next(temperatures))
    )


def test_a_measurement_is_against_fp32_of_the_same_rounds(demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCompare(first_ms=30.0, second_ms=20.0)
    monkeypatch.setattr(module, "compare_times", fake)
    measured = measuring(demo_bundle)

    found = measured.latency(convert(demo_bundle.graphs, lowering(demo_bundle)).models)

    assert found is not None
    assert [found.p50_ms, found.low_ms, found.high_ms] == pytest.approx([20.0, 18.0, 24.0])
    assert found.speedup == pytest.approx(1.04 * 1.5)
    assert (found.speedup_low, found.speedup_high) == (1.0, 2.0)
    assert (found.source, found.profile) == ("measured", None)
    assert fake.options == {"seed": 7}


def test_what_was_measured_is_handed_over_once(demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCompare(30.0, 20.0)
    monkeypatch.setattr(module, "compare_times", fake)
    measured = measuring(demo_bundle)
    assert measured.take() is None

    measured.latency(demo_bundle.models)

    expected = PlanTiming(fake.found, DeviceState(temperature_c=40), DeviceState(temperature_c=41), None)
    assert measured.take() == expected
    assert measured.take() is None


@pytest.mark.parametrize(
    ("stable", "narrow", "problems"),
    [
        (False, True, ["still moved"]),
        (True, False, ["the speedup is not known to 1%"]),
        (False, False, ["still moved", "the speedup is not known to 1%"]),
    ],
)
def test_a_measurement_that_did_not_settle_or_says_little_says_so(
    demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, stable: bool, narrow: bool, problems: list[str]
) -> None:
    monkeypatch.setattr(module, "compare_times", FakeCompare(30.0, 20.0, stable=stable, narrow=narrow))
    measured = measuring(demo_bundle)

    assert measured.latency(demo_bundle.models) is not None

    taken = measured.take()
    assert taken is not None
    assert taken.problem is not None
    found = taken.problem.split("; ")
    assert len(found) == len(problems)
    assert all(wanted in said for wanted, said in zip(problems, found, strict=True))


def test_both_sides_generate_the_whole_workload(demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random tokens end when they like; a plan that breaks them must not look fast because its sentences end early."""
    fake = FakeCompare(1.0, 1.0)
    monkeypatch.setattr(module, "compare_times", fake)
    measured = measuring(demo_bundle)

    measured.latency(convert(demo_bundle.graphs, lowering(demo_bundle)).models)
    measured.latency(demo_bundle.models)

    assert len(fake.returned) == 4
    for generation in fake.returned:
        assert generation.lengths.tolist() == [TARGET_LENGTH] * 3
        np.testing.assert_array_equal(generation.tokens, fake.returned[0].tokens)


def test_times_are_real_and_all_kept(demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it runs on a device, here on the CPU, with few rounds."""
    rules = TimingRules(warm_up_rounds=4, least_rounds=2, most_rounds=2)
    monkeypatch.setattr(module, "compare_times", functools.partial(compare_times, rules=rules))
    measured = measuring(demo_bundle)

    found = measured.latency(demo_bundle.models)

    taken = measured.take()
    assert found is not None
    assert taken is not None
    assert taken.comparison is not None
    for side in (taken.comparison.first, taken.comparison.second):
        assert (len(side.samples_ms), len(side.warm_up_ms)) == (4, 8)
        assert min(side.samples_ms) > 0.0
    assert found.p50_ms == np.median(taken.comparison.second.samples_ms)


class FullDevice:
    """A generator on a device that has room for the first so many of its kind."""

    room = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        FullDevice.room -= 1

    def generate(self, *arguments: Any) -> None:
        if FullDevice.room < 0:
            raise DeviceMemoryError("No memory for 9,999 MiB on cuda.", why="out of memory", fix="Use a smaller batch.")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.setattr(module, "Generator", FullDevice)
    return lambda count: monkeypatch.setattr(FullDevice, "room", count)


def test_a_workload_too_large_for_fp32_is_refused_before_anything_is_searched(
    demo_bundle: Bundle, room: Callable[[int], None]
) -> None:
    room(0)
    with pytest.raises(DeviceMemoryError) as caught:
        measuring(demo_bundle)

    assert "a batch of 3 with 4 source and 5 target tokens, in fp32" in caught.value.what
    assert caught.value.fix == "set workload.batch below 3"
    assert caught.value.exit_code == 3


def test_a_batch_of_one_that_does_not_fit_wants_shorter_sentences(
    demo_bundle: Bundle, room: Callable[[int], None]
) -> None:
    room(0)
    with pytest.raises(DeviceMemoryError, match="source_length"):
        MeasuredLatency(demo_bundle, Workload(1, 4, 4), SETTINGS, seed=7)


def test_a_plan_whose_workload_does_not_fit_has_no_latency(demo_bundle: Bundle, room: Callable[[int], None]) -> None:
    room(1)
    measured = measuring(demo_bundle)

    assert measured.latency(demo_bundle.models) is None

    taken = measured.take()
    assert taken is not None
    assert taken.comparison is None
    assert taken.problem == (
        "no latency: a batch of 3 with 4 source and 5 target tokens does not fit beside fp32 (out of memory)"
    )


SAY_ESTIMATES = """
import sys
from pathlib import Path
from precision_search.model.bundle import open_bundle
from precision_search.cost.estimate import Workload
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.device.profile import load_profile
from precision_search.judging.latency import EstimatedLatency

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
