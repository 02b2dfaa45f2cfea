"""What a plan costs: measured on a CUDA device, estimated from a device profile without one. Never mixed in one run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from precision_search.model.bundle import Bundle
from precision_search.model.graph import GraphName
from precision_search.precision.cost import CostModel, Workload, placement_costs
from precision_search.precision.dtypes import assign, planned_casts
from precision_search.precision.energy import PlacementCosts
from precision_search.precision.plan import LowDtype, Plan
from precision_search.runtime.device_profile import DeviceProfile
from precision_search.runtime.generator import Generator
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.timing import interleave, synthetic_batch, without_end
from precision_search.search.trials import TrialLatency


class EstimatedLatency:
    """Latency by the cost model, for a workload on a device that is not here."""

    def __init__(self, bundle: Bundle, workload: Workload, profile: DeviceProfile) -> None:
        self._model = CostModel(bundle.models, workload, profile)
        self._fp32_ms = self._model.estimate(bundle.models).p50_ms
        self._profile = profile.name
        self._graphs = bundle.graphs
        self._costs: dict[LowDtype, PlacementCosts] = {}

    def placement_costs(self, dtype: LowDtype) -> PlacementCosts:
        """The numbers that `plan_ms` adds up, for placing casts; worked out on the first call.

        Raises:
            ConfigError: `dtype` is bfloat16 and the device has none.
        """
        if dtype not in self._costs:
            self._costs[dtype] = placement_costs(self._model, self._graphs, dtype)
        return self._costs[dtype]

    def plan_ms(self, plan: Plan) -> float:
        """What `latency` would estimate for the plan, in milliseconds, without converting anything."""
        costs = self.placement_costs(plan.dtype)
        assignments = assign(self._graphs, plan)
        seconds = []
        for name, graph in self._graphs.items():
            low, casts = assignments[name].low_nodes, costs.casts[name]
            seconds += [pair[key in low] for key, pair in costs.nodes[name].items()]
            seconds += [casts[value] for value, _ in planned_casts(graph, assignments[name])]
        # Exact whatever the order: that of a set differs from process to process, and a search must not.
        return math.fsum(seconds) * 1e3

    def latency(self, models: Mapping[GraphName, ir.Model]) -> TrialLatency:
        """The estimate for converted graphs, labelled as one."""
        found = self._model.estimate(models)
        return TrialLatency(
            found.p50_ms, found.low_ms, found.high_ms, self._fp32_ms / found.p50_ms, "estimated", self._profile
        )


class MeasuredLatency:
    """Latency on the device, interleaved with fp32."""

    def __init__(self, bundle: Bundle, workload: Workload, settings: SessionSettings, seed: int) -> None:
        self._generation = without_end(bundle.generation, workload.target_length)
        self._settings = settings
        self._seed = seed
        self._ids = synthetic_batch(workload.batch, workload.source_length, bundle.config.vocab_size, seed)
        self._mask = np.ones_like(self._ids)
        self._fp32 = Generator(bundle.models, self._generation, settings)

    def latency(self, models: Mapping[GraphName, ir.Model]) -> TrialLatency:
        """Median of the converted graphs, and its ratio to the fp32 median of the same rounds."""
        generator = Generator(models, self._generation, self._settings)
        fp32, own = interleave(
            lambda: self._fp32.generate(self._ids, self._mask),
            lambda: generator.generate(self._ids, self._mask),
            seed=self._seed,
        )
        return TrialLatency(own.p50_ms, own.low_ms, own.high_ms, fp32.p50_ms / own.p50_ms, "measured", None)
