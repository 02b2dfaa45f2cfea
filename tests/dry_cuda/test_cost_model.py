"""The cost model's counts against what ONNX Runtime asks of a device: launches, casts, matrix products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import pytest

from precision_search.cost.estimate import CostModel, Workload
from precision_search.cost.launches import Product, matrix_product
from precision_search.cost.shapes import Point, infer_shapes
from precision_search.device.profile import load_profile
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GRAPH_NAMES, GraphName
from precision_search.model.rewrites.sizes_on_device import place
from precision_search.precision.convert import convert
from precision_search.precision.plan import Plan
from tests.dry_cuda.conftest import POINTS, PlainRuns
from tests.dry_cuda.scenarios import PLANS
from tests.dry_cuda.trace import TF32_MATH, Gemm

pytestmark = pytest.mark.slow

by_plan = pytest.mark.parametrize("plan", PLANS)
by_graph = pytest.mark.parametrize("name", GRAPH_NAMES)
by_point = pytest.mark.parametrize("point", POINTS, ids=lambda point: f"batch {point.batch}")

ELEMENT_TYPES = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}


@dataclass(frozen=True, slots=True)
class Mixed:
    """A plan, its graphs, and the Cast nodes that each has more than in fp32."""

    plan: Plan
    models: Mapping[GraphName, ir.Model]
    casts: Mapping[GraphName, int]


@pytest.fixture(scope="module")
def mixed(demo_bundle: Bundle) -> dict[str, Mixed]:
    found = {}
    for name, make in PLANS.items():
        plan = make(demo_bundle)
        models = convert(demo_bundle.graphs, plan).models
        casts = {graph: len(models[graph].graph) - len(demo_bundle.graphs[graph].model.graph) for graph in GRAPH_NAMES}
        found[name] = Mixed(plan, models, casts)
    return found


def traced(gemms: tuple[Gemm, ...]) -> Counter[tuple[Product, str]]:
    """Matrix products as the cost model counts them: rows of a batch together, by what the operands are."""
    return Counter((Product(gemm.n * gemm.batch, gemm.m, gemm.k), gemm.left) for gemm in gemms)


@by_plan
@by_point
def test_the_cost_model_counts_every_launch(
    demo_bundle: Bundle, mixed: dict[str, Mixed], plain_runs: PlainRuns, plan: str, point: Point
) -> None:
    model = CostModel(demo_bundle.models, Workload(point.batch, point.source, 9), load_profile("a100"))
    counted = {name: plain_runs[plan, name, point].section.launches for name in GRAPH_NAMES}
    assert model.launches(mixed[plan].models) == counted


@by_plan
@by_graph
@by_point
def test_the_cost_model_knows_every_matrix_product(
    mixed: dict[str, Mixed], plain_runs: PlainRuns, plan: str, name: GraphName, point: Point
) -> None:
    model = mixed[plan].models[name]
    shapes, idle = infer_shapes(model, point), place(model).idle
    modelled = Counter(
        (product, ELEMENT_TYPES[shapes.dtypes[str(node.inputs[0].name)]])
        for node in model.graph
        if node not in idle and (product := matrix_product(node, shapes)) and node.inputs[0] is not None
    )
    assert modelled.total() >= 32
    assert traced(plain_runs[plan, name, point].section.gemms) == modelled


@by_plan
@by_graph
def test_exactly_the_low_matrix_products_have_low_operands(
    demo_bundle: Bundle, mixed: dict[str, Mixed], plain_runs: PlainRuns, plan: str, name: GraphName
) -> None:
    keys = {node.key for node in demo_bundle.graphs[name].compute if node.op_type == "MatMul"}
    wanted = {key: "float32" if key in mixed[plan].plan.fp32 else "float16" for key in keys}
    for point in POINTS:
        run = plain_runs[plan, name, point]
        nodes = [node.name for node in run.nodes if node.op_type == "MatMul"]
        operands = [(node, gemm.left) for node, gemm in zip(nodes, run.section.gemms, strict=True)]
        assert len(operands) == len(keys)
        assert dict(operands) == wanted
        for gemm in run.section.gemms:
            assert gemm.left == gemm.right == gemm.result
            assert gemm.compute == "float32"
            assert gemm.math != TF32_MATH


@by_plan
@by_graph
def test_a_plan_launches_its_casts_and_nothing_else(
    mixed: dict[str, Mixed], plain_runs: PlainRuns, plan: str, name: GraphName
) -> None:
    added = mixed[plan].casts[name]
    for point in POINTS:
        ours, fp32 = (plain_runs[which, name, point].section for which in (plan, "fp32"))
        assert ours.launches - fp32.launches == added
        assert ours.count("OP_Cast<") - fp32.count("OP_Cast<") == added


def test_the_plans_differ(mixed: dict[str, Mixed]) -> None:
    added = {plan: sum(each.casts.values()) for plan, each in mixed.items()}
    assert added["fp32"] == added["all low"] == 0
    assert 0 < added["cut"] < added["op types"]
