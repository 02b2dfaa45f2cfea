"""CUDA is what runs, with the arithmetic that was asked for, or an error says why not: on the dry CUDA runtime."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from precision_search import api
from precision_search.cli.commands import cli
from precision_search.device import cuda
from precision_search.display.reporters import QuietReporter
from precision_search.errors import DeviceError, DeviceMemoryError, PrecisionSearchError
from precision_search.judging.damage import DamageFinder
from precision_search.judging.inspect import measure
from precision_search.judging.ranges import measure_ranges
from precision_search.judging.sample_sets import SampleRows, open_fp32
from precision_search.judging.screen import SampleScreen, Screener
from precision_search.model.bundle import Bundle
from precision_search.model.samples import load_samples
from precision_search.precision.convert import convert
from precision_search.precision.plan import Plan, pinned_keys
from precision_search.precision.weights import WeightCache
from precision_search.published import verify
from precision_search.runtime.backends import create_session
from precision_search.runtime.batch_limit import BatchLimit
from precision_search.runtime.buffers import Buffer
from precision_search.runtime.generator import Generator
from precision_search.runtime.reference import Reference, generate_all
from precision_search.runtime.session import NO_LIMIT, SessionSettings, run_session
from precision_search.runtime.teacher_forcing import forced_batches
from tests.confirming import confirm
from tests.conftest import ROOT
from tests.dry_cuda.build import build
from tests.dry_cuda.host import DryCuda
from tests.dry_cuda.probes import bind_and_run, model_of
from tests.dry_cuda.recorder import Recorder, load_libraries, set_device_memory
from tests.dry_cuda.scenarios import Demo
from tests.dry_cuda.trace import TF32_MATH, Section

pytestmark = pytest.mark.slow

DEMO_CONFIG = ROOT / "configs" / "demo.toml"
STRICT = 16
"""CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION."""
ROWS = tuple(tuple(range(5, 5 + length)) for length in range(40, 168))
MIB = 2**20
BATCH = 64


# What does not start says why, through the public door.


def run_command(failure: str | None, out: str, *overrides: str) -> tuple[int, str]:
    """Exit code and output of the run command on a device that answers with this error code; in the child."""
    if failure is not None:
        os.environ["DRY_CUDA_FAILURE"] = failure
    settings = [word for override in ("device.kind=cuda", *overrides) for word in ("--set", override)]
    result = CliRunner().invoke(cli, ["run", str(DEMO_CONFIG), *settings, "--out", out])
    return result.exit_code, result.output


def run_elsewhere(out: str) -> tuple[int, str]:
    return run_command(None, out, "device.id=3")


def check_nothing_happened(found: tuple[int, str], out: Path, *texts: str) -> None:
    code, output = found
    assert code == 3, output
    for text in texts:
        assert text in " ".join(output.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("failure", "texts"),
    [
        ("35", ("NVIDIA driver is too old for CUDA 13", "CUDA failure 35", "update the driver")),
        ("100", ("NVIDIA driver finds no device", "CUDA failure 100", "container")),
        ("999", ("CUDA device 0 does not start", "CUDA failure 999", "nvidia-smi")),
    ],
)
def test_a_driver_that_refuses(dry_cuda: DryCuda, tmp_path: Path, failure: str, texts: Sequence[str]) -> None:
    out = tmp_path / "run"
    found = dry_cuda.call(run_command, failure=failure, out=str(out))
    check_nothing_happened(found, out, *texts)
    assert "pip install" not in found[1]


def test_a_device_that_is_not_there(dry_cuda: DryCuda, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = dry_cuda.call(run_elsewhere, out=str(out))
    check_nothing_happened(found, out, "there is no CUDA device 3", "sees 1, numbered from 0", "device.id")


def verify_elsewhere(demo: Demo, data: str) -> str:
    """Why a model is not verified on a device that is not there; in the child."""
    with pytest.raises(DeviceError) as caught:
        api.verify(
            demo.model,
            str(demo.model),
            Path(data),
            device="cuda",
            device_id=3,
            cache=demo.cache,
            reporter=QuietReporter(sys.stderr),
        )
    return str(caught.value)


def test_verification_asks_for_the_device_that_it_is_told(dry_cuda: DryCuda, demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("A sentence.\n")
    text = dry_cuda.call(verify_elsewhere, demo=demo, data=str(tmp_path / "data.txt"))
    assert "there is no CUDA device 3" in text and "--device-id" in text


def without(dry_cuda: DryCuda, folder: Path, pattern: str) -> DryCuda:
    """The stand-ins but for some."""
    assert dry_cuda is not None  # built
    libraries = build(ROOT / "build/dry-cuda")
    shutil.copytree(libraries, folder, symlinks=True, ignore=shutil.ignore_patterns(pattern))
    assert not list(folder.glob(pattern))
    return DryCuda(folder)


def why_not() -> tuple[str, str]:
    """What class of error, and which, a CUDA session gives; in the child."""
    with pytest.raises(PrecisionSearchError) as caught:
        create_session(model_of(PRODUCT["float"]), SessionSettings(device="cuda"))
    return type(caught.value).__name__, " ".join(str(caught.value).split())


@pytest.mark.parametrize(
    ("library", "kind", "texts"),
    [
        ("libcuda.so*", "DeviceError", ("there is no NVIDIA driver", "libcuda.so.1 does not load")),
        ("libcurand*", "MissingPackageError", ("libcurand.so.10", "pip install 'precision-search[cuda]'")),
        ("libcublasLt*", "MissingPackageError", ("libcublasLt.so.13", "pip install 'precision-search[cuda]'")),
    ],
)
def test_a_library_that_is_missing(
    dry_cuda: DryCuda, tmp_path: Path, library: str, kind: str, texts: Sequence[str]
) -> None:
    found = without(dry_cuda, tmp_path / "libraries", library).call(why_not)
    assert found[0] == kind, found
    for text in texts:
        assert text in found[1]
    assert ("nor is there" in found[1]) is False


def probe_without_cudnn() -> tuple[str, str]:
    with pytest.raises(PrecisionSearchError) as caught:
        cuda.require(0)
    return type(caught.value).__name__, str(caught.value)


def test_cudnn_is_asked_for_before_a_node_needs_it(dry_cuda: DryCuda, tmp_path: Path) -> None:
    """ONNX Runtime starts without it."""
    kind, text = without(dry_cuda, tmp_path / "libraries", "libcudnn*").call(probe_without_cudnn)
    assert kind == "MissingPackageError"
    assert "libcudnn.so.9" in text and "pip install 'precision-search[cuda]'" in text


def refused_graph(names: tuple[str, str]) -> str:
    """The error for a graph with a node that CUDA has no kernel for."""
    text = f"(float[2, 3, 3] x) => (float[2] z) {{ {names[0]} y = Det (x) {names[1]} z = Relu (y) }}"
    with pytest.raises(PrecisionSearchError) as caught:
        create_session(model_of(text), SessionSettings(device="cuda"))
    return str(caught.value)


@pytest.mark.parametrize(("names", "told"), [(("[a]", "[b]"), "a"), (("", ""), "Det.0")])
def test_a_float_node_that_would_run_on_the_cpu_is_refused(
    dry_cuda: DryCuda, names: tuple[str, str], told: str
) -> None:
    text = dry_cuda.call(refused_graph, names=names)
    assert "1 node of the graph 'probe' would run on the CPU" in text
    assert f"no kernel for {told} in" in text


# Products are made as they were asked for.

PRODUCT = {
    dtype: f"({dtype}[4, 8] x, {dtype}[8, 5] w) => ({dtype}[4, 5] y) {{ y = MatMul (x, w) }}"
    for dtype in ("float", "float16", "bfloat16")
}


def products(gemm_options: int) -> dict[str, tuple[str, int]]:
    """By dtype, what sums are kept in and the math mode of a product; in the child."""
    found = {}
    for dtype, text in PRODUCT.items():
        model = model_of(text)
        with Recorder() as recorder:
            bind_and_run(create_session(model, SessionSettings(device="cuda", gemm_options=gemm_options)), model)
        (gemm,) = (gemm for section in recorder.sections for gemm in section.gemms)
        found[dtype] = gemm.compute, gemm.math
    return found


@pytest.mark.parametrize(
    ("options", "half"),
    [(0, ("float32", 0)), (1, ("float16", 0)), (2, ("float32", STRICT)), (4, ("float32 pedantic", 2))],
)
def test_gemm_options_decide_how_fp16_products_sum(
    dry_cuda: DryCuda, monkeypatch: pytest.MonkeyPatch, options: int, half: tuple[str, int]
) -> None:
    """And no others: cuBLAS is told nothing for bfloat16."""
    monkeypatch.delenv("ORT_CUDA_GEMM_OPTIONS", raising=False)
    found = dry_cuda.call(products, gemm_options=options)
    assert found == {"float": ("float32", 0), "float16": half, "bfloat16": ("float32", 0)}


def tokens_of(rows: Sequence[Sequence[int]]) -> Reference:
    """A made-up reference: the dry device has no logits to decide by."""
    tokens = tuple((7, 8, 1) for _ in rows)
    return Reference(tokens, tuple(np.ones(3, np.float32) for _ in rows))


def low_plan(bundle: Bundle) -> Plan:
    return Plan("float16", "base", frozenset(pinned_keys(bundle.graphs)))


def work(bundle: Bundle, settings: SessionSettings) -> Mapping[str, tuple[Section, ...]]:
    """What each part of a run asks of the device; in the child."""
    rows, plan, weights = ROWS[:4], low_plan(bundle), WeightCache()
    samples = SampleRows(rows, tokens_of(rows))
    batches = forced_batches(rows, samples.reference.tokens, bundle.generation, 4)
    graphs = bundle.graphs
    parts: dict[str, Callable[[], object]] = {
        "reference": lambda: Generator(bundle.models, bundle.generation, settings).generate(
            batches[0].source.input_ids, batches[0].source.attention_mask, with_margins=True
        ),
        "ranges": lambda: measure_ranges(graphs["encoder"], graphs["decoder"], batches, "float16", settings),
        "screen": lambda: (
            Screener(graphs, "float16", weights, settings)
            .prepare(plan)
            .screen(SampleScreen(samples, bundle.generation, 4), to_the_end=True)
        ),
        "damage": lambda: DamageFinder(graphs, weights, settings).find(
            plan, forced_batches(rows, samples.reference.tokens, bundle.generation, 1)[0]
        ),
        "confirm": lambda: confirm(
            convert(graphs, plan).models, samples, bundle.generation, settings, batch_size=4, weights=weights
        ),
        "inspect": lambda: measure(bundle, rows, 4, "float16", settings),
    }
    found = {}
    for name, part in parts.items():
        with Recorder() as recorder:
            part()
        found[name] = tuple(recorder.sections)
    return found


def math_of_parts(demo: Demo, use_tf32: bool) -> dict[str, set[tuple[str, str, int]]]:
    """For each part of a run the operand types, sums and math modes of its products; in the child."""
    sections = work(demo.open(), SessionSettings(device="cuda", use_tf32=use_tf32, memory_limit=NO_LIMIT))
    return {
        name: {(gemm.left, gemm.compute, gemm.math) for section in each for gemm in section.gemms}
        for name, each in sections.items()
    }


@pytest.mark.parametrize("use_tf32", [False, True])
def test_no_session_of_a_run_uses_tf32_unless_asked(
    dry_cuda: DryCuda, demo: Demo, monkeypatch: pytest.MonkeyPatch, use_tf32: bool
) -> None:
    monkeypatch.delenv("ORT_CUDA_GEMM_OPTIONS", raising=False)
    found = dry_cuda.call(math_of_parts, demo=demo, use_tf32=use_tf32)
    full = ("float32", "float32", TF32_MATH if use_tf32 else 0)
    half = ("float16", "float32", STRICT)
    assert half in found["confirm"]
    assert found.pop("confirm") <= {half, full}
    assert found == {name: {full} for name in found}
    assert len(found) == 5


# Memory.


def in_use() -> int:
    """Bytes of device memory that are taken."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    load_libraries().cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value


