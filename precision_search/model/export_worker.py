"""Torch in child processes: exports and transformers' own tokens, without torch in the memory of the search.

A child does one job after another, so that it imports torch and loads the checkpoint once. Each job is a line of JSON
on its standard input, each answer one on its standard output. The jobs of one call are dealt to as many children as run
side by side. The model family travels in the job, whole: it comes from the parent's table, so a checkpoint never says
which class is loaded.

A child lives as long as the parent holds the other end of its standard input, which the system closes when the parent
ends, whatever ended it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, NoReturn

from precision_search.errors import EnvironmentProblemError, InputError, InternalError, PrecisionSearchError
from precision_search.files import reason, remedy
from precision_search.model.families.base import ModelFamily, family_from_json
from precision_search.model.graph import GraphName
from precision_search.model.hf_files import weight_bytes
from precision_search.model.tokenizer import transformers_ids

if TYPE_CHECKING:
    from precision_search.model.export import Checkpoint

SIDE_BY_SIDE_LIMIT = 2 << 30
"""Bytes of checkpoint above which one child does all jobs: each holds the whole model in fp32, and more."""

_LAST_WORDS = 5
"""Lines of a dead child's stderr that are told."""

_KINDS: Mapping[str, type[PrecisionSearchError]] = {
    "input": InputError,
    "environment": EnvironmentProblemError,
    "internal": PrecisionSearchError,
}
"""Errors that a child hands on, by what it calls them."""


@dataclass(frozen=True, slots=True)
class ExportJob:
    """Export one graph of a checkpoint to a file."""

    checkpoint: str
    family: ModelFamily
    graph: GraphName
    target: str


@dataclass(frozen=True, slots=True)
class GenerateJob:
    """Greedy tokens of transformers for rows of input ids; `overrides` replace values of the generation config."""

    checkpoint: str
    family: ModelFamily
    rows: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    batch_size: int
    overrides: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """Token ids of transformers' AutoTokenizer for texts, and the ids of its added tokens."""

    checkpoint: str
    texts: tuple[str, ...]


Job = ExportJob | GenerateJob | EncodeJob


