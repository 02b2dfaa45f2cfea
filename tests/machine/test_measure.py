"""A device whose speed is known is measured as what it is; real sessions on the CPU are measured by the same code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from precision_search.device.state import DeviceState
from precision_search.errors import DeviceError, DeviceMemoryError, InputError, NoKernelError
from precision_search.machine.measure import (
    CALIBRATION_RULES,
    Series,
    SeriesResult,
    default_series,
    measure_device,
    product_series,
)
from precision_search.machine.microbenchmarks import Probe, ProbeRun, probe_model
from precision_search.runtime.backends import create_session
from precision_search.runtime.session import SessionSettings, run_session
from precision_search.runtime.timing import Run
from tests.fake_device import FakeDevice
from tests.told import Told

CPU = SessionSettings(threads=1)
LAUNCHES = Series("kernel launch", "float32", "kernel", tuple(Probe("Tanh", "float32", n, 1, 64) for n in (32, 128)))
STREAM = Series("bandwidth", "float32", "byte", tuple(Probe("Neg", "float32", 1, n, 1024) for n in (2**14, 2**15)))
PRODUCTS = product_series("square product", "float16", 2048, 2048, 2048)


def measured(device: FakeDevice, *series: Series) -> tuple[SeriesResult, ...]:
    return measure_device(CPU, series, open_probe=device.open, clock=device.clock, state=device.state)


def test_prices_come_back_as_they_are() -> None:
    device = FakeDevice()

    launches, stream, products = measured(device, LAUNCHES, STREAM, PRODUCTS)

    assert launches.unit_seconds.value == pytest.approx(4e-6)
    assert launches.run_seconds.value == pytest.approx(20e-6)
    assert stream.rate == pytest.approx(300e9)
    assert products.rate == pytest.approx(50e12)
    assert all(each.rounds.stable and each.rounds.narrow for each in (launches, stream, products))


@pytest.mark.parametrize("run_s", [0.0, 5e-3])
def test_what_a_run_costs_is_not_taken_for_work(run_s: float) -> None:
    launches, stream, products = measured(FakeDevice(run_s=run_s), LAUNCHES, STREAM, PRODUCTS)

    assert launches.unit_seconds.value == pytest.approx(4e-6, rel=1e-6)
    assert stream.rate == pytest.approx(300e9, rel=1e-6)
    assert products.rate == pytest.approx(50e12, rel=1e-6)


def test_noise_is_in_the_intervals() -> None:
    """Each holds the true price about as often as it says: in at least 44 of 50 devices."""
    held = 0
    for seed in range(50):
        device = FakeDevice(noise=0.01)
        device._generator = np.random.default_rng(seed)
        (found,) = measured(device, PRODUCTS)
        held += found.unit_seconds.low <= 1 / 50e12 <= found.unit_seconds.high
        assert found.unit_seconds.low < found.unit_seconds.value < found.unit_seconds.high
    assert held >= 44


def test_a_slow_start_is_not_measured() -> None:
    (found,) = measured(FakeDevice(slow_start=100.0), LAUNCHES)

    assert found.rounds.stable
    assert found.unit_seconds.value == pytest.approx(4e-6, rel=0.01)
    assert max(found.rounds.warm_up[0]) > 10 * max(found.rounds.times[0])


def test_every_time_and_the_condition_around_them_is_kept() -> None:
    first, second = measured(FakeDevice(), LAUNCHES, PRODUCTS)

    assert len(first.rounds.times) == len(LAUNCHES.probes)
    assert {len(times) for times in first.rounds.times} == {2 * CALIBRATION_RULES.least_rounds}
    assert first.before.temperature_c is not None
    assert first.after.temperature_c is not None
    assert first.before.temperature_c < first.after.temperature_c
    assert first.after == second.before


def test_a_dtype_without_kernels_is_left_out() -> None:
    bfloat16 = product_series("square product", "bfloat16", 2048, 2048, 2048)

    device, told = FakeDevice(flops={"float32": 1e12, "float16": 1e12}), Told()

    found = measure_device(
        CPU, (LAUNCHES, bfloat16, PRODUCTS), reporter=told, open_probe=device.open, clock=device.clock
    )

    assert [each.series for each in found] == [LAUNCHES, PRODUCTS]
    assert told.notes == [f"{bfloat16.name} is left out: ONNX Runtime does not accept the graph 'probe'."]


def test_float_nodes_that_a_device_would_leave_to_the_cpu_are_no_kernels() -> None:
    device, told = FakeDevice(), Told()

    def refuse(probe: Probe, settings: SessionSettings) -> Run:
        if probe.dtype == "float16":
            raise NoKernelError("a float node would run on the CPU", why="no kernel for MatMul")
        return device.open(probe, settings)

    found = measure_device(CPU, (LAUNCHES, PRODUCTS), reporter=told, open_probe=refuse, clock=device.clock)

    assert [each.series for each in found] == [LAUNCHES]
    assert told.notes == [f"{PRODUCTS.name} is left out: no kernel for MatMul"]


def test_a_low_dtype_that_fails_while_it_runs_is_not_hidden() -> None:
    def broken() -> None:
        raise InputError("A graph failed to run.", why="cuBLAS says no")

    with pytest.raises(InputError, match="failed to run"):
        measure_device(CPU, (PRODUCTS,), open_probe=lambda probe, settings: broken)


@pytest.mark.parametrize("when", ["opened", "run"])
def test_a_full_device_is_said_to_be_full_and_for_which_series(when: str) -> None:
    def full() -> None:
        raise DeviceMemoryError("A graph ran out of memory.", why="9,999 MiB", fix="Use a smaller batch.")

    def opened(probe: Probe, settings: SessionSettings) -> Run:
        if when == "opened":
            full()
        return full

    with pytest.raises(DeviceMemoryError, match="square product, float16") as caught:
        measure_device(CPU, (PRODUCTS,), open_probe=opened)

    assert caught.value.why == "9,999 MiB"
    assert "batch" not in (caught.value.fix or "")


def test_an_input_that_finds_no_room_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        @staticmethod
        def ortvalue_from_numpy(*arguments: object) -> None:
            raise RuntimeError("BFCArena: Available memory of 8 is smaller than requested bytes of 536870912")

    monkeypatch.setattr("onnxruntime.OrtValue", Full)

    with pytest.raises(DeviceMemoryError):
        ProbeRun(LAUNCHES.probes[0], CPU)


def test_without_fp32_nothing_can_be_measured() -> None:
    with pytest.raises(InputError):
        measured(FakeDevice(flops={"float16": 1e12}), LAUNCHES)


def test_work_that_takes_no_time_is_refused() -> None:
    with pytest.raises(DeviceError, match="more work does not take longer"):
        measured(FakeDevice(kernel_s=0.0, bandwidth=1e30), LAUNCHES)


def test_each_series_is_announced() -> None:
    device, told = FakeDevice(), Told()

    measure_device(CPU, (LAUNCHES, PRODUCTS), reporter=told, open_probe=device.open, clock=device.clock)

    assert told.stages == [
        "measuring kernel launch, float32, 1 x 64 (1 of 2)",
        "measuring square product, float16, 2048 x 2048 x 2048 (2 of 2)",
    ]


def test_the_default_measures_each_thing_in_each_dtype() -> None:
    series = default_series()

    assert len({each.name for each in series}) == len(series)
    for dtype in ("float32", "float16", "bfloat16"):
        assert {"square product", "model product"} <= {each.role for each in series if each.dtype == dtype}
    assert {"kernel launch", "product launch", "bandwidth"} <= {each.role for each in series}
    for each in series:
        assert list(each.amounts) == sorted(set(each.amounts))
        assert all(probe.dtype == each.dtype for probe in each.probes)


def test_probes_say_how_much_work_they_are() -> None:
    assert Probe("Neg", "float32", 1, 10, 100).bytes == 8_000
    assert Probe("Tanh", "float16", 3, 10, 100).bytes == 12_000
    assert Probe("MatMul", "float16", 4, 10, 100, 1000).flops == 4 * 2 * 10 * 100 * 1000
    assert STREAM.amounts == (2**14 * 8192, 2**15 * 8192)
    assert LAUNCHES.amounts == (32, 128)


@pytest.mark.parametrize(
    ("probe", "ops"),
    [
        (Probe("Tanh", "float32", 3, 1, 64), ["Tanh"] * 3),
        (Probe("Neg", "float32", 1, 8, 64), ["Neg"]),
        (Probe("MatMul", "float32", 4, 8, 64, 32), ["MatMul"] * 4),
        (Probe("MatMul", "float16", 2, 8, 64, 32), ["Cast", "MatMul", "MatMul"]),
        (Probe("MatMul", "bfloat16", 2, 8, 64, 32), ["Cast", "MatMul", "MatMul"]),
    ],
)
def test_a_probe_is_a_chain_of_its_dtype(probe: Probe, ops: list[str]) -> None:
    graph = probe_model(probe).graph

    assert [node.op_type for node in graph] == ops
    assert [node.inputs[0] for node in graph][1:] == [node.outputs[0] for node in graph][:-1]
    (y,) = graph.outputs
    assert y.dtype == getattr(ir.DataType, {"float32": "FLOAT"}.get(probe.dtype, probe.dtype.upper()))
    assert y.shape == ir.Shape([probe.rows, probe.width])
    assert all(weight.dtype == y.dtype for weight in graph.initializers.values())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_stay_finite_and_neither_die_out_nor_grow_along_the_longest_chain(dtype: str) -> None:
    probe = Probe("MatMul", "float16" if dtype == "float16" else "float32", 20, 32, 128, 512)
    x = np.random.default_rng(0).uniform(-1, 1, (32, 128)).astype(np.float32)

    (y,) = run_session(create_session(probe_model(probe), CPU), ["y"], {"x": x})

    assert np.isfinite(y).all()
    assert 0.1 < y.astype(np.float32).std() / x.std() < 10.0


def test_real_sessions_are_measured_on_the_cpu() -> None:
    """By the real clock; only that there is a price is asserted."""
    series = (
        Series("kernel launch", "float32", "kernel", tuple(Probe("Tanh", "float32", n, 1, 64) for n in (8, 512))),
        Series("bandwidth", "float32", "byte", tuple(Probe("Neg", "float32", 1, n, 1024) for n in (64, 4096))),
        Series("model product", "float32", "flop", tuple(Probe("MatMul", "float32", n, 64, 64, 256) for n in (2, 80))),
        Series("model product", "bfloat16", "flop", tuple(Probe("MatMul", "bfloat16", n, 8, 64, 64) for n in (2, 40))),
    )
    rules = replace(CALIBRATION_RULES, warm_up_rounds=6, most_rounds=10)

    found = measure_device(CPU, series, rules=rules)

    assert [each.series.dtype for each in found] == ["float32"] * 3  # the CPU has no bfloat16 products
    for each in found:
        assert each.rate > 0.0
        assert min(min(times) for times in each.rounds.times) > 0.0
        assert each.before == each.after == DeviceState()


def test_a_session_keeps_what_is_bound_to_it() -> None:
    """A binding holds addresses: memory that nobody else keeps would be given to others."""
    runs = [ProbeRun(Probe("Tanh", "float32", 2, 1, 64), CPU) for _ in range(20)]
    for run in runs:
        run()
    run = ProbeRun(Probe("Neg", "float32", 1, 4, 8), CPU)
    run()

    np.testing.assert_array_equal(run._result.read(), -np.asarray(run._given.numpy()).reshape(-1))
