"""Child processes: jobs go in, answers come back in order, and whatever ends a child badly is told in its own words."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from precision_search.errors import EnvironmentProblemError, InputError, InternalError, PrecisionSearchError
from precision_search.model import export_worker
from precision_search.model.export_worker import ExportJob, GenerateJob, run_jobs
from precision_search.model.families import FAMILIES
from precision_search.model.families.base import ModelFamily
from tests.conftest import HANGS_S
from tests.processes import lives


class Child:
    """Stands in for the Python interpreter that runs the worker."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.path = folder / "child.py"
        self.monkeypatch = monkeypatch

    def does(self, body: str) -> None:
        """The child repeats `body`, which has the folder as `folder`, gets its job by `job()` and calls `answer()`."""
        prologue = f"""#!{sys.executable}
import json, os, pathlib, sys, time
folder = pathlib.Path({str(self.folder)!r})
def job():
    global number
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    found = json.loads(line)
    number = found.pop("number")
    return found
def answer(**found):
    print(json.dumps({{"number": number, **found}}), flush=True)
while True:
"""
        self.path.write_text(prologue + textwrap.indent(body, "    "))
        self.path.chmod(0o755)
        self.monkeypatch.setattr(sys, "executable", str(self.path))

    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture(autouse=True)
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are started as they are for people."""
    monkeypatch.setattr(export_worker, "subprocess", subprocess)


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    return Child(tmp_path, monkeypatch)


def generate(*rows: tuple[int, ...], checkpoint: str = "nowhere") -> GenerateJob:
    return GenerateJob(checkpoint, FAMILIES["t5"], rows, 8, 2)


def as_json(family: ModelFamily) -> object:
    return json.loads(json.dumps(dataclasses.asdict(family)))


ECHO = "answer(tokens=job()['rows'])"
# Children meet: each waits until as many as `wanted` are there, so that the answers do not depend on speed.
MEET = """
mine = job()
(folder / f"here-{os.getpid()}").touch()
deadline = time.monotonic() + 600
while len(list(folder.glob("here-*"))) < wanted and time.monotonic() < deadline:
    time.sleep(0.01)
together = len(list(folder.glob("here-*")))
"""


def test_answers_come_in_the_order_of_the_jobs(child: Child) -> None:
    child.does(f"""
wanted = 1
{MEET}
while mine["rows"] == [[1]] and not (folder / "second").exists():
    time.sleep(0.01)
(folder / "second").touch()
answer(tokens=mine["rows"])
""")
    child.monkeypatch.setattr(os, "cpu_count", lambda: 2)
    answers = run_jobs([generate((1,)), generate((2,))])
    assert [answer["tokens"] for answer in answers] == [[[1]], [[2]]]


def test_a_job_arrives_whole(child: Child) -> None:
    child.does("answer(**job())")
    export, other = ExportJob("here", FAMILIES["mt5"], "decoder_with_past", "there"), generate((1, 2), (3,))
    assert run_jobs([export, other]) == [
        {
            "kind": "ExportJob",
            "checkpoint": "here",
            "family": as_json(FAMILIES["mt5"]),
            "graph": "decoder_with_past",
            "target": "there",
        },
        {
            "kind": "GenerateJob",
            "checkpoint": "nowhere",
            "family": as_json(FAMILIES["t5"]),
            "rows": [[1, 2], [3]],
            "max_new_tokens": 8,
            "batch_size": 2,
            "overrides": {},
        },
    ]


def test_no_jobs_give_no_answers() -> None:
    assert run_jobs([]) == []


def test_a_job_larger_than_a_pipe_arrives(child: Child) -> None:
    child.does("answer(count=len(job()['rows']))")
    assert run_jobs([generate(*[(number,) for number in range(100_000)])]) == [{"count": 100_000}]


def test_what_a_child_prints_besides_is_no_answer(child: Child) -> None:
    child.does(f"print('Loading weights: 100%'); print('{{}}'); print('7'); print('[0]')\n{ECHO}\nprint('   ')")
    assert run_jobs([generate((4,))]) == [{"tokens": [[4]]}]


def test_much_on_stderr_blocks_nobody(child: Child) -> None:
    child.does(f"sys.stderr.write('x' * 1_000_000)\nsys.stderr.buffer.write(bytes(range(256)))\n{ECHO}")
    assert len(run_jobs([generate((1,)), generate((2,))])) == 2


def test_cores_limit_how_many_run_at_once_and_share_the_threads(child: Child) -> None:
    child.does(f"""
