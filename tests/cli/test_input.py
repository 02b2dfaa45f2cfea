"""Hostile files and arguments, through the command line: exit code 2 with what, why and fix, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from precision_search import Seq2SeqGenerator
from precision_search.errors import InputError
from precision_search.model.layout import graph_file
from tests.cli_models import fails, invoke, write_run
from tests.tiny_model import write_sentences, write_tiny_config, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, a model and sentences; not to be changed."""
    return write_tiny_config(tmp_path_factory.mktemp("tiny")).parent


def three_parts(message: str) -> tuple[str, str, str]:
    """The message is one error that says what, why and how to go on; in these words, without Python's own."""
    found = [line for line in message.splitlines() if not line.startswith("warning: ")]
    assert len(found) == 3, message
    assert found[0].startswith("error: ")
    assert found[1].startswith("  why: ")
    assert found[2].startswith("  fix: ")
    for word in ("Errno", "Traceback", "object has no attribute", "NoneType"):
        assert word not in message
    return found[0], found[1], found[2]


def directory(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 << 30)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def empty(path: Path) -> None:
    path.touch()


def unreadable(path: Path) -> None:
    path.symlink_to("/proc/self/mem")  # permission bits do not stop root


KINDS: dict[Callable[[Path], None], str] = {
    directory: "directory",
    os.mkfifo: "it is a pipe, not a file",
    dangling: "no such file",
    loop: "Too many levels of symbolic links",
    huge: "it has 5368709120 bytes, more than",
    device: "it is a device, not a file",
    unreadable: "Input/output error",
}
"""What may stand where a file is expected, and how it is answered."""

NO_FILES = pytest.mark.parametrize(("kind", "words"), KINDS.items(), ids=[kind.__name__ for kind in KINDS])


@NO_FILES
def test_a_config_that_is_no_file(tmp_path: Path, kind: Callable[[Path], None], words: str) -> None:
    kind(tmp_path / "x.toml")
    message = fails(invoke("run", tmp_path / "x.toml", "--out", tmp_path / "out"), 2)
    what, *_ = three_parts(message)
    assert f"config {tmp_path / 'x.toml'}" in what
    assert words in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "words"), [(empty, "`model.path` is missing"), (binary, "is not UTF-8")])
def test_a_config_that_is_empty_or_binary(tmp_path: Path, kind: Callable[[Path], None], words: str) -> None:
    kind(tmp_path / "x.toml")
    assert words in three_parts(fails(invoke("run", tmp_path / "x.toml"), 2))[0]


@NO_FILES
def test_a_plan_that_is_no_file(tiny: Path, tmp_path: Path, kind: Callable[[Path], None], words: str) -> None:
    kind(tmp_path / "plan.json")
    message = fails(
        invoke("run", tiny / "tiny.toml", "--blocklist", tmp_path / "plan.json", "--out", tmp_path / "out"), 2
    )
    what, why, fix = three_parts(message)
    assert f"cannot read the blocklist {tmp_path / 'plan.json'}" in what
    assert words.lower().removeprefix("no such ") in why.lower()
    assert "check the path" in fix
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [empty, binary])
def test_a_plan_that_is_no_json(tiny: Path, tmp_path: Path, kind: Callable[[Path], None]) -> None:
    kind(tmp_path / "plan.json")
    message = fails(
        invoke("run", tiny / "tiny.toml", "--blocklist", tmp_path / "plan.json", "--out", tmp_path / "out"), 2
    )
    what, _, fix = three_parts(message)
    assert "is not valid JSON" in what
    assert "blocklist.json" in fix


def test_a_plan_for_another_dtype(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"dtype": "bfloat16"}')
    message = fails(
        invoke("run", tiny / "tiny.toml", "--blocklist", tmp_path / "plan.json", "--out", tmp_path / "out"), 2
    )
    what, why, fix = three_parts(message)
    assert what.endswith("plan.json is for bfloat16, the config for float16")
    assert "one low dtype" in why
    assert "--set search.dtype=bfloat16" in fix


@NO_FILES
def test_data_that_are_no_file(tiny: Path, tmp_path: Path, kind: Callable[[Path], None], words: str) -> None:
    kind(tmp_path / "data.txt")
    model = str(tiny / "model")
    message = fails(invoke("verify", model, "--reference", model, "--data", tmp_path / "data.txt", "-q"), 2)
    assert f"data file {tmp_path / 'data.txt'}" in three_parts(message)[0]
    assert words in message


@pytest.mark.parametrize("name", ["run.json", "trials.jsonl", "config.toml"])
@pytest.mark.parametrize("command", [("pareto",), ("export", "--out", "new")], ids=["pareto", "export"])
@NO_FILES
def test_a_run_with_something_else_for_a_file(
    tmp_path: Path, kind: Callable[[Path], None], words: str, command: tuple[str, ...], name: str
) -> None:
    directory = write_run(tmp_path / "run")
    (directory / name).unlink()
    kind(directory / name)
    message = fails(invoke(command[0], directory, *command[1:]), 2)
    three_parts(message)
    assert str(directory) in message
    assert not Path("new").exists()


