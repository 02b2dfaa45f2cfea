"""What a CUDA device's driver says of its condition: clocks, temperature, power, what slows it down.

In: a CUDA device id. Out: a `DeviceState`, every figure None where it is not to be had. Asked of `nvidia-smi`, which
comes with the driver; asking takes 0.05 to 1 s and is nothing for the middle of a measurement.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from precision_search.device import driver as cuda_driver

_TIMEOUT_S = 10.0
_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
)
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""The name of one figure in drivers from 535 on, and before."""

_SLOWING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
"""Bits of nvmlClocksEventReasons (NVML API reference) that mean that a device is slower than it could be. Left out are
idle, clocks set by the user or for a display, and boost in step with other devices."""

Command = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device at one moment; None stands for what its driver does not say.

    Attributes:
        name: the product's name.
        driver: version of the driver.
        memory_mib: device memory, MiB.
        sm_clock_mhz: clock of the multiprocessors, MHz.
        max_sm_clock_mhz: the highest that it may have.
        memory_clock_mhz: clock of the memory, MHz.
        temperature_c: degrees Celsius.
        power_w: watts drawn.
        slowed_by: what keeps the clock down; empty if nothing does.
    """

    name: str | None = None
    driver: str | None = None
    memory_mib: float | None = None
    sm_clock_mhz: float | None = None
    max_sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    slowed_by: tuple[str, ...] | None = None


def run_command(arguments: Sequence[str]) -> str | None:
    """What a program prints on stdout; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def device_state(device_id: int = 0, command: Command = run_command) -> DeviceState:
    """The condition of a CUDA device; `command` runs a program and gives its output.

    `nvidia-smi` counts devices otherwise than CUDA (CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER), so the device is named by
    its place on the bus. A driver that does not tell the place leaves everything unknown, rather than another's.
    """
    place = pci_bus_id(device_id)
    return DeviceState() if place is None else query(place, command)


def query(place: str, command: Command = run_command) -> DeviceState:
    """The condition of the device at a place on the bus, such as `0000:65:00.0`."""
    for reasons in _REASONS:
        fields = ",".join((*_FIELDS, reasons))
        printed = command(("nvidia-smi", f"--id={place}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"))
        if printed is not None:
            return _parse(printed)
    return DeviceState()


def pci_bus_id(device_id: int) -> str | None:
    """Where a CUDA device is on the bus, as its driver gives it; None without driver or device."""
    try:
        driver = ctypes.CDLL(cuda_driver.LIBRARY)
        device, text = ctypes.c_int(), ctypes.create_string_buffer(32)
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), device_id)
            or driver.cuDeviceGetPCIBusId(text, len(text), device)
        )
    except (OSError, AttributeError):
        return None
    return None if failed or not text.value else text.value.decode(errors="replace")


def _parse(printed: str) -> DeviceState:
    """One line of comma-separated figures; a figure in words (`[N/A]`, `[Not Supported]`) is unknown."""
    cells = [cell.strip() for cell in printed.strip().partition("\n")[0].split(",")]
    if len(cells) != len(_FIELDS) + 1:
        return DeviceState()
    name, driver, *figures, reasons = cells
    memory, sm, max_sm, memory_clock, temperature, power = map(_number, figures)
    return DeviceState(
        name=_word(name),
        driver=_word(driver),
        memory_mib=memory,
        sm_clock_mhz=sm,
        max_sm_clock_mhz=max_sm,
        memory_clock_mhz=memory_clock,
        temperature_c=temperature,
        power_w=power,
        slowed_by=_slowed_by(reasons),
    )


def _word(cell: str) -> str | None:
    return None if not cell or cell.startswith("[") else cell


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _slowed_by(cell: str) -> tuple[str, ...] | None:
    try:
        bits = int(cell, 16)
    except ValueError:
        return None
    return tuple(reason for bit, reason in _SLOWING.items() if bits & bit)
