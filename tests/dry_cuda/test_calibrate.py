"""What calibration asks of a device: the chains are the kernels that they claim to be, and nothing else is timed."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from precision_search.cost.estimate import Workload
from precision_search.device.profile import DeviceProfile, load_profile
from precision_search.display.reporters import make_reporter
from precision_search.errors import DeviceMemoryError
from precision_search.judging.latency import MeasuredLatency
from precision_search.machine.calibrate import write_profile
from precision_search.machine.measure import CALIBRATION_RULES, Series, measure_device
from precision_search.machine.microbenchmarks import Probe, ProbeRun
from precision_search.runtime.generator import Generator
from precision_search.runtime.timing import compare_times, synthetic_batch, without_end
from tests.dry_cuda.host import DryCuda
from tests.dry_cuda.recorder import Recorder, set_device_memory
from tests.dry_cuda.scenarios import SETTINGS, Demo
from tests.dry_cuda.trace import TF32_MATH, Section, peak
from tests.fake_device import FakeDevice

pytestmark = pytest.mark.slow

PROBES: Mapping[str, Probe] = {
    "kernels": Probe("Tanh", "float32", 32, 1, 64),
    "stream": Probe("Neg", "float32", 1, 256, 1024),
    "small products": Probe("MatMul", "float32", 32, 1, 64, 64),
    "float32": Probe("MatMul", "float32", 4, 64, 128, 512),
    "float16": Probe("MatMul", "float16", 4, 64, 128, 512),
    "bfloat16": Probe("MatMul", "bfloat16", 4, 64, 128, 512),
}


def run_probes(probes: Mapping[str, Probe]) -> dict[str, list[Section]]:
    """What each probe asks of the device in two runs."""
    found = {}
    for name, probe in probes.items():
        with Recorder() as recorder:
            run = ProbeRun(probe, SETTINGS)
            recorder.take()
            run()
            run()
            found[name] = list(recorder.take())
    return found


@pytest.fixture(scope="module")
def sections(dry_cuda: DryCuda) -> dict[str, list[Section]]:
    return dry_cuda.call(run_probes, probes=PROBES)


@pytest.mark.parametrize("name", PROBES)
def test_a_timed_run_is_its_kernels_and_a_wait_at_the_end(sections: dict[str, list[Section]], name: str) -> None:
    first, second = sections[name]  # nothing is asked outside the runs
    low = PROBES[name].dtype != "float32"
    for section in (first, second):
        assert section.phase == "run"
        assert (section.copies, section.sets, section.calls, section.errors) == ((), (), (), ())
        assert section.launches == PROBES[name].kernels + low
        assert section.waits
    assert (second.taken, second.freed, second.pinned) == ((), (), ())


def test_the_chain_of_small_kernels_is_one_kernel_after_another(sections: dict[str, list[Section]]) -> None:
    for section in sections["kernels"]:
        assert len(section.kernels) == 32
        assert {name.split(",")[0] for name in section.kernels} == {"_UnaryElementWise<float"}
        assert all("OP_Tanh<float>" in name for name in section.kernels)


def test_the_bandwidth_is_that_of_one_element_wise_kernel(sections: dict[str, list[Section]]) -> None:
    assert [section.kernels for section in sections["stream"]] == [
        ("_UnaryElementWise<float, float, OP_Neg<float>, 256, 4>",)
    ] * 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_products_are_of_their_dtype_and_sizes_and_sum_in_fp32_without_tf32(
    sections: dict[str, list[Section]], dtype: str
) -> None:
    for section in sections[dtype]:
        assert len(section.gemms) == 4
        for gemm in section.gemms:
            assert (gemm.left, gemm.right, gemm.result, gemm.compute) == (dtype, dtype, dtype, "float32")
            assert gemm.math != TF32_MATH
        assert [(gemm.n, gemm.k, gemm.m) for gemm in section.gemms] == [(64, 128, 512), (64, 512, 128)] * 2
        casts = [name for name in section.kernels if "Cast" in name]
        assert section.kernels == tuple(casts)
        assert len(casts) == (dtype != "float32")


def test_small_products_are_library_calls_only(sections: dict[str, list[Section]]) -> None:
    for section in sections["small products"]:
        assert (section.kernels, len(section.gemms)) == ((), 32)


def measure_small() -> tuple[list[str], list[Section]]:
    """Measures small series with the real clock; their names, and what the device was asked."""
    series = (
        Series("kernel launch", "float32", "kernel", tuple(Probe("Tanh", "float32", n, 1, 64) for n in (8, 256))),
        Series("model product", "bfloat16", "flop", tuple(Probe("MatMul", "bfloat16", n, 8, 64, 64) for n in (2, 128))),
    )
    with Recorder() as recorder:
        found = measure_device(SETTINGS, series, rules=CALIBRATION_RULES)
        return [each.series.name for each in found], list(recorder.take())


def test_no_run_of_a_measurement_moves_anything_to_or_from_the_host(dry_cuda: DryCuda) -> None:
    names, sections = dry_cuda.call(measure_small)

    assert len(names) == 2  # the stand-in has bfloat16 kernels
    runs = [section for section in sections if section.phase == "run"]
    assert len(runs) > 100
    for section in runs:
        assert (section.moved("h2d"), section.moved("d2h")) == ((), ())


def clock_reads(demo: Demo) -> list[tuple[Section, ...]]:
    """What is asked of the device in each span between two looks at the clock, while two generators are compared."""
    bundle = demo.open()
    generation = without_end(bundle.generation, 3)
    ids = synthetic_batch(2, 5, bundle.config.vocab_size, 0)
    spans: list[tuple[Section, ...]] = []
    ticks = itertools.count()
    with Recorder() as recorder:
        sides = [Generator(bundle.models, generation, SETTINGS) for _ in range(2)]

        def clock() -> float:
            spans.append(recorder.take())
            return float(next(ticks))

        compare_times(
            lambda: sides[0].generate(ids, np.ones_like(ids)),
            lambda: sides[1].generate(ids, np.ones_like(ids)),
            clock=clock,
        )
    return spans


def test_a_timed_generation_ends_with_its_tokens_on_the_host(dry_cuda: DryCuda, demo: Demo) -> None:
    """So that a time holds all of the device's work: every run waits for the device, and the tokens come last."""
    spans = [span for span in dry_cuda.call(clock_reads, demo=demo) if any(part.phase == "run" for part in span)]

    assert len(spans) >= 4 * 14
    for span in spans:
        runs = [part for part in span if part.phase == "run"]
        assert [part.graph for part in runs] == ["encoder", "decoder", "decoder_with_past", "decoder_with_past"]
        assert all(part.waits for part in runs)
        assert span[-1].phase == "binding"
        assert span[-1].moved("d2h")
        assert not span[-1].launches


