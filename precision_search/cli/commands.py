"""The command line: `precision-search run | init | pareto | report | export | verify | inspect | calibrate | doctor`.

Data goes to stdout, progress and messages to stderr. Only click is imported here: what a command needs it imports
itself, so that `--help` is immediate.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from precision_search.cli import completion
from precision_search.cli.failures import guarded, interrupt_on_signals
from precision_search.cli.options import COLUMN, DEVICE_ID, FORMAT, PATH, Format, workload_options
from precision_search.cli.searching import init, run
from precision_search.cli.support import (
    PROGRAM,
    check_run,
    common_options,
    echo,
    is_verbose,
    open_reporter,
    print_any_character,
    print_rich,
    print_table,
    renamed,
)
from precision_search.errors import VerificationError
from precision_search.files import refuse_existing


class _Commands(click.Group):
    """The commands; whatever goes wrong in one ends in a message and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        with guarded(ctx, verbose=lambda: is_verbose(ctx)):
            result: object = super().invoke(ctx)
            sys.stdout.flush()  # here, where a closed pipe is still caught
            return result


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name=PROGRAM, prog_name=PROGRAM, message="%(prog)s %(version)s")
@common_options
def cli() -> None:
    """Find the fastest fp16/fp32 version of your T5 that generates the same tokens as fp32 on every calibration
    sentence, and see how often it differs on new text.

    Exit codes: 0 done; 1 done, but fp32 is published (no plan is faster, or none keeps what is required), or a
    verification failed; 2 usage, config or input; 3 environment; 4 internal error; 130 interrupted.
    """


cli.add_command(run)
cli.add_command(init)


@cli.command(short_help="Print the Pareto table of a run.")
@click.argument("run_directory", metavar="RUN", type=PATH, shell_complete=completion.runs)
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Order the rows by this column, the best first.",
    shell_complete=completion.columns,
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "json", "csv", "md"]),
    default="table",
    show_default=True,
    help="json and csv hold every stable plan and every rejected landmark.",
)
@click.option("--all", "everything", is_flag=True, help="Show every stable plan, not only the best.")
@common_options
def pareto(run_directory: Path, sort: str | None, style: str, everything: bool) -> None:
    """Print the Pareto table of the run in the directory RUN."""
    check_run(run_directory)
    from precision_search import api
    from precision_search.display import tables
    from precision_search.records.pareto_table import to_csv

    table = api.pareto(run_directory)
    table = table if sort is None else table.sorted_by(sort)
    if style == "json":
        echo(tables.to_json(table), nl=False)
    elif style == "csv":
        echo(to_csv(table), nl=False)
    elif style == "md":
        echo(tables.to_markdown(table if everything else table.shortened()), nl=False)
    else:
        print_table(table, run_directory, everything=everything)


@cli.command(short_help="Write the report of a run, for a browser.")
@click.argument("run_directory", metavar="RUN", type=PATH, shell_complete=completion.runs)
@click.option("--out", type=PATH, help="The file to write; it must not exist. [default: RUN/report.html, replaced]")
@common_options
def report(run_directory: Path, out: Path | None) -> None:
    """Write the report of the run in the directory RUN as one HTML file that needs no network; prints its path.

    A run writes it at its end. The run may be unfinished or have been killed.
    """
    check_run(run_directory)
    from precision_search import api

    echo(api.report(run_directory, out))


@cli.command(short_help="Write the model of a stable plan of a run.")
@click.argument("run_directory", metavar="RUN", type=PATH, shell_complete=completion.runs)
@click.option(
    "--plan",
    type=int,
    metavar="ID",
    help="The id of a stable plan in the Pareto table. [default: the winner]",
    shell_complete=completion.plans,
)
@click.option(
    "--candidate",
    "former",
    type=int,
    hidden=True,
    help="The former name of --plan.",
    shell_complete=completion.plans,
)
@click.option("--out", type=PATH, required=True, help="The model directory to write; it must not exist.")
@common_options
@click.pass_context
def export(ctx: click.Context, *, run_directory: Path, plan: int | None, former: int | None, out: Path) -> None:
    """Write the ONNX graphs of a stable plan of the run in the directory RUN; prints the model directory."""
    plan = renamed(plan, former, "--plan", "--candidate")
    check_run(run_directory)
    refuse_existing(out)
    from precision_search import api

    with open_reporter(ctx) as reporter:
        written = api.publish(run_directory, out, plan=plan, reporter=reporter)
    echo(written)


