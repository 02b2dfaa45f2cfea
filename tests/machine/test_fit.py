"""A profile made from measurements says what the device does, how sure that is, and that it was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from precision_search.config import load_config
from precision_search.cost.estimate import CostModel, Workload
from precision_search.device.profile import DeviceProfile, load_profile, profile_text
from precision_search.device.state import DeviceState
from precision_search.errors import ConfigError, DeviceError
from precision_search.machine.fit import measured_profile
from precision_search.machine.measure import SeriesResult, default_series, measure_device
from precision_search.model.bundle import Bundle
from precision_search.runtime.session import SessionSettings
from tests.fake_device import FakeDevice
from tests.tiny_model import write_tiny_config

DATE = "2026-11-23"


def results(device: FakeDevice) -> tuple[SeriesResult, ...]:
    return measure_device(
        SessionSettings(), default_series(), open_probe=device.open, clock=device.clock, state=device.state
    )


def profile(found: tuple[SeriesResult, ...]) -> DeviceProfile:
    return measured_profile(
        "lab", found, device="Fake 1", memory_gb=16.0, date=DATE, software="some 1.0", samples="lab.samples.json"
    )


def written(directory: Path, made: DeviceProfile, name: str = "lab.toml") -> str:
    path = directory / name
    path.write_text(profile_text(made))
    return str(path)


def test_the_profile_is_what_the_device_does() -> None:
    made = profile(results(FakeDevice()))

    assert made.launch_seconds == pytest.approx(0.8 * 4e-6 + 0.2 * 9e-6)
    assert made.bytes_per_second == pytest.approx(300e9)
    assert made.flops_per_second("float32") == pytest.approx(6e12)
    assert made.flops_per_second("float16") == pytest.approx(50e12)
    assert made.flops_per_second("bfloat16") == pytest.approx(40e12)
    assert made.measurement is not None
    assert made.measurement.run_us == pytest.approx(20.0)
    assert (made.measurement.kernel_us, made.measurement.product_us) == pytest.approx((4.0, 9.0))
    assert made.measurement.stable


def test_it_says_that_it_was_measured_when_and_with_what() -> None:
    made = profile(results(FakeDevice()))

    assert made.name == f"lab (calibrated {DATE})"
    assert DATE in made.datasheet.source
    assert "no datasheet" in made.datasheet.source
    assert made.assumptions.reason.startswith("Measured.")
    assert made.measurement is not None
    assert (made.measurement.date, made.measurement.software) == (DATE, "some 1.0")
    assert made.measurement.sm_clock_mhz == 1500.0
    assert made.measurement.temperature_c is not None


def test_best_and_typical_are_told_apart_and_the_spread_covers_the_sizes() -> None:
    """Products narrower than 1024 columns reach a third: four of six model sizes, so wide ones are the exception."""
    made = profile(results(FakeDevice(small=1 / 3, small_width=1024)))

    assert made.datasheet.fp16_tflops == pytest.approx(50.0)
    assert made.assumptions.tensor_core_efficiency == pytest.approx(1 / 3, rel=1e-4)
    assert made.assumptions.gemm_efficiency == pytest.approx(1 / 3, rel=1e-4)
    assert made.assumptions.efficiency_spread == 0.9  # as wide as a spread may be: the wide ones reach three times that


def test_spreads_are_small_only_where_everything_agrees() -> None:
    calm = profile(results(FakeDevice(product_s=4e-6))).assumptions
    mixed = profile(results(FakeDevice(product_s=8e-6))).assumptions
    noisy = profile(results(FakeDevice(product_s=4e-6, noise=0.05))).assumptions

    assert calm.launch_spread == pytest.approx(0.0, abs=1e-6)
    assert calm.efficiency_spread == pytest.approx(0.0, abs=1e-6)
    # 4.8 us on average; 4.0 if no launch is a product, 5.6 if twice as many are.
    assert mixed.launch_spread == pytest.approx(0.8 / 4.8, rel=1e-4)
    assert noisy.launch_spread > 0.005
    assert noisy.efficiency_spread > 0.005


def test_bfloat16_that_is_no_faster_than_fp32_is_not_a_unit_of_its_own() -> None:
    slow = profile(results(FakeDevice(flops={"float32": 6e12, "float16": 50e12, "bfloat16": 3e12})))
    none = profile(results(FakeDevice(flops={"float32": 6e12, "float16": 50e12})))

    for made in (slow, none):
        assert made.datasheet.bf16_tflops is None
        with pytest.raises(ConfigError, match="bfloat16"):
            made.flops_per_second("bfloat16")
    assert slow.assumptions.tensor_core_efficiency == pytest.approx(1.0)


def test_without_fp16_products_there_is_nothing_to_estimate() -> None:
    with pytest.raises(DeviceError, match="fp16"):
        profile(results(FakeDevice(flops={"float32": 6e12})))


def test_what_slowed_the_device_down_is_kept() -> None:
    found = results(FakeDevice())
    hot = replace(found[3], after=DeviceState(slowed_by=("power cap",)))

    made = profile((*found[:3], hot, *found[4:]))

    assert made.measurement is not None
    assert made.measurement.slowed_by == ("power cap",)


def test_times_that_did_not_settle_are_noted() -> None:
    found = results(FakeDevice())
    moving = replace(found[3], rounds=replace(found[3].rounds, stable=False))

    made = profile((*found[:3], moving, *found[4:]))

    assert made.measurement is not None
    assert not made.measurement.stable


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    made = profile(results(FakeDevice(noise=0.01)))

    found = load_profile(written(tmp_path, made))

    assert found == made
    assert (tmp_path / "lab.toml").read_text().startswith("# Measured by")


def test_a_file_named_like_a_built_in_profile_is_not_taken_for_it(tmp_path: Path) -> None:
    """The label of a latency must not say `t4` where another T4 was measured."""
    found = load_profile(written(tmp_path, profile(results(FakeDevice())), "t4.toml"))

    assert found.name == f"t4 (calibrated {DATE})"


def test_a_datasheet_profile_is_written_and_read_as_well(tmp_path: Path) -> None:
    t4 = load_profile("t4")

    assert load_profile(written(tmp_path, t4, "t4.toml")) == t4


def test_estimates_are_made_with_it_and_labelled_by_it(demo_bundle: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path, profile(results(FakeDevice())))
    config = load_config(write_tiny_config(tmp_path / "tiny"), [f"latency.profile={path}"])

    slow = CostModel(demo_bundle.models, Workload(8, 16, 16), load_profile(config.latency.profile))
    found = slow.estimate(demo_bundle.models)

    assert (found.source, found.profile) == ("estimated", f"lab (calibrated {DATE})")
    assert 0 < found.low_ms < found.p50_ms < found.high_ms