wanted = 2
{MEET}
with (folder / "log").open("a") as log:
    log.write(f"{{together}} {{os.environ['OMP_NUM_THREADS']}}\\n")
answer()
""")
    child.monkeypatch.setattr(os, "cpu_count", lambda: 4)
    run_jobs([generate((1,)), generate((2,))])
    assert child.log() == ["2 2", "2 2"]


@pytest.mark.parametrize(("cores", "limit"), [(1, 1 << 40), (8, 99)])
def test_one_core_or_a_large_checkpoint_means_one_at_a_time(child: Child, cores: int, limit: int) -> None:
    child.does("""
mine = job()
others = list(folder.glob("running-*"))
here = folder / f"running-{os.getpid()}"
here.touch()
time.sleep(0.05)
alone = not others and list(folder.glob("running-*")) == [here]
here.unlink()
answer(alone=alone)
""")
    checkpoint = child.folder / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(bytes(100))
    child.monkeypatch.setattr(os, "cpu_count", lambda: cores)
    child.monkeypatch.setattr(export_worker, "SIDE_BY_SIDE_LIMIT", limit)
    answers = run_jobs([generate((number,), checkpoint=str(checkpoint)) for number in range(3)])
    assert answers == [{"alone": True}] * 3


@pytest.mark.parametrize(("kind", "code"), [("input", 2), ("environment", 3), ("internal", 4)])
def test_what_a_job_says_is_raised_as_what_it_is(child: Child, kind: str, code: int) -> None:
    error = {"what": "cannot load it", "why": "it is broken", "fix": "mend it"}
    child.does(f"job(); answer(error={error | {'kind': kind}!r})")
    with pytest.raises(PrecisionSearchError) as caught:
        run_jobs([generate((1,))])
    assert {"what": caught.value.what, "why": caught.value.why, "fix": caught.value.fix} == error
    assert caught.value.exit_code == code


@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_child_that_dies_before_reading_is_told_by_its_last_words(child: Child, rows: int) -> None:
    child.does("print('ImportError: no torch', file=sys.stderr); sys.exit(3)")
    with pytest.raises(InternalError, match="ended with code 3") as caught:
        run_jobs([generate(*[(1,)] * rows)])
    assert caught.value.why == "ImportError: no torch"


@pytest.mark.parametrize("output", ["", "print('no answer')", "print('[1')"])
def test_a_child_without_an_answer_is_an_error(child: Child, output: str) -> None:
    child.does(f"job()\n{output}\nraise RuntimeError('out of luck')")
    with pytest.raises(InternalError, match="ended with code 1") as caught:
        run_jobs([generate((1,))])
    assert caught.value.why.splitlines()[-1] == "RuntimeError: out of luck"
    assert len(caught.value.why.splitlines()) <= 5


def test_a_killed_child_is_an_error(child: Child) -> None:
    child.does("job(); os.kill(os.getpid(), 9)")
    with pytest.raises(EnvironmentProblemError, match="the torch worker was killed") as caught:
        run_jobs([generate((1,))])
    assert "memory" in caught.value.why
    assert "more memory" in caught.value.fix


def test_when_one_job_fails_the_others_are_ended(child: Child) -> None:
    child.does(f"""
wanted = 2
{MEET}
with (folder / "log").open("a") as log:
    log.write(f"{{os.getpid()}}\\n")