def run_jobs(jobs: Sequence[Job]) -> list[Mapping[str, Any]]:
    """Runs the jobs in child processes, as many at once as there are cores and memory allows; answers in job order.

    The first job that fails ends the others.

    Raises:
        InputError: what a job says of its input.
        EnvironmentProblemError: what a job says of the machine; a child was killed.
        InternalError: a child died; its last words are in the message.
    """
    if not jobs:
        return []
    cores = os.cpu_count() or 1
    at_once = min(len(jobs), cores)
    if any(weight_bytes(Path(job.checkpoint)) > SIDE_BY_SIDE_LIMIT for job in jobs):
        at_once = 1
    waiting = deque(enumerate(jobs))
    answers: dict[int, Mapping[str, Any]] = {}

    def work(child: _Child) -> None:
        while True:
            try:
                number, job = waiting.popleft()
            except IndexError:
                return
            answers[number] = child.ask(number, job)

    with contextlib.ExitStack() as stack:
        children = []
        for _ in range(at_once):
            children.append(_Child(max(1, cores // at_once)))
            stack.callback(children[-1].close)
        pool = stack.enter_context(ThreadPoolExecutor(at_once))
        for child in children:
            stack.callback(child.kill)  # first of all that is undone: then nobody waits for an answer any more
        for done in as_completed([pool.submit(work, child) for child in children]):
            done.result()
    return [answers[number] for number in range(len(jobs))]


class _Child:
    """A child process as its parent sees it."""

    def __init__(self, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "precision_search.model.export_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._jobs, self._answers = self._process.stdin, self._process.stdout
        self._last_words = deque[str](maxlen=_LAST_WORDS)
        # Read all the time, because a child whose stderr is full waits for ever.
        self._listener = threading.Thread(target=self._last_words.extend, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def ask(self, number: int, job: Job) -> Mapping[str, Any]:
        """Hands over a job and waits for its answer; errors as `run_jobs` says."""
        line = json.dumps({"number": number, "kind": type(job).__name__, **asdict(job)})
        # A child that dies before it has read its job leaves a broken pipe; its last words say why.
        with contextlib.suppress(BrokenPipeError):
            self._jobs.write(f"{line}\n")
            self._jobs.flush()
        answer = next((found for each in self._answers if (found := _answer(each, number)) is not None), None)
        if answer is None:
            self._raise_death()
        if "error" in answer:
            kind = _KINDS[answer["error"]["kind"]]
            raise kind(answer["error"]["what"], why=answer["error"]["why"], fix=answer["error"]["fix"])
        return answer

    def kill(self) -> None:
        """Ends the process at once; it has nothing to tidy up."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process and lets go of what belongs to it."""
        self.kill()
        self._process.wait()
        self._listener.join()
        for stream in (self._jobs, self._answers, self._process.stderr):
            with contextlib.suppress(OSError):  # what it never read
                stream.close()  # type: ignore[union-attr]

    def _raise_death(self) -> NoReturn:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            raise EnvironmentProblemError(
                "the torch worker was killed",
                why="nothing but the system does that, and mostly because memory is used up",
                fix="run it where there is more memory: it needs about three times the size of the checkpoint in fp32",
            )
        self._listener.join()
        tail = "".join(self._last_words).strip()
        raise InternalError(f"the torch worker ended with code {code}", why=tail)


def _answer(line: str, number: int) -> dict[str, Any] | None:
    """The answer to the job of that number; None for whatever else a child prints while it starts."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.pop("number", None) != number:
        return None
    return found


# What follows runs in the child.


def main() -> None:
    """Entry of the child process; never returns."""
    # A signal to the whole process group, such as Ctrl-C, is for the parent, with which this ends.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    jobs = SimpleQueue[Mapping[str, Any]]()
    threading.Thread(target=_receive, args=(_take(0, "r"), jobs), daemon=True).start()
    answers = _take(1, "w")
    while True:
        job = jobs.get()
        print(json.dumps({"number": job["number"], **_result(job)}), file=answers, flush=True)
        gc.collect()  # exported programs refer to themselves; the next one needs their memory


def _take(number: int, mode: str) -> IO[str]:
    """A standard stream for us alone: libraries find nothing to read, and print to stderr."""
    stream = os.fdopen(os.dup(number), mode, encoding="utf-8")
    if mode == "w":
        os.dup2(2, number)
    else:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, number)
        os.close(nothing)
    return stream


def _receive(stream: IO[str], jobs: SimpleQueue[Mapping[str, Any]]) -> None:
    """Reads jobs until the parent closes the stream or ends; then this process ends, whatever it is doing."""
    try:
        for line in stream:
            jobs.put(json.loads(line))
    finally:
        os._exit(0)


def _result(job: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return _do(job)
    except PrecisionSearchError as error:
        return {"error": _as_json(error)}
    except OSError as error:
        place = f"{error.filename or job.get('target') or 'a file'} cannot be used"
        return {"error": _as_json(EnvironmentProblemError(place, why=reason(error), fix=remedy(error)))}


def _do(job: Mapping[str, Any]) -> dict[str, Any]:
    if job["kind"] == "EncodeJob":
        return dict(transformers_ids(Path(job["checkpoint"]), job["texts"]))
    from precision_search.model import export as torch_export

    checkpoint = _checkpoint(job["checkpoint"], json.dumps(job["family"]))
    if job["kind"] == "ExportJob":
        torch_export.export(checkpoint, job["graph"], Path(job["target"]))
        return {}
    limit, size, overrides = job["max_new_tokens"], job["batch_size"], job["overrides"]
    return {"tokens": torch_export.greedy_tokens(checkpoint, job["rows"], limit, size, overrides)}


@functools.lru_cache(maxsize=1)
def _checkpoint(path: str, family: str) -> Checkpoint:
    from precision_search.model import export as torch_export

    return torch_export.load_checkpoint(Path(path), family_from_json(json.loads(family)))


def _as_json(error: PrecisionSearchError) -> Mapping[str, str]:
    kind = next(name for name, kind in _KINDS.items() if isinstance(error, kind))
    return {"kind": kind, "what": error.what, "why": error.why, "fix": error.fix}


if __name__ == "__main__":
    main()
