"""The dry CUDA runtime itself: what it builds, what it records, and that it notices memory that is not the device's."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.dry_cuda.build import UnavailableError, build
from tests.dry_cuda.host import DryCuda
from tests.dry_cuda.probes import (
    bind_host_memory,
    math_modes,
    misuse,
    round_trip,
    run_each,
    unplaced_outputs,
    with_little_memory,
)
from tests.dry_cuda.trace import TF32_MATH, Copy, Gemm, parse, peak, short_name

pytestmark = pytest.mark.slow

NEGATION = "(float[4, 8] x) => (float[4, 8] y) { y = Neg (x) }"
PRODUCT = "(float[4, 8] x, float[8, 5] w) => (float[4, 5] y) { y = MatMul (x, w) }"
ITS_WEIGHT = f"float[8, 5] w = {{{', '.join(['1'] * 40)}}}"
PRODUCT_WITH_WEIGHT = f"(float[4, 8] x) => (float[4, 5] y) <{ITS_WEIGHT}> {{ y = MatMul (x, w) }}"
JOINED = "(float[4, 8] x) => (float[4, 16] y) { y = Concat <axis = 1> (x, x) }"
TRANSPOSED = "(float[4, 8] x) => (float[8, 4] y) { y = Transpose <perm = [1, 0]> (x) }"


def test_what_was_built_before_is_taken_as_it_is(dry_cuda: DryCuda) -> None:
    folder = build(ROOT / "build/dry-cuda")
    assert {"libcudart.so.13", "libcublas.so.13", "libcudnn.so.9"} <= {path.name for path in folder.iterdir()}
    before = (folder / "libcudart.so.13").stat().st_mtime_ns
    assert build(ROOT / "build/dry-cuda") == folder
    assert (folder / "libcudart.so.13").stat().st_mtime_ns == before


def test_two_builds_at_once_end_with_one(dry_cuda: DryCuda, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(build, [tmp_path, tmp_path])
    assert first == second
    assert list(tmp_path.iterdir()) == [first]
    assert (first / "libcudart.so.13").is_file()


def test_a_missing_compiler_is_named(dry_cuda: DryCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "gcc" else "/usr/bin/nm")
    with pytest.raises(UnavailableError, match="gcc is missing"):
        build(tmp_path)


def test_copies_are_real_and_counted(dry_cuda: DryCuda) -> None:
    back, sections = dry_cuda.call(round_trip, values=[1.0, -2.5, 3.25])
    assert back == [1.0, -2.5, 3.25]
    assert [copy for section in sections for copy in section.copies] == [Copy("h2d", 12), Copy("d2h", 12)]
    assert peak(sections) >= 12
    assert [size for section in sections for size in section.tensors] == [12]


def test_a_launch_is_recorded_with_its_types(dry_cuda: DryCuda) -> None:
    section = dry_cuda.call(run_each, texts={"it": NEGATION})["it"]
    assert section is not None
    assert section.kernels == ("_UnaryElementWise<float, float, OP_Neg<float>, 256, 4>",)
    assert (section.phase, section.graph, section.launches) == ("run", "probe", 1)
    assert section.waits  # onnxruntime waits for the stream at the end of a run


def test_an_output_without_memory_is_noted(dry_cuda: DryCuda) -> None:
    assert dry_cuda.call(unplaced_outputs, text=NEGATION) == [("y",)]


def test_a_matrix_product_is_recorded_with_its_sizes(dry_cuda: DryCuda) -> None:
    section = dry_cuda.call(run_each, texts={"it": PRODUCT})["it"]
    assert section is not None
    expected = Gemm("cublasSgemm", 5, 4, 8, 1, "float32", "float32", "float32", "float32", TF32_MATH)
    assert section.gemms == (expected,)  # TF32 is what the provider does unless it is told not to


def test_tf32_is_off_unless_it_is_asked_for(dry_cuda: DryCuda) -> None:
    modes = dry_cuda.call(math_modes, text=PRODUCT)
    assert modes[True] == [TF32_MATH]
    assert len(modes[False]) == 1
    assert TF32_MATH not in modes[False]


def test_host_memory_given_to_the_device_is_noticed(dry_cuda: DryCuda) -> None:
    """By a kernel, by one that takes an array of pointers, by a matrix product and by a transposition in cuBLAS."""
    texts = [NEGATION, JOINED, PRODUCT_WITH_WEIGHT, TRANSPOSED]
    negation, joined, product, transposed = dry_cuda.call(bind_host_memory, texts=texts)
    assert any("_UnaryElementWise" in error and "not device memory" in error for error in negation)
    assert any("Concat" in error and "not device memory" in error for error in joined)
    assert any("cublasSgemm: the right matrix" in error and "not device memory" in error for error in product)
    assert any("cublasSgeam: the left matrix" in error and "not device memory" in error for error in transposed)


def test_copies_and_frees_that_a_device_would_not_survive_are_noticed(dry_cuda: DryCuda) -> None:
    found = dry_cuda.call(misuse)
    fine = {"allocate", "upload", "upload rows", "free"}
    assert {name for name, errors in found.items() if not errors} == fine
    assert "called d2h but is h2d" in found["wrong direction"][0]
    assert "called h2d but is h2h" in found["host as device"][0]
    assert "needs 64 bytes of device memory, there are 32" in found["too long"][0]
    assert "the target needs 66 bytes of device memory, there are 64" in found["rows too far apart"][0]
    assert "the source needs 65 bytes of device memory, there are 64" in found["read too much"][0]
    assert "was not allocated" in found["free again"][0]


def test_an_error_fails_the_child(dry_cuda: DryCuda) -> None:
    with pytest.raises(AssertionError, match="not device memory"):
        dry_cuda.call(bind_host_memory, texts=[NEGATION], forgive=False)


def test_a_full_device_is_a_device_error(dry_cuda: DryCuda) -> None:
    kind, text = dry_cuda.call(with_little_memory, text=PRODUCT_WITH_WEIGHT, size=1000)
    assert kind == "DeviceMemoryError"
    assert "memory" in text


def test_a_log_is_read_line_by_line() -> None:
    log = "K\t7\nC\td2h\t8\nM\t64\nF\t16\nZ\t4\nY\tstream\nL\tcudnnReduceTensor\nH\t32\nE\tbad\n"
    section = parse(log, "run", "encoder", lambda number: f"kernel {number}")
    assert (section.kernels, section.copies, section.calls) == (
        ("kernel 7",),
        (Copy("d2h", 8),),
        ("cudnnReduceTensor",),
    )
    assert (section.taken, section.freed, section.sets, section.pinned) == ((64,), (16,), (4,), (32,))
    assert (section.waits, section.errors, section.launches) == (("stream",), ("bad",), 3)


def test_the_peak_is_seen_in_the_middle_of_a_section() -> None:
    logs = ("M\t8\nM\t64\nF\t64\n", "M\t16\nF\t16\nF\t8\n", "M\t2\n")
    sections = [parse(log, "run", "encoder", str) for log in logs]
    assert [section.highest for section in sections] == [72, 16, 2]
    assert peak(sections) == 72
    assert peak(sections[1:]) == 16


def test_kernel_names_lose_namespaces_and_parameters() -> None:
    long = "void onnxruntime::cuda::_Fill<float, onnxruntime::(anonymous namespace)::Op<float>, (int)256>(float*, int)"
    assert short_name(long) == "_Fill<float, Op<float>, 256>"
    assert short_name("plain") == "plain"
