"""What a shell offers at the tab key beside commands, options and files: runs, their plans and columns, config keys.

In: what was typed so far. Out: click's completion items. All of it comes from a few small files, read without the
packages that commands need: a shell waits for it. Whatever is wrong with a file, a completion is empty and never an
error, which would land in the middle of what a person types.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class

from precision_search.config import FORMER_RUNS, RUNS
from precision_search.files import parse_json, read_file
from precision_search.printable import printable

Items = list[CompletionItem[str]]
Completer = Callable[[click.Context, click.Parameter, str], Items]

_BASH_ADDS, _ZSH_WORDS = "COMPREPLY+=($value)", "-U -V unsorted -a completions"


@add_completion_class
class Bash(BashComplete):
    """click's, except that no space follows `key=`."""

    source_template = BashComplete.source_template.replace(
        _BASH_ADDS, f"{_BASH_ADDS}\n            [[ $value == *= ]] && compopt -o nospace"
    )


@add_completion_class
class Zsh(ZshComplete):
    """click's, except that no space follows `key=`."""

    source_template = ZshComplete.source_template.replace(
        f"compadd {_ZSH_WORDS}",
        f"if [[ $completions[1] == *= ]]; then compadd -S '' {_ZSH_WORDS}; else compadd {_ZSH_WORDS}; fi",
    )


def _forgiving(complete: Completer) -> Completer:
    @functools.wraps(complete)
    def completed(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
        try:
            return complete(ctx, parameter, incomplete)
        except Exception:
            return []

    return completed


@_forgiving
def directories(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Directories, by the shell's own means."""
    return [CompletionItem(incomplete, type="dir")]


@_forgiving
def runs(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Run directories where `run` makes them, the latest first; elsewhere directories."""
    found = sorted(
        (file.parent for folder in (RUNS, FORMER_RUNS) for file in folder.glob("*/run.json")),
        key=lambda run: run.stat().st_mtime,
        reverse=True,
    )
    items = _starting(incomplete, ((str(run), None) for run in found))
    return items or directories(ctx, parameter, incomplete)


@_forgiving
def plans(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The ids of the stable plans of the run that was named before."""
    lines = read_file(_run(ctx) / "trials.jsonl").decode().splitlines(keepends=True)
    return _starting(incomplete, _stable(lines))


@_forgiving
def columns(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The columns of the table of the run that was named before."""
    lines = read_file(_run(ctx) / "pareto.csv").decode().splitlines(keepends=True)
    return _starting(incomplete, ((name, None) for name in next(csv.reader(lines))))


@_forgiving
def config_keys(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Keys of a config, as `--set` wants them."""
    from precision_search.config import Config
    from precision_search.toml_tables import key_names

    return _starting(incomplete, ((f"{key}=", None) for key in key_names(Config)))


def _run(ctx: click.Context) -> Path:
    # At an option that still lacks its value click stops before it looks at arguments.
    return Path(ctx.params["run_directory"] or ctx.args[0])


def _stable(lines: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    for line in lines:
        if not line.endswith("\n"):  # a run may be writing it
            return
        trial: dict[str, Any] = parse_json(line)
        if trial["verdict"] == "stable":
            latency = trial["latency"]
            speed = "" if latency is None else f", {latency['speedup']:.2f}x {latency['source']}"
            yield str(trial["id"]), f"{trial['stage']}{speed}"


def _starting(incomplete: str, words: Iterable[tuple[str, str | None]]) -> Items:
    return [
        CompletionItem(printable(word), help=about and printable(about))
        for word, about in words
        if word.startswith(incomplete)
    ]
