"""What a run would do, as text: the resolved config, what it could gain at most, and the search space."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from precision_search.config import Config, to_toml
from precision_search.judging.ceiling import find_ceiling
from precision_search.judging.sample_sets import SetName
from precision_search.model.graph import BASE_VARIANT
from precision_search.model.samples import SampleSet
from precision_search.records.wording import ceiling_line
from precision_search.reporting import Reporter
from precision_search.run.prepare import prepare
from precision_search.strategies.space import SpaceReport


def dry_run(config: Config, reporter: Reporter, samples: Mapping[SetName, SampleSet] = MappingProxyType({})) -> str:
    """The resolved config as TOML, then the ceiling and the search space as comments; judges nothing and writes no
    run. `samples` are sets in memory, as for `search`."""
    prepared = prepare(config, reporter, samples)
    estimate = prepared.estimate(config)
    ceiling = find_ceiling(estimate, config.search.dtype, prepared.pins)
    lines = [to_toml(config).rstrip(), "", f"# {ceiling_line(ceiling, estimate.workload)}"]
    for variant, found in prepared.variants.items():
        of_variant = "" if variant == BASE_VARIANT else f", variant {variant}"
        lines += ["", f"# The search space of strategy {config.search.strategy}{of_variant}"]
        lines += _space_lines(config, found.space)
    return "\n".join(lines) + "\n"


def _space_lines(config: Config, report: SpaceReport) -> list[str]:
    lines = []
    for family, op_types in report.space.op_types.items():
        hard = report.space.hard[family]
        lines.append(f"# {family}: {', '.join(op_types) or 'nothing'}")
        lines.append(f"#   of these beyond the range of {config.search.dtype}: {', '.join(sorted(hard)) or 'none'}")
    lines.append(f"# compute nodes that stay in fp32 in every plan: {len(report.fixed)}")
    lines.extend(f"#   {key}: {reason}" for key, reason in sorted(report.fixed.items()))
    lines.append(f"# nodes beyond the range with the safety factor {config.search.range_safety:g}: {len(report.hard)}")
    lines.extend(f"#   {key}: {largest:.4g}" for key, largest in sorted(report.hard.items(), key=lambda item: -item[1]))
    return lines
