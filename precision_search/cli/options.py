"""Options that several commands have, or that one has several of; the common ones are in `support`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import click

from precision_search.config import MOST, LatencySection, WorkloadSection

F = TypeVar("F", bound=Callable[..., Any])
Format = Literal["text", "json"]

FORMAT = click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
DEVICE_ID = click.option(
    "--device-id", type=click.IntRange(min=0), default=0, show_default=True, help="Which CUDA device."
)


def workload_options(command: F) -> F:
    """The workload that an estimate is for, and the device: `batch`, `source_length`, `target_length`, `gpu`."""
    default = WorkloadSection()
    for option in (
        click.option(
            "--gpu",
            metavar="PROFILE",
            help="The device that the ceiling is estimated for: a built-in profile (t4, a10g, l4, a100, h100) or a "
            f".toml file. [default: {LatencySection().profile}; a10g for bfloat16]",
        ),
        _size("--target-length", default.target_length, "Tokens of each target there."),
        _size("--source-length", default.source_length, "Tokens of each source there."),
        _size("--batch", default.batch, "Sentences in a batch of the workload that the ceiling is for."),
    ):
        command = option(command)
    return command


def _size(name: str, default: int, text: str) -> Callable[[F], F]:
    return click.option(name, type=click.IntRange(1, MOST), default=default, show_default=True, help=text)