@pytest.mark.parametrize("where", [0, 1])
def test_a_trial_log_that_repeats_a_plan(tmp_path: Path, where: int) -> None:
    run = write_run(tmp_path / "run")
    lines = (run / "trials.jsonl").read_text().splitlines(keepends=True)
    (run / "trials.jsonl").write_text("".join([*lines, lines[where]]))
    what, why, fix = three_parts(fails(invoke("pareto", run), 2))
    assert f"repeats line {where + 1}" in what
    assert "both hold id or plan" in why
    assert "remove the later" in fix


@pytest.mark.parametrize("kind", [directory, empty, os.mkfifo, dangling, loop])
def test_an_output_that_is_there_already(tiny: Path, tmp_path: Path, kind: Callable[[Path], None]) -> None:
    kind(tmp_path / "out")
    for command in (("run", tiny / "tiny.toml"), ("export", write_run(tmp_path / "run"))):
        what, why, fix = three_parts(fails(invoke(*command, "--out", tmp_path / "out"), 2))
        assert what == f"error: {tmp_path / 'out'} already exists"
        assert "never overwrites" in why
        assert "give another path" in fix
    assert os.path.lexists(tmp_path / "out")


def test_an_output_below_a_file(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    what, why, fix = three_parts(fails(invoke("run", tiny / "tiny.toml", "--out", tmp_path / "file/x/y"), 3))
    assert "cannot be used as a run directory" in what
    assert why.endswith(f"{tmp_path / 'file'} is not a directory")
    assert "--out" in fix


def test_what_cannot_be_resumed(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name, words in (("file", "it is a file"), ("folder", "no config.toml"), ("nothing", "no such directory")):
        what, why, _ = three_parts(fails(invoke("run", tiny / "tiny.toml", "--out", tmp_path / name, "--resume"), 2))
        assert what.endswith(f"there is no run to resume in {tmp_path / name}")
        assert words in why


def test_a_path_that_is_no_text(tiny: Path, tmp_path: Path) -> None:
    strange = os.fsdecode(bytes(tmp_path) + b"/\xff")
    shutil.copytree(tiny / "model", strange)
    for command in (
        ("run", tiny / "tiny.toml", "--out", f"{strange}/out", "-q"),
        ("verify", strange, "--reference", tiny / "model", "--data", tiny / "test.txt"),
    ):
        what, why, fix = three_parts(fails(invoke(*command), 2))
        assert "\\udcff" in what
        assert "the byte 0xff in it is not UTF-8" in why
        assert "UTF-8" in fix
    assert not Path(strange, "out").exists()


@pytest.mark.parametrize(
    "override",
    [
        "device.id=999999999999999999999",
        "device.memory_limit=1e300",
        "workload.source_length=99999999999999999999999",
        "workload.batch=10000000000",
        "calibration.batch_size=10000000000",
        "calibration.max_length=10000000000",
        "generation.max_new_tokens=10000000000",
    ],
)
def test_numbers_beyond_all_machines(tiny: Path, tmp_path: Path, override: str) -> None:
    message = fails(invoke("run", tiny / "tiny.toml", "--out", tmp_path / "out", "--set", override), 2)
    what, why, _ = three_parts(message)
    assert f"`{override.partition('=')[0]}` cannot be" in what
    assert "and at most" in why


def external(folder: Path, location: str, **entries: int) -> None:
    """The encoder of the tiny model there, with one weight in a file of any name, offset and length."""
    path = folder / graph_file("encoder")
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT)
    (folder / "weights.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    for key, value in entries.items():
        weight.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())


def leads_out(folder: Path) -> None:
    (folder / "data").symlink_to(folder.parent / "secret")
    external(folder, "data")


def leads_out_by_a_folder(folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent, target_is_directory=True)
    external(folder, "sub/secret")


def is_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "data")
    external(folder, "data")


def is_a_directory(folder: Path) -> None:
    (folder / "data").mkdir()
    external(folder, "data")


def is_a_device(folder: Path) -> None:
    external(folder, "/dev/zero")


def dangles(folder: Path) -> None:
    (folder / "data").symlink_to("nothing")
    external(folder, "data")


TRAPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "parent": (lambda folder: external(folder, "../secret"), "outside its folder"),
    "sideways": (lambda folder: external(folder, "x/../../secret"), "outside its folder"),
    "absolute": (lambda folder: external(folder, str(folder.parent / "secret")), "outside its folder"),
    "link": (leads_out, "outside its folder"),
    "linked-folder": (leads_out_by_a_folder, "outside its folder"),
    "device": (is_a_device, "outside its folder"),
    "pipe": (is_a_pipe, "what has that name is no regular file"),
    "directory": (is_a_directory, "what has that name is no regular file"),
    "dangling": (dangles, "it is not beside the ONNX file"),
    "missing": (lambda folder: external(folder, "gone"), "it is not beside the ONNX file"),
    "empty-name": (lambda folder: external(folder, ""), "no regular file"),
    "nul": (lambda folder: external(folder, "a\0b"), "is not a readable ONNX file"),
    "too-far": (lambda folder: external(folder, "weights.bin", offset=1 << 40), "does not fit"),
    "negative": (lambda folder: external(folder, "weights.bin", offset=-4), "not"),
    "too-long": (lambda folder: external(folder, "weights.bin", length=1 << 40), "does not fit"),
}


@pytest.fixture(params=TRAPS)
def trap(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A model whose external data lead astray, and what must be said of it."""
    (tmp_path / "secret").write_bytes(bytes(1 << 16))
    model = write_tiny_model(tmp_path / "model")
    set_trap, words = TRAPS[request.param]
    set_trap(model)
    return model, words


def test_external_data_that_lead_astray_are_refused_at_every_door(
    trap: tuple[Path, str], tiny: Path, tmp_path: Path
) -> None:
    model, words = trap
    data, good = tiny / "test.txt", tiny / "model"
    for command in (
        ("inspect", model),
        ("verify", model, "--reference", good, "--data", data, "--device", "cpu"),
        ("verify", good, "--reference", model, "--data", data, "--device", "cpu"),
        ("run", tiny / "tiny.toml", "--set", f"model.path={model}", "--out", tmp_path / "out"),
    ):
        message = fails(invoke(*command, "-q"), 2)
        three_parts(message)
        assert words in message
        assert "encoder_model.onnx" in message
    with pytest.raises(InputError) as caught:
        Seq2SeqGenerator.from_pretrained(model, device="cpu")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_may_be_a_link_as_in_the_cache_of_the_hub(tiny: Path, tmp_path: Path) -> None:
    """Whose file it is decides who made the link; what it refers to is looked for beside the link."""
    model = shutil.copytree(tiny / "model", tmp_path / "model")
    encoder = model / graph_file("encoder")
    encoder.rename(tmp_path / "blob")
    encoder.symlink_to("../blob")
    assert invoke("inspect", model, "-q").exit_code == 0
    encoder.unlink()
    encoder.symlink_to("/dev/zero")
    assert "holds a decoder without its encoder" in three_parts(fails(invoke("inspect", model, "-q"), 2))[0]


def test_a_model_that_is_another_than_the_run_searched(tiny: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    text = (run / "config.toml").read_text()
    model = next(line for line in text.splitlines() if line.startswith("path = ")).partition(" = ")[2]
    (run / "config.toml").write_text(text.replace(model, json.dumps(str(tiny / "model")), 1))
    what, why, fix = three_parts(fails(invoke("export", run, "--out", tmp_path / "new", "-q"), 2))
    assert what.endswith(f"the model in {tiny / 'model'} is not the one that {run} searched")
    assert "content hash" in why
    assert "run the search again" in fix
    assert not (tmp_path / "new").exists()


def test_other_token_rules_than_those_of_the_run(tmp_path: Path) -> None:
    """Neither what is resumed nor what is exported was judged by them."""
    config, run = write_tiny_config(tmp_path, max_trials=2), tmp_path / "run"
    assert invoke("run", config, "--out", run, "-q").exit_code in (0, 1)
    file = tmp_path / "model/generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "suppress_tokens": [5]}))
    what, why, _ = three_parts(fails(invoke("run", config, "--out", run, "--resume", "-q"), 2))
    assert what.endswith("cannot go on")
    assert "how the model chooses tokens changed since it began" in why
    what, why, fix = three_parts(fails(invoke("export", run, "--plan", "0", "--out", tmp_path / "new", "-q"), 2))
    assert f"chooses tokens otherwise than when {run} judged it" in what
    assert "generation config" in why
    assert "restore generation_config.json" in fix
    assert not (tmp_path / "new").exists()


def test_another_model_under_a_resumed_run(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path, max_trials=2)
    assert invoke("run", config, "--out", tmp_path / "run", "-q").exit_code in (0, 1)
    shutil.rmtree(tmp_path / "model")
    write_tiny_model(tmp_path / "model", seed=7)
    write_sentences(tmp_path / "calibration.txt", 11, 3)
    what, why, fix = three_parts(fails(invoke("run", config, "--out", tmp_path / "run", "--resume", "-q"), 2))
    assert what.endswith("cannot go on")
    assert "the model and the calibration file changed" in why
    assert "start a new run" in fix
