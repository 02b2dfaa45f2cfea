"""The commands `run` and `init`: a search from a config, or from a model and a file of sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from precision_search.cli import completion
from precision_search.cli.failures import INTERRUPTED
from precision_search.cli.options import PATH, sentence_options, workload_options
from precision_search.cli.support import (
    common_options,
    echo,
    latest_run,
    open_reporter,
    print_table,
    renamed,
    resumable,
    say,
    tell_interrupted,
)
from precision_search.config import RUNS, new_run
from precision_search.errors import UsageError

if TYPE_CHECKING:
    from precision_search.config import Config
    from precision_search.judging.sample_sets import SetName
    from precision_search.judging.trial import SearchReporter
    from precision_search.model.samples import SampleSet
    from precision_search.run.from_data import FromData


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be run.

    Attributes:
        config: the config.
        out: the run directory.
        source: the config file that goes on with it.
        overrides: of that file.
        samples: sets that are in no file yet; the options of `api.search` for them.
        summary: what became of the sentences.
    """

    config: Config
    out: Path
    source: Path
    overrides: tuple[str, ...]
    samples: Mapping[str, Mapping[SetName, SampleSet]]
    summary: str = ""


@click.command(short_help="Search for the fastest stable plan of a model.")
@click.argument("source", metavar="CONFIG|MODEL", type=click.Path())
@sentence_options
@workload_options
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completion.config_keys,
    help="Override a key of the config, such as search.max_trials=50. May be given several times.",
)
@click.option("--out", type=PATH, help=f"The run directory; it must not exist. [default: {RUNS}/<name>-<UTC time>]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or with the latest run of this name.")
@click.option("--dry-run", is_flag=True, help="Print the resolved config and the search space; judge nothing.")
@click.option("--blocklist", type=PATH, metavar="FILE", help="Judge this blocklist.json instead of searching.")
@click.option("--plan", "former", type=PATH, hidden=True, help="The former name of --blocklist.")
@common_options
@click.pass_context
def run(
    ctx: click.Context,
    /,
    *,
    source: str,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    dry_run: bool,
    blocklist: Path | None,
    former: Path | None,
    **options: Any,
) -> None:
    """Search for the fastest stable plan of a model, and write a run directory.

    Give a config, whose name ends in .toml; or a MODEL (a checkpoint directory, a directory of ONNX graphs, or a hub
    id) and --data FILE. Of the different sentences in FILE, 40% calibrate, 30% validate and 30% test, unless
    --validation or --test give others.

    Prints the Pareto table. The run directory holds the resolved config, every judged plan, the table, the blocklist
    and the winner's ONNX graphs in `model/`.
    """
    blocklist = renamed(blocklist, former, "--blocklist", "--plan")
    make = _from_config if source.lower().endswith(".toml") else _from_data
    job = make(ctx, source, overrides, out, resume=resume, **options)
    from precision_search import api

    with open_reporter(ctx) as reporter:
        if job.summary:
            reporter.note(job.summary)
        if dry_run:
            echo(api.dry_run(job.config, **job.samples, reporter=reporter), nl=False)
            return
        result = _search(ctx, job, reporter, resume=resume, blocklist=blocklist)
    if result.trials:
        print_table(result.table, result.directory)
    say(ctx, f"run:    {result.directory}")
    if result.report is not None:
        say(ctx, f"report: {result.report}")
    if result.interrupted:
        tell_interrupted(job.source, job.overrides, job.out, blocklist)
    else:
        say(ctx, f"model:  {result.directory / 'model'}{result.choice.why_fp32}")
    ctx.exit(result.exit_code)


def _search(ctx: click.Context, job: _Job, reporter: SearchReporter, *, resume: bool, blocklist: Path | None) -> Any:
    """Searches; an interruption ends in a line that says how to go on."""
    from precision_search import api

    try:
        with resumable(job.source, job.overrides, job.out, blocklist):
            return api.search(job.config, job.out, resume=resume, blocklist=blocklist, **job.samples, reporter=reporter)
    except KeyboardInterrupt:
        reporter.close()
        tell_interrupted(job.source, job.overrides, job.out, blocklist)
        ctx.exit(INTERRUPTED)


@click.command(short_help="Write the config of a run, from a model and a file of sentences.")
@click.argument("model", shell_complete=completion.directories)
@sentence_options
@workload_options
@click.option("-o", "--out", type=PATH, help="The config to write; it must not exist. [default: <name of MODEL>.toml]")
@common_options
@click.pass_context
def init(ctx: click.Context, /, *, model: str, out: Path | None, **options: Any) -> None:
    """Write the config that `run MODEL --data FILE` would run, to look at and to change; prints its path.

    The sets go into a folder beside it.
    """
    from precision_search.run.from_data import name_of, write_config

    _need_data(model, options["data"])
    path = Path(f"{name_of(model)}.toml") if out is None else out
    if path.suffix.lower() != ".toml":
        raise UsageError(f"{path} is no name for a config", why="it does not end in .toml", fix=f"give -o {path}.toml")
    folder = path.with_name(f"{path.stem}-data")
    made = _make(model, (), path, folder, relative=True, **options)
    write_config(made, path, folder)
    say(ctx, made.summary)
    echo(path)


def _from_config(
    ctx: click.Context, source: str, overrides: tuple[str, ...], out: Path | None, *, resume: bool, **options: Any
) -> _Job:
    from precision_search.config import load_config

    if given := [name for name in options if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]:
        option = f"--{given[0].replace('_', '-')}"
        raise UsageError(
            f"{option} goes with a model, not with a config",
            why=f"{source} says it, or has the default",
            fix=f"write it into {source}, or give it with --set",
        )
    path = Path(source)
    config = load_config(path, overrides)
    if out is None:
        out = latest_run(config.name) if resume else new_run(config.name)
    return _Job(config, out, path, overrides, {})


def _from_data(
    ctx: click.Context, source: str, overrides: tuple[str, ...], out: Path | None, *, resume: bool, **options: Any
) -> _Job:
    _need_data(source, options["data"])
    from precision_search.run.from_data import name_of, run_places

    name = name_of(source)
    if out is None:
        out = latest_run(name) if resume else new_run(name)
    path, folder = run_places(out)
    made = _make(source, overrides, path, folder, **options)
    return _Job(made.config, out, path, (), {"samples": made.samples}, made.summary)


def _need_data(source: str, data: Path | None) -> None:
    if data is None:
        is_file = Path(source).is_file()
        raise UsageError(
            f"{source} is no config" if is_file else f"there are no sentences to judge {source} by",
            why="the name of a config ends in .toml" if is_file else "--data is not given",
            fix="rename it" if is_file else "add --data FILE; or give a config, whose name ends in .toml",
        )


def _make(
    model: str,
    overrides: tuple[str, ...],
    path: Path,
    folder: Path,
    *,
    relative: bool = False,
    data: Path,
    validation: Path | None,
    test: Path | None,
    column: str | None,
    prefix: str,
    batch: int,
    source_length: int,
    target_length: int,
    gpu: str | None,
) -> FromData:
    from precision_search.config import WorkloadSection
    from precision_search.run.from_data import Wishes, check_model, from_data, read_sets

    check_model(model)
    workload = WorkloadSection(batch, source_length, target_length)
    wishes = Wishes(prefix, workload, gpu, overrides)
    return from_data(model, read_sets(data, validation, test, column), wishes, path, folder, relative=relative)
