"""The model of any stable plan of a run, from the run's files and the model that was searched."""

from __future__ import annotations

from pathlib import Path

from precision_search.config import load_config
from precision_search.errors import UsageError, counted
from precision_search.model.bundle import open_bundle
from precision_search.model.variants import with_variants
from precision_search.published.publish import publish, publish_facts
from precision_search.records import run_files
from precision_search.records.nodes_json import nodes_file, read_nodes
from precision_search.reporting import Reporter


def publish_from_run(run: Path, out: Path, plan: int | None, reporter: Reporter) -> Path:
    """Writes the model of a plan to the new directory `out`; None is the winner of what was judged so far.

    Raises:
        UsageError: `run` is no run directory; no such plan, or it is not stable; the model is no longer the one that
            was searched.
        OutputExistsError: `out` exists.
    """
    found, config = run_files.read_run(run), load_config(run / run_files.CONFIG_FILE)
    judged = counted(len(found.trials), "plan")
    if plan is None:
        trial = run_files.choice_of(found, config.requirement).trial
    else:
        trial = next((trial for trial in found.trials if trial.id == plan), None)
    if trial is None or trial.verdict != "stable":
        raise UsageError(
            f"{run} has no stable plan" + ("" if plan is None else f" {plan}"),
            why=f"it judged {judged}" if trial is None else f"its verdict is {trial.verdict}",
            fix="`precision-search pareto RUN` lists the stable ones",
        )
    variant = trial.plan.variant
    nodes = read_nodes(run, variant) if (run / nodes_file(variant)).exists() else None
    bundle = open_bundle(
        config.model.path,
        config.model.cache,
        max_new_tokens=config.generation.max_new_tokens,
        overrides=config.generation.overrides,
        reporter=reporter,
    )
    if bundle.content_hash != found.info.model.content_hash:
        raise UsageError(
            f"the model in {config.model.path} is not the one that {run} searched",
            why="its content hash is another",
            fix="restore the model, or run the search again",
        )
    if found.info.generation.content_hash not in (None, bundle.generation.content_hash):
        raise UsageError(
            f"the model in {config.model.path} chooses tokens otherwise than when {run} judged it",
            why="its generation config is another",
            fix="restore generation_config.json, or run the search again",
        )
    if found.info.status != "complete":
        what = "the best of" if plan is None else "one of"
        reporter.warn(f"{run} is unfinished: plan {trial.id} is {what} the {judged} judged so far")
    reporter.stage(f"writing {out}")
    bundle = with_variants(bundle, [variant])
    return publish(bundle, trial.plan.plan, publish_facts(found.info, nodes, trial, config.requirement), out)
