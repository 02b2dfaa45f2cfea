"""The command line: `precision-search run | pareto | report | export | verify | inspect | calibrate | doctor`.

Data goes to stdout, progress and messages to stderr. Only click is imported here: what a command needs it imports
itself, so that `--help` is immediate.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from precision_search.cli import completion
from precision_search.cli.failures import INTERRUPTED, guarded, interrupt_on_signals
from precision_search.cli.support import (
    PROGRAM,
    RUNS,
    check_run,
    common_options,
    echo,
    is_verbose,
    latest_run,
    new_run,
    open_reporter,
    print_any_character,
    print_rich,
    renamed,
    resumable,
    say,
    tell_interrupted,
)
from precision_search.errors import VerificationError
from precision_search.files import refuse_existing

if TYPE_CHECKING:
    from rich.console import Console

    from precision_search.records.pareto_table import ParetoTable

_PATH = click.Path(path_type=Path)
_FORMAT = click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
_DEVICE_ID = click.option(
    "--device-id", type=click.IntRange(min=0), default=0, show_default=True, help="Which CUDA device."
)

Format = Literal["text", "json"]


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
    """Find the fastest fp16/fp32 version of your T5 that still generates the same tokens as fp32.

    Exit codes: 0 done; 1 done, but no stable plan is faster than fp32, or a verification failed; 2 usage, config or
    input; 3 environment; 4 internal error; 130 interrupted.
    """


@cli.command(short_help="Search for the fastest stable plan of a model.")
@click.argument("config", type=_PATH)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completion.config_keys,
    help="Override a key of the config, such as search.max_trials=50. May be given several times.",
)
@click.option(
    "--out", type=_PATH, help=f"The run directory; it must not exist. [default: {RUNS}/<config name>-<UTC time>]"
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or with the latest run of this config.")
@click.option("--dry-run", is_flag=True, help="Print the resolved config and the search space; judge nothing.")
@click.option("--blocklist", type=_PATH, metavar="FILE", help="Judge this blocklist.json instead of searching.")
@click.option("--plan", "former", type=_PATH, hidden=True, help="The former name of --blocklist.")
@common_options
@click.pass_context
def run(
    ctx: click.Context,
    *,
    config: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    dry_run: bool,
    blocklist: Path | None,
    former: Path | None,
) -> None:
    """Search for the fastest stable plan of the model that CONFIG names, and write a run directory.

    Prints the Pareto table. The run directory holds the resolved config, every judged plan, the table, the blocklist
    and the winner's ONNX graphs in `model/`.
    """
    from precision_search.config import load_config

    blocklist = renamed(blocklist, former, "--blocklist", "--plan")
    resolved = load_config(config, overrides)
    if out is None:
        out = latest_run(resolved.name) if resume else new_run(resolved.name)
    from precision_search import api

    with open_reporter(ctx) as reporter:
        if dry_run:
            echo(api.dry_run(resolved, reporter=reporter), nl=False)
            return
        try:
            with resumable(config, overrides, out, blocklist):
                result = api.search(resolved, out, resume=resume, blocklist=blocklist, reporter=reporter)
        except KeyboardInterrupt:
            reporter.close()
            tell_interrupted(config, overrides, out, blocklist)
            ctx.exit(INTERRUPTED)
    if result.trials:
        _print_table(result.table, result.directory)
    say(ctx, f"run:    {result.directory}")
    if result.report is not None:
        say(ctx, f"report: {result.report}")
    if result.interrupted:
        tell_interrupted(config, overrides, out, blocklist)
    else:
        say(ctx, f"model:  {result.directory / 'model'}{'' if result.choice.faster else ' (fp32: nothing is faster)'}")
    ctx.exit(result.exit_code)


@cli.command(short_help="Print the Pareto table of a run.")
@click.argument("run_directory", metavar="RUN", type=_PATH, shell_complete=completion.runs)
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
        _print_table(table, run_directory, everything=everything)


@cli.command(short_help="Write the report of a run, for a browser.")
@click.argument("run_directory", metavar="RUN", type=_PATH, shell_complete=completion.runs)
@click.option("--out", type=_PATH, help="The file to write; it must not exist. [default: RUN/report.html, replaced]")
@common_options
def report(run_directory: Path, out: Path | None) -> None:
    """Write the report of the run in the directory RUN as one HTML file that needs no network; prints its path.

    A run writes it at its end. The run may be unfinished or have been killed.
    """
    check_run(run_directory)
    from precision_search import api

    echo(api.report(run_directory, out))


@cli.command(short_help="Write the model of a stable plan of a run.")
@click.argument("run_directory", metavar="RUN", type=_PATH, shell_complete=completion.runs)
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
@click.option("--out", type=_PATH, required=True, help="The model directory to write; it must not exist.")
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
@click.argument("model", metavar="MODEL_DIR", type=_PATH, shell_complete=completion.directories)
@click.option(
    "--reference",
    required=True,
    help="The fp32 model: checkpoint directory, ONNX directory or hub id.",
    shell_complete=completion.directories,
)
@click.option("--data", type=_PATH, required=True, help="Sentences, one a line, or JSONL with `input`.")
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
@_DEVICE_ID
@click.option(
    "--min-exact-match",
    type=click.FloatRange(0.0, 1.0),
    default=1.0,
    show_default=True,
    help="Share of sentences that must give the same tokens; below it the exit code is 1.",
)
@_FORMAT
@common_options
@click.pass_context
def verify(
    ctx: click.Context,
    *,
    model: Path,
    reference: str,
    data: Path,
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
@click.option("--data", type=_PATH, help="Sentences to measure the ranges of activations on.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16"]),
    default="float16",
    show_default=True,
    help="The low dtype in question.",
)
@_FORMAT
@common_options
@click.pass_context
def inspect(
    ctx: click.Context, model: str, data: Path | None, dtype: Literal["float16", "bfloat16"], style: Format
) -> None:
    """Show the graphs of MODEL (a directory or hub id): op types, roles, what is searchable and what is not, and why.

    The JSON form lists every node key too.
    """
    from precision_search import api
    from precision_search.display import text_reports as reports

    with open_reporter(ctx) as reporter:
        report = api.inspect(model, data=data, dtype=dtype, reporter=reporter)
    if style == "json":
        echo(reports.report_json(report), nl=False)
    else:
        print_rich(lambda console: reports.show_inspect(report, console))


@cli.command(short_help="Measure a CUDA device for the cost model.")
@click.option("--out", type=_PATH, required=True, metavar="PROFILE", help="The profile to write, a .toml file.")
@_DEVICE_ID
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
@_FORMAT
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


def _print_table(table: ParetoTable, directory: Path, *, everything: bool = False) -> None:
    from precision_search.display import tables
    from precision_search.display import text_reports as reports
    from precision_search.records import run_files

    info = run_files.read_run(directory).info

    def show(console: Console) -> None:
        tables.render_rich(table if everything else table.shortened(), console)
        reports.show_best(info, console)
        reports.show_state(info, console)

    print_rich(show)


if __name__ == "__main__":
    main()
