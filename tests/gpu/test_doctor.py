"""The doctor on a real device. `tests/dry_cuda/test_gpu_bodies.py` holds the same of a stand-in one."""

from __future__ import annotations

import re

import pytest

from precision_search.machine.doctor import DoctorReport, examine


def check_healthy(report: DoctorReport) -> None:
    """A machine with a device, a driver and all libraries."""
    assert report.cuda.works
    assert report.fixes == ()
    assert report.latency == "measured"
    assert report.driver is not None
    assert re.fullmatch(r"\d+\.\d+", report.driver.cuda or "")
    assert report.driver.devices
    for device in report.driver.devices:
        assert device.name
        assert re.fullmatch(r"\d+\.\d", device.compute_capability)
        assert device.bfloat16 == (float(device.compute_capability) >= 8.0)
        assert device.free_bytes is None or 0 < device.free_bytes <= device.memory_bytes
    assert report.cuda.device == report.driver.devices[0].name
    missing = [library.name for library in report.libraries if library.path is None]
    assert not [name for name in missing if "cufft" not in name]


@pytest.mark.gpu
def test_a_machine_with_a_device_is_healthy() -> None:
    check_healthy(examine())
