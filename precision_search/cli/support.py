"""What all commands share: their common options, where their output goes, and finding run directories."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from precision_search.config import FORMER_RUNS, RUNS
from precision_search.errors import EnvironmentProblemError, InputError, UsageError
from precision_search.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from precision_search.judging.trial import SearchReporter
    from precision_search.records.pareto_table import ParetoTable

PROGRAM = "precision-search"
PIPED_WIDTH = 160
"""Characters a table may use where no terminal sets a width."""

_VERBOSE, _QUIET = f"{__name__}.verbose", f"{__name__}.quiet"
_SHOWN_RUNS = 10
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def _remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[f"{__name__}.{parameter.name}"] = True
    if _VERBOSE in ctx.meta and _QUIET in ctx.meta:
        raise click.UsageError("--quiet and --verbose exclude each other.", ctx)


def common_options(command: F) -> F:
    """Options that work before and after the name of a command."""
    quiet = click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_remember, help="Only data, warnings and errors."
    )
    verbose = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="Print every plan; show tracebacks.",
    )
    return quiet(verbose(command))


def is_verbose(ctx: click.Context) -> bool:
    """Whether `--verbose` was given, before or after the command."""
    return _VERBOSE in ctx.meta


def open_reporter(ctx: click.Context) -> SearchReporter:
    """The reporter that the options and stderr ask for; to be closed."""
    from precision_search.display.reporters import make_reporter

    return make_reporter(quiet=_QUIET in ctx.meta, verbose=_VERBOSE in ctx.meta)


def say(ctx: click.Context, text: str) -> None:
    """A message on stderr, unless `--quiet`."""
    if _QUIET not in ctx.meta:
        echo(text, err=True)


def echo(text: object, *, nl: bool = True, err: bool = False) -> None:
    """Prints a text, which is data unless `err`: the way of all that the command line prints but by a rich console."""
    click.echo(printable(str(text)), nl=nl, err=err)


def print_any_character() -> None:
    """Sentences hold any character; a stream that cannot show one must not end the command."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def print_rich(show: Callable[[Console], None]) -> None:
    """Prints what `show` puts on a console as wide as the terminal; elsewhere nothing limits a table."""
    from precision_search.display.live_line import make_console

    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = make_console(sys.stdout, None if has_width else PIPED_WIDTH)
    # Captured, because a rich console that meets a closed pipe exits by itself, with code 1.
    with console.capture() as captured:
        show(console)
    sys.stdout.write(captured.get())
    sys.stdout.flush()  # before what the command says next on the other stream


def print_table(table: ParetoTable, directory: Path, *, everything: bool = False) -> None:
    """Prints the Pareto table of the run in `directory`, and what else there is to know of it."""
    from precision_search.display import tables
    from precision_search.display import text_reports as reports
    from precision_search.records import run_files

    info = run_files.read_run(directory).info

    def show(console: Console) -> None:
        tables.render_rich(table if everything else table.shortened(), console)
        reports.show_best(info, console)
        reports.show_state(info, console)
        reports.show_ceiling(info, table, console)

    print_rich(show)


def latest_run(name: str) -> Path:
    """The run directory that `new_run` named last for a config of that name, where it makes them or made them before.

    Raises:
        UsageError: there is none.
    """
    pattern = re.compile(rf"{re.escape(name)}-\d{{8}}-\d{{6}}")
    runs = [
        path
        for folder in (RUNS, FORMER_RUNS)
        for path in folder.glob("*")
        if pattern.fullmatch(path.name) and path.is_dir()
    ]
    if not runs:
        raise UsageError(
            f"there is no run of {name} to resume",
            why=f"neither {RUNS.resolve()} nor {FORMER_RUNS} holds a directory {name}-<time>",
            fix="give the run directory with --out, or leave out --resume to start a run",
        )
    return max(runs, key=lambda path: path.name)


def check_run(path: Path) -> None:
    """Raises InputError where `path` is no run directory; it lists those there are, since they are easy to mistype."""
    if (path / "run.json").is_file():
        return
    why = "it has no run.json" if path.is_dir() else "it is a file" if path.exists() else "there is no such directory"
    folders = dict.fromkeys((path, path.parent, RUNS, FORMER_RUNS))
    runs = next((found for folder in folders if (found := sorted(folder.glob("*/run.json"), reverse=True))), [])
    listed = ", ".join(str(file.parent) for file in runs[:_SHOWN_RUNS])
    more = f" and {len(runs) - _SHOWN_RUNS} more" if len(runs) > _SHOWN_RUNS else ""
    fix = f"runs there are: {listed}{more}" if runs else f"start one: {PROGRAM} run MODEL --data FILE"
    raise InputError(f"{path} is not a run directory", why=why, fix=fix)


def tell_interrupted(config: Path, overrides: Sequence[str], out: Path, blocklist: Path | None) -> None:
    """Says how to go on with a run that was interrupted."""
    if not out.is_dir():
        echo("interrupted; nothing was written", err=True)
        return
    echo(f"interrupted; go on with: {_resume_command(config, overrides, out, blocklist)}", err=True)


@contextlib.contextmanager
def resumable(config: Path, overrides: Sequence[str], out: Path, blocklist: Path | None) -> Iterator[None]:
    """Trouble of the machine leaves a run that can go on: its message says how, once there is something to resume."""
    try:
        yield
    except EnvironmentProblemError as error:
        if not (out / "run.json").is_file():
            raise
        then = f"then go on with: {_resume_command(config, overrides, out, blocklist)}"
        error.fix = f"{error.fix.rstrip('.')}; {then}" if error.fix else then
        raise


def _resume_command(config: Path, overrides: Sequence[str], out: Path, blocklist: Path | None) -> str:
    command = [PROGRAM, "run", str(config), "--out", str(out), "--resume"]
    command += [part for override in overrides for part in ("--set", override)]
    command += [] if blocklist is None else ["--blocklist", str(blocklist)]
    return shlex.join(command)


def renamed(given: T | None, former: T | None, option: str, former_option: str) -> T | None:
    """What an option with a hidden former name was given as.

    Raises:
        UsageError: both were given.
    """
    if given is not None and former is not None:
        raise UsageError(
            f"{option} and {former_option} are given",
            why=f"{former_option} is the former name of {option}",
            fix=f"give {option} alone",
        )
    return former if given is None else given
