"""What child processes do on the dry CUDA runtime: functions of plain data that give back what was recorded."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxruntime import OrtValue

from precision_search.cost.estimate import CostModel, Workload, placement_costs
from precision_search.cost.placement import Placer
from precision_search.cost.shapes import Point, infer_shapes
from precision_search.device.profile import load_profile
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.graph import GraphName
from precision_search.precision.convert import convert
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.runtime.backends import create_session
from precision_search.runtime.generator import Generator
from precision_search.runtime.session import SessionSettings
from tests.dry_cuda.recorder import Recorder
from tests.dry_cuda.trace import Section
from tests.plans import NORMS, WO, keeping

SETTINGS = SessionSettings(device="cuda")


@dataclass(frozen=True, slots=True)
class Demo:
    """Where a child finds the demo, or another model: its directory and the cache with its export."""

    model: Path
    cache: Path

    def open(self) -> Bundle:
        return open_bundle(str(self.model), self.cache)


@dataclass(frozen=True, slots=True)
class Node:
    """A node that ran, as ONNX Runtime's profile lists it."""

    name: str
    op_type: str
    provider: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one plain graph of a plan: its sizes, what it asked of the device, and the nodes in order."""

    point: Point
    section: Section
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A call of the generator: which plan, how many rows, tokens of the source, steps, steps between looks."""

    plan: str
    batch: int
    source: int = 16
    steps: int = 9
    check_every: int = 4
    with_margins: bool = False


@dataclass(frozen=True, slots=True)
class Generated:
    """What one generator did.

    Attributes:
        making: while its sessions were made.
        warm_up: in a first call.
        call: in a second one with a source three tokens shorter.
        nodes: by graph, what ran in both.
    """

    making: tuple[Section, ...]
    warm_up: tuple[Section, ...]
    call: tuple[Section, ...]
    nodes: Mapping[str, tuple[Node, ...]]


def cut(bundle: Bundle) -> Plan:
    """The cheapest plan that keeps the encoder's squares, their means and what overflows in fp32."""
    model = CostModel(bundle.models, Workload(64, 32, 32), load_profile("a100"))
    squares = {node.key for node in bundle.graphs["encoder"].compute if node.op_type in {"Pow", "ReduceMean"}}
    placer = Placer(
        bundle.graphs,
        "float16",
        "base",
        placement_costs(model, bundle.graphs, "float16"),
        fixed=_wo(bundle) | squares,
        forced_low=frozenset(),
    )
    return placer.place().plan


def _wo(bundle: Bundle) -> frozenset[str]:
    return frozenset(WO) & all_compute_keys(bundle.graphs)


PLANS: Mapping[str, Callable[[Bundle], Plan]] = {
    "fp32": lambda bundle: Plan("float16", "base", all_compute_keys(bundle.graphs)),
    "all low": keeping,
    "op types": lambda bundle: keeping(bundle, NORMS, _wo(bundle)),
    "cut": cut,
}
"""A plan by name: none low, all low, a classic mixture, and the placement that costs least for its hard nodes."""


def run_plain(demo: Demo, points: Collection[Point]) -> dict[tuple[str, GraphName, Point], Run]:
    """Runs each plain graph of each plan at each point, inputs and outputs on the device."""
    bundle = demo.open()
    found = {}
    for plan, make in PLANS.items():
        for name, model in convert(bundle.graphs, make(bundle)).models.items():
            for point in points:
                found[plan, name, point] = _run_once(model, point)
    return found


def generate(demo: Demo, cases: Collection[Case]) -> dict[Case, Generated]:
    """Generates twice for each case."""
    bundle = demo.open()
    models = {plan: convert(bundle.graphs, PLANS[plan](bundle)).models for plan in {case.plan for case in cases}}
    return {case: _generate(bundle, models[case.plan], case) for case in cases}


def _generate(bundle: Bundle, models: Mapping[GraphName, ir.Model], case: Case) -> Generated:
    gc.collect()  # what an earlier generator leaves behind is not this one's to give back
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder)) as recorder:
        generator = Generator(models, bundle.generation, SETTINGS, check_every=case.check_every)
        making = recorder.take()
        calls = []
        for length in (case.source, case.source - 3):
            ids = np.full((case.batch, length), 5, np.int64)
            generator.generate(ids, np.ones_like(ids), max_new_tokens=case.steps, with_margins=case.with_margins)
            calls.append(recorder.take())
    nodes = {graph: _nodes(found) for graph, found in recorder.nodes.items()}
    return Generated(making, warm_up=calls[0], call=calls[1], nodes=nodes)


def _run_once(model: ir.Model, point: Point) -> Run:
    dims = infer_shapes(model, point).dims
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder)) as recorder:
        session = create_session(model, SETTINGS)
        binding = session.io_binding()
        for value in model.graph.inputs:
            name, dtype = str(value.name), value.dtype or ir.DataType.FLOAT
            tensor = OrtValue.ortvalue_from_shape_and_type(list(dims[name]), int(dtype), "cuda", 0)
            binding.bind_ortvalue_input(name, tensor)
        for output in session.get_outputs():
            binding.bind_output(output.name, "cuda")
        session.run_with_iobinding(binding)
    (section,) = (section for section in recorder.sections if section.phase == "run")
    (nodes,) = recorder.nodes.values()
    return Run(point, section, _nodes(nodes))


def _nodes(found: Collection[tuple[str, str, str]]) -> tuple[Node, ...]:
    return tuple(Node(*node) for node in found)
