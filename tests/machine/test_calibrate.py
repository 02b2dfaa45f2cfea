"""`precision-search calibrate`: what it writes, what it refuses before it measures, and what it says."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from precision_search import api
from precision_search.device import cuda as cuda_module
from precision_search.device.driver import CudaDevice, CudaDriver
from precision_search.device.profile import DeviceProfile, load_profile
from precision_search.device.state import DeviceState
from precision_search.errors import DeviceError, EnvironmentProblemError, InternalError, OutputExistsError, UsageError
from precision_search.machine import calibrate as module
from precision_search.machine.calibrate import write_profile
from precision_search.machine.measure import default_series, measure_device
from precision_search.records import run_files
from precision_search.runtime.session import SessionSettings
from tests.cli_models import fails, invoke
from tests.fake_device import FakeDevice
from tests.told import Told

DEVICES = (
    CudaDevice(0, "First", "7.5", 16_000_000_000, None, bfloat16=False),
    CudaDevice(1, "Second", "8.0", 80_000_000_000, None, bfloat16=True),
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose CUDA works, as far as it is asked."""
    monkeypatch.setattr(cuda_module, "require", lambda device_id: None)
    monkeypatch.setattr(module, "read_driver", lambda: CudaDriver("580.65.06", "13.0", DEVICES, None))


def calibrate(
    out: Path, device: FakeDevice, reporter: Told, *, device_id: int = 0, force: bool = False
) -> DeviceProfile:
    measure = functools.partial(measure_device, open_probe=device.open, clock=device.clock, state=device.state)
    settings = SessionSettings(device="cuda", device_id=device_id)
    return write_profile(out, settings, force=force, reporter=reporter, measure=measure)


def test_the_profile_is_written_and_read_back(cuda: None, tmp_path: Path) -> None:
    out, reporter = tmp_path / "lab.toml", Told()

    found = calibrate(out, FakeDevice(), reporter, device_id=1)

    assert load_profile(str(out)) == found
    assert (found.datasheet.device, found.datasheet.memory_gb) == ("Second", 80.0)
    assert found.datasheet.fp32_tflops == pytest.approx(6.0)
    assert found.measurement is not None
    assert "onnxruntime" in found.measurement.software
    assert "driver 580.65.06" in found.measurement.software
    assert len(reporter.stages) == len(default_series())
    assert "fp16 50" in reporter.notes[0]
    assert reporter.warnings == []


def test_every_time_lies_beside_it(cuda: None, tmp_path: Path) -> None:
    found = calibrate(tmp_path / "lab.toml", FakeDevice(), Told())

    assert found.measurement is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab.samples.json", "lab.toml"]
    content = json.loads((tmp_path / found.measurement.samples).read_text())
    assert content["device"] == "First"
    assert content["settings"]["use_tf32"] is False
    assert len(content["series"]) == len(default_series())
    for series, result in zip(default_series(), content["series"], strict=True):
        assert result["series"]["role"] == series.role
        assert [len(times) for times in result["rounds"]["times"]] == [20] * len(series.probes)
        assert [len(times) for times in result["rounds"]["warm_up"]] == [8] * len(series.probes)
        assert result["unit_seconds"]["low"] <= result["unit_seconds"]["value"] <= result["unit_seconds"]["high"]
        assert result["before"]["sm_clock_mhz"] == 1500.0


@pytest.mark.parametrize(("out", "told"), [("", "gpu.toml"), (".toml", "gpu.toml"), ("lab.json", "lab.toml")])
def test_a_path_that_is_no_profile_is_refused_with_one_that_is(out: str, told: str) -> None:
    with pytest.raises(UsageError, match=r"a profile is a \.toml file") as caught:
        calibrate(Path(out), FakeDevice(), Told())
    assert caught.value.fix == f"write --out {told}"


