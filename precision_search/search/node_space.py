"""The search space at node level: what ranges say, the noise of each role, and the cut that completes plans."""

from __future__ import annotations

from collections.abc import Mapping

from precision_search.model.bundle import Bundle
from precision_search.precision.kernels import low_max
from precision_search.precision.placement import PlacementCosts, Placer
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.search.screen import SampleRows, Screener
from precision_search.search.sensitivity import role_noise
from precision_search.search.space import SpaceReport
from precision_search.search.strategies.base import NodeSpace


def make_node_space(
    bundle: Bundle, report: SpaceReport, costs: PlacementCosts, *, screener: Screener, samples: SampleRows
) -> NodeSpace:
    """The space at node level; measures the noise of every role.

    Args:
        bundle: the fp32 bundle.
        report: the space at op-type level, with what is hard.
        costs: what the cut weighs.
        screener: of the same bundle.
        samples: the calibration set.
    """
    space = report.space
    placer = Placer(bundle.graphs, space.dtype, space.variant, costs, fixed=space.fixed, forced_low=space.forced_low)
    decided = space.fixed | space.forced_low
    roles = {
        node.key: node.role for graph in bundle.graphs.values() for node in graph.compute if node.key not in decided
    }
    hard = {key: largest / low_max(space.dtype) for key, largest in report.hard.items() if key in roles}
    noise = role_noise(
        screener,
        samples,
        bundle.generation,
        roles={key: role for key, role in roles.items() if key not in hard},
        every_key=all_compute_keys(bundle.graphs),
        dtype=space.dtype,
        variant=space.variant,
    )

    def place(fp32: frozenset[str], price_ms: Mapping[str, float]) -> tuple[Plan, float]:
        placed = placer.place(fp32, prices={key: ms / 1e3 for key, ms in price_ms.items()})
        return placed.plan, placed.seconds * 1e3

    return NodeSpace(roles, hard, noise, place)
