"""Calibration on a real device: it lies where such a device can lie. The checks also run on a made-up T4."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from precision_search import api
from precision_search.device import cuda
from precision_search.device.driver import CudaDevice, CudaDriver, cuda_device_name
from precision_search.device.profile import DeviceProfile, load_profile
from precision_search.display.reporters import make_reporter
from precision_search.machine import calibrate as module
from precision_search.machine.doctor import matching_profile
from precision_search.machine.measure import measure_device
from precision_search.runtime.session import SessionSettings
from tests.fake_device import FakeDevice


def check(out: Path, made: DeviceProfile, device: str) -> None:
    """What holds of every device; of one whose datasheet is built in, also how much of it a device can reach."""
    assert load_profile(str(out)) == made
    assert made.datasheet.device == device
    assert made.measurement is not None
    assert made.assumptions.launch_us < 1000.0
    content = json.loads((out.parent / made.measurement.samples).read_text())
    for series in content["series"]:
        assert all(len(times) >= 20 and min(times) > 0.0 for times in series["rounds"]["times"])
    # Tensor cores multiply faster than what fp32 has, on every device that this is for.
    assert made.datasheet.fp16_tflops > made.datasheet.fp32_tflops
    if (known := matching_profile(device)) is None:
        return
    sheet = load_profile(known).datasheet
    for name in ("fp32_tflops", "fp16_tflops", "bf16_tflops", "memory_bandwidth", "memory_gb"):
        found, most = getattr(made.datasheet, name), getattr(sheet, name)
        assert (found is None) == (most is None), name
        if found is not None:
            assert 0.05 * most < found < 1.1 * most, name


@pytest.mark.gpu
@pytest.mark.slow
def test_a_real_device_is_measured_within_what_its_datasheet_allows(tmp_path: Path) -> None:
    out = tmp_path / "here.toml"

    made = api.calibrate(out, reporter=make_reporter(quiet=True))

    check(out, made, cuda_device_name() or "unknown")


def test_the_checks_hold_for_a_made_up_t4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = CudaDriver(None, None, (CudaDevice(0, "Tesla T4", "7.5", 16_000_000_000, None, bfloat16=False),), None)
    monkeypatch.setattr(cuda, "require", lambda device_id: None)
    monkeypatch.setattr(module, "read_driver", lambda: driver)
    device = FakeDevice(bandwidth=250e9, flops={"float32": 5e12, "float16": 30e12, "bfloat16": 2e12}, noise=0.01)
    measure = functools.partial(measure_device, open_probe=device.open, clock=device.clock, state=device.state)
    out, settings = tmp_path / "here.toml", SessionSettings(device="cuda")

    made = module.write_profile(out, settings, reporter=make_reporter(quiet=True), measure=measure)

    check(out, made, "Tesla T4")
