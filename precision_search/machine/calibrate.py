"""`precision-search calibrate`: measures a device and writes its profile, with every time beside it.

In: a path and session settings. Out: the profile, as it is read back from its file. A profile that is replaced goes
before its times do, and the new one is written last: where a profile is, its own times lie beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from precision_search.device import cuda
from precision_search.device.driver import read_driver
from precision_search.device.profile import DeviceProfile, load_profile, profile_text
from precision_search.errors import EnvironmentProblemError, InternalError, UsageError
from precision_search.files import refuse_existing, writing
from precision_search.machine.fit import measured_profile
from precision_search.machine.measure import CALIBRATION_RULES, Series, SeriesResult, default_series, measure_device
from precision_search.records import run_files
from precision_search.records.run_json import Versions, tool_version
from precision_search.reporting import Reporter
from precision_search.runtime.session import SessionSettings

Measure = Callable[..., tuple[SeriesResult, ...]]


@dataclass(frozen=True, slots=True)
class Samples:
    """The file beside a profile.

    Attributes:
        device: the product's name.
        date: the day, ISO 8601, UTC.
        software: names and versions of what it was measured with.
        settings: how sessions ran, TF32 and GEMM options included.
        series: for each series its probes, prices, times in the order they were taken, and the device's condition.
    """

    device: str
    date: str
    software: str
    settings: SessionSettings
    series: tuple[SeriesResult, ...]


def write_profile(
    out: Path,
    settings: SessionSettings,
    *,
    force: bool = False,
    reporter: Reporter,
    series: Sequence[Series] | None = None,
    measure: Measure = measure_device,
) -> DeviceProfile:
    """Measures the CUDA device of `settings` and writes `out` and, beside it, `<out>.samples.json`.

    Args:
        out: a path that ends in .toml.
        settings: the device, and how sessions run.
        force: whether files may be replaced. Once the device is measured the old profile is removed, then its times
            are replaced; whatever stops the command in between leaves times without a profile.
        reporter: receives progress, what is left out, and a warning where times did not settle, a figure is not known
            well enough, or the device was slowed down.
        series: what to measure; None for `default_series`.
        measure: `measure_device`, or what stands for it.

    Raises:
        UsageError: `out` does not end in .toml.
        OutputExistsError: a file is there, and `force` is not set.
        MissingPackageError, DeviceError: the device does not start, or cannot be measured.
        InputError: a graph that the device accepted does not run.
        EnvironmentProblemError: the files cannot be written.
    """
    samples = out.parent / f"{out.stem}.samples.json"
    _check(out, samples, force=force)
    cuda.require(settings.device_id)
    name, memory = _device(settings)
    results = measure(settings, default_series() if series is None else series, reporter=reporter)
    date = datetime.now(UTC).date().isoformat()
    software = f"precision-search {tool_version()}, onnxruntime {Versions.installed().onnxruntime}{_driver()}"
    profile = measured_profile(
        out.stem, results, device=name, memory_gb=memory / 1e9, date=date, software=software, samples=samples.name
    )
    _tell(profile, results, reporter)
    content = Samples(name, date, software, settings, results)
    with writing(out):
        out.unlink(missing_ok=True)
    run_files.write_json_atomically(samples, content)
    run_files.write_text_atomically(out, profile_text(profile))
    found = load_profile(str(out.absolute()))
    if found != profile:
        raise InternalError(f"{out} does not hold what was measured", why="read back it is another profile")
    return found


def _check(out: Path, samples: Path, *, force: bool) -> None:
    """What can be known to be wrong before minutes of measuring."""
    if out.suffix != ".toml":
        raise UsageError(
            f"a profile is a .toml file, not {out.name or 'a directory'}",
            why="latency.profile takes other words for the name of a built-in profile",
            fix=f"write --out {out.parent / 'gpu.toml' if out.name in {'', '.toml'} else out.with_suffix('.toml')}",
        )
    for path in (out, samples):
        if path.is_dir():
            refuse_existing(path)
        if not force:
            refuse_existing(path, "add --force to replace it")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise EnvironmentProblemError(
            f"{out} cannot be written",
            why=f"{out.absolute().parent} is not a directory that one may write to",
            fix="make the directory, or give another --out",
        )


def _device(settings: SessionSettings) -> tuple[str, int]:
    """Name and memory in bytes."""
    driver = read_driver()
    for device in () if driver is None else driver.devices:
        if device.number == settings.device_id:
            return device.name, device.memory_bytes
    raise EnvironmentProblemError(
        f"the driver does not know the {settings.device} device {settings.device_id}",
        why="a profile needs its name and its memory",
        fix="look at `precision-search doctor`",
    )


def _driver() -> str:
    driver = read_driver()
    return "" if driver is None or driver.version is None else f", driver {driver.version}"


def _tell(profile: DeviceProfile, results: Sequence[SeriesResult], reporter: Reporter) -> None:
    sheet, found, measured = profile.datasheet, profile.assumptions, profile.measurement
    assert measured is not None, "measured_profile says how it was measured"
    low = "" if sheet.bf16_tflops is None else f", bf16 {sheet.bf16_tflops:.4g}"
    reporter.note(
        f"{sheet.device}: launch {found.launch_us:.2f} us, a run {measured.run_us:.1f} us more, memory "
        f"{sheet.memory_bandwidth:.4g} GB/s; best TFLOP/s: fp32 {sheet.fp32_tflops:.4g}, fp16 {sheet.fp16_tflops:.4g}"
        f"{low}; typical share: fp32 {found.gemm_efficiency:.2f}, low {found.tensor_core_efficiency:.2f}"
    )
    if moved := [each.series.name for each in results if not each.rounds.stable]:
        reporter.warn(f"times still moved at the end of the warm-up: {'; '.join(moved)}. Is the device shared?")
    if wide := [each.series.name for each in results if not each.rounds.narrow]:
        reporter.warn(
            f"not known to {CALIBRATION_RULES.width:.0%}, since times vary too much: {'; '.join(wide)}. "
            "Is the device shared?"
        )
    if measured.slowed_by:
        reporter.warn(f"the device was slowed down ({', '.join(measured.slowed_by)}): the profile holds for that state")
