"""How a command ends when something goes wrong: one message, what, why and fix, and the exit code of its kind.

What nobody expected is one line that names a file with the traceback.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import click

from precision_search.errors import (
    EnvironmentProblemError,
    InternalError,
    MissingPackageError,
    PrecisionSearchError,
    first_line,
)
from precision_search.files import reason, remedy
from precision_search.printable import printable
from precision_search.private import hide_secrets

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells count."""

LONGEST_LINE = 300
"""Characters of an unexpected error's own text in its one line; the report has all of it."""

_INTERRUPTING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C, a supervisor that ends us, and a terminal that is gone. Windows has only some of them."""

_AGAIN_S = 0.02
"""Seconds after which what dropped a signal's exception has long returned."""

_NOBODYS_FAULT = {errno.EINVAL, errno.EBADF, errno.EFAULT}
"""What the system says where a program asked for nonsense: a bug, unlike everything else that it says."""


def interrupt_on_signals() -> None:
    """From now on, signals that ask this process to end raise KeyboardInterrupt, as Ctrl-C does.

    What is ignored stays so (`nohup`, a background job), and so does what somebody else handles.
    """
    for name in _INTERRUPTING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)
    sys.unraisablehook = _interrupt_again


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, but not into what tidies up after the one before: it would leave half of it.

    Supervisors and terminals send two signals at once.
    """
    found = sys.exception()
    while found is not None:
        if isinstance(found, KeyboardInterrupt):
            return
        found = found.__context__
    raise _Interrupt(number)


class _Interrupt(KeyboardInterrupt):
    """A KeyboardInterrupt that knows its signal."""


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in `__del__` and in callbacks of weak references; then the signal comes once more."""
    if isinstance(lost.exc_value, _Interrupt):
        again = threading.Timer(_AGAIN_S, _send, lost.exc_value.args)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def _send(number: int) -> None:
    """Sends a signal to the main thread, where it also ends a wait."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:  # Windows
        signal.raise_signal(number)


@contextlib.contextmanager
def guarded(ctx: click.Context, verbose: Callable[[], bool]) -> Iterator[None]:
    """Turns whatever a command raises into a message on stderr and `ctx.exit`; click's own exceptions pass.

    A reader that closed stdout is no error: the command ends quietly with 0.
    """
    try:
        try:
            yield
        except click.ClickException as error:
            vars(error)["message"] = printable(error.message)  # it quotes arguments; typed as if nobody changed it
            raise
        except (click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            code = _tell(error, verbose())
            ctx.exit(code)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        ctx.exit(INTERRUPTED)
    except BrokenPipeError:
        _detach_stdout()
        ctx.exit(0)


def explain(error: Exception) -> PrecisionSearchError:
    """The error as one of ours: itself, or what kind of trouble it stands for; InternalError if nobody expected it."""
    if isinstance(error, PrecisionSearchError):
        return error
    package = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else ""
    if package and package != "precision_search":
        return MissingPackageError(
            f"the Python package {package} is not installed",
            why=str(error),
            fix="pip install precision-search (`precision-search doctor` lists what is missing)",
        )
    if isinstance(error, MemoryError):
        return EnvironmentProblemError(
            "there is not enough memory", why=str(error), fix="use a smaller batch_size, or a machine with more memory"
        )
    if isinstance(error, OSError) and error.errno is not None and error.errno not in _NOBODYS_FAULT:
        return EnvironmentProblemError(
            f"{error.filename or 'a file'} cannot be used", why=reason(error), fix=remedy(error)
        )
    return InternalError(f"{type(error).__name__}: {_text(error)}".rstrip(": "))


def _tell(error: Exception, verbose: bool) -> int:
    """Prints the message; gives the exit code."""
    told = explain(error)
    if isinstance(told, InternalError):
        shown = f"{_traceback(error)}\n" if verbose else ""
        text = f"{shown}error: {_one_line(told, _write_report(error))}"
    else:
        text = f"error: {told}"
    with contextlib.suppress(OSError):  # the exit code must not depend on who reads stderr
        click.echo(printable(text), err=True)
    return told.exit_code


def _one_line(told: InternalError, report: Path | None) -> str:
    cause = f" ({told.why})" if told.why else ""
    words = " ".join(printable(f"{told.what}{cause}").split())
    short = words if len(words) <= LONGEST_LINE else f"{words[: LONGEST_LINE - 3]}..."
    send = (
        "run it again with --verbose and report what it says" if report is None else f"please report it with {report}"
    )
    return f"internal error: {short}; {send}"


def _text(error: Exception) -> str:
    """The first line of what an error says of itself, as far as it can say anything."""
    try:
        return first_line(str(error))
    except Exception:  # an error whose own text cannot be made is no reason to lose it
        return "its message cannot be shown"


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def _write_report(error: Exception) -> Path | None:
    """A file with the traceback, where it does not get lost; None where even that cannot be written.

    Nothing of the environment is in it, and no values of variables.
    """
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"version: {_version()}, python {platform.python_version()} on {platform.platform()}",
        _traceback(error),
    ]
    content = hide_secrets("\n".join(lines)).encode(errors="backslashreplace")
    path = None
    try:
        with tempfile.NamedTemporaryFile(prefix="precision-search-", suffix=".txt", delete=False) as file:
            path = Path(file.name)
            file.write(content)
    except BaseException as trouble:
        if path is not None:
            path.unlink(missing_ok=True)
        if isinstance(trouble, OSError):
            return None
        raise
    return path


def _version() -> str:
    try:
        return importlib.metadata.version("precision-search")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _detach_stdout() -> None:
    """Points stdout at nothing, so that the interpreter does not fail on it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
