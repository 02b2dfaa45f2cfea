"""Torch in child processes: exports and transformers' own tokens, without torch in the memory of the search.

One child does one job. The parent writes the job as JSON to the child's standard input; the child answers with one JSON
object on its standard output. Jobs of one call run side by side. The model family travels in the job, whole: it comes
from the parent's table, so a checkpoint never says which class is loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from precision_search.errors import EnvironmentProblemError, InputError, InternalError, PrecisionSearchError
from precision_search.files import reason, remedy
from precision_search.model.families.base import ModelFamily, family_from_json
from precision_search.model.graph import GraphName

SIDE_BY_SIDE_LIMIT = 2 << 30
"""Bytes of checkpoint above which jobs run one after the other: each holds the whole model in fp32, and more."""

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
    """Greedy tokens of transformers for rows of input ids."""

    checkpoint: str
    family: ModelFamily
    rows: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    batch_size: int


def run_jobs(jobs: Sequence[ExportJob | GenerateJob]) -> list[Mapping[str, Any]]:
    """Runs the jobs in child processes, as many at once as there are cores and memory allows; answers in job order.

    Raises:
        InputError: what a job says of its input.
        EnvironmentProblemError: what a job says of the machine; a child was killed.
        InternalError: a child died; its last words are in the message.
    """
    at_once = min(len(jobs), os.cpu_count() or 1)
    if any(_checkpoint_bytes(Path(job.checkpoint)) > SIDE_BY_SIDE_LIMIT for job in jobs):
        at_once = 1
    answers: list[Mapping[str, Any]] = []
    waiting, running = list(jobs), list[subprocess.Popen[str]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_start(waiting.pop(0), max(1, (os.cpu_count() or 1) // at_once)))
            out, err = running[0].communicate()
            process = running.pop(0)
            answers.append(_answer(process.returncode, out, err))
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return answers


def _start(job: ExportJob | GenerateJob, threads: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", "precision_search.model.export_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    try:
        # A child that dies before it has read its job leaves a broken pipe; its last words say why.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            json.dump({"kind": type(job).__name__, **asdict(job)}, process.stdin)
    except BaseException:
        process.stdin = None
        process.kill()
        process.communicate()
        raise
    process.stdin = None  # sent and closed: communicate() must not try again
    return process


def _answer(code: int, out: str, err: str) -> Mapping[str, Any]:
    lines = out.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        if code == -signal.SIGKILL:
            raise EnvironmentProblemError(
                "the torch worker was killed",
                why="nothing but the system does that, and mostly because memory is used up",
                fix="run it where there is more memory: it needs about three times the size of the checkpoint in fp32",
            ) from None
        tail = "\n".join(err.strip().splitlines()[-5:])
        raise InternalError(f"the torch worker ended with code {code}", why=tail) from None
    if "error" in answer:
        kind = _KINDS[answer["error"]["kind"]]
        raise kind(answer["error"]["what"], why=answer["error"]["why"], fix=answer["error"]["fix"])
    return dict(answer)


def _checkpoint_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _do(job: Mapping[str, Any]) -> dict[str, Any]:
    from precision_search.model import export as torch_export

    checkpoint = torch_export.load_checkpoint(Path(job["checkpoint"]), family_from_json(job["family"]))
    if job["kind"] == "ExportJob":
        torch_export.export(checkpoint, job["graph"], Path(job["target"]))
        return {}
    return {"tokens": torch_export.greedy_tokens(checkpoint, job["rows"], job["max_new_tokens"], job["batch_size"])}


def _as_json(error: PrecisionSearchError) -> Mapping[str, str]:
    kind = next(name for name, kind in _KINDS.items() if isinstance(error, kind))
    return {"kind": kind, "what": error.what, "why": error.why, "fix": error.fix}


def main() -> None:
    """Entry of the child process."""
    job = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print must not stand between the parent and the answer
    try:
        result = _do(job)
    except PrecisionSearchError as error:
        result = {"error": _as_json(error)}
    except OSError as error:
        place = f"{error.filename or job.get('target') or 'a file'} cannot be used"
        result = {"error": _as_json(EnvironmentProblemError(place, why=reason(error), fix=remedy(error)))}
    print(json.dumps(result), file=answer, flush=True)


if __name__ == "__main__":
    main()
