"""Device profiles: what a GPU can do at most, and what the cost model assumes of the rest.

A profile is a TOML file with two tables, `[datasheet]` and `[assumptions]`, declared by the dataclasses below. Built-in
ones lie in `profiles/`. One that `precision-search calibrate` measured has the same tables, filled with what it found,
and a third one, `[measurement]`, which says so.
"""

import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from precision_search.errors import ConfigError, did_you_mean
from precision_search.toml_tables import absolute_path, at_least, between, more_than, read_tables, write_tables

FloatName = Literal["float32", "float16", "bfloat16"]

_MEASURED_NOTE = """\
# Measured by `precision-search calibrate`, not from a datasheet: [datasheet] holds the best that was reached,
# [assumptions] what is typical of it. docs/reference/cost-model.md says how.

"""


@dataclass(frozen=True, slots=True)
class Datasheet:
    """`[datasheet]`: peak figures, dense (without sparsity); in a measured profile the best that was reached.

    Attributes:
        device: the product's name.
        source: where the figures are from.
        fp32_tflops: fp32 outside tensor cores, in TFLOP/s; TF32 is off wherever tokens are compared.
        fp16_tflops: fp16 on tensor cores accumulating in fp32, in TFLOP/s.
        bf16_tflops: the same for bfloat16; None if the device has no such units.
        memory_bandwidth: GB/s (1e9 bytes).
        memory_gb: device memory in GB.
    """

    device: str
    source: str
    fp32_tflops: float = field(metadata=more_than(0))
    fp16_tflops: float = field(metadata=more_than(0))
    memory_bandwidth: float = field(metadata=more_than(0))
    memory_gb: float = field(metadata=more_than(0))
    bf16_tflops: float | None = field(default=None, metadata=more_than(0))


@dataclass(frozen=True, slots=True)
class Assumptions:
    """`[assumptions]`: what no datasheet says; in a measured profile what was found.

    Attributes:
        reason: why these values.
        launch_us: microseconds for one kernel or library call, from the runtime's dispatch to an idle device again.
        gemm_efficiency: share of the fp32 peak that a matrix product reaches.
        tensor_core_efficiency: share of the fp16 or bf16 peak that a matrix product reaches.
        bandwidth_efficiency: share of the memory bandwidth that any kernel reaches.
        launch_spread: `launch_us` may be off by this share either way.
        efficiency_spread: the three efficiencies may be off by this share either way.
    """

    reason: str
    launch_us: float = field(metadata=at_least(0))
    gemm_efficiency: float = field(metadata=between(0.01, 1))
    tensor_core_efficiency: float = field(metadata=between(0.01, 1))
    bandwidth_efficiency: float = field(metadata=between(0.01, 1))
    launch_spread: float = field(default=0.3, metadata=between(0, 0.9))
    efficiency_spread: float = field(default=0.2, metadata=between(0, 0.9))


@dataclass(frozen=True, slots=True)
class Measurement:
    """`[measurement]`: how a measured profile came about.

    Attributes:
        date: the day, ISO 8601, UTC.
        software: names and versions of what it was measured with.
        samples: name of the file beside it that holds every time, interval and clock.
        stable: whether times had settled in all that was measured.
        run_us: microseconds that a run takes beyond its kernels; the cost model does not count them.
        kernel_us: microseconds for one small kernel in a chain of them.
        product_us: the same for a small matrix product, which is a library call.
        sm_clock_mhz, temperature_c, power_w: of the device at the end of the longest measurement, where known.
        slowed_by: what kept its clock down at the end of any measurement; empty if nothing did or nothing is known.
    """

    date: str
    software: str
    samples: str
    stable: bool
    run_us: float
    kernel_us: float
    product_us: float
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    slowed_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A device as the cost model sees it; `name` is what latencies are labelled with.

    `measurement` is None where the figures are those of a datasheet.
    """

    name: str
    datasheet: Datasheet
    assumptions: Assumptions
    measurement: Measurement | None = None

    @property
    def launch_seconds(self) -> float:
        """Assumed seconds for one kernel launch or library call."""
        return self.assumptions.launch_us * 1e-6

    @property
    def bytes_per_second(self) -> float:
        """Memory bandwidth that a kernel reaches."""
        return self.datasheet.memory_bandwidth * 1e9 * self.assumptions.bandwidth_efficiency

    def flops_per_second(self, dtype: FloatName) -> float:
        """FLOP/s that a matrix product with operands of `dtype` reaches.

        Raises:
            ConfigError: the device has no bfloat16 units and `dtype` asks for them.
        """
        if dtype == "float32":
            return self.datasheet.fp32_tflops * 1e12 * self.assumptions.gemm_efficiency
        peak = self.datasheet.fp16_tflops if dtype == "float16" else self.datasheet.bf16_tflops
        if peak is None:
            raise ConfigError(
                f"device profile {self.name} cannot estimate bfloat16",
                why=f"{self.datasheet.device} has no bfloat16 units: its profile has no `datasheet.bf16_tflops`",
                fix='set search.dtype = "float16", or latency.profile to a device with bfloat16, such as "a10g"',
            )
        return peak * 1e12 * self.assumptions.tensor_core_efficiency


def available_profiles() -> tuple[str, ...]:
    """Names of the built-in profiles."""
    files = resources.files(__package__).joinpath("profiles").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_profile(name_or_path: str) -> DeviceProfile:
    """Reads a built-in profile by its name, or the file that a text ending in `.toml` or holding a separator names.

    Raises:
        ConfigError: no built-in profile of that name, or a file that is missing or breaks the form above.
    """
    if name_or_path.endswith(".toml") or re.search(r"[/\\]", name_or_path):
        return _read(absolute_path(name_or_path, Path.cwd()))
    known = available_profiles()
    name = name_or_path.lower()
    if name not in known:
        raise ConfigError(
            f"unknown device profile `{name_or_path}`",
            why=f"built in are {', '.join(known)}",
            fix=did_you_mean(name, known) or "take one of these, or the path of a profile's .toml file",
        )
    with resources.as_file(resources.files(__package__).joinpath("profiles", f"{name}.toml")) as path:
        return _read(path)


def profile_text(profile: DeviceProfile) -> str:
    """The profile as TOML that `load_profile` reads back to an equal one, if the file has the profile's name."""
    note = "" if profile.measurement is None else _MEASURED_NOTE
    return note + write_tables(profile)


def profile_label(stem: str, measurement: Measurement | None) -> str:
    """What a profile in a file named `stem` is called: a measured one says so, whatever its file is named."""
    return stem if measurement is None else f"{stem} (calibrated {measurement.date})"


def _read(path: Path) -> DeviceProfile:
    tables = read_tables(DeviceProfile, path, (), {})
    return DeviceProfile(profile_label(path.stem, tables["measurement"]), **tables)