def profile_of_the_stand_in(out: Path) -> DeviceProfile:
    """Everything that `calibrate` does but for the speeds, which a device that computes nothing does not have."""
    device = FakeDevice()
    measure = functools.partial(measure_device, open_probe=device.open, clock=device.clock)
    return write_profile(out, SETTINGS, reporter=make_reporter(quiet=True), measure=measure)


def test_a_profile_names_the_device(dry_cuda: DryCuda, tmp_path: Path) -> None:
    made = dry_cuda.call(profile_of_the_stand_in, out=tmp_path / "lab.toml")

    assert made == load_profile(str(tmp_path / "lab.toml"))
    assert made.datasheet.device == "Dry CUDA"
    assert made.datasheet.memory_gb > 1.0


def measure_on_little_memory(demo: Demo) -> tuple[str, str]:
    """What comes of a workload on a device that holds half of fp32, and on one that holds fp32 and no second model."""
    bundle, workload = demo.open(), Workload(64, 32, 4)
    with Recorder() as recorder:
        MeasuredLatency(bundle, workload, SETTINGS, seed=0)
        needed = peak(recorder.take())
    gc.collect()
    set_device_memory(needed // 2)
    with pytest.raises(DeviceMemoryError) as caught:
        MeasuredLatency(bundle, workload, SETTINGS, seed=0)
    refused = str(caught.value)
    del caught  # its traceback holds the sessions, and they what they took
    gc.collect()
    set_device_memory(needed * 5 // 4)
    measured = MeasuredLatency(bundle, workload, SETTINGS, seed=0)
    assert measured.latency(bundle.models) is None
    taken = measured.take()
    assert taken is not None
    return refused, str(taken.problem)


def test_a_workload_that_does_not_fit_is_told_apart_from_a_plan_that_does_not(dry_cuda: DryCuda, demo: Demo) -> None:
    fp32, plan = dry_cuda.call(measure_on_little_memory, demo=demo)

    assert fp32.startswith("the workload does not fit on the device: a batch of 64 with 32 source and 4 target tokens")
    assert "set workload.batch below 64" in fp32
    assert plan.startswith("no latency: a batch of 64 with 32 source and 4 target tokens does not fit beside fp32")
