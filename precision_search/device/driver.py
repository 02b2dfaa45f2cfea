"""What the NVIDIA driver says of itself and of its devices, asked directly: no CUDA library, no package.

In: nothing. Out: a `CudaDriver`, or None where there is no driver. The driver is the one part of CUDA that no Python
package brings, so it is looked at on its own.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_VERSION_FILE = Path("/proc/driver/nvidia/version")

# CUDA driver API, CUdevice_attribute: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_MAJOR, _MINOR = 75, 76
_BFLOAT16_SINCE = (8, 0)
"""Compute capability from which tensor cores take bfloat16 (CUDA programming guide, compute capabilities)."""


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """A CUDA device.

    Attributes:
        number: the device id, as `device.id` takes it.
        name: the product's name.
        compute_capability: for example "8.6".
        memory_bytes: all of its memory.
        free_bytes: what nobody uses right now; None where the driver does not tell.
        bfloat16: whether its tensor cores take bfloat16; where they do not, bfloat16 runs and is slow.
    """

    number: int
    name: str
    compute_capability: str
    memory_bytes: int
    free_bytes: int | None
    bfloat16: bool


@dataclass(frozen=True, slots=True)
class CudaDriver:
    """The driver.

    Attributes:
        version: its own version, for example "580.65.06"; None where the system does not tell.
        cuda: the newest CUDA version it runs, for example "13.0"; None where it does not tell.
        devices: its devices in the order of their ids.
        problem: why it gives no devices, in its own words; None if it does.
    """

    version: str | None
    cuda: str | None
    devices: tuple[CudaDevice, ...]
    problem: str | None


def read_driver() -> CudaDriver | None:
    """Asks the driver; None where there is none. For the free memory it makes a context on each device for a moment."""
    driver = _load()
    if driver is None:
        return None
    number = ctypes.c_int()
    cuda = None
    if driver.cuDriverGetVersion(ctypes.byref(number)) == 0 and number.value:
        cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    failure = driver.cuInit(0)
    if not failure:
        failure = driver.cuDeviceGetCount(ctypes.byref(number))
    if failure:
        return CudaDriver(_own_version(), cuda, (), f"{_error_text(driver, failure)} (error {failure})")
    devices = [_device(driver, each) for each in range(number.value)]
    problem = None if number.value else "it has no device"
    return CudaDriver(_own_version(), cuda, tuple(device for device in devices if device is not None), problem)


def cuda_device_name(number: int = 0) -> str | None:
    """The name of a CUDA device as its driver gives it, for example `Tesla T4`; None without driver or device."""
    driver = _load()
    handle = ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), number):
        return None
    return _name(driver, handle)


def _load() -> Any:
    """The driver's library, or None; a library of that name that is no driver counts as none."""
    try:
        library = ctypes.CDLL(LIBRARY)
        for function in ("cuInit", "cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetCount", "cuDeviceGetName"):
            getattr(library, function)
    except (OSError, AttributeError):
        return None
    return library


def _device(driver: Any, number: int) -> CudaDevice | None:
    handle, major, minor, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    if (
        driver.cuDeviceGet(ctypes.byref(handle), number)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
    ):
        return None
    return CudaDevice(
        number=number,
        name=_name(driver, handle) or "unknown",
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=total.value,
        free_bytes=_free_bytes(driver, handle),
        bfloat16=(major.value, minor.value) >= _BFLOAT16_SINCE,
    )


def _name(driver: Any, handle: ctypes.c_int) -> str | None:
    name = ctypes.create_string_buffer(256)
    return None if driver.cuDeviceGetName(name, len(name), handle) else name.value.decode(errors="replace")


def _free_bytes(driver: Any, handle: ctypes.c_int) -> int | None:
    """The driver tells it of the current context only; a device that is used by one process alone may refuse one."""
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle):
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context):
            return None
        failure = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(handle)
    return None if failure else free.value


def _error_text(driver: Any, code: int) -> str:
    text = ctypes.c_char_p()
    if driver.cuGetErrorString(code, ctypes.byref(text)) or text.value is None:
        return "unknown error"
    return text.value.decode(errors="replace")


def _own_version() -> str | None:
    """From the kernel module, which tells it without being asked through an interface of its own."""
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", _VERSION_FILE.read_text())
    except OSError:
        return None
    return found[1] if found else None
