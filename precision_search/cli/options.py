"""Options that several commands have, or that one has several of; the common ones are in `support`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from precision_search.config import MOST, LatencySection, WorkloadSection

F = TypeVar("F", bound=Callable[..., Any])
Format = Literal["text", "json"]

PATH = click.Path(path_type=Path)
FORMAT = click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
COLUMN = click.option(
    "--column",
    metavar="NAME",
    help="The column of sentences in a .jsonl, .csv, .tsv or .parquet file. [default: input, text or source]",
)
DEVICE_ID = click.option(
    "--device-id", type=click.IntRange(min=0), default=0, show_default=True, help="Which CUDA device."
)


def sentence_options(command: F) -> F:
    """What a model is judged by: `data`, `validation`, `test`, `column` and `prefix`."""
    for option in (
        click.option("--prefix", default="", help="Put before each sentence."),
        COLUMN,
        click.option("--test", type=PATH, metavar="FILE", help="Sentences to test with, instead of a part of --data."),
        click.option(
            "--validation", type=PATH, metavar="FILE", help="Sentences to validate with, instead of a part of --data."
        ),
        click.option("--data", type=PATH, metavar="FILE", help="Sentences: one a line, or a file with columns."),
    ):
        command = option(command)
    return command


def workload_options(command: F) -> F:
    """The workload that an estimate is for, and the device: `batch`, `source_length`, `target_length`, `gpu`."""
    default = WorkloadSection()
    for option in (
        click.option(
            "--gpu",
            metavar="PROFILE",
            help="The device that estimates are for: a built-in profile (t4, a10g, l4, a100, h100) or a "
            f".toml file. [default: {LatencySection().profile}; a10g for bfloat16]",
        ),
        _size("--target-length", default.target_length, "Tokens of each target there."),
        _size("--source-length", default.source_length, "Tokens of each source there."),
        _size("--batch", default.batch, "Sentences in a batch of the workload that estimates are for."),
    ):
        command = option(command)
    return command


def _size(name: str, default: int, text: str) -> Callable[[F], F]:
    return click.option(name, type=click.IntRange(1, MOST), default=default, show_default=True, help=text)