def weighing(size: int) -> ir.Model:
    """A graph with a weight of `size` bytes: `y = x w`, with 1024 rows of weights."""
    columns = size // 4096
    weight = ir.Value(name="w", const_value=ir.tensor(np.zeros((1024, columns), np.float32)))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 1024]))
    node = ir.node("MatMul", [x, weight], name="product")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, ir.Shape(["n", columns])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[weight], opset_imports={"": 18}, name="weighing")
    return ir.Model(graph, ir_version=9)


def fill(limit: int | None) -> tuple[int, str]:
    """Makes and runs sessions, each with a buffer of its own, until 64 MiB are taken or an error says why not.

    Returns:
        The most device memory in use, and the class of the error; in the child.
    """
    settings = SessionSettings(device="cuda", memory_limit=limit)
    kept: list[Any] = []
    most = 0
    while most < 64 * MIB:
        try:
            session = create_session(weighing(2 * MIB), settings)
            buffer = Buffer(ir.DataType.FLOAT, settings)
            buffer.reserve(MIB // 2)
            kept.extend((session, buffer))
            run_session(session, ["y"], {"x": np.zeros((64, 1024), np.float32)})
        except PrecisionSearchError as error:
            return max(most, in_use()), type(error).__name__
        most = max(most, in_use())
    return most, ""


def test_a_memory_limit_holds_for_all_sessions_and_buffers_together(dry_cuda: DryCuda) -> None:
    """What the libraries take for themselves (workspaces) comes on top."""
    most, error = dry_cuda.call(fill, limit=24 * MIB)
    assert error == "DeviceMemoryError"
    assert 20 * MIB < most < 28 * MIB
    for unlimited in (None, NO_LIMIT):
        most, error = dry_cuda.call(fill, limit=unlimited)
        assert (most >= 64 * MIB, error) == (True, "")


def two_limits() -> list[str]:
    found = []
    for limit in (24 * MIB, 24 * MIB, 25 * MIB, NO_LIMIT):
        try:
            create_session(weighing(MIB), SessionSettings(device="cuda", memory_limit=limit))
            found.append("")
        except PrecisionSearchError as error:
            found.append(f"{type(error).__name__}: {error.why}")
    return found


def test_a_process_has_one_memory_limit(dry_cuda: DryCuda) -> None:
    first, same, other, none = dry_cuda.call(two_limits)
    assert (first, same) == ("", "")
    assert other.startswith("UsageError: a limit of 0.0244141 GiB was asked for")
    assert none.startswith("UsageError: no limit was asked for")


def verified_within(demo: Demo, data: str, limit: int) -> tuple[int, str]:
    """For how many samples a verification generates in a process that has a memory limit, or which error it gives."""
    create_session(weighing(MIB), SessionSettings(device="cuda", memory_limit=limit))
    bundle = demo.open()
    samples = load_samples(Path(data), "data")
    generated: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        # What comes out is garbage, which no tokenizer reads.
        patch.setattr(verify, "make_report", lambda _, wanted, tokens, *__, **___: generated.append(len(tokens)))
        try:
            verify.compare(bundle, verify.open_published(bundle.path, bundle), samples, SessionSettings(device="cuda"))
        except PrecisionSearchError as error:
            return 0, f"{type(error).__name__}: {error}"
    return sum(generated), ""


def test_verification_keeps_to_the_limit_that_the_process_has(dry_cuda: DryCuda, demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("A sentence.\nAnother one.\n")
    data = str(tmp_path / "data.txt")
    assert dry_cuda.call(verified_within, demo=demo, data=data, limit=2**30) == (2, "")
    _, error = dry_cuda.call(verified_within, demo=demo, data=data, limit=8 * MIB)
    assert error.startswith("DeviceMemoryError")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """How the parts of a run came through on a device that is nearly full.

    Attributes:
        said: the warnings.
        generated: tokens of how many rows.
        screened: how many samples the screen looked at.
        confirmed: whether the confirm run came to an end.
    """

    said: tuple[str, ...]
    generated: int
    screened: int
    confirmed: bool


def on_a_full_device(demo: Demo, spare: int) -> Shrunk:
    """Generates, screens and confirms with `spare` bytes for a batch of 64; in the child."""
    settings = SessionSettings(device="cuda", memory_limit=NO_LIMIT)
    bundle, weights = demo.open(), WeightCache()
    said: list[str] = []
    limit = BatchLimit(said.append)
    generator = Generator(bundle.models, bundle.generation, settings)
    samples = SampleRows(ROWS, tokens_of(ROWS))
    prepared = Screener(bundle.graphs, "float16", weights, settings, limit).prepare(low_plan(bundle))
    set_device_memory(in_use() + spare)
    pad = bundle.generation.pad_token_id
    generated = limit.fitting(BATCH, lambda size: generate_all(generator, ROWS, pad, size))
    screened = prepared.screen(SampleScreen(samples, bundle.generation, BATCH), to_the_end=True)
    set_device_memory(16 << 30)  # for the weights of the sessions that are made now
    confirmed = confirm(
        convert(bundle.graphs, low_plan(bundle)).models,
        samples,
        bundle.generation,
        settings,
        batch_size=BATCH,
        weights=weights,
        limit=limit,
    )
    return Shrunk(tuple(said), len(generated[0]), screened.screened, confirmed.divergence is not None)


def test_a_full_device_halves_the_batch_and_nothing_is_lost(dry_cuda: DryCuda, demo: Demo) -> None:
    found = dry_cuda.call(on_a_full_device, demo=demo, spare=64 * MIB)
    assert found.said[0] == "out of memory with 64 samples at once, going on with 32"
    assert len(found.said) <= 4
    assert (found.generated, found.screened) == (len(ROWS), len(ROWS))
    assert found.confirmed  # it looked at tokens, which are garbage here


def made_beside_an_idle_buffer(demo: Demo, part: str) -> bool:
    """Makes the sessions of a part of a run where a buffer has what they need; whether it kept it; in the child."""
    settings = SessionSettings(device="cuda", memory_limit=NO_LIMIT)
    bundle = demo.open()
    parts: dict[str, Callable[[], object]] = {
        "fp32": lambda: open_fp32(bundle, settings),
        "screen": lambda: Screener(bundle.graphs, "float16", WeightCache(), settings),
    }
    create_session(weighing(MIB), settings)
    buffer = Buffer(ir.DataType.FLOAT, settings)
    buffer.reserve(64 * MIB)
    set_device_memory(in_use())
    parts[part]()
    return buffer.holds_memory


@pytest.mark.parametrize("part", ["fp32", "screen"])
def test_sessions_are_made_in_what_idle_buffers_give_back(dry_cuda: DryCuda, demo: Demo, part: str) -> None:
    assert not dry_cuda.call(made_beside_an_idle_buffer, demo=demo, part=part)


def no_room(demo: Demo) -> tuple[int, str]:
    with pytest.raises(DeviceMemoryError) as caught:
        on_a_full_device(demo, 0)
    return caught.value.exit_code, str(caught.value)


def test_a_device_without_room_for_one_sample_ends_the_run(dry_cuda: DryCuda, demo: Demo) -> None:
    code, text = dry_cuda.call(no_room, demo=demo)
    assert code == 3
    assert "does not hold one sample" in text and "--resume" in text