@cli.command(short_help="Compare a model's tokens with those of fp32.")
@click.argument("model", metavar="MODEL_DIR", type=PATH, shell_complete=completion.directories)
@click.option(
    "--reference",
    required=True,
    help="The fp32 model: checkpoint directory, ONNX directory or hub id.",
    shell_complete=completion.directories,
)
@click.option("--data", type=PATH, required=True, help="Sentences: one a line, or a file with columns.")
@COLUMN
@click.option("--prefix", default="", help="Put before each sentence.")
@click.option("--max-length", type=click.IntRange(min=1), help="Longest source in tokens. [default: the model's]")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Sentences at once.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where both models run; auto is CUDA where it works.",
)
@DEVICE_ID
@click.option(
    "--min-exact-match",
    type=click.FloatRange(0.0, 1.0),
    default=1.0,
    show_default=True,
    help="Share of sentences that must give the same tokens; below it the exit code is 1.",
)
@FORMAT
@common_options
@click.pass_context
def verify(
    ctx: click.Context,
    *,
    model: Path,
    reference: str,
    data: Path,
    column: str | None,
    prefix: str,
    max_length: int | None,
    batch_size: int,
    device: Literal["auto", "cpu", "cuda"],
    device_id: int,
    min_exact_match: float,
    style: Format,
) -> None:
    """Generate with the model in MODEL_DIR and with its fp32 reference, and report exact match and what differs.

    Without a CUDA device the model's low-precision kernels are emulated: the plain CPU path would hide what a GPU
    computes.
    """
    from precision_search import api
    from precision_search.display import text_reports as reports
    from precision_search.records.wording import share

    with open_reporter(ctx) as reporter:
        report = api.verify(
            model,
            reference,
            data,
            column=column,
            prefix=prefix,
            max_length=max_length,
            batch_size=batch_size,
            device=device,
            device_id=device_id,
            reporter=reporter,
        )
        for warning in report.warnings:
            reporter.warn(warning)
    if style == "json":
        echo(reports.report_json(report), nl=False)
    else:
        print_rich(lambda console: reports.show_verify(report, console))
    if report.exact_match < min_exact_match:
        raise VerificationError(
            f"{model} keeps {share(report.exact_match)} of the samples exactly",
            why=f"--min-exact-match asks for {share(min_exact_match)}",
            fix="look at the differing samples; near-ties of fp32 flip under any rounding",
        )


@cli.command(short_help="Show what a model is made of and what is searchable.")
@click.argument("model", shell_complete=completion.directories)
@click.option("--data", type=PATH, help="Sentences to measure the ranges of activations on.")
@COLUMN
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16"]),
    default="float16",
    show_default=True,
    help="The low dtype in question.",
)
@workload_options
@FORMAT
@common_options
@click.pass_context
def inspect(
    ctx: click.Context,
    *,
    model: str,
    data: Path | None,
    column: str | None,
    dtype: Literal["float16", "bfloat16"],
    batch: int,
    source_length: int,
    target_length: int,
    gpu: str | None,
    style: Format,
) -> None:
    """Show the graphs of MODEL (a directory or hub id): op types, roles, what is searchable and what is not, and why,
    and the ceiling: what a search could gain at most, by an estimate.

    The JSON form lists every node key too.
    """
    from precision_search import api
    from precision_search.display import text_reports as reports

    with open_reporter(ctx) as reporter:
        report = api.inspect(
            model,
            data=data,
            column=column,
            dtype=dtype,
            batch=batch,
            source_length=source_length,
            target_length=target_length,
            gpu=gpu,
            reporter=reporter,
        )
    if style == "json":
        echo(reports.report_json(report), nl=False)
    else:
        print_rich(lambda console: reports.show_inspect(report, console))


@cli.command(short_help="Measure a CUDA device for the cost model.")
@click.option("--out", type=PATH, required=True, metavar="PROFILE", help="The profile to write, a .toml file.")
@DEVICE_ID
@click.option("--force", is_flag=True, help="Replace PROFILE if it exists.")
@common_options
@click.pass_context
def calibrate(ctx: click.Context, *, out: Path, device_id: int, force: bool) -> None:
    """Measure what launches cost on a CUDA device and how fast its memory and its matrix products are.

    Takes minutes and wants the device for itself. Writes PROFILE for `--set latency.profile=PROFILE`, so that machines
    without the device can estimate for it, and every time beside it. Prints its path. Without CUDA the exit code is 3.
    """
    from precision_search import api

    with open_reporter(ctx) as reporter:
        api.calibrate(out, device_id=device_id, force=force, reporter=reporter)
    echo(out)


@cli.command(short_help="Show what this machine can run.")
@FORMAT
@common_options
@click.pass_context
def doctor(ctx: click.Context, style: Format) -> None:
    """Show what this machine can run, and how to get the rest. Exit code 3 if a needed package is missing."""
    # Not through `api`, which imports what may be missing.
    from precision_search.display import text_reports as reports
    from precision_search.machine.doctor import examine

    report = examine()
    if style == "json":
        echo(reports.report_json(report), nl=False)
    else:
        print_rich(lambda console: reports.show_doctor(report, console))
    ctx.exit(3 if report.missing else 0)


def main() -> None:
    """The entry point of the installed command."""
    interrupt_on_signals()
    print_any_character()
    cli.main(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
