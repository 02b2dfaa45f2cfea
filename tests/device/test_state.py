"""What nvidia-smi prints becomes a device's condition; what it does not say is unknown, never made up."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from precision_search.device import driver as cuda_driver
from precision_search.device import state as module
from precision_search.device.state import DeviceState, device_state, pci_bus_id, query, run_command

PLACE = "00000000:3B:00.0"


class Smi:
    """Prints a line; knows only some of the fields, as drivers of different age do."""

    def __init__(self, line: str, unknown: str = "nothing") -> None:
        self.asked: list[Sequence[str]] = []
        self._line = line
        self._unknown = unknown

    def __call__(self, arguments: Sequence[str]) -> str | None:
        self.asked.append(arguments)
        return None if self._unknown in " ".join(arguments) else f"{self._line}\n"


def test_figures_come_with_their_units() -> None:
    smi = Smi("Tesla T4, 580.65.06, 15360, 585, 1590, 5000, 71, 68.85, 0x0000000000000024")

    assert query(PLACE, smi) == DeviceState(
        name="Tesla T4",
        driver="580.65.06",
        memory_mib=15360.0,
        sm_clock_mhz=585.0,
        max_sm_clock_mhz=1590.0,
        memory_clock_mhz=5000.0,
        temperature_c=71.0,
        power_w=68.85,
        slowed_by=("power cap", "temperature (software)"),
    )
    ((program, *arguments),) = smi.asked
    assert program == "nvidia-smi"
    assert f"--id={PLACE}" in arguments
    assert "--format=csv,noheader,nounits" in arguments


@pytest.mark.parametrize("bits", ["0x0000000000000000", "0x0000000000000001", "0x0000000000000002"])
def test_an_idle_device_or_one_at_chosen_clocks_is_not_slowed(bits: str) -> None:
    assert query(PLACE, Smi(f"T, 1, 1, 1, 1, 1, 1, 1, {bits}")).slowed_by == ()


def test_what_the_driver_does_not_say_is_unknown() -> None:
    found = query(PLACE, Smi("NVIDIA Graphics Device, 580.65.06, [N/A], 300, 1500, [N/A], 41, [Not Supported], [N/A]"))

    assert found == DeviceState(
        name="NVIDIA Graphics Device",
        driver="580.65.06",
        sm_clock_mhz=300.0,
        max_sm_clock_mhz=1500.0,
        temperature_c=41.0,
    )


def test_an_older_driver_is_asked_in_its_own_words() -> None:
    smi = Smi("T, 1, 1, 1, 1, 1, 1, 1, 0x80", unknown="clocks_event_reasons")

    assert query(PLACE, smi).slowed_by == ("power brake",)
    assert len(smi.asked) == 2


@pytest.mark.parametrize("line", ["", "No devices were found", "a, b"])
def test_other_output_says_nothing(line: str) -> None:
    assert query(PLACE, Smi(line)) == DeviceState()


def test_a_device_without_a_place_is_not_mistaken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    smi = Smi("T, 1, 1, 1, 1, 1, 1, 1, 0x0")
    monkeypatch.setattr(module, "pci_bus_id", lambda device_id: None)

    assert device_state(0, smi) == DeviceState()
    assert smi.asked == []


def test_the_place_is_that_of_the_device_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    smi = Smi("T, 1, 1, 1, 1, 1, 1, 1, 0x0")
    monkeypatch.setattr(module, "pci_bus_id", lambda device_id: f"place {device_id}")

    assert device_state(3, smi).name == "T"
    assert "--id=place 3" in smi.asked[0]


def test_a_missing_driver_has_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libno-such-driver.so")

    assert pci_bus_id(0) is None


@pytest.mark.skipif(os.name == "nt", reason="writes shell scripts")
def test_a_program_that_is_missing_or_fails_gives_nothing(tmp_path: Path) -> None:
    for name, body in (("good", "echo one"), ("bad", "echo one; exit 9")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)

    assert run_command([str(tmp_path / "good")]) == "one\n"
    assert run_command([str(tmp_path / "bad")]) is None
    assert run_command([str(tmp_path / "missing")]) is None
