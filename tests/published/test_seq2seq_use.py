"""`Seq2SeqGenerator` as people use it: odd inputs, interruptions, threads and processes, hand-over of tokens."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from precision_search import Seq2SeqGenerator, Step
from precision_search.errors import DeviceError, InputError, MissingPackageError, UsageError
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.layout import graph_file
from precision_search.model.tokenizer import load_tokenizer
from precision_search.runtime import token_matrix
from tests.tiny_model import WORDS, write_tiny_model

SENTENCES = ["a b c", "d", "e f g h a b c d j", "i j"]


@pytest.fixture(scope="module")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=3)


@pytest.fixture(scope="module")
def tiny(tiny_directory: Path) -> Seq2SeqGenerator:
    return Seq2SeqGenerator.from_pretrained(tiny_directory, device="cpu", threads=1)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ([], "nothing to generate from"),
        (np.zeros((0, 3), np.int64), "nothing to generate from"),
        ("a b c", "no list"),
        (b"a b c", "no list"),
        (7, "no list"),
        (None, "no list"),
        ({"a": 1}, "no list"),
        (["a b", 3], "row 1 of the inputs is no text, unlike row 0"),
        (["a b", "a", [3, 1]], "row 2 of the inputs is no text, unlike row 0"),
        ([[3, 1], "a"], "row 1 of the inputs is a text, unlike row 0"),
        ([None], "row 0 of the inputs is neither"),
        ([3, 1], "row 0 of the inputs is neither"),
        ([[3.0, 1.0]], "row 0 of the inputs is neither"),
        ([[True, 1]], "row 0 of the inputs is neither"),
        (np.ones((2, 3, 4), np.int64), "row 0 of the inputs is neither"),
        ([[3, 1], []], "row 1 of the inputs is empty"),
        ([[3, 1], [3, 1, 0]], "row 1 of the inputs is padded"),
        ([[3, 1], [-100, 1]], "row 1 of the inputs has an id outside"),
        ([[3, 1], [3, 1 << 40]], "row 1 of the inputs has an id outside"),
        ([[3] * 600], "row 0 of the inputs is too long"),
        ([["a"]], "row 0 of the inputs is neither"),
        ([b"a"], "row 0 of the inputs is neither"),
        ([[3, 1], [0, 3, 1]], "row 1 of the inputs is padded"),
        (np.array(3), "no list"),
        (iter(["a"]), "no list"),
        ({"a", "b"}, "no list"),
        (["a", "b \ud800"], "row 1 of the inputs is no valid Unicode"),
    ],
)
def test_bad_inputs_are_refused(tiny: Seq2SeqGenerator, inputs: Any, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        tiny.generate(inputs)
    assert caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"max_new_tokens": 2.5}, {"max_new_tokens": True}, {"max_length": -1}, {"prefix": None}],
)
def test_bad_limits_are_refused(tiny: Seq2SeqGenerator, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        tiny.generate(SENTENCES, **options)


def test_a_prefix_needs_texts(tiny: Seq2SeqGenerator) -> None:
    with pytest.raises(InputError, match="a prefix goes before texts"):
        tiny.generate([[3, 1]], prefix="a ")


def test_longer_inputs_run_when_they_are_asked_for(tiny: Seq2SeqGenerator) -> None:
    assert tiny.generate([[3] * 600], max_length=600).ids


def test_rows_of_arrays_are_rows_of_ids(tiny: Seq2SeqGenerator) -> None:
    rows: npt.NDArray[np.int64] = np.array([[3, 4, 1], [5, 6, 1]])
    assert tiny.generate(rows.astype(np.int32)).ids == tiny.generate([[3, 4, 1], [5, 6, 1]]).ids  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "   ", "a\x00b", "\u200b\ufeff e\u0301 \U0001f600"])
def test_odd_texts_are_texts(tiny: Seq2SeqGenerator, tiny_directory: Path, text: str) -> None:
    alone, wanted = tiny.generate([text]), tiny.generate([load_tokenizer(tiny_directory).encode(text)])
    assert alone.ids == wanted.ids


def test_any_sequence_of_texts_or_ids_will_do(tiny: Seq2SeqGenerator) -> None:
    wanted = tiny.generate(SENTENCES).ids
    assert tiny.generate(tuple(SENTENCES)).ids == wanted
    assert tiny.generate(np.array(SENTENCES)).ids == wanted  # type: ignore[arg-type]
    rows: Any = [np.array([3, 1], np.int32), (4, np.int64(5), 1), range(3, 6)]
    assert tiny.generate(rows).ids == tiny.generate([[3, 1], [4, 5, 1], [3, 4, 5]]).ids
    limit: Any = np.int64(2)
    assert tiny.generate(SENTENCES, max_new_tokens=limit).ids == tuple(ids[:2] for ids in wanted)


def test_pad_within_a_row_is_a_token(tiny: Seq2SeqGenerator) -> None:
    """As the tokenizer gives it for a text that holds `<pad>`."""
    assert tiny.generate([[3, 0, 4, 1]]).ids == tiny.generate(["a <pad> b"]).ids


def test_one_token_and_large_batches(tiny: Seq2SeqGenerator) -> None:
    wanted = tiny.generate(SENTENCES)
    for size in (1, 2, 33, 200):
        rows = [SENTENCES[index % 4] for index in range(size)]
        assert tiny.generate(rows).ids == tuple(wanted.ids[index % 4] for index in range(size))
        one = tiny.generate(rows, max_new_tokens=1)
        assert one.ids == tuple(wanted.ids[index % 4][:1] for index in range(size))
        assert one.tokens.shape == (size, 1)


def test_a_limit_beyond_memory_is_said_and_harms_nothing(tiny: Seq2SeqGenerator) -> None:
    wanted = tiny.generate(SENTENCES).ids
    for limit in (10**13, 10**30):
        with pytest.raises(DeviceError, match="no memory"):
            tiny.generate(SENTENCES, max_new_tokens=limit)
        assert tiny.generate(SENTENCES).ids == wanted


@pytest.mark.parametrize("threads", [0, -1, True, "2", 1.5, 1_000_000])
def test_threads_are_a_count_that_a_machine_can_bear(tiny_directory: Path, threads: Any) -> None:
    with pytest.raises(InputError, match="threads is"):
        Seq2SeqGenerator.from_pretrained(tiny_directory, device="cpu", threads=threads)


def test_any_way_to_write_the_directory(tiny: Seq2SeqGenerator, tiny_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_directory)
    with contextlib.chdir(tmp_path):
        for directory in ("link", "link/", Path("./link"), str(tiny_directory) + "/"):
            other = Seq2SeqGenerator.from_pretrained(directory, device="cpu", threads=1)
            assert other.generate(SENTENCES).ids == tiny.generate(SENTENCES).ids


@pytest.mark.parametrize("external", [False, True])
def test_a_loaded_model_needs_its_files_no_longer(
    tiny: Seq2SeqGenerator, tiny_directory: Path, tmp_path: Path, *, external: bool
) -> None:
    """The sessions for margins are made later, from what was read."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_directory, directory)
    if external:
        for name in GRAPH_NAMES:
            path = directory / graph_file(name)
            onnx.save(onnx.load(path), path, save_as_external_data=True, location=f"{name}.bin", size_threshold=100)
    other = Seq2SeqGenerator.from_pretrained(directory, device="cpu", threads=1)
    shutil.rmtree(directory)
    assert other.generate(SENTENCES).ids == tiny.generate(SENTENCES).ids
    assert other.generate(SENTENCES, with_margins=True).ids == tiny.generate(SENTENCES).ids


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises; whoever starts the tests in the background may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_call_leaves_the_generator_usable(tiny: Seq2SeqGenerator) -> None:
    wanted = tiny.generate(SENTENCES).ids
    steps: list[int] = []

    def interrupt(step: Step) -> None:
        steps.append(step.index)
        if step.index == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny.generate(SENTENCES, on_step=interrupt)
    assert steps == [0, 1, 2]
    assert tiny.generate(SENTENCES).ids == wanted


