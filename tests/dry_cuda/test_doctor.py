"""The doctor on a machine that has everything: on the dry CUDA runtime."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from precision_search.device.driver import CudaDevice
from precision_search.display.text_reports import show_doctor
from precision_search.machine.doctor import DoctorReport, examine
from tests.dry_cuda.host import DryCuda

pytestmark = pytest.mark.slow


def examine_with(failure: str | None) -> tuple[DoctorReport, str]:
    """The report and its text, on a device that answers with this error code."""
    if failure is not None:
        os.environ["DRY_CUDA_FAILURE"] = failure
    report = examine()
    stream = io.StringIO()
    show_doctor(report, Console(file=stream, width=160))
    return report, stream.getvalue()


def test_a_device_is_shown_with_what_its_driver_says(dry_cuda: DryCuda) -> None:
    report, text = dry_cuda.call(examine_with, failure=None)

    assert report.cuda.works
    assert report.latency == "measured"
    assert report.fixes == ()
    assert report.driver is not None
    assert (report.driver.cuda, report.driver.problem) == ("13.0", None)
    (device,) = report.driver.devices
    assert isinstance(device, CudaDevice)
    assert (device.number, device.name, device.compute_capability, device.bfloat16) == (0, "Dry CUDA", "8.0", True)
    assert device.free_bytes is not None
    assert 2**30 < device.free_bytes <= device.memory_bytes
    assert "device 0  Dry CUDA, compute capability 8.0 (float16 and bfloat16), " in text
    assert "cuda      Dry CUDA: works\nlatency   measured\n" in text


def test_the_libraries_are_those_that_were_loaded(dry_cuda: DryCuda) -> None:
    """Not those of the same name in an installed package, which are loaded too, and by nobody used."""
    report, text = dry_cuda.call(examine_with, failure=None)

    found = {library.name: library for library in report.libraries}
    for name in ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcudnn.so.9"):
        path = found[name].path
        assert path is not None
        assert "dry-cuda" in path
        assert found[name].version is None
        assert f"library   {name} {path}" in text
    assert found["libcufft.so.12"].path is None  # this ONNX Runtime does without


def test_a_driver_without_a_device_is_no_missing_package(dry_cuda: DryCuda) -> None:
    report, text = dry_cuda.call(examine_with, failure="100")

    assert not report.cuda.works
    assert report.cuda.lacking == "driver"
    assert report.latency == "estimated"
    assert report.driver is not None
    assert report.driver.devices == ()
    assert report.driver.problem == "no device is here (error 100)"
    assert "runs CUDA up to 13.0: no device is here (error 100)" in text
    assert text.splitlines()[-1].startswith("to do ")
    assert "pip install" not in text.splitlines()[-1]
