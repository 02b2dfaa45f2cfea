"""The Optuna study of a run, whatever its strategy: every judged plan as one trial that `optuna-dashboard` shows.

In: trials. Out: `study.journal`. A plan's parameters say what became of each op type in each family; strategies decide
elsewhere and read nothing from here. (Measured with 20 parameters: importing Optuna 0.25 s, a trial 1.4 ms.)
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from precision_search.files import writing
from precision_search.judging.trial import Trial
from precision_search.model.graph import BASE_VARIANT
from precision_search.precision.plan import Plan
from precision_search.strategies.base import SearchSpace
from precision_search.strategies.scale import fp32_plan, scaled_ms
from precision_search.strategies.tpe import objectives, violation

if TYPE_CHECKING:
    import optuna

STUDY_FILE = "study.journal"
STUDY_NAME = "precision-search"

Part = Literal["fp32", "low", "mixed"]
PARTS: tuple[Part, ...] = ("fp32", "low", "mixed")
"""What the nodes of an op type are under a plan: all fp32, all low, or some of each."""

METRIC_NAMES = ("latency, ms", "flip risk, upper end")
"""What the values of a trial are, as a dashboard shows them."""


class StudyFile:
    """The study of a run as a journal file.

    Each session writes it anew from the trial log, which is what counts: a journal whose last line was cut off by a
    kill cannot be appended to. A trial's duration is how long its plan took to judge.
    """

    def __init__(self, directory: Path, spaces: Sequence[SearchSpace], estimate: Callable[[Plan], float]) -> None:
        """Writes nothing yet.

        Args:
            directory: where the file lies.
            spaces: of each variant, the base graphs' first: which op types have a choice, and their nodes.
            estimate: latency of a plan in ms; a measured one is put on its scale.
        """
        self._path = directory / STUDY_FILE
        self._keys = {space.variant: _keys_by_parameter(space) for space in spaces}
        self._space = spaces[0]
        self._estimate = functools.cache(estimate)
        self._study: optuna.Study | None = None

    def add(self, trial: Trial) -> None:
        """Adds a judged plan: latency and the upper end of flip risk as values, stability as the constraint.

        All latencies of a study are on the scale of the estimates, since rejected plans have no other: a measured plan
        counts as the estimate of fp32 divided by its speedup. Its own milliseconds are in the trial log.

        Raises:
            EnvironmentProblemError: the file cannot be written.
        """
        with writing(self._path):
            self._add(trial)

    def _add(self, trial: Trial) -> None:
        import optuna

        if self._study is None:
            self._study = self._create()
        plan = trial.plan.plan
        by_parameter = self._keys[plan.variant]
        choice = optuna.distributions.CategoricalDistribution(PARTS)
        stored = optuna.create_trial(
            values=objectives(trial, scaled_ms(trial, self._estimate(fp32_plan(self._space)), self._estimate)),
            params={name: part_of(keys, plan) for name, keys in by_parameter.items()},
            distributions=dict.fromkeys(by_parameter, choice),
            constraints={"stable": violation(trial)},
            # Where optuna-dashboard 0.21 looks for constraints; Optuna 5 reads both places.
            system_attrs={"constraints": [violation(trial)]},
            user_attrs={
                "id": trial.id,
                "stage": trial.stage,
                "verdict": trial.verdict,
                "exact_match": trial.exact_match,
                "plan": plan.digest,
                "fp32_nodes": trial.fp32_nodes,
                "latency_source": "estimated" if trial.latency is None else trial.latency.source,
            },
        )
        if stored.datetime_complete is not None:
            stored.datetime_start = stored.datetime_complete - timedelta(seconds=trial.seconds)
        self._study.add_trial(stored)

    def _create(self) -> optuna.Study:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._path.unlink(missing_ok=True)
        # What a killed session left locked would hold up this one until the lock's grace period ends.
        self._path.with_name(self._path.name + ".lock").unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(self._path)))
        study = optuna.create_study(storage=storage, study_name=STUDY_NAME, directions=["minimize", "minimize"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(METRIC_NAMES))
        return study


def _keys_by_parameter(space: SearchSpace) -> dict[str, frozenset[str]]:
    """The nodes behind each parameter; those of another variant bear its name, since its op types are others."""
    prefix = "" if space.variant == BASE_VARIANT else f"{space.variant}/"
    return {f"{prefix}{family}/{op}": space.keys_of[family][op] for family, op in space.choices}


def part_of(keys: frozenset[str], plan: Plan) -> Part:
    """What these nodes are under the plan."""
    kept = keys & plan.fp32
    if not kept:
        return "low"
    return "fp32" if kept == keys else "mixed"