def test_a_forked_child_is_told_to_load_its_own(tiny_directory: Path) -> None:
    """In a process of its own, since one with threads should not fork."""
    code = """
import os, sys
from precision_search import PrecisionSearchError, Seq2SeqGenerator
generator = Seq2SeqGenerator.from_pretrained(sys.argv[1], device="cpu", threads=1)
wanted = generator.generate(["a b c"]).ids
child = os.fork()
if child == 0:
    try:
        generator.generate(["a b c"])
    except PrecisionSearchError as error:
        os._exit(42 if "before the process forked" in error.what else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
assert generator.generate(["a b c"]).ids == wanted
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_directory)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_generator_is_neither_pickled_nor_copied(tiny: Seq2SeqGenerator) -> None:
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(UsageError, match="neither pickled nor copied"):
            take(tiny)


def test_two_generators_work_side_by_side(tiny: Seq2SeqGenerator, tiny_directory: Path) -> None:
    """Even one within the callback of the other."""
    other = Seq2SeqGenerator.from_pretrained(tiny_directory, device="cpu", threads=1)
    wanted = tiny.generate(SENTENCES).ids
    inner: list[Any] = []
    out = tiny.generate(SENTENCES, on_step=lambda _: inner.append(other.generate(SENTENCES).ids))
    assert out.ids == wanted
    assert inner == [wanted] * out.tokens.shape[1]


def test_a_generator_that_is_gone_leaves_no_session(tiny_directory: Path) -> None:
    generator = Seq2SeqGenerator.from_pretrained(tiny_directory, device="cpu", threads=1)
    out = generator.generate(SENTENCES)
    sessions = weakref.ref(generator._generator)
    del generator
    assert sessions() is None
    assert np.from_dlpack(out.tokens).shape == out.tokens.shape


def test_a_callback_that_fails_ends_the_call_and_leaves_the_generator_usable(tiny: Seq2SeqGenerator) -> None:
    def fail(_: Step) -> None:
        raise RuntimeError("enough")

    wanted = tiny.generate(SENTENCES).ids
    with pytest.raises(RuntimeError, match="enough"):
        tiny.generate(SENTENCES, on_step=fail)
    assert tiny.generate(SENTENCES).ids == wanted


def test_a_callback_that_generates_is_refused_instead_of_hanging(tiny: Seq2SeqGenerator) -> None:
    def again(_: Step) -> None:
        tiny.generate(SENTENCES)

    with pytest.raises(UsageError, match="while it runs in the same thread"):
        tiny.generate(SENTENCES, on_step=again)


def test_numpy_takes_the_tokens_without_a_copy(tiny: Seq2SeqGenerator) -> None:
    out = tiny.generate(SENTENCES)
    array = np.from_dlpack(out.tokens)
    assert out.tokens.__dlpack_device__() == (1, 0)  # kDLCPU
    assert array.ctypes.data == out.tokens.ort_value.data_ptr() == np.from_dlpack(out.tokens).ctypes.data
    assert array.shape == out.tokens.shape
    for row, ids in enumerate(out.ids):
        assert array[row, : len(ids)].tolist() == list(ids)
        assert not array[row, len(ids) :].any()


def test_a_copy_has_memory_of_its_own_and_another_device_is_refused(tiny: Seq2SeqGenerator) -> None:
    tokens = tiny.generate(SENTENCES).tokens
    shared, copied = np.from_dlpack(tokens), np.from_dlpack(tokens, copy=True)
    again = np.from_dlpack(tokens, device="cpu", copy=False)
    np.testing.assert_array_equal(copied, shared)
    assert again.ctypes.data == shared.ctypes.data != copied.ctypes.data
    tokens.ort_value.numpy()[0, 0] = 77
    assert shared[0, 0] == 77 != copied[0, 0]
    for copied_too in (None, True, False):
        with pytest.raises(BufferError):
            tokens.__dlpack__(dl_device=(2, 0), copy=copied_too)


def test_tokens_become_an_array_where_dlpack_is_not_spoken(tiny: Seq2SeqGenerator) -> None:
    tokens = tiny.generate(SENTENCES).tokens
    array = np.asarray(tokens)
    assert array.dtype == np.int64
    np.testing.assert_array_equal(array, np.from_dlpack(tokens))
    assert np.asarray(tokens, np.int32).dtype == np.int32
    with pytest.raises(ValueError, match="is a copy"):
        np.asarray(tokens, copy=False)


def test_results_can_be_pickled_and_copied(tiny: Seq2SeqGenerator) -> None:
    out = tiny.generate(SENTENCES, with_margins=True)
    np.from_dlpack(out.tokens)
    out.tokens.ort_value.numpy()[0, 0] = 77
    for other in (pickle.loads(pickle.dumps(out)), copy.deepcopy(out)):
        assert (other.texts, other.ids, other.near_ties) == (out.texts, out.ids, out.near_ties)
        assert other.tokens.ort_value.data_ptr() != out.tokens.ort_value.data_ptr()
        assert np.from_dlpack(other.tokens)[0, 0] == 77


def test_handed_over_tokens_outlive_the_result_and_later_calls(tiny: Seq2SeqGenerator) -> None:
    out = tiny.generate(SENTENCES)
    array, wanted = np.from_dlpack(out.tokens), out.ids
    del out
    tiny.generate([" ".join(WORDS)] * 4)
    assert [tuple(row[: len(ids)]) for row, ids in zip(array.tolist(), wanted, strict=True)] == list(wanted)


@pytest.mark.slow
def test_torch_shares_the_tokens_memory(tiny_directory: Path) -> None:
    """In a process of its own, since this one stays free of torch: what torch writes, everybody sees."""
    code = """
