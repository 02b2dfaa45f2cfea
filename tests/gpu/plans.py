"""Plans whose fate on a GPU the emulation foretells, and what one side and the other make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from precision_search.cost.estimate import CostModel, Workload, placement_costs
from precision_search.cost.placement import Placer
from precision_search.device.profile import load_profile
from precision_search.judging.inspect import measure
from precision_search.model.bundle import Bundle
from precision_search.model.samples import batches
from precision_search.precision.convert import convert
from precision_search.precision.dtypes import assign
from precision_search.precision.emulate import emulate
from precision_search.precision.kernels import why_fp32
from precision_search.precision.plan import Plan
from precision_search.precision.weights import WeightCache
from precision_search.runtime.generator import Generator
from precision_search.runtime.reference import NEAR_TIE, first_difference
from precision_search.runtime.session import SessionSettings
from precision_search.strategies.space import make_space
from tests.gpu.devices import runnable
from tests.plans import CLASSIC, NORMS, SETTINGS, WO, keeping

Rows = tuple[tuple[int, ...], ...]
Kind = Literal["nonfinite", "garbage", "exact"]
GARBAGE_BELOW = 0.1
"""Exact match of a plan that computes something else; a plan with near-tie flips keeps nearly everything."""


def minimum_cut(bundle: Bundle, rows: Rows) -> Plan:
    """The first plan of a search: what the ranges pin, and for the rest what costs least."""
    space = make_space(bundle.graphs, "float16", measure(bundle, rows, 32, "float16", SETTINGS), range_safety=2.0)
    costs = placement_costs(
        CostModel(bundle.models, Workload(1024, 16, 16), load_profile("t4")), bundle.graphs, "float16"
    )
    fixed = frozenset(space.fixed) | frozenset(space.hard)
    return Placer(bundle.graphs, "float16", "base", costs, fixed=fixed, forced_low=frozenset()).place().plan


def bfloat16(bundle: Bundle, op_types: tuple[str, ...]) -> Plan:
    """The bf16 plan that keeps these op types in fp32, and those that CUDA has no bf16 kernel for."""
    compute = [node for graph in bundle.graphs.values() for node in graph.compute]
    none = {node.op_type for node in compute if why_fp32(node.op_type, "bfloat16")}
    return Plan("bfloat16", "base", keeping(bundle, (*op_types, *none)).fp32)


PLANS: Mapping[str, tuple[Kind, Callable[[Bundle, Rows], Plan]]] = {
    "all low": ("garbage", lambda bundle, _: keeping(bundle)),
    "classic list": ("garbage", lambda bundle, _: keeping(bundle, CLASSIC)),
    "norms": ("nonfinite", lambda bundle, _: keeping(bundle, NORMS)),
    "norms and wo": ("exact", lambda bundle, _: keeping(bundle, NORMS, WO)),
    "minimum cut": ("exact", minimum_cut),
    "bfloat16": ("exact", lambda bundle, _: bfloat16(bundle, (*NORMS, "Softmax", "MatMul"))),
}
"""By name: what becomes of the demo under the plan, and the plan."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a plan generates for each sample.

    Attributes:
        tokens: token ids, EOS included.
        margins: by how much each token won.
        nonfinite: whether the sample met a value that was not finite.
    """

    tokens: Rows
    margins: tuple[npt.NDArray[np.float32], ...]
    nonfinite: npt.NDArray[np.bool_]

    def kind(self, wanted: Rows) -> Kind | None:
        """What became of the model; None for something in between."""
        if self.nonfinite.any():
            return "nonfinite"
        same = np.mean([ours == theirs for ours, theirs in zip(self.tokens, wanted, strict=True)])
        return "garbage" if same < GARBAGE_BELOW else "exact" if same > 1 - GARBAGE_BELOW else None


def on_device(bundle: Bundle, plan: Plan, rows: Rows, settings: SessionSettings) -> Outcome:
    """The plan as converted, on the device."""
    models = runnable(convert(bundle.graphs, plan).models, settings)
    return outcome(Generator(models, bundle.generation, settings), bundle, rows)


def emulated(bundle: Bundle, plan: Plan, rows: Rows) -> Outcome:
    """The plan as the search on a CPU sees it."""
    weights = WeightCache()
    assignments = assign(bundle.graphs, plan)
    models = {name: emulate(bundle.graphs[name], plan, found, weights) for name, found in assignments.items()}
    return outcome(Generator(models, bundle.generation, SETTINGS), bundle, rows)


def outcome(generator: Generator, bundle: Bundle, rows: Rows, batch_size: int = 32) -> Outcome:
    tokens: list[tuple[int, ...]] = [()] * len(rows)
    margins: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(rows)
    nonfinite = np.zeros(len(rows), np.bool_)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for batch in batches(rows, batch_size, bundle.generation.pad_token_id, order):
        out = generator.generate(batch.input_ids, batch.attention_mask, with_margins=True)
        assert out.margins is not None
        for row, index in enumerate(batch.indices):
            tokens[index] = tuple(int(token) for token in out.tokens[row, : out.lengths[row]])
            margins[index] = out.margins[row, : out.lengths[row]]
            nonfinite[index] = out.nonfinite[row]
    return Outcome(tuple(tokens), tuple(margins), nonfinite)


def noise(one: Outcome, other: Outcome) -> npt.NDArray[np.float64]:
    """By how much the margins of one are above those of the other, for each token up to where the two part."""
    found = []
    for index, (ours, theirs) in enumerate(zip(one.tokens, other.tokens, strict=True)):
        common = first_difference(ours, theirs)
        found.append((one.margins[index][:common] - other.margins[index][:common]).astype(np.float64))
    return np.concatenate(found)


def differences(one: Outcome, other: Outcome, undecided: float = NEAR_TIE) -> tuple[list[str], list[str]]:
    """Where the tokens part: at margins of `other` below `undecided`, which nobody can hold, and elsewhere."""
    ties: list[str] = []
    real: list[str] = []
    for index, (ours, theirs) in enumerate(zip(one.tokens, other.tokens, strict=True)):
        if ours != theirs:
            position = min(first_difference(ours, theirs), len(theirs) - 1)
            margin = float(other.margins[index][position])
            (ties if margin < undecided else real).append(f"sample {index}, token {position}: margin {margin:.3g}")
    return ties, real


def rms(values: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))
