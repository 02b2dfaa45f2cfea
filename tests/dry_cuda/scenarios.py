"""What child processes do on the dry CUDA runtime: functions of plain data that give back what was recorded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxruntime import InferenceSession, OrtValue

from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.graph import GraphName
from precision_search.precision.convert import convert
from precision_search.precision.cost import CostModel, Workload, placement_costs
from precision_search.precision.placement import Placer
from precision_search.precision.plan import Plan, all_compute_keys
from precision_search.precision.shapes import Point, infer_shapes
from precision_search.runtime.device_profile import load_profile
from precision_search.runtime.generator import Generator
from precision_search.runtime.session import SessionSettings, create_session
from tests.dry_cuda.recorder import Recorder
from tests.dry_cuda.trace import Section
from tests.plans import NORMS, WO, keeping

SETTINGS = SessionSettings(device="cuda")

PLANS: dict[str, Callable[[Bundle], Plan]] = {
    "fp32": lambda bundle: Plan("float16", "base", all_compute_keys(bundle.graphs)),
    "all low": keeping,
    "op types": lambda bundle: keeping(bundle, NORMS, WO),
    "cut": lambda bundle: cut(bundle),
}
"""A plan by name: none low, all low, a classic mixture, and the placement that costs least for the same hard nodes."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as ONNX Runtime's profile lists it."""

    name: str
    op_type: str
    provider: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one plain graph of a plan.

    Attributes:
        point: its sizes.
        section: what it asked.
        nodes: what ran, in order.
    """

    point: Point
    section: Section
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """One call of the generator.

    Attributes:
        making: while sessions were made.
        warm_up: of a first call with the longest source.
        call: of a second one.
        nodes: by graph, what ran in all calls.
    """

    making: list[Section]
    warm_up: list[Section]
    call: list[Section]
    nodes: dict[str, list[Node]]


def demo(path: str, cache: str) -> Bundle:
    """The demo bundle; it was exported before the child started."""
    return open_bundle(path, Path(cache))


def cut(bundle: Bundle) -> Plan:
    """The cheapest plan that keeps the residual stream of the encoder and what overflows in fp32."""
    model = CostModel(bundle.models, Workload(64, 32, 32), load_profile("a100"))
    costs = placement_costs(model, bundle.graphs, "float16")
    fixed = frozenset(WO) | frozenset(
        node.key for node in bundle.graphs["encoder"].compute if node.op_type in {"Pow", "ReduceMean"}
    )
    placer = Placer(bundle.graphs, "float16", "base", costs, fixed=fixed, forced_low=frozenset())
    return placer.place().plan


def run_plain(
    path: str, cache: str, plans: Collection[str], points: Sequence[Point]
) -> dict[tuple[str, GraphName], list[Run]]:
    """Runs each plain graph of each plan at each point, inputs and outputs on the device."""
    bundle = demo(path, cache)
    found: dict[tuple[str, GraphName], list[Run]] = {}
    for plan in plans:
        models = convert(bundle.graphs, PLANS[plan](bundle)).models
        for name, model in models.items():
            found[plan, name] = [_run_once(model, point) for point in points]
    return found


def generate(
    path: str, cache: str, plan: str, batch: int, source: int, limit: int, check_every: int, with_margins: bool = False
) -> Generated:
    """Generates twice: a warm-up with the longest source, then a shorter one."""
    bundle = demo(path, cache)
    models = convert(bundle.graphs, PLANS[plan](bundle)).models
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder)) as recorder:
        generator = Generator(models, bundle.generation, SETTINGS, check_every=check_every)
        parts = [_taken(recorder)]
        for length in (source, source - 3):
            ids = np.full((batch, length), 5, np.int64)
            generator.generate(ids, np.ones_like(ids), max_new_tokens=limit, with_margins=with_margins)
            recorder.cut("binding", "")
            parts.append(_taken(recorder))
    nodes = {graph: [Node(*node) for node in found] for graph, found in recorder.nodes.items()}
    return Generated(*parts, nodes)


def _run_once(model: ir.Model, point: Point) -> Run:
    dims = infer_shapes(model, point)
    with tempfile.TemporaryDirectory() as folder, Recorder(Path(folder)) as recorder:
        session = create_session(model, SETTINGS)
        _bind_and_run(session, {str(v.name): (dims.dims[str(v.name)], v.dtype) for v in model.graph.inputs})
    (section,) = (section for section in recorder.sections if section.phase == "run")
    (nodes,) = recorder.nodes.values()
    return Run(point, section, tuple(Node(*node) for node in nodes))


def _bind_and_run(session: InferenceSession, inputs: dict[str, tuple[tuple[int, ...], ir.DataType | None]]) -> None:
    binding = session.io_binding()
    for name, (shape, dtype) in inputs.items():
        value = OrtValue.ortvalue_from_shape_and_type(list(shape), int(dtype or ir.DataType.FLOAT), "cuda", 0)
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    session.run_with_iobinding(binding)


def _taken(recorder: Recorder) -> list[Section]:
    sections = list(recorder.sections)
    recorder.sections.clear()
    return sections
