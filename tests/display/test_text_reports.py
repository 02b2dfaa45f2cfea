"""Reports as text that survives narrow terminals and odd characters, and as JSON that any program reads."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from precision_search.device.driver import CudaDevice, CudaDriver
from precision_search.device.state import DeviceState
from precision_search.display.text_reports import (
    report_json,
    show_best,
    show_doctor,
    show_inspect,
    show_state,
    show_verify,
)
from precision_search.judging.differences import DifferingSample
from precision_search.judging.inspect import inspect_bundle
from precision_search.judging.ranges import NodeRange
from precision_search.machine.doctor import CudaState, DoctorReport, Package, Variable
from precision_search.machine.libraries import CudaLibrary
from precision_search.model.bundle import Bundle
from precision_search.published.verify import VerifyReport
from precision_search.records.run_json import CutCheck
from tests.output_models import run_info

WIDE_KEY = "encoder.block.0.layer.0.SelfAttention/Softmax"
NEAR_TIE = DifferingSample(3, 4, "[bold]source[/]", "eine Quelle", "ein Quell", 1, 1e-4, near_tie=True, nonfinite=False)
DAMAGED = replace(NEAR_TIE, index=5, line=6, position=0, margin=None, near_tie=False, nonfinite=True)
VERIFIED = VerifyReport(100, 98, 0.98, 0.93, 0.9945, 1, (NEAR_TIE, DAMAGED), "emulated", (), "ab" * 32)
MACHINE = DoctorReport(
    python="3.11.7",
    platform="Linux x86_64",
    packages=(Package("onnx", "1.23"),),
    providers=("CPUExecutionProvider",),
    cuda=CudaState(False, None, "CUDA does not start.", "no driver", "buy a GPU"),
    cores=2,
    memory_bytes=2**33,
    latency="estimated",
    profiles=("l4", "t4"),
)


def shown(show: Callable[[Console], None], width: int = 120) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=width))
    return stream.getvalue()


def test_a_verification_lists_each_difference_as_it_is_and_sums_up() -> None:
    lines = shown(lambda console: show_verify(VERIFIED, console), width=30).splitlines()

    assert lines[:4] == [
        "line 4 differs from token 2 on (reference margin 0.0001, a near-tie of fp32)",
        "  source     [bold]source[/]",
        "  reference  eine Quelle",
        "  model      ein Quell",
    ]
    assert "line 6 differs from token 1 on (reference margin unknown, non-finite values)" in lines
    assert lines[-4:] == [
        "exact match  98 of 100, 98.0% (95% interval 93.0% to 99.4%), emulated",
        "non-finite   1 of 100",
        "sentences    SHA-256 abababababababab",
        "near-ties    1 of the 2 differences: fp32 itself is undecided there",
    ]


def test_a_perfect_verification_is_three_lines() -> None:
    perfect = replace(VERIFIED, exact=100, exact_match=1.0, high=1.0, nonfinite=0, differences=())

    assert len(shown(lambda console: show_verify(perfect, console)).splitlines()) == 3


def test_an_inspection_breaks_no_node_key_and_hides_empty_columns(demo_bundle: Bundle) -> None:
    report = inspect_bundle(demo_bundle, "float16", name="demo")

    lines = shown(lambda console: show_inspect(report, console), width=40).splitlines()

    assert any(line.endswith("encoder.block.*.layer.0.SelfAttention.relative_attention_bias/Gather") for line in lines)
    assert not any("beyond range" in line or "largest" in line for line in lines)
    assert max(len(line) for line in lines) < 120


def test_measured_ranges_are_shown_with_the_limit(demo_bundle: Bundle) -> None:
    ranges = {WIDE_KEY: NodeRange(WIDE_KEY, "Softmax", 40000.0, 1.0, 0.0, 0.25)}
    report = inspect_bundle(demo_bundle, "float16", name="demo", ranges=ranges, samples=7)

    lines = shown(lambda console: show_inspect(report, console)).splitlines()

    assert "largest values on 7 samples; float16 holds 65504, beyond range means above 32752" in lines
    assert lines[-1].split() == ["40000", "1", "25.0%", "yes", WIDE_KEY]


def test_json_holds_null_for_what_is_not_finite(demo_bundle: Bundle) -> None:
    ranges = {WIDE_KEY: NodeRange(WIDE_KEY, "Softmax", float("inf"), float("nan"), 0.0, 0.0)}
    report = inspect_bundle(demo_bundle, "float16", name="demo", ranges=ranges, samples=1)

    found = json.loads(report_json(report), parse_constant=lambda name: f"not JSON: {name}")

    node = next(node for node in found["nodes"] if node["key"] == WIDE_KEY)
    assert (node["range"]["largest_input"], node["range"]["largest_output"]) == (None, None)
    assert node["beyond_range"] is True
    assert {graph["name"] for graph in found["graphs"]} == {"encoder", "decoder", "decoder_with_past"}


def test_the_doctor_says_what_to_do_last() -> None:
    lines = shown(lambda console: show_doctor(MACHINE, console)).splitlines()

    assert "cuda      does not start: no driver" in lines
    assert "latency   estimated (profiles: l4, t4)" in lines
    assert "cores     2, memory 8.0 GiB" in lines
    assert "driver    none" in lines
    assert lines[-1] == "to do     buy a GPU"


def test_the_doctor_lists_libraries_and_devices_one_by_one() -> None:
    libraries = (
        CudaLibrary("libcudart.so.13", "nvidia-cuda-runtime", "13.5", "/packages/libcudart.so.13"),
        CudaLibrary("libcurand.so.10", "nvidia-curand", None, "/usr/lib/libcurand.so.10"),
        CudaLibrary("libcudnn.so.9", "nvidia-cudnn-cu13", None, None),
    )
    devices = (
        CudaDevice(0, "Tesla T4", "7.5", 2**34, None, bfloat16=False),
        CudaDevice(1, "NVIDIA A10G", "8.6", 3 * 2**33, 2**33, bfloat16=True),
    )
    machine = replace(
        MACHINE,
        cuda=CudaState(True, "Tesla T4"),
        latency="measured",
        cuda_build="13.0",
        libraries=libraries,
        driver=CudaDriver("580.65.06", "13.0", devices, None),
        states=(
            DeviceState(),
            DeviceState(
                sm_clock_mhz=1410.0,
                max_sm_clock_mhz=1695.0,
                temperature_c=84.0,
                power_w=149.6,
                slowed_by=("power cap",),
            ),
        ),
        profile="t4",
        variables=(Variable("ORT_CUDA_GEMM_OPTIONS", "1"),),
    )

    lines = shown(lambda console: show_doctor(machine, console)).splitlines()

    assert lines[3:] == [
        "providers CPUExecutionProvider (built for CUDA 13.0)",
        "library   libcudart.so.13 nvidia-cuda-runtime 13.5",
        "library   libcurand.so.10 /usr/lib/libcurand.so.10",
        "library   libcudnn.so.9 MISSING (nvidia-cudnn-cu13)",
        "driver    580.65.06, runs CUDA up to 13.0",
        "device 0  Tesla T4, compute capability 7.5 (no bfloat16), 16.0 GiB",
        "device 1  NVIDIA A10G, compute capability 8.6 (float16 and bfloat16), 8.0 GiB free of 24.0 GiB",
        "          1410 MHz of 1695, 84 C, 150 W, slowed by power cap",
        "set       ORT_CUDA_GEMM_OPTIONS=1",
        "cuda      Tesla T4: works",
        "latency   measured (the estimates that order proposals fit with latency.profile t4)",
    ]
    assert json.loads(report_json(machine))["driver"]["devices"][1]["compute_capability"] == "8.6"
    failing = replace(machine, driver=CudaDriver(None, None, (), "it has no device"), latency="estimated")
    lines = shown(lambda console: show_doctor(failing, console)).splitlines()
    assert "driver    of unknown version, runs CUDA up to unknown: it has no device" in lines
    assert "latency   estimated (profiles: l4, t4; t4 is this device's)" in lines


def test_a_healthy_machine_has_nothing_to_do() -> None:
    healthy = replace(MACHINE, cuda=CudaState(True, "Tesla T4"), latency="measured", memory_bytes=None)

    lines = shown(lambda console: show_doctor(healthy, console)).splitlines()

    assert "cuda      Tesla T4: works" in lines
    assert "latency   measured" in lines
    assert not any(line.startswith("to do") for line in lines)


def test_the_winner_is_said_to_keep_what_was_tried_and_no_more() -> None:
    best = run_info().best
    assert best is not None
    assert best.validation_match is not None
    untested = run_info(best=replace(best, test_match=None))

    (line,) = shown(lambda console: show_best(untested, console)).splitlines()

    assert line.startswith(f"plan {best.id}: ")
    assert "validation samples exact" in line
    assert shown(lambda console: show_best(run_info(best=None), console)) == ""


def test_an_unfinished_run_says_so_and_the_cut_what_it_is_worth() -> None:
    assert shown(lambda console: show_state(run_info(), console)) == ""
    limited = run_info(stopped="max_trials")
    assert shown(lambda console: show_state(limited, console)).splitlines() == [
        "search.max_trials ended the search: --resume with a larger one (--set search.max_trials=...) goes on"
    ]
    running = run_info(status="interrupted", cut=CutCheck(12, 0.00171))
    assert shown(lambda console: show_state(running, console)).splitlines() == [
        f"the run is not complete: these are the {running.counts.judged} plans judged so far",
        "minimum cut: its cost of 12 plans and that of the converted graphs differ by at most 0.17%",
    ]


def test_a_narrow_terminal_breaks_between_words_and_below_the_label() -> None:
    stream = io.StringIO()
    providers = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    console = Console(file=stream, width=50, force_terminal=True, color_system=None)
    show_doctor(replace(MACHINE, providers=providers), console)
    show_verify(VERIFIED, console)

    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 50
    start = lines.index("providers TensorrtExecutionProvider,")
    assert lines[start + 1 : start + 3] == [" " * 10 + "CUDAExecutionProvider,", " " * 10 + "CPUExecutionProvider"]
    start = lines.index("exact match  98 of 100, 98.0% (95% interval 93.0%")
    assert lines[start + 1] == " " * 13 + "to 99.4%), emulated"


def test_where_a_table_does_not_fit_headers_and_then_keys_get_lines_of_their_own(demo_bundle: Bundle) -> None:
    report = inspect_bundle(demo_bundle, "float16", name="demo")
    wide, narrow = (shown(lambda c: show_inspect(report, c), width=width).splitlines() for width in (200, 60))

    key = "encoder.block.*.layer.0.SelfAttention.q/MatMul"
    assert [line.split() for line in wide if key in line] == [["4", "4", key]]
    place = narrow.index(f"    {key}")
    assert narrow[place - 1].split() == ["4", "4"]
    header = wide.index(next(line for line in wide if line.startswith("graph ")))
    assert "weights MB (fp32)" in wide[header]
    header = narrow.index("graph              nodes  compute  movement  other   (fp32)")
    assert [line.split() for line in narrow[header - 2 : header]] == [["weights"], ["MB"]]
