"""How a command ends when something goes wrong: one message, what, why and fix, and the exit code of its kind."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from precision_search.errors import EnvironmentProblemError, InternalError, MissingPackageError, PrecisionSearchError

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells count."""

_MACHINE_TROUBLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


@contextlib.contextmanager
def guarded(ctx: click.Context, verbose: Callable[[], bool]) -> Iterator[None]:
    """Turns whatever a command raises into a message on stderr and `ctx.exit`; click's own exceptions pass.

    A reader that closed stdout is no error: the command ends quietly with 0.
    """
    try:
        yield
    except (click.ClickException, click.Abort, click.exceptions.Exit):
        raise
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        ctx.exit(INTERRUPTED)
    except BrokenPipeError:
        _detach_stdout()
        ctx.exit(0)
    except Exception as error:
        told = explain(error)
        if isinstance(told, InternalError):
            told = _with_report(told, error)
            if verbose():
                click.echo("".join(traceback.format_exception(error)), err=True)
        click.echo(f"error: {told}", err=True)
        ctx.exit(told.exit_code)


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
    if isinstance(error, OSError) and error.errno in _MACHINE_TROUBLE:
        return EnvironmentProblemError(
            f"{error.filename or 'a file'} cannot be used",
            why=error.strerror or str(error),
            fix="check the path, its permissions and the free space",
        )
    lines = str(error).strip().splitlines()
    return InternalError(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def _with_report(told: InternalError, error: Exception) -> InternalError:
    report = _write_report(error)
    kept = "" if report is None else f" and send {report}"
    return InternalError(
        told.what, why=told.why or "a bug in precision-search", fix=told.fix or f"please report it{kept}"
    )


def _write_report(error: Exception) -> Path | None:
    """A file with the traceback, where it does not get lost; None where even that cannot be written."""
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"python: {platform.python_version()} on {platform.platform()}",
        *traceback.format_exception(error),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="precision-search-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write("\n".join(lines))
    except OSError:
        return None
    return Path(file.name)


def _detach_stdout() -> None:
    """Points stdout at nothing, so that the interpreter does not fail on it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
