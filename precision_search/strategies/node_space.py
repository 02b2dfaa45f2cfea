"""The search space at node level: what ranges say, the noise of each role, and the cut that completes plans."""

from __future__ import annotations

from collections.abc import Mapping

from precision_search.cost.placement import PlacementCosts, Placer
from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.screen import Screener
from precision_search.judging.sensitivity import RoleProbe
from precision_search.model.bundle import Bundle
from precision_search.precision.low import low_max
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.reporting import NOBODY, Reporter
from precision_search.strategies.base import NodeSpace
from precision_search.strategies.space import SpaceReport, output_projection


def make_node_space(
    bundle: Bundle,
    report: SpaceReport,
    costs: PlacementCosts,
    *,
    screener: Screener,
    samples: SampleRows,
    reporter: Reporter = NOBODY,
) -> NodeSpace:
    """The space at node level.

    Args:
        bundle: the fp32 bundle.
        report: the space at op-type level, with what is hard.
        costs: what the cut weighs.
        screener: of the same variant.
        samples: the calibration set.
        reporter: told before the noise of roles is measured, and of how many roles it was.
    """
    space, graphs = report.space, bundle.graphs_of(report.space.variant)
    placer = Placer(graphs, space.dtype, space.variant, costs, fixed=space.fixed, forced_low=space.forced_low)
    decided = space.fixed | space.forced_low
    roles = {node.key: node.role for graph in graphs.values() for node in graph.compute if node.key not in decided}
    hard = {key: largest / low_max(space.dtype) for key, largest in report.hard.items() if key in roles}
    soft = {key: role for key, role in roles.items() if key not in hard}
    fp32 = Plan(space.dtype, space.variant, all_compute_keys(graphs))
    probe = RoleProbe(screener, samples, bundle.generation, fp32)
    known: dict[str, float] = {}

    def noise(wanted: frozenset[str]) -> Mapping[str, float]:
        if new := wanted - known.keys():
            reporter.note(f"measuring the noise of {len(new)} role{'s' * (len(new) != 1)}")
            reporter.progress(0, len(new), "roles")
        for done, role in enumerate(sorted(new), 1):
            known[role] = probe.noise(frozenset(key for key, each in soft.items() if each == role))
            reporter.progress(done, len(new), "roles")
        return {role: known[role] for role in wanted}

    def place(fp32: frozenset[str], price_ms: Mapping[str, float]) -> tuple[Plan, float]:
        placed = placer.place(fp32, prices={key: ms / 1e3 for key, ms in price_ms.items()})
        return placed.plan, placed.seconds * 1e3

    return NodeSpace(roles, hard, output_projection(graphs) & roles.keys(), noise, place)
