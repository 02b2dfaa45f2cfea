"""A Python that has imported what a run needs: each process is forked from it, which saves seconds of imports.

For tests that start programs in child processes and look at what these print, leave behind and end with. What looks at
imports, signals or the end of an interpreter takes a fresh one. In: `python_command()`, which takes what `python -m
MODULE ...`, `python -c CODE ...` or `python FILE ...` does. Out: the same output, files and exit code, in the caller's
directory, environment and mounts. The process that forks ends with the one that asked for it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TextIO

ROOT = Path(__file__).parent.parent
IMPORTED = (
    *("onnxruntime", "onnx_ir", "onnx", "optuna", "scipy.stats", "tokenizers", "jinja2", "rich.console"),
    *("precision_search.cli.commands", "precision_search.run.search", "precision_search.api"),
)

WORKER = [sys.executable, "-m", "precision_search.model.export_worker"]
_TORCH = "PRECISION_SEARCH_TEST_TORCH"
"""Variable that holds `torch_command()`, as JSON."""

_CLIENT = """
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    socket.send_fds(server, [b"\\0"], [0, 1, 2, os.open("/proc/self/ns/mnt", os.O_RDONLY)])
    server.sendall(json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    code = server.recv(1)
sys.exit(code[0] if code else "the process was lost")
"""


@functools.cache
def python_command() -> tuple[str, ...]:
    """A Python for the command line, started at the first call: the words of its command."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch_command()  # for those that export; in a few tests that run alone they import torch themselves
    return start(IMPORTED, os.environ)


def torch_command() -> tuple[str, ...]:
    """A Python that has exported something with torch, started at the first call; processes that we start find it."""
    if _TORCH not in os.environ:
        # One thread: a fork has none of the threads that torch may have started.
        os.environ[_TORCH] = json.dumps(start(("tests.warm_torch",), {**os.environ, "OMP_NUM_THREADS": "1"}))
    return tuple(json.loads(os.environ[_TORCH]))


class _Worker(subprocess.Popen[str]):
    """A process, which is forked from one that has torch if it is to be a worker of our own Python."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        words = [*torch_command(), *command[1:]] if list(command) == WORKER and sys.platform == "linux" else command
        super().__init__(words, **options)


def fork_torch_workers() -> None:
    """From now on, exports of this process start no Python that has to import torch."""
    from precision_search.model import export_worker

    vars(export_worker)["subprocess"] = SimpleNamespace(Popen=_Worker, PIPE=subprocess.PIPE)


def start(modules: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Starts a process that imports the modules and forks; gives the words of a command that is answered by it."""
    if sys.platform != "linux":
        return (sys.executable,)
    folder = Path(tempfile.mkdtemp(prefix="warm-"))  # sockets' paths are short
    client, address = folder / "client.py", folder / "socket"
    client.write_text(_CLIENT)
    paths = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(folder), str(listener.fileno()), str(_until_we_end()), *modules],
            env={**environment, "PYTHONPATH": paths},
            pass_fds=(listener.fileno(), _until_we_end()),
            stdout=subprocess.DEVNULL,
        )
    atexit.register(_stop, process, folder)
    return (sys.executable, "-I", "-S", str(client), str(address))


def _stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.terminate()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _until_we_end() -> int:
    """A file that reads as ended once this process has."""
    reader, _ = os.pipe()
    return reader


def main() -> None:
    """Serves; in each forked process runs what it was asked for."""
    folder, listener, parent, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # what was imported is no garbage, and pages that no collection writes to stay shared
    client = _serve(socket.socket(fileno=int(listener)), int(parent))
    if client is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _take_place(client)
        if _TORCH in os.environ:
            fork_torch_workers()
        _end(_exit_code(_run))


def _serve(listener: socket.socket, parent: int) -> socket.socket | None:
    """The client that this process, a fork, is for; None once the one that started the server has ended."""
    either = select.poll()
    either.register(listener, select.POLLIN)
    either.register(parent, select.POLLIN)
    while parent not in dict(either.poll()):
        with contextlib.suppress(ChildProcessError):  # none is left
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(parent)
            return client
        client.close()
    return None


def _take_place(client: socket.socket) -> None:
    """Becomes what the client asked for: its files, mounts, directory, environment and arguments."""
    _, files, _, _ = socket.recv_fds(client, 1, 4)
    with client.makefile("rb") as stream:
        arguments, directory, environment = json.loads(stream.read())
    if (child := os.fork()) != 0:
        _wait(child, client, files)
    client.close()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    _enter(files[3])
    for file in files:
        os.close(file)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0, closefd=False), _stream(1), _stream(2)
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    sys.argv = list(arguments)


def _wait(child: int, client: socket.socket, files: Sequence[int]) -> NoReturn:
    """Tells the client how the child ended, or kills the child when the client is gone."""
    for file in (*files, 0, 1, 2):
        os.close(file)
    ended = os.pidfd_open(child)
    either = select.poll()
    either.register(ended, select.POLLIN)
    either.register(client, 0)  # reports the end of the connection
    if ended not in dict(either.poll()):
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        client.send(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def _stream(number: int) -> TextIO:
    """Standard output or error as a new interpreter opens them."""
    errors = "strict" if number == 1 else "backslashreplace"
    stream = os.fdopen(number, "w", encoding="utf-8", errors=errors, closefd=False)
    stream.reconfigure(line_buffering=number == 2 or stream.isatty())
    return stream


def _enter(mounts: int) -> None:
    """Enters a mount namespace, unless it is the one that we are in."""
    if not os.path.sameopenfile(mounts, here := os.open("/proc/self/ns/mnt", os.O_RDONLY)):
        library = ctypes.CDLL(None, use_errno=True)
        if library.setns(mounts, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    os.close(here)


def _run() -> None:
    """`python -m MODULE ...`, `python -c CODE ...` or `python FILE ...`."""
    if sys.argv[0] == "-c":
        exec(sys.argv.pop(1), {"__name__": "__main__"})
    elif sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


def _exit_code(program: Callable[[], None]) -> int:
    """That of the interpreter at the end of the program."""
    try:
        program()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """Ends as an interpreter does, but for what libraries do last: ONNX Runtime waits for a thread that no fork has."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
