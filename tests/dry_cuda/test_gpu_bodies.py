"""What `tests/gpu` does on CUDA alone, on the dry runtime: that it runs there, and gives results of the right form.

Only a real device can be wrong or right; but a test that first meets one on a rented machine should not fail by a typo.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
from onnxruntime import OrtValue

from precision_search.cost.estimate import Workload
from precision_search.judging.inspect import measure
from precision_search.judging.latency import MeasuredLatency
from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.screen import SampleScreen, Screener
from precision_search.machine.doctor import DoctorReport, examine
from precision_search.precision.convert import convert
from precision_search.precision.kernels import kernel_for
from precision_search.precision.low import LOW_DTYPES, LowDtype
from precision_search.precision.weights import WeightCache
from precision_search.runtime.reference import Reference
from precision_search.runtime.session import SessionSettings
from tests.confirming import confirm
from tests.dry_cuda.host import DryCuda
from tests.dry_cuda.scenarios import Demo
from tests.gpu.devices import cuda_device, product, run_low, settings_on, used_bytes
from tests.gpu.plans import PLANS, on_device
from tests.gpu.probes import PROBES, normal
from tests.gpu.test_doctor import check_healthy
from tests.kernel_models import KERNEL_MODELS
from tests.plans import NORMS, WO, keeping

pytestmark = pytest.mark.slow

ROWS = ((5, 6, 7, 1), (8, 1), (9, 10, 1))
TOKENS = ((3, 1), (4, 5, 6, 1), (7, 1))
CASES = tuple(
    (name, dtype) for name, probe in PROBES.items() for dtype in LOW_DTYPES if kernel_for(probe.op_type, dtype)
)


def run_probes(cases: Collection[tuple[str, LowDtype]]) -> dict[tuple[str, LowDtype], tuple[tuple[int, ...], str]]:
    """Shape and dtype of each probe's result."""
    found = {}
    for name, dtype in cases:
        probe = PROBES[name]
        got = run_low(probe.op_type, probe.inputs(dtype), probe.attributes, dtype, settings_on("cuda"))
        found[name, dtype] = (got.shape, str(got.dtype))
    return found


def test_every_probe_has_a_kernel_and_gives_fp32_back(dry_cuda: DryCuda) -> None:
    found = dry_cuda.call(run_probes, cases=CASES)

    for name, dtype in CASES:
        inputs = list(PROBES[name].inputs(dtype))
        modelled = KERNEL_MODELS[PROBES[name].op_type](inputs, PROBES[name].attributes, dtype)
        assert found[name, dtype] == (modelled.shape, "float32")


def multiply() -> tuple[tuple[int, ...], ...]:
    settings = (settings_on("cuda"), SessionSettings(device="cuda", use_tf32=True))
    return tuple(product(normal(4, 8), normal(8, 5), each).shape for each in settings)


def test_products_run_with_and_without_tf32(dry_cuda: DryCuda) -> None:
    assert dry_cuda.call(multiply) == ((4, 5), (4, 5))


def generate_plans(demo: Demo) -> dict[str, list[int]]:
    """How long the margins of each row are, as converted and on the device."""
    bundle = demo.open()
    found = {}
    for name, (_, make) in PLANS.items():
        got = on_device(bundle, make(bundle, ROWS), ROWS, settings_on("cuda"))
        assert [len(margins) for margins in got.margins] == [len(tokens) for tokens in got.tokens]
        found[name] = [len(tokens) for tokens in got.tokens]
    return found


def test_every_plan_generates(dry_cuda: DryCuda, demo: Demo) -> None:
    found = dry_cuda.call(generate_plans, demo=demo)

    assert set(found) == set(PLANS)
    assert all(min(lengths) > 0 for lengths in found.values())


def search_parts(demo: Demo) -> tuple[int, int, int, str]:
    """What a run does on CUDA, part by part: nodes with a range, samples screened, samples confirmed, latency."""
    bundle, settings, weights = demo.open(), settings_on("cuda"), WeightCache()
    plan = keeping(bundle, NORMS, WO)
    samples = SampleRows(ROWS, Reference(TOKENS, tuple(np.ones(len(row), np.float32) for row in TOKENS)))
    ranges = measure(bundle, ROWS, 2, "float16", settings)
    screen = SampleScreen(samples, bundle.generation, 2)
    screened = Screener(bundle.graphs, plan.dtype, weights, settings).prepare(plan).screen(screen, to_the_end=True)
    models = convert(bundle.graphs, plan, weights).models
    confirmed = confirm(models, samples, bundle.generation, settings, batch_size=2, weights=weights)
    latency = MeasuredLatency(bundle, Workload(2, 8, 4), settings, seed=0).latency(models)
    assert latency is not None
    assert 0 <= confirmed.exact_match <= 1
    return len(ranges), screened.screened, len(screened.margins), latency.source


def test_a_search_runs_part_by_part(dry_cuda: DryCuda, demo: Demo) -> None:
    ranges, screened, margins, source = dry_cuda.call(search_parts, demo=demo)

    assert ranges > 100
    assert (screened, margins, source) == (len(ROWS), len(ROWS), "measured")


def allocate(size: int) -> tuple[int, int, str]:
    before = used_bytes("cuda")
    held = OrtValue.ortvalue_from_shape_and_type([size], np.uint8, "cuda", 0)
    taken = used_bytes("cuda") - before
    assert held.shape() == [size]
    return before, taken, cuda_device().compute_capability


def test_memory_in_use_is_the_devices(dry_cuda: DryCuda) -> None:
    before, taken, capability = dry_cuda.call(allocate, size=1 << 26)

    assert before >= 0
    assert taken >= 1 << 26
    assert capability == "8.0"


def diagnose() -> DoctorReport:
    return examine()


def test_the_doctor_finds_it_healthy(dry_cuda: DryCuda) -> None:
    check_healthy(dry_cuda.call(diagnose))
