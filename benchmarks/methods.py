"""The methods that the search benchmark compares, each from a config to a row, all through the same judge."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.bisection import bisect
from benchmarks.enumeration import Verdict, find_optimum, latency_table
from benchmarks.printing import Telling
from benchmarks.rows import BISECTION, EXHAUSTIVE, THRESHOLD, Label, Row, make_row
from precision_search.config import Config
from precision_search.cost.estimate import Workload
from precision_search.errors import InternalError
from precision_search.judging.judge import JudgeSettings, PlanJudge
from precision_search.judging.latency import EstimatedLatency
from precision_search.judging.noise import is_damage, noise, rounding_unit
from precision_search.judging.sample_sets import LoadedSet, load_set, open_fp32
from precision_search.judging.screen import SampleScreen, ScreenResult
from precision_search.judging.trial import Proposal, Trial
from precision_search.model.samples import load_samples
from precision_search.precision.dtypes import assign
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.precision.weights import WeightCache
from precision_search.run.prepare import prepare
from precision_search.strategies.pareto import is_acceptable

DATA_MAX = 512.0
"""ModelOpt AutoCast's default for `data_max`, the largest magnitude around a node that it converts."""

MOST_EVALUATIONS = 5000
"""Where the enumeration gives up."""

LAST_HIDDEN = "last_hidden_state"


