"""Publishing: a plan as a model directory in the layout that optimum and the Hub use, complete and checked.

In: the fp32 bundle, a plan, and what the run found out about it. Out: a directory that appears all at once, after it
was read back and held against the plan.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from precision_search.errors import EnvironmentProblemError
from precision_search.files import check_name, reason, refuse_existing, remedy
from precision_search.model.bundle import Bundle
from precision_search.model.generation_config import write_overridden
from precision_search.model.hf_files import copy_hf_files
from precision_search.model.layout import graph_file
from precision_search.model.onnx_files import write_model
from precision_search.precision.blocklist import blocklist_of_plan
from precision_search.precision.convert import Converted, convert
from precision_search.precision.plan import Plan, count_nodes
from precision_search.published.card import BaseModel, hub_id, model_card
from precision_search.published.check import check_published
from precision_search.published.facts import ModelFacts, PlanNumbers, PublishFacts, publish_facts
from precision_search.published.load import FACTS_FILE
from precision_search.published.provenance import annotate
from precision_search.records.run_files import (
    BLOCKLIST_FILE,
    write_blocklist,
    write_json_atomically,
    write_text_atomically,
)
from precision_search.records.run_json import SCHEMA_VERSION, GenerationInfo

__all__ = ["PublishFacts", "publish", "publish_facts"]

CARD_FILE = "README.md"


def publish(bundle: Bundle, plan: Plan, facts: PublishFacts, out: Path, converted: Converted | None = None) -> Path:
    """Writes the bundle under `plan` to the new directory `out` and gives it back.

    Three ONNX files with their provenance, config, generation config and tokenizer as they are in the bundle,
    `precision_search.json`, `blocklist.json` and a model card. The files are written beside `out`, read back, checked
    (see `check_published`) and only then moved there.

    Args:
        bundle: the fp32 model, with the variant of the plan.
        plan: what stays in fp32.
        facts: what is known of the plan.
        out: must not exist; directories above it are made.
        converted: the graphs under the plan, which are used up; None converts them.

    Raises:
        OutputExistsError: `out` exists.
        UsageError: its name is no text.
        EnvironmentProblemError: it cannot be written.
        InputError: the plan does not fit the bundle (see `convert`), or the bundle's files changed.
        InternalError: what was written is not what was meant; nothing is left of it.
    """
    check_name(out)
    refuse_existing(out)
    graphs = bundle.graphs_of(plan.variant)
    converted = converted or convert(graphs, plan)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
            work = Path(folder) / "model"
            work.mkdir()
            _write(work, bundle, plan, converted, facts)
            check_published(work, graphs, plan)
            bundle.files.check()  # weights are read when they are written
            refuse_existing(out)
            work.rename(out)
    except OSError as error:
        refuse_existing(out)
        raise EnvironmentProblemError(
            f"cannot write {out}", why=reason(error), fix=remedy(error, "give another --out")
        ) from error
    return out


def _write(work: Path, bundle: Bundle, plan: Plan, converted: Converted, facts: PublishFacts) -> None:
    graphs = bundle.graphs_of(plan.variant)
    blocklist = blocklist_of_plan(plan, graphs)
    counts = count_nodes(graphs, plan)
    described = ModelFacts(
        schema_version=SCHEMA_VERSION,
        tool_version=facts.tool_version,
        plan=blocklist,
        plan_digest=plan.digest,
        model_name=facts.model_name,
        content_hash=bundle.content_hash,
        settings=facts.settings,
        verdict=facts.verdict,
        samples=facts.samples,
        versions=facts.versions,
        numbers=PlanNumbers(
            compute_nodes=counts.fp32_nodes + counts.low_nodes,
            fp32_nodes=counts.fp32_nodes,
            casts=converted.casts,
            size_bytes=converted.size_bytes,
            fp32_decisions=counts.fp32_decisions,
            decisions=counts.decisions,
        ),
        latency=facts.latency,
        workload=facts.workload,
        judged=facts.judged,
        generation=GenerationInfo(bundle.generation.overridden, bundle.generation.content_hash),
    )
    for name, model in converted.models.items():
        annotate(model, graphs[name], plan, described, facts.reasons)
        write_model(model, work / graph_file(name))
    copy_hf_files(bundle.path, work)
    write_overridden(work, bundle.generation)
    write_blocklist(work / BLOCKLIST_FILE, blocklist)
    write_json_atomically(work / FACTS_FILE, described)
    base = BaseModel(bundle.config.model_type, hub_id(bundle.checkpoint or bundle.path))
    write_text_atomically(work / CARD_FILE, model_card(described, base))
