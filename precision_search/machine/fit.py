"""From measured series to a device profile: the few numbers that the cost model knows.

In: what `measure_device` found. Out: a `DeviceProfile`, with spreads that cover what one number for all sizes hides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from precision_search.device.profile import Assumptions, Datasheet, DeviceProfile, FloatName, Measurement, profile_label
from precision_search.device.state import DeviceState
from precision_search.errors import DeviceError
from precision_search.machine.measure import Role, SeriesResult
from precision_search.runtime.timing import Interval

_PRODUCT_SHARE = 0.2
"""Share of library calls among launches: 50 of 269 in a decode step of the demo (docs/reference/cost-model.md)."""
_WIDEST = 0.9
"""The largest spread that a profile may have."""


@dataclass(frozen=True, slots=True)
class _Products:
    """Rates in FLOP/s of one dtype: the best of all sizes, and those of sizes that models have, from low to high."""

    best: float
    models: tuple[float, ...]

    @property
    def typical(self) -> float:
        """Share of the best that is typical of a model's sizes."""
        return median(self.models) / self.best

    @property
    def spread(self) -> float:
        """How far a model's sizes lie from the typical one, as a share of it."""
        middle = median(self.models)
        return max(self.models[-1] / middle - 1.0, 1.0 - self.models[0] / middle)


def measured_profile(
    stem: str,
    results: Sequence[SeriesResult],
    *,
    device: str,
    memory_gb: float,
    date: str,
    software: str,
    samples: str,
) -> DeviceProfile:
    """The profile of a device.

    bfloat16 counts only where it is faster than fp32: a device without units for it computes it slowly all the same.

    Args:
        stem: name of its file without `.toml`.
        results: launches, bandwidth and products, as of `default_series`.
        device: the product's name.
        memory_gb: device memory, GB (1e9 bytes).
        date: the day, ISO 8601.
        software: names and versions.
        samples: name of the file with all times.

    Raises:
        DeviceError: the device has no fp16 kernels.
    """
    kernel, product = _of("kernel launch", results)[0], _of("product launch", results)[0]
    bandwidth = _of("bandwidth", results)[0]
    fp32, fp16, bf16 = (_products(dtype, results) for dtype in ("float32", "float16", "bfloat16"))
    if fp32 is None or fp16 is None:
        raise DeviceError("the device multiplies no fp16 matrices", why="ONNX Runtime has no kernel for them there")
    if bf16 is not None and bf16.best <= fp32.best:
        bf16 = None
    sheet = Datasheet(
        device=device,
        source=f"measured by precision-search calibrate on {date}; no datasheet",
        fp32_tflops=_figure(fp32.best / 1e12),
        fp16_tflops=_figure(fp16.best / 1e12),
        memory_bandwidth=_figure(bandwidth.rate / 1e9),
        memory_gb=_figure(memory_gb),
        bf16_tflops=None if bf16 is None else _figure(bf16.best / 1e12),
    )
    low = [fp16] if bf16 is None else [fp16, bf16]
    assumed = _assumptions(kernel, product, bandwidth, fp32, low)
    measurement = _measurement(results, kernel, product, date=date, software=software, samples=samples)
    return DeviceProfile(profile_label(stem, measurement), sheet, assumed, measurement)


def _assumptions(
    kernel: SeriesResult, product: SeriesResult, bandwidth: SeriesResult, fp32: _Products, low: Sequence[_Products]
) -> Assumptions:
    launch = _mixture(kernel.unit_seconds.value, product.unit_seconds.value, _PRODUCT_SHARE)
    return Assumptions(
        reason="Measured. Launch: four small kernels to one small matrix product. Efficiencies: the median over "
        "sizes of t5-small, t5-base and t5-large; spreads: how far the sizes lie from it.",
        launch_us=_figure(launch * 1e6),
        gemm_efficiency=_figure(fp32.typical),
        tensor_core_efficiency=_figure(median(each.typical for each in low)),
        bandwidth_efficiency=1.0,
        launch_spread=_spread(_launch_spread(launch, kernel.unit_seconds, product.unit_seconds)),
        efficiency_spread=_spread(max(_half_width(bandwidth.unit_seconds), *(each.spread for each in (fp32, *low)))),
    )


def _measurement(
    results: Sequence[SeriesResult],
    kernel: SeriesResult,
    product: SeriesResult,
    *,
    date: str,
    software: str,
    samples: str,
) -> Measurement:
    """How it was measured; the device's condition is that after the longest series, when it had worked hardest."""
    last = max(results, key=lambda each: sum(map(sum, each.rounds.times))).after
    return Measurement(
        date=date,
        software=software,
        samples=samples,
        stable=all(each.rounds.stable for each in results),
        run_us=_figure(kernel.run_seconds.value * 1e6),
        kernel_us=_figure(kernel.unit_seconds.value * 1e6),
        product_us=_figure(product.unit_seconds.value * 1e6),
        sm_clock_mhz=last.sm_clock_mhz,
        temperature_c=last.temperature_c,
        power_w=last.power_w,
        slowed_by=_slowed_by(each.after for each in results),
    )


def _of(role: Role, results: Sequence[SeriesResult]) -> list[SeriesResult]:
    return [each for each in results if each.series.role == role]


def _products(dtype: FloatName, results: Sequence[SeriesResult]) -> _Products | None:
    models, squares = (
        [each.rate for each in _of(role, results) if each.series.dtype == dtype]
        for role in ("model product", "square product")
    )
    return _Products(max(models + squares), tuple(sorted(models))) if models else None


def _mixture(kernel: float, product: float, share: float) -> float:
    return (1 - share) * kernel + share * product


def _launch_spread(launch: float, kernel: Interval, product: Interval) -> float:
    """How far a launch may be off if no launch of a model is a library call or twice as many are, as a share of it."""
    ends = [
        _mixture(*pair, share)
        for pair in ((kernel.low, product.low), (kernel.high, product.high))
        for share in (0.0, 2 * _PRODUCT_SHARE)
    ]
    return max(abs(end / launch - 1.0) for end in ends)


def _half_width(interval: Interval) -> float:
    return max(interval.high / interval.value - 1.0, 1.0 - interval.low / interval.value)


def _figure(value: float) -> float:
    """To five digits: more is noise."""
    return float(f"{value:.5g}")


def _spread(value: float) -> float:
    return min(_WIDEST, _figure(value))


def _slowed_by(states: Iterable[DeviceState]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reason for state in states for reason in state.slowed_by or ()))
