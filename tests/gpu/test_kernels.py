"""The table of low kernels against the kernels themselves: results, on numbers at the edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from precision_search.precision.kernels import KERNELS, kernel_for
from precision_search.precision.low import LOW_DTYPES, LowDtype
from precision_search.runtime.session import SessionSettings
from tests.gpu.devices import Array, cuda_device, need_dtype, product, run_low, settings_on
from tests.gpu.probes import PROBES, Probe, normal, wrong
from tests.kernel_models import KERNEL_MODELS

CASES = [(name, dtype) for name, probe in PROBES.items() for dtype in LOW_DTYPES if kernel_for(probe.op_type, dtype)]


def test_every_op_type_of_the_table_is_probed() -> None:
    assert {probe.op_type for probe in PROBES.values()} == set(KERNELS)
    assert all(name.partition(",")[0] == probe.op_type for name, probe in PROBES.items())


def test_the_comparison_sees_what_it_is_for() -> None:
    """A step where there must be none, two where one is fine, too many of one, a NaN that moved, an early infinity."""
    exact, close = PROBES["Add"], PROBES["Exp"]
    values = np.linspace(1, 2, 1025, dtype=np.float32)[:1000]
    one, two, many = values.copy(), values.copy(), values.copy()
    one[5] += 2.0**-10
    two[5] += 2.0**-9
    many[:20] += 2.0**-10

    def verdict(got: Array, probe: Probe, expected: Array = values) -> str | None:
        return wrong(got, expected, probe, [expected], "float16")

    assert verdict(values, exact) is None
    assert "differ" in (verdict(one, exact) or "")
    assert verdict(one, close) is None
    assert "allowed 0.000977" in (verdict(two, close) or "")
    assert "2.000% differ" in (verdict(many, close) or "")
    assert "NaN in 1 places" in (verdict(np.where(values == 1, np.float32(np.nan), values), close) or "")
    assert "shape" in (verdict(values[1:], close) or "")
    largest, early = np.full(1000, 65504, np.float32), np.full(1000, 65504, np.float32)
    early[0] = np.inf
    assert verdict(early, close, largest) is None  # a step above the largest
    largest[0] = 65472
    assert verdict(early, close, largest) is not None


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_kernel_computes_what_the_emulation_and_its_model_say(
    settings: SessionSettings, name: str, dtype: LowDtype
) -> None:
    """Bit for bit where it rounds once; else within what the order of sums and approximate functions may do."""
    need_dtype(dtype, settings)
    probe = PROBES[name]
    inputs = probe.inputs(dtype)
    got = run_low(probe.op_type, inputs, probe.attributes, dtype, settings)
    modelled = KERNEL_MODELS[probe.op_type](list(inputs), probe.attributes, dtype)
    emulated = run_low(probe.op_type, inputs, probe.attributes, dtype, settings_on("cpu"))

    assert wrong(got, modelled, probe, inputs, dtype) is None
    assert wrong(got, emulated, probe, inputs, dtype) is None


@pytest.mark.parametrize(("mean", "overflows"), [(341.0, False), (342.0, True), (30000.0, True)])
def test_a_mean_overflows_where_its_sum_does(settings: SessionSettings, mean: float, overflows: bool) -> None:
    """The entry that decides most: the sum of 192 numbers is stored in half before it is divided."""
    values = np.full((4, 192), mean, np.float32)
    got = run_low("ReduceMean", [values, np.array([-1])], {}, "float16", settings)

    assert np.isinf(got).all() == np.isinf(got).any() == overflows


def test_fp32_products_are_those_of_fp32(settings: SessionSettings) -> None:
    """Unless TF32 is asked for, which keeps 10 bits of each factor: an error of 2^-11 a product, not 2^-24."""
    left, right = normal(64, 512), normal(512, 48, seed=1)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    size = np.abs(left).astype(np.float64) @ np.abs(right).astype(np.float64)
    tf32 = replace(settings, use_tf32=True)

    errors = [float((np.abs(product(left, right, each) - exact) / size).max()) for each in (settings, tf32)]

    assert errors[0] < 2.0**-20
    # Devices have it since they have bfloat16.
    assert (errors[1] > 2.0**-17) == (settings.device == "cuda" and cuda_device().bfloat16)
