"""The promise of I/O binding as numbers: where the generator's nodes run, what crosses to the host, what is allocated.

ONNX Runtime's CUDA provider decides all of that; only kernels and matrix products are not computed.
"""

from __future__ import annotations

import itertools

import pytest

from precision_search.model.bundle import Bundle
from precision_search.model.graph import GRAPH_NAMES
from tests.dry_cuda.conftest import CASES
from tests.dry_cuda.host import DryCuda
from tests.dry_cuda.scenarios import Case, Demo, Generated, generate
from tests.dry_cuda.trace import Section, peak

pytestmark = pytest.mark.slow

CUDA = "CUDAExecutionProvider"
case_by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.plan}, batch {case.batch}")
FLAG_BYTES = 1


def steps(sections: tuple[Section, ...]) -> list[int]:
    """Where in `sections` the decoder ran."""
    return [at for at, each in enumerate(sections) if each.phase == "run" and each.graph.startswith("decoder")]


@case_by_case
def test_every_compute_node_runs_on_the_device(
    demo_bundle: Bundle, generated: dict[Case, Generated], case: Case
) -> None:
    for name, graph in demo_bundle.graphs.items():
        nodes = generated[case].nodes[name]
        on_device = {node.name for node in nodes if node.provider == CUDA}
        assert {node.key for node in graph.compute} <= on_device
        assert not {node.key for node in graph.compute} & {node.name for node in nodes if node.provider != CUDA}


@case_by_case
def test_no_graph_has_a_copy_between_host_and_device(generated: dict[Case, Generated], case: Case) -> None:
    for name in GRAPH_NAMES:
        op_types = {node.op_type for node in generated[case].nodes[name]}
        assert "MatMul" in op_types
        assert not {op_type for op_type in op_types if op_type.startswith("Memcpy")}


@case_by_case
def test_no_run_moves_anything_to_or_from_the_host(generated: dict[Case, Generated], case: Case) -> None:
    runs = [section for section in generated[case].call if section.phase == "run"]
    assert [section.graph for section in runs] == ["encoder", "decoder", *["decoder_with_past"] * (case.steps - 1)]
    for section in runs:
        assert section.launches > 100
        assert (section.moved("h2d"), section.moved("d2h")) == ((), ())


@case_by_case
def test_between_steps_only_the_finished_flags_are_read(generated: dict[Case, Generated], case: Case) -> None:
    sections = generated[case].call
    at = steps(sections)
    assert len(at) == case.steps
    for step, (start, end) in enumerate(itertools.pairwise(at), 1):
        copies = [copy for section in sections[start + 1 : end] for copy in section.copies]
        expected = [("d2h", case.batch * FLAG_BYTES)] if step % case.check_every == 0 else []
        assert [(copy.direction, copy.bytes) for copy in copies] == expected


@case_by_case
def test_before_the_first_step_only_ids_and_mask_are_uploaded(generated: dict[Case, Generated], case: Case) -> None:
    sections = generated[case].call
    before = [copy for section in sections[: steps(sections)[0]] for copy in section.copies]
    crossing = [(copy.direction, copy.bytes) for copy in before if copy.direction != "d2d"]
    assert crossing == [("h2d", case.batch * (case.source - 3) * 8)] * 2


@case_by_case
def test_nothing_is_allocated_after_the_warm_up(generated: dict[Case, Generated], case: Case) -> None:
    found = generated[case]
    assert peak(found.making + found.warm_up) > 0
    assert [section.taken for section in found.call if section.taken] == []
    assert [section.freed for section in found.call if section.freed] == []
    # What ONNX Runtime keeps hides small pieces, so they are counted where they are asked for: ids and mask.
    tensors = [(section.phase, size) for section in found.call for size in section.tensors]
    assert tensors == [("binding", case.batch * (case.source - 3) * 8)] * 2
    assert found.call[0].tensors == tuple(size for _, size in tensors)
    assert [section.unplaced for section in found.call if section.unplaced] == []


def test_margins_cost_launches_and_no_copies(dry_cuda: DryCuda, demo: Demo, generated: dict[Case, Generated]) -> None:
    plain, case = Case("cut", 8), Case("cut", 8, with_margins=True)
    with_margins = dry_cuda.call(generate, demo=demo, cases=[case])[case].call
    more = {
        (with_margins[mine].launches - generated[plain].call[theirs].launches)
        for mine, theirs in zip(steps(with_margins), steps(generated[plain].call), strict=True)
    }
    assert len(more) == 1
    assert min(more) > 0
    assert not any(section.moved("h2d") or section.moved("d2h") for section in with_margins if section.phase == "run")


def test_low_graphs_take_less_device_memory(generated: dict[Case, Generated]) -> None:
    taken = {plan: peak(generated[Case(plan, 8)].making) for plan in ("fp32", "all low")}
    assert 0 < taken["all low"] < 0.7 * taken["fp32"]
