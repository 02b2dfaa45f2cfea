"""The generator on a device: batches, repeated calls, hand-over to a tensor library, memory."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from precision_search import Seq2SeqGenerator
from precision_search.model.bundle import Bundle
from precision_search.model.samples import load_samples
from precision_search.published.seq2seq import Generated
from precision_search.runtime.reference import NEAR_TIE, first_difference
from precision_search.runtime.session import Device
from tests.conftest import DEMO_DATA
from tests.gpu.devices import used_bytes

KINDS = {"cpu": 1, "cuda": 2}
"""DLPack's numbers of devices: kDLCPU, kDLCUDA."""
GROWTH = 1 << 25
NO_CUDA_IN_TORCH = 3


@pytest.fixture(scope="module")
def generator(demo_bundle: Bundle, device: Device) -> Seq2SeqGenerator:
    return Seq2SeqGenerator.from_pretrained(demo_bundle.path, device=device, threads=1)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [sample.text for sample in load_samples(DEMO_DATA / "test.txt", "test").samples[:40]]


def parted(one: Generated, other: Generated) -> list[float]:
    """The margins of `one` at the first differing token of each differing row."""
    assert one.margins is not None
    found = []
    for row, (ours, theirs) in enumerate(zip(one.ids, other.ids, strict=True)):
        if ours != theirs:
            found.append(float(one.margins[row][min(first_difference(ours, theirs), len(ours) - 1)]))
    return found


def joined(parts: list[Generated]) -> list[tuple[int, ...]]:
    return [ids for part in parts for ids in part.ids]


@pytest.mark.parametrize("batch", [1, 8])
def test_mixed_lengths_give_what_each_sentence_gives_alone(
    generator: Seq2SeqGenerator, texts: list[str], batch: int
) -> None:
    together = generator.generate(texts, with_margins=True)
    parts = [generator.generate(texts[start : start + batch]) for start in range(0, len(texts), batch)]

    assert together.margins is not None
    assert not any(together.nonfinite)
    assert len(set(map(len, together.ids))) > 5
    apart = [
        float(together.margins[row][min(first_difference(ours, alone), len(ours) - 1)])
        for row, (ours, alone) in enumerate(zip(together.ids, joined(parts), strict=True))
        if ours != alone
    ]
    assert [margin for margin in apart if margin >= NEAR_TIE] == []
    assert len(apart) <= 1


def test_the_same_call_gives_the_same_again(generator: Seq2SeqGenerator, texts: list[str]) -> None:
    """Bit for bit, whatever was generated between: no buffer carries anything over."""
    first = generator.generate(texts, with_margins=True)
    generator.generate(texts[:3], max_new_tokens=5)
    second = generator.generate(texts, with_margins=True)

    assert parted(first, second) == []
    assert first.margins is not None
    assert second.margins is not None
    for ours, theirs in zip(first.margins, second.margins, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_tokens_are_on_the_device(generator: Seq2SeqGenerator, texts: list[str], device: Device) -> None:
    out = generator.generate(texts[:4])

    assert generator.device == device
    assert out.tokens.__dlpack_device__() == (KINDS[device], 0)
    np.testing.assert_array_equal(out.tokens.ort_value.numpy()[0, : len(out.ids[0])], out.ids[0])


def test_torch_shares_the_tokens_memory(demo_bundle: Bundle, device: Device) -> None:
    """In a process of its own, since this one stays free of torch: what torch writes, everybody sees."""
    code = f"""
import sys, torch
from precision_search import Seq2SeqGenerator
device = sys.argv[2]
if device == "cuda" and not torch.cuda.is_available():
    print(torch.__version__)
    sys.exit({NO_CUDA_IN_TORCH})
out = Seq2SeqGenerator.from_pretrained(sys.argv[1], device=device, threads=1).generate(["a file", "two files"])
first, second = torch.from_dlpack(out.tokens), torch.from_dlpack(out.tokens)
assert first.dtype == torch.int64 and tuple(first.shape) == out.tokens.shape and first.device.type == device
assert first.data_ptr() == second.data_ptr() == out.tokens.ort_value.data_ptr()
assert first[0, : len(out.ids[0])].tolist() == list(out.ids[0])
first[0, 0] = 77
if device == "cuda":
    torch.cuda.synchronize()
assert second[0, 0] == 77 and out.tokens.ort_value.numpy()[0, 0] == 77
"""
    command = [sys.executable, "-c", code, str(demo_bundle.path), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": "."})
    if done.returncode == NO_CUDA_IN_TORCH:
        pytest.skip(f"torch {done.stdout.strip()} has no CUDA")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(sys.platform != "linux", reason="how much memory a process has is read from /proc")
def test_nothing_grows_from_call_to_call(generator: Seq2SeqGenerator, texts: list[str], device: Device) -> None:
    """After a warm-up at the largest size, calls of changing sizes need no more memory."""
    sizes = (40, 1, 17, 8)
    for size in (*sizes, *sizes):
        generator.generate(texts[:size])
    before = used_bytes(device)
    for call in range(20):
        generator.generate(texts[: sizes[call % len(sizes)]])

    assert used_bytes(device) - before < GROWTH
