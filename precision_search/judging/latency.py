"""What a plan costs: measured on a CUDA device, estimated from a device profile without one. Never mixed in one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from precision_search.cost.energy import PlacementCosts
from precision_search.cost.estimate import CostModel, Workload, placement_costs
from precision_search.device.profile import DeviceProfile
from precision_search.device.state import DeviceState, device_state
from precision_search.errors import DeviceMemoryError
from precision_search.judging.trial import TrialLatency
from precision_search.model.bundle import Bundle
from precision_search.model.graph import BASE_VARIANT, Graph, GraphName
from precision_search.precision.dtypes import assign, planned_casts
from precision_search.precision.low import LowDtype
from precision_search.precision.plan import Plan
from precision_search.runtime.generator import Generator
from precision_search.runtime.session import SessionSettings
from precision_search.runtime.timing import RULES, Comparison, compare_times, synthetic_batch, without_end

_UNSTABLE = "times still moved at the end of the warm-up: the device may be shared, or its clocks not settled"
_WIDE = f"the speedup is not known to {RULES.width:.0%}: times vary too much from round to round"


class EstimatedLatency:
    """Latency by the cost model, for a workload on a device that is not here.

    Attributes:
        workload: as given.
        fp32_ms: the estimate of the base graphs in fp32, which speedups are over.
    """

    def __init__(self, bundle: Bundle, workload: Workload, profile: DeviceProfile) -> None:
        self.workload = workload
        self._bundle, self._device = bundle, profile
        self._graphs = {name: bundle.graphs_of(name) for name in bundle.variant_names}
        self._models = {
            variant: CostModel({name: graph.model for name, graph in graphs.items()}, workload, profile)
            for variant, graphs in self._graphs.items()
        }
        self.fp32_ms = self._models[BASE_VARIANT].estimate(bundle.models).p50_ms
        self._costs: dict[tuple[LowDtype, str], PlacementCosts] = {}

    @property
    def profile(self) -> str:
        """The name of the device profile."""
        return self._device.name

    @property
    def launch_share(self) -> float:
        """The share of `fp32_ms` that goes into launches, 0 to 1."""
        return self._models[BASE_VARIANT].launch_share(self._bundle.models)

    def graphs_of(self, variant: str) -> Mapping[GraphName, Graph]:
        """The graphs of a variant."""
        return self._graphs[variant]

    def at_batch(self, batch: int) -> EstimatedLatency:
        """The same with so many sentences in a batch; works out the shapes anew."""
        return EstimatedLatency(self._bundle, replace(self.workload, batch=batch), self._device)

    def placement_costs(self, dtype: LowDtype, variant: str = BASE_VARIANT) -> PlacementCosts:
        """The numbers that `plan_ms` adds up, for placing casts; worked out on the first call.

        Raises:
            ConfigError: `dtype` is bfloat16 and the device has none.
        """
        key = dtype, variant
        if key not in self._costs:
            self._costs[key] = placement_costs(self._models[variant], self._graphs[variant], dtype)
        return self._costs[key]

    def plan_ms(self, plan: Plan) -> float:
        """What `latency` would estimate for the plan, in milliseconds, without converting anything."""
        costs, graphs = self.placement_costs(plan.dtype, plan.variant), self._graphs[plan.variant]
        assignments = assign(graphs, plan)
        seconds = []
        for name, graph in graphs.items():
            low, casts = assignments[name].low_nodes, costs.casts[name]
            seconds += [pair[key in low] for key, pair in costs.nodes[name].items()]
            seconds += [casts[value] for value, _ in planned_casts(graph, assignments[name])]
        # Exact whatever the order: that of a set differs from process to process, and a search must not.
        return math.fsum(seconds) * 1e3

    def latency(self, models: Mapping[GraphName, ir.Model], variant: str = BASE_VARIANT) -> TrialLatency:
        """The estimate for converted graphs of a variant, labelled as one; the speedup is over the base graphs."""
        found = self._models[variant].estimate(models)
        return TrialLatency(
            found.p50_ms, found.low_ms, found.high_ms, self.fp32_ms / found.p50_ms, "estimated", self.profile
        )


@dataclass(frozen=True, slots=True)
class PlanTiming:
    """What was measured of one plan.

    Attributes:
        comparison: fp32 first, the plan second; None where the workload did not fit beside fp32.
        before, after: the device's condition right before the warm-up and right after the last time.
        problem: what the user should know of it, None if nothing.
    """

    comparison: Comparison | None
    before: DeviceState
    after: DeviceState
    problem: str | None


class MeasuredLatency:
    """Latency on the device, interleaved with fp32."""

    def __init__(
        self,
        bundle: Bundle,
        workload: Workload,
        settings: SessionSettings,
        seed: int,
        *,
        state: Callable[[int], DeviceState] = device_state,
    ) -> None:
        """Makes the fp32 sessions and generates the workload once; `state` tells a device's condition by its id.

        Raises:
            DeviceMemoryError: the workload does not fit in fp32.
        """
        self._generation = without_end(bundle.generation, workload.target_length)
        self._settings = settings
        self._seed = seed
        self._state = state
        self._workload = workload
        self._ids = synthetic_batch(workload.batch, workload.source_length, bundle.config.vocab_size, seed)
        self._mask = np.ones_like(self._ids)
        self._taken: PlanTiming | None = None
        try:
            self._fp32 = Generator(bundle.models, self._generation, settings)
            self._fp32.generate(self._ids, self._mask)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"the workload does not fit on the device: {self._described}, in fp32",
                why=error.why or error.what,
                fix=f"set workload.batch below {workload.batch}"
                if workload.batch > 1
                else "set shorter workload.source_length and workload.target_length",
            ) from error

    def latency(self, models: Mapping[GraphName, ir.Model], variant: str = BASE_VARIANT) -> TrialLatency | None:
        """Median of the converted graphs, and the speedup over fp32 in the same rounds.

        None where both do not fit on the device beside each other, which says nothing about the plan's tokens.
        """
        before = None
        try:
            generator = Generator(models, self._generation, self._settings)
            before = self._state(self._settings.device_id)
            found = compare_times(
                lambda: self._fp32.generate(self._ids, self._mask),
                lambda: generator.generate(self._ids, self._mask),
                seed=self._seed,
            )
        except DeviceMemoryError as error:
            problem = f"no latency: {self._described} does not fit beside fp32 ({error.why or error.what})"
            after = self._state(self._settings.device_id)
            self._taken = PlanTiming(None, before or after, after, problem)
            return None
        after = self._state(self._settings.device_id)
        self._taken = PlanTiming(found, before, after, _problem(found))
        own, speedup = found.second, found.speedup
        return TrialLatency(
            own.p50_ms, own.low_ms, own.high_ms, speedup.value, "measured", None, speedup.low, speedup.high
        )

    def take(self) -> PlanTiming | None:
        """What was measured since the last call; None if nothing was."""
        taken, self._taken = self._taken, None
        return taken

    @property
    def _described(self) -> str:
        load = self._workload
        return f"a batch of {load.batch} with {load.source_length} source and {load.target_length} target tokens"


def _problem(found: Comparison) -> str | None:
    problems = [] if found.stable else [_UNSTABLE]
    if not found.narrow:
        problems.append(_WIDE)
    return "; ".join(problems) or None
