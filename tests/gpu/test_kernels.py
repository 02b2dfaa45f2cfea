"""The table of low kernels against the kernels themselves: results, on numbers at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from precision_search.precision.kernels import KERNELS, kernel_for
from precision_search.precision.plan import LOW_DTYPES, LowDtype
from precision_search.runtime.session import SessionSettings
from tests.gpu.devices import need_dtype, product, run_low, settings_on
from tests.gpu.probes import PROBES, normal, wrong
from tests.kernel_models import KERNEL_MODELS

CASES = [(name, dtype) for name, probe in PROBES.items() for dtype in LOW_DTYPES if kernel_for(probe.op_type, dtype)]


def test_every_op_type_of_the_table_is_probed() -> None:
    assert {probe.op_type for probe in PROBES.values()} == set(KERNELS)
    assert all(name.partition(",")[0] == probe.op_type for name, probe in PROBES.items())


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
    """TF32 would keep 10 bits of each factor: an error of 2^-11 a product, not 2^-24."""
    left, right = normal(64, 512), normal(512, 48, seed=1)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    size = np.abs(left).astype(np.float64) @ np.abs(right).astype(np.float64)

    error = np.abs(product(left, right, settings) - exact) / size

    assert error.max() < 2.0**-20
