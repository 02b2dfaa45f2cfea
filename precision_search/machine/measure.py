"""How fast a device is: what a launch costs, how fast its memory is, and how fast it multiplies matrices.

In: session settings. Out: a `SeriesResult` for each series of probes that differ only in how much work they are. A line
through their times gives the price of a unit of work as its slope, free of what each run costs, which is where the
line begins. Sizes are interleaved as the sides of a comparison are (see `runtime.timing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from precision_search.device.profile import FloatName
from precision_search.device.state import DeviceState, device_state
from precision_search.errors import DeviceError, DeviceMemoryError, InputError, NoKernelError
from precision_search.machine.microbenchmarks import Probe, ProbeRun
from precision_search.precision.low import LOW_DTYPES
from precision_search.reporting import NOBODY, Reporter
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.timing import (
    RULES,
    Clock,
    Interval,
    Rounds,
    Run,
    TimingRules,
    median_interval,
    run_rounds,
)

Unit = Literal["kernel", "byte", "flop"]
Role = Literal["kernel launch", "product launch", "bandwidth", "square product", "model product"]

CALIBRATION_RULES = replace(RULES, width=0.02, seconds=30.0)
"""Two percent: what the cost model makes of the numbers is not worth more."""

_CHAIN = (4, 20)
"""Matrix products in a chain, short and long: at 10 µs or more each, 160 µs apart, far above what one run varies by."""
_LAUNCHES = (32, 128, 512)
_ROWS_OF_4_KIB = (2**15, 2**16, 2**17)
"""128 to 512 MiB read and as many written: more than level-2 caches hold (126 MB on a B200)."""
_SQUARES = (2048, 4096)
_ROWS = (4096, 16384)
"""Rows of model-like products: so many that fp16 ones take longer than their launch."""
_LAYERS = ((512, 2048), (768, 3072), (1024, 4096))
"""d_model and d_ff of t5-small, t5-base and t5-large."""


@dataclass(frozen=True, slots=True)
class Series:
    """Probes that differ in how much work they are.

    Attributes:
        role: what the series is for.
        dtype: of its elements.
        unit: what its slope is the price of.
        probes: two or more, from little work to much.
    """

    role: Role
    dtype: FloatName
    unit: Unit
    probes: tuple[Probe, ...]

    @property
    def name(self) -> str:
        """For people: what is measured, in which dtype, at which size."""
        last = self.probes[-1]
        size = f"{last.rows} x {last.width}" + (f" x {last.inner}" if last.inner else "")
        return f"{self.role}, {self.dtype}, {size}"

    @property
    def amounts(self) -> tuple[int, ...]:
        """Units of work of each probe."""
        amount: dict[Unit, Callable[[Probe], int]] = {
            "kernel": lambda probe: probe.kernels,
            "byte": lambda probe: probe.bytes,
            "flop": lambda probe: probe.flops,
        }
        return tuple(amount[self.unit](probe) for probe in self.probes)


@dataclass(frozen=True, slots=True)
class SeriesResult:
    """What a series took.

    Attributes:
        series: the probes.
        unit_seconds: seconds for a unit of work: median over the rounds of the slope, with its interval.
        run_seconds: seconds for a run without work, likewise; of little use where the work is large.
        rounds: every time, a side for each probe.
        before, after: the device's condition around it.
    """

    series: Series
    unit_seconds: Interval
    run_seconds: Interval
    rounds: Rounds
    before: DeviceState
    after: DeviceState

    @property
    def rate(self) -> float:
        """Units of work in a second."""
        return 1.0 / self.unit_seconds.value


def product_series(role: Role, dtype: FloatName, rows: int, width: int, inner: int) -> Series:
    """Matrix products of one size, in a short chain and in a long one."""
    return Series(role, dtype, "flop", tuple(Probe("MatMul", dtype, count, rows, width, inner) for count in _CHAIN))


def default_series() -> tuple[Series, ...]:
    """What a device is measured with."""
    dtypes: tuple[FloatName, ...] = ("float32", *LOW_DTYPES)
    found = [
        Series("kernel launch", "float32", "kernel", tuple(Probe("Tanh", "float32", n, 1, 64) for n in _LAUNCHES)),
        Series(
            "product launch",
            "float32",
            "kernel",
            tuple(Probe("MatMul", "float32", count, 1, 64, 64) for count in _LAUNCHES),
        ),
        Series(
            "bandwidth", "float32", "byte", tuple(Probe("Neg", "float32", 1, rows, 1024) for rows in _ROWS_OF_4_KIB)
        ),
    ]
    for dtype in dtypes:
        found += [product_series("square product", dtype, size, size, size) for size in _SQUARES]
        found += [product_series("model product", dtype, rows, *layer) for rows in _ROWS for layer in _LAYERS]
    return tuple(found)


def measure_device(
    settings: SessionSettings,
    series: Sequence[Series],
    *,
    rules: TimingRules = CALIBRATION_RULES,
    seed: int = 0,
    reporter: Reporter = NOBODY,
    open_probe: Callable[[Probe, SessionSettings], Run] = ProbeRun,
    clock: Clock = time.perf_counter,
    state: Callable[[int], DeviceState] = device_state,
) -> tuple[SeriesResult, ...]:
    """Measures a device; series in a dtype that it has no kernels for are left out.

    Args:
        settings: the device, and how sessions run.
        series: what to measure.
        rules: when times count, and how many.
        seed: of the bootstrap.
        reporter: told of each series before it is measured, and of each that is left out.
        open_probe: makes what runs a probe.
        clock: seconds, monotonic.
        state: a device's condition by its id.

    Raises:
        DeviceError: no device, no memory, or more work does not take longer.
        InputError: a graph that the device accepted does not run.
        MissingPackageError: CUDA was asked for and its libraries are missing.
    """
    results = []
    for number, each in enumerate(series, 1):
        reporter.stage(f"measuring {each.name} ({number} of {len(series)})")
        try:
            runs = _open(each, settings, open_probe, reporter)
            if not runs:
                continue
            found = _measure(each, runs, rules, seed, clock=clock, state=lambda: state(settings.device_id))
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"{each.name}: no memory left on the device",
                why=error.why or error.what,
                fix="end what else uses the device (nvidia-smi lists it): it is measured alone",
            ) from error
        _check_slope(found)
        results.append(found)
    return tuple(results)


def _check_slope(found: SeriesResult) -> None:
    if found.unit_seconds.value <= 0.0:
        series, seconds = found.series, found.unit_seconds.value
        raise DeviceError(
            f"{series.name}: more work does not take longer",
            why=f"the slope is {seconds:.3g} s for a {series.unit}: something else takes the time",
            fix="run it again while nothing else uses the machine",
        )


def _open(
    series: Series,
    settings: SessionSettings,
    open_probe: Callable[[Probe, SessionSettings], Run],
    reporter: Reporter,
) -> list[Run]:
    """What runs the probes; empty where the device has no kernels for a low dtype."""
    try:
        return [open_probe(probe, settings) for probe in series.probes]
    except (InputError, NoKernelError) as error:
        if series.dtype == "float32":
            raise
        reporter.note(f"{series.name} is left out: {error.why or error.what}")
        return []


def _measure(
    series: Series,
    runs: Sequence[Run],
    rules: TimingRules,
    seed: int,
    *,
    clock: Clock,
    state: Callable[[], DeviceState],
) -> SeriesResult:
    before = state()
    rounds = run_rounds(runs, rules, clock, lambda found: _price(series, found, seed).width <= rules.width)
    after = state()
    starts = median_interval(_lines(series, rounds)[1], seed)
    return SeriesResult(series, _price(series, rounds, seed), starts, rounds, before, after)


def _price(series: Series, rounds: Rounds, seed: int) -> Interval:
    return median_interval(_lines(series, rounds)[0], seed)


def _lines(series: Series, rounds: Rounds) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each round the slope and the start of the line through its times, by least squares; float64 [rounds]."""
    times = np.stack([rounds.by_round(side) for side in range(len(series.probes))])
    amounts = np.array(series.amounts, np.float64)
    centred = amounts - amounts.mean()
    slopes = centred @ times / (centred @ centred)
    return slopes, times.mean(axis=0) - slopes * amounts.mean()
