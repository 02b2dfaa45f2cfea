"""The ceiling against brute force: no plan under the same pins gains more, at the workload or at any other batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from precision_search.cost.ceiling import WORTH_IT, Ceiling
from precision_search.cost.estimate import CostModel, Workload
from precision_search.device.profile import DeviceProfile, load_profile
from precision_search.errors import ConfigError
from precision_search.judging import ceiling as module
from precision_search.judging.ceiling import Pins, find_ceiling
from precision_search.judging.latency import EstimatedLatency
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.variants import with_variants
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.strategies.space import never_low
from tests.tiny_model import write_tiny_model
from tests.toy_variant import TOY, register_toy

FREE = 7
SHORT = Workload(1, 16, 4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("ceiling")
    return open_bundle(str(write_tiny_model(folder / "model")), folder / "cache")


@pytest.fixture
def at_the_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks about no other batch, each of which costs shapes of its own."""
    monkeypatch.setattr(module, "first_batch", lambda gain, batch: None)


def t4(launch_us: float | None = None) -> DeviceProfile:
    """A T4 on which a launch takes so long; a tiny model is all launches unless they are short."""
    profile = load_profile("t4")
    if launch_us is None:
        return profile
    return replace(profile, assumptions=replace(profile.assumptions, launch_us=launch_us))


def unpinned(bundle: Bundle) -> dict[str, Pins]:
    """What can never be low, and nothing else."""
    return {name: Pins(frozenset(never_low(bundle.graphs_of(name), "float16"))) for name in bundle.variant_names}


def ceiling_of(bundle: Bundle, workload: Workload, profile: DeviceProfile, pins: Pins | None = None) -> Ceiling:
    wanted = unpinned(bundle) if pins is None else {"base": pins}
    return find_ceiling(EstimatedLatency(bundle, workload, profile), "float16", wanted)


def drawn_pins(bundle: Bundle, seed: int) -> Pins:
    """All but a few keys pinned, some of them to low."""
    rng = np.random.default_rng(seed)
    never = frozenset(never_low(bundle.graphs, "float16"))
    keys = sorted(all_compute_keys(bundle.graphs) - never)
    rng.shuffle(keys)
    forced = frozenset(key for key in keys[FREE:] if rng.random() < 0.7)
    return Pins(never | (frozenset(keys[FREE:]) - forced), forced)


def plans_under(bundle: Bundle, pins: Pins) -> Iterator[Plan]:
    free = sorted(all_compute_keys(bundle.graphs) - pins.fixed - pins.forced_low)
    for count in range(len(free) + 1):
        for kept in itertools.combinations(free, count):
            yield Plan("float16", "base", pins.fixed | frozenset(kept))


@pytest.mark.usefixtures("at_the_workload")
@pytest.mark.parametrize("seed", range(3))
def test_the_best_plan_under_the_pins_reaches_it_and_none_gains_more(bundle: Bundle, seed: int) -> None:
    pins, workload = drawn_pins(bundle, seed), Workload(512, 16, 4)
    estimate = EstimatedLatency(bundle, workload, t4())

    least = min(estimate.plan_ms(plan) for plan in plans_under(bundle, pins))

    # A cut tells costs apart to a share of 2^-29 of their sum.
    assert ceiling_of(bundle, workload, t4(), pins).speedup == pytest.approx(estimate.fp32_ms / least, rel=1e-6)


@pytest.mark.usefixtures("at_the_workload")
def test_pins_only_lower_it(bundle: Bundle) -> None:
    workload, free = Workload(2048, 16, 4), unpinned(bundle)["base"]
    every = all_compute_keys(bundle.graphs)
    some = frozenset(sorted(every - free.fixed)[::3])

    most = ceiling_of(bundle, workload, t4(0.01)).speedup
    kept = ceiling_of(bundle, workload, t4(0.01), replace(free, fixed=free.fixed | some)).speedup
    forced = ceiling_of(bundle, workload, t4(0.01), replace(free, forced_low=some)).speedup

    assert 1.0 < kept < most
    assert forced <= most
    assert ceiling_of(bundle, workload, t4(0.01), Pins(every)).speedup == pytest.approx(1.0, rel=1e-9)


@pytest.mark.usefixtures("at_the_workload")
def test_the_share_of_launches_is_their_number_by_their_time(bundle: Bundle) -> None:
    workload, profile = Workload(8, 16, 12), t4()
    model = CostModel(bundle.models, workload, profile)
    launches = model.launches(bundle.models)
    runs = {"encoder": 1, "decoder": 1, "decoder_with_past": 11}

    found = ceiling_of(bundle, workload, profile)

    seconds = sum(launches[name] * runs[name] for name in bundle.models) * profile.launch_seconds
    assert found.launch_share == pytest.approx(seconds * 1e3 / model.estimate(bundle.models).p50_ms)
    assert ceiling_of(bundle, replace(workload, batch=4096), profile).launch_share < found.launch_share
    assert (found.source, found.profile, found.variant) == ("estimated", "t4", "base")


def test_it_is_worth_it_from_the_first_batch_of_a_scan(bundle: Bundle) -> None:
    profile = t4(0.03)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "first_batch", lambda gain, batch: None)
        speedups = [ceiling_of(bundle, replace(SHORT, batch=batch), profile).speedup for batch in range(1, 10)]
    first = next(batch for batch, speedup in enumerate(speedups, 1) if speedup >= WORTH_IT)

    assert 1 < first < 9
    assert speedups == sorted(speedups)
    for batch in (1, first, 40):
        assert ceiling_of(bundle, replace(SHORT, batch=batch), profile).from_batch == first


@pytest.mark.parametrize(("launch_us", "from_batch"), [(0.0, 1), (100.0, None)])
def test_without_launches_any_batch_is_worth_it_and_with_long_ones_none(
    bundle: Bundle, launch_us: float, from_batch: int | None
) -> None:
    assert ceiling_of(bundle, SHORT, t4(launch_us)).from_batch == from_batch


@pytest.mark.usefixtures("at_the_workload")
def test_the_best_variant_counts_against_the_base_graphs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy variant only adds work."""
    register_toy(monkeypatch)
    variants = with_variants(bundle)
    estimate = EstimatedLatency(variants, SHORT, t4())

    both = find_ceiling(estimate, "float16", unpinned(variants))
    toy = find_ceiling(estimate, "float16", {TOY: unpinned(variants)[TOY]})

    assert (both.variant, toy.variant) == ("base", TOY)
    assert both.speedup > toy.speedup
    assert both.launch_share == toy.launch_share


@pytest.mark.usefixtures("at_the_workload")
def test_a_device_without_the_dtype_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        find_ceiling(EstimatedLatency(bundle, SHORT, t4()), "bfloat16", unpinned(bundle))
