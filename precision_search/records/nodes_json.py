"""What a run knew of each compute node before the first plan: `nodes.json`.

In: the bundle's graphs, their ranges, and what has no choice. Out: a record that a reader of the run directory needs to
say where in the model a plan keeps fp32, and why. The field names are the file's keys.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from precision_search.judging.ranges import NodeRange, hard_set
from precision_search.model.graph import BASE_VARIANT, Family, Graph, GraphName
from precision_search.precision.low import LowDtype, low_max, smallest_normal
from precision_search.records.run_json import SCHEMA_VERSION, read_record

NODES_FILE = "nodes.json"


def nodes_file(variant: str) -> str:
    """The file of a variant: `nodes.json` of the base graphs, `nodes-NAME.json` of another."""
    return NODES_FILE if variant == BASE_VARIANT else f"nodes-{variant}.json"


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One compute node; the same computation in both decoder graphs is one.

    Attributes:
        key: its key.
        family: whose decision it is.
        op_type: ONNX op type.
        role: the key without its layer number.
        graphs: the graphs that hold it.
        fixed: why it stays in fp32 in every plan, None if it may be low.
        forced_low: whether the config wants it low in every plan.
        beyond_range: whether its values exceed the low dtype's range with the safety factor.
        largest_input: largest magnitude among its inputs that are no constants; this and the next three are None where
            not measured or not finite.
        largest_output: of its result.
        largest_inside: of what its low kernel stores on the way (the sum of a mean); 0 if nothing.
        underflow: share of its result that is below the low dtype's smallest normal number and not 0.
    """

    key: str
    family: Family
    op_type: str
    role: str
    graphs: tuple[GraphName, ...]
    fixed: str | None
    forced_low: bool
    beyond_range: bool
    largest_input: float | None
    largest_output: float | None
    largest_inside: float | None
    underflow: float | None

    @property
    def largest(self) -> float | None:
        """The largest magnitude that must fit into the low dtype for the node to be low; None where not known."""
        known = [x for x in (self.largest_input, self.largest_output, self.largest_inside) if x is not None]
        return max(known) if len(known) == 3 else None


@dataclass(frozen=True, slots=True)
class RunNodes:
    """The content of `nodes.json`.

    Attributes:
        schema_version: of this form.
        dtype: the low dtype that everything is about.
        largest_number: of that dtype.
        smallest_normal: the least number that it holds with full precision.
        range_safety: values must stay below `largest_number` divided by this.
        samples: how many the ranges were measured on.
        nodes: in topological order, the encoder's first.
    """

    schema_version: int
    dtype: LowDtype
    largest_number: float
    smallest_normal: float
    range_safety: float
    samples: int
    nodes: tuple[NodeRecord, ...]

    def __post_init__(self) -> None:
        if self.range_safety <= 0:  # others divide by it
            raise ValueError(f"nodes.range_safety is {self.range_safety}")


def describe_nodes(
    graphs: Mapping[GraphName, Graph],
    ranges: Mapping[str, NodeRange],
    dtype: LowDtype,
    *,
    range_safety: float,
    samples: int,
    fixed: Mapping[str, str],
    forced_low: Collection[str],
) -> RunNodes:
    """The record of a search space.

    Args:
        graphs: of the variant.
        ranges: what the compute nodes met.
        dtype: the low dtype.
        range_safety: see `RunNodes`.
        samples: how many the ranges were measured on.
        fixed: why node keys stay in fp32 in every plan.
        forced_low: node keys that the config wants low.
    """
    holders: dict[str, list[GraphName]] = {}
    for name, graph in graphs.items():
        for node in graph.compute:
            holders.setdefault(node.key, []).append(name)
    hard = hard_set(ranges, dtype, range_safety)
    records = []
    for key, names in holders.items():
        graph, found = graphs[names[0]], ranges.get(key)
        records.append(
            NodeRecord(
                key=key,
                family=graph.family,
                op_type=graph.nodes[key].op_type,
                role=graph.nodes[key].role,
                graphs=tuple(names),
                fixed=fixed.get(key),
                forced_low=key in forced_low and key not in fixed,
                beyond_range=key in hard,
                largest_input=None if found is None else _finite(found.largest_input),
                largest_output=None if found is None else _finite(found.largest_output),
                largest_inside=None if found is None else _finite(found.largest_inside),
                underflow=None if found is None else _finite(found.underflow),
            )
        )
    return RunNodes(
        SCHEMA_VERSION, dtype, low_max(dtype), smallest_normal(dtype), range_safety, samples, tuple(records)
    )


def _finite(value: float) -> float | None:
    """None for what JSON cannot hold, so that a run's own model and a later export say the same."""
    return value if math.isfinite(value) else None


def read_nodes(run_dir: Path, variant: str = BASE_VARIANT) -> RunNodes:
    """Reads the `nodes.json` of a run directory, or that of another variant.

    Raises:
        InputError: it is missing, broken or of a later version.
    """
    return read_record(
        RunNodes,
        run_dir / nodes_file(variant),
        root="nodes",
        what="is not the record of a run's nodes",
        fix="restore the file from a copy, or start a new run",
    )