@pytest.mark.parametrize("name", ["lab.toml", "lab.samples.json"])
def test_nothing_is_replaced_unless_that_is_asked_for(cuda: None, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    device = FakeDevice()

    with pytest.raises(OutputExistsError) as caught:
        calibrate(tmp_path / "lab.toml", device, Told())

    assert "--force" in caught.value.fix
    assert device.runs == 0
    assert (tmp_path / name).read_text() == "mine"
    calibrate(tmp_path / "lab.toml", device, Told(), force=True)
    assert load_profile(str(tmp_path / "lab.toml")).measurement is not None


def test_a_profile_never_lies_beside_the_times_of_another(
    cuda: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two files, after a first profile."""
    calibrate(tmp_path / "lab.toml", FakeDevice(), Told())
    before, write = (tmp_path / "lab.samples.json").read_text(), run_files.write_text_atomically

    def kill(path: Path, text: str) -> None:
        if path.suffix == ".toml":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(run_files, "write_text_atomically", kill)
    with pytest.raises(KeyboardInterrupt):
        calibrate(tmp_path / "lab.toml", FakeDevice(kernel_s=8e-6), Told(), force=True)

    assert [path.name for path in tmp_path.iterdir()] == ["lab.samples.json"]
    assert (tmp_path / "lab.samples.json").read_text() != before


def test_a_device_that_cannot_be_measured_keeps_its_profile(cuda: None, tmp_path: Path) -> None:
    calibrate(tmp_path / "lab.toml", FakeDevice(), Told())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(DeviceError):
        calibrate(tmp_path / "lab.toml", FakeDevice(kernel_s=0.0, product_s=0.0, bandwidth=1e30), Told(), force=True)

    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_left_out_and_what_is_not_known_well_is_told(cuda: None, tmp_path: Path) -> None:
    reporter = Told()

    calibrate(tmp_path / "lab.toml", FakeDevice(flops={"float32": 6e12, "float16": 50e12}, noise=0.1), reporter)

    assert sum("bfloat16" in note and "left out" in note for note in reporter.notes) == 8
    assert any("not known to 2%" in warning and "kernel launch" in warning for warning in reporter.warnings)


def test_a_directory_is_never_replaced(cuda: None, tmp_path: Path) -> None:
    (tmp_path / "lab.toml").mkdir()

    with pytest.raises(OutputExistsError, match="is a directory"):
        calibrate(tmp_path / "lab.toml", FakeDevice(), Told(), force=True)


@pytest.mark.parametrize("name", ["lab", "lab.json", "a.b"])
def test_another_suffix_is_refused_with_the_right_one(cuda: None, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        calibrate(tmp_path / name, FakeDevice(), Told())

    assert caught.value.fix.endswith(".toml")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_told_before_anything_is_measured(cuda: None, tmp_path: Path) -> None:
    device = FakeDevice()

    with pytest.raises(EnvironmentProblemError, match="cannot be written"):
        calibrate(tmp_path / "no/such/lab.toml", device, Told())

    assert device.runs == 0


def test_a_device_that_the_driver_does_not_know_is_refused(cuda: None, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblemError, match="device 7"):
        calibrate(tmp_path / "lab.toml", FakeDevice(), Told(), device_id=7)


def test_a_device_that_is_slowed_down_or_shared_is_said_to_be(cuda: None, tmp_path: Path) -> None:
    class Hot(FakeDevice):
        def state(self, device_id: int) -> DeviceState:
            return DeviceState(slowed_by=("temperature (hardware)",))

        def _advance(self, probe: object) -> None:
            super()._advance(probe)  # type: ignore[arg-type]
            self.kernel_s *= 1.01

    reporter = Told()

    found = calibrate(tmp_path / "lab.toml", Hot(), reporter)

    assert found.measurement is not None
    assert not found.measurement.stable
    assert found.measurement.slowed_by == ("temperature (hardware)",)
    assert any("still moved" in warning and "kernel launch" in warning for warning in reporter.warnings)
    assert any("slowed down (temperature (hardware))" in warning for warning in reporter.warnings)


def test_a_profile_that_does_not_come_back_is_our_fault(
    cuda: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_profile", lambda name: load_profile("t4"))

    with pytest.raises(InternalError):
        calibrate(tmp_path / "lab.toml", FakeDevice(), Told())


def test_the_command_prints_where_the_profile_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def stand_in(out: Path, **options: object) -> DeviceProfile:
        asked.update(options, out=out)
        return load_profile("t4")

    monkeypatch.setattr(api, "calibrate", stand_in)

    result = invoke("calibrate", "--out", "lab.toml", "--device-id", "1", "--force")

    assert (result.exit_code, result.stdout) == (0, "lab.toml\n")
    assert (asked["out"], asked["device_id"], asked["force"]) == (Path("lab.toml"), 1, True)


def test_wrong_paths_are_wrong_usage_even_without_a_device(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").touch()

    assert "--force" in fails(invoke("calibrate", "--out", tmp_path / "lab.toml"), 2)
    assert "lab.toml" in fails(invoke("calibrate", "--out", tmp_path / "lab"), 2)
    assert "--out" in fails(invoke("calibrate"), 2)


def test_a_machine_without_cuda_is_told_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device_id: int) -> None:
        assert device_id == 0
        raise EnvironmentProblemError("CUDA does not start", why="no driver", fix="install it")

    monkeypatch.setattr(cuda_module, "require", missing)

    message = fails(invoke("calibrate", "--out", tmp_path / "lab.toml"), 3)

    assert "no driver" in message
    assert list(tmp_path.iterdir()) == []