if mine["rows"] == [[1]]:
    while len((folder / "log").read_text().splitlines()) < 2:
        time.sleep(0.01)
    sys.exit(1)
time.sleep(600)
""")
    child.monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(InternalError):
        run_jobs([generate((1,)), generate((2,)), generate((3,))])
    pids = [int(line) for line in child.log()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_the_real_child_tells_what_is_wrong_with_a_checkpoint(tmp_path: Path) -> None:
    config = {"model_type": "t5", "vocab_size": 8, "d_model": 4, "d_kv": 2, "num_heads": 2, "num_layers": 1, "d_ff": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError) as caught:
        run_jobs([generate((1,), checkpoint=str(tmp_path))])
    assert str(tmp_path) in caught.value.what
    assert caught.value.why
    assert "safetensors" in caught.value.fix


@pytest.mark.slow
def test_the_real_child_loads_no_pickle(tmp_path: Path) -> None:
    config = {"model_type": "t5", "vocab_size": 8, "d_model": 4, "d_kv": 2, "num_heads": 2, "num_layers": 1, "d_ff": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Unpickling this would make a file.
    (tmp_path / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch " + bytes(tmp_path / "ran") + b"'\ntR.")
    with pytest.raises(InputError, match="cannot load the checkpoint"):
        run_jobs([generate((1,), checkpoint=str(tmp_path))])
    assert not (tmp_path / "ran").exists()


def test_trouble_of_the_machine_in_the_child_is_told_as_such(child: Child) -> None:
    child.does("""
from precision_search.model import export_worker
def full(job):
    raise OSError(28, "No space left on device")
export_worker._do = full
export_worker.main()
""")
    with pytest.raises(EnvironmentProblemError) as caught:
        run_jobs([ExportJob("here", FAMILIES["t5"], "decoder", "there.onnx")])
    assert caught.value.what == "there.onnx cannot be used"
    assert (caught.value.why, caught.value.fix) == ("No space left on device", "free some space on that disk")


def test_one_child_does_several_jobs_and_the_first_that_is_free_the_next(child: Child) -> None:
    child.does(f"""
wanted = 2
{MEET}
while mine["rows"] == [[1]] and not (folder / "third").exists():
    time.sleep(0.01)
if mine["rows"] == [[3]]:
    (folder / "third").touch()
answer(pid=os.getpid())
""")
    child.monkeypatch.setattr(os, "cpu_count", lambda: 2)
    first, second, third = (each["pid"] for each in run_jobs([generate((number,)) for number in (1, 2, 3)]))
    assert first != second == third


def test_children_end_with_the_call_though_they_would_stay(child: Child) -> None:
    child.does("mine = job(); answer(pid=os.getpid()); time.sleep(600)")
    (found,) = run_jobs([generate((1,))])
    assert not lives(found["pid"])


# The end of a child that runs our `main`


BUSY = """
import os, signal, sys, time
from precision_search.model import export_worker

def work(job):
    print(f"stdin holds {sys.stdin.read()!r}", flush=True)
    for each in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        os.kill(os.getpid(), each)
    print("busy", file=sys.stderr, flush=True)
    BODY
    return {}

export_worker._do = work
export_worker.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGHUP")
@pytest.mark.parametrize("body", ["while True: pass", "time.sleep(600)"], ids=["in-python", "in-c"])
def test_a_child_ends_at_once_when_nobody_holds_its_stdin_and_on_no_signal(body: str) -> None:
    command = [sys.executable, "-c", BUSY.replace("BODY", body)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None and process.stdout is not None
        process.stdin.write(b'{"number": 0}\n')
        process.stdin.flush()
        assert [process.stderr.readline() for _ in range(2)] == [b"stdin holds ''\n", b"busy\n"]
        process.stdin.write(b'{"number"')  # the parent ends while it writes
        process.stdin.close()
        assert process.wait(HANGS_S) == 0
        assert process.stdout.read() == b""
