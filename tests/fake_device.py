"""A device whose speed is known, on a clock that only it advances: what is measured of it can be held against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from precision_search.device.profile import FloatName
from precision_search.device.state import DeviceState
from precision_search.errors import InputError
from precision_search.machine.microbenchmarks import Probe
from precision_search.runtime.session import SessionSettings


@dataclass
class FakeDevice:
    """A device.

    Attributes:
        run_s: seconds of a run beyond its kernels.
        kernel_s, product_s: seconds from one small kernel, or one small product, to the next.
        bandwidth: bytes a second.
        flops: FLOP a second by dtype; without bfloat16 it has no kernels for it.
        small: share of `flops` that products of fewer than `small_width` columns reach.
        noise: lognormal, of each run.
        slow_start: how many times as long the first run takes; what is beyond one halves from run to run.
    """

    run_s: float = 20e-6
    kernel_s: float = 4e-6
    product_s: float = 9e-6
    bandwidth: float = 300e9
    flops: dict[FloatName, float] = field(
        default_factory=lambda: {"float32": 6e12, "float16": 50e12, "bfloat16": 40e12}
    )
    small: float = 1.0
    small_width: int = 0
    noise: float = 0.0
    slow_start: float = 1.0
    now: float = 0.0
    runs: int = 0

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(3)

    def open(self, probe: Probe, settings: SessionSettings) -> Callable[[], None]:
        if probe.dtype not in self.flops:
            raise InputError("ONNX Runtime does not accept the graph 'probe'.")
        return lambda: self._advance(probe)

    def clock(self) -> float:
        return self.now

    def state(self, device_id: int) -> DeviceState:
        """It gets warmer all the time."""
        return DeviceState(sm_clock_mhz=1500.0, temperature_c=40.0 + self.now)

    def _advance(self, probe: Probe) -> None:
        if probe.op == "MatMul":
            share = self.small if probe.width < self.small_width else 1.0
            each = max(self.product_s, probe.flops / probe.kernels / (self.flops[probe.dtype] * share))
        else:
            each = max(self.kernel_s, probe.bytes / probe.kernels / self.bandwidth)
        start = 1.0 + (self.slow_start - 1.0) * 0.5**self.runs
        self.runs += 1
        self.now += (self.run_s + probe.kernels * each) * start * float(self._generator.lognormal(0.0, self.noise))