import numpy, sys, torch
from precision_search import Seq2SeqGenerator
generator = Seq2SeqGenerator.from_pretrained(sys.argv[1], device="cpu", threads=1)
out = generator.generate(["a b c", "d"])
first, second = torch.from_dlpack(out.tokens), torch.from_dlpack(out.tokens)
assert first.dtype == torch.int64 and tuple(first.shape) == out.tokens.shape and first.device.type == "cpu"
assert first.data_ptr() == second.data_ptr() == out.tokens.ort_value.data_ptr()
assert first[0, : len(out.ids[0])].tolist() == list(out.ids[0])
first[0, 0] = 77
array, copied = numpy.from_dlpack(out.tokens), torch.from_dlpack(out.tokens, copy=True)
assert second[0, 0] == 77 and array[0, 0] == 77
out.tokens.ort_value.numpy()[0, 0] = 78
assert first[0, 0] == 78 and copied[0, 0] == 77
ids = torch.tensor([[3, 4, 1], [5, 6, 1]])
assert generator.generate(ids).ids == generator.generate(list(ids)).ids == generator.generate(ids.tolist()).ids
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_directory)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_runtime_without_dlpack_says_what_to_install() -> None:
    with pytest.raises(MissingPackageError) as caught:
        token_matrix._speaker(SimpleNamespace(_ortvalue=object()))
    assert caught.value.what == "this build of ONNX Runtime has no DLPack"
    assert "was built without it" in caught.value.why
    assert "install onnxruntime-gpu" in caught.value.fix
    assert caught.value.exit_code == 3