class Bench:
    """A model made ready to screen and judge plans that no strategy of ours proposed."""

    def __init__(self, label: Label, config: Config) -> None:
        self._label = label
        self._config = config
        self._prepared = prepare(config, Telling())
        bundle, settings = self._prepared.bundle, self._prepared.settings
        self._graphs = bundle.graphs
        self._space = self._prepared.space.space
        self._min_exact_match = config.min_exact_match
        workload = Workload(config.workload.batch, config.workload.source_length, config.workload.target_length)
        self._estimate = EstimatedLatency(bundle, workload, self._prepared.profile)
        size = config.calibration.batch_size
        calibration, validation = (self._prepared.sets.get(name) for name in ("calibration", "validation"))
        if calibration is None or validation is None or config.test is None:
            raise InternalError("the search benchmark needs calibration, validation and test samples")
        self._judge = PlanJudge(
            bundle,
            calibration.data,
            validation.data,
            dtype=config.search.dtype,
            latency=self._estimate,
            weights=WeightCache(),
            settings=JudgeSettings(settings, size, config.search.seed),
        )
        self._screener = self._judge.screener_of()
        self._calibration = SampleScreen(calibration.data, bundle.generation, size)
        self._validation = SampleScreen(validation.data, bundle.generation, size)
        fp32 = open_fp32(bundle, settings)
        self._test: LoadedSet = load_set(load_samples(config.test.path, "test"), config.test, fp32)

    def row(self, method: str) -> Row:
        """The method's row."""
        return {EXHAUSTIVE: self._exhaustive, BISECTION: self._bisection, THRESHOLD: self._threshold}[method]()

    def _threshold(self) -> Row:
        """One plan: what a node reads or gives beyond `DATA_MAX` keeps it in fp32."""
        started = time.perf_counter()
        ranges = self._prepared.ranges
        # `not <=` rather than `>`: a NaN is no small value.
        low = {key for key, r in ranges.items() if max(r.largest_input, r.largest_output) <= DATA_MAX}
        return self._final(THRESHOLD, self._plan_with(frozenset(low)), 1, started)

    def _bisection(self) -> Row:
        """Segments of the encoder's nodes, then the decoder's; a plan passes if every calibration sample is exact."""
        started = time.perf_counter()
        keys = [node.key for name in ("encoder", "decoder") for node in self._graphs[name].compute]
        free = [key for key in keys if key not in self._space.fixed]

        def passes(low: frozenset[str]) -> bool:
            return self._screen(self._plan_with(low), self._calibration).verdict == "exact"

        found = bisect(free, passes)
        return self._final(BISECTION, self._plan_with(found.low), found.evaluations, started)

    def _exhaustive(self) -> Row:
        """The fastest acceptable plan that keeps whole op types, every faster one ruled out."""
        started = time.perf_counter()
        encoder = len(self._space.op_types["encoder"])
        table = latency_table(
            encoder,
            len(self._space.op_types["decoder"]),
            lambda first, second: self._estimate.plan_ms(self._numbered(first | second << encoder)),
            lambda first, second: self._crosses_low(self._numbered(first | second << encoder)),
        )
        self._check_table(table)
        judged: list[Trial] = []

        def judge(number: int) -> Verdict:
            plan = self._numbered(number)
            verdict = self._screened_verdict(plan)
            if verdict == "acceptable":
                judged.append(self._judge(Proposal(plan, "given"), len(judged)))
                verdict = "acceptable" if is_acceptable(judged[-1], self._min_exact_match) else "rejected"
            return verdict

        found = find_optimum(table, judge, MOST_EVALUATIONS)
        proof = f"{found.faster} plans are estimated to be faster, {found.skipped} of them ruled out by damage"
        if found.plan is None:
            note = f"gave up; {proof}; the plan given is fp32"
            return self._final(EXHAUSTIVE, self._numbered(len(table) - 1), found.evaluations, started, note=note)
        final = next(trial for trial in judged if trial.plan.plan == self._numbered(found.plan))
        return self._final(EXHAUSTIVE, final.plan.plan, found.evaluations, started, judged=judged, note=proof)

    def _final(
        self, method: str, plan: Plan, evaluations: int, started: float, *, judged: Sequence[Trial] = (), note: str = ""
    ) -> Row:
        """The row of a final plan, judged for real unless it is among the `judged`."""
        trial = next((trial for trial in judged if trial.plan.plan == plan), None)
        if trial is None:
            trial = self._judge(Proposal(plan, "given"), 0)
            judged = [trial]
        seconds = time.perf_counter() - started
        confirmed = self._judge.confirm(plan, self._test.data)
        return make_row(
            self._label,
            method,
            trial,
            evaluations=evaluations,
            seconds=seconds,
            all_evaluations=evaluations,
            all_seconds=seconds,
            test=confirmed.exact_match,
            min_exact_match=self._min_exact_match,
            judged=judged,
            note=note,
        )

    def _screened_verdict(self, plan: Plan) -> Verdict:
        found = self._screen(plan, self._calibration)
        if found.verdict != "exact":
            return "damaged" if self._damaged(found) else "rejected"
        validated = self._screen(plan, self._validation, to_the_end=True)
        return "acceptable" if validated.exact_match >= self._min_exact_match else "rejected"

    def _damaged(self, found: ScreenResult) -> bool:
        wanted = self._calibration.samples.reference.margins
        size = noise(wanted, found.margins, rounding_unit(wanted, self._space.dtype))
        return is_damage(found.verdict != "nonfinite", size)

    def _screen(self, plan: Plan, samples: SampleScreen, *, to_the_end: bool = False) -> ScreenResult:
        return self._screener.prepare(plan).screen(samples, to_the_end=to_the_end)

    def _plan_with(self, low: frozenset[str]) -> Plan:
        fp32 = all_compute_keys(self._graphs) - low - self._space.forced_low
        return Plan(self._space.dtype, self._space.variant, fp32 | self._space.fixed)

    def _numbered(self, number: int) -> Plan:
        kept = frozenset(choice for bit, choice in enumerate(self._space.choices) if number >> bit & 1)
        return self._space.plan_of(kept)

    def _crosses_low(self, plan: Plan) -> bool:
        return LAST_HIDDEN in assign(self._graphs, plan)["encoder"].low_outputs

    def _check_table(self, table: np.ndarray) -> None:
        """The table comes from few estimates; some plans are estimated by themselves to hold it against."""
        for number in np.random.default_rng(0).integers(0, len(table), 50).tolist():
            wanted = self._estimate.plan_ms(self._numbered(number))
            if abs(table[number] - wanted) > 1e-9 * wanted:
                raise InternalError(f"the table gives plan {number} {table[number]} ms, the estimate {wanted} ms")
