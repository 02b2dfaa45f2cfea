"""The space holds every compute node once: free to choose, forced low, or fixed in fp32 with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import pytest

from precision_search.errors import ConfigError
from precision_search.judging.ranges import NodeRange
from precision_search.model.bundle import Bundle
from precision_search.model.graph import Graph, GraphName, compute_keys_by_op_type
from precision_search.precision.low import LowDtype
from precision_search.precision.plan import FAMILIES, all_compute_keys, pinned_keys
from precision_search.strategies.space import OUTPUT_PROJECTION, SpaceReport, check_pins, make_space, output_projection
from tests.plans import WO

INDEX = "encoder.block.0.layer.0.SelfAttention/Mul"
"""Index arithmetic of the relative position buckets."""

SCORES = "encoder.block.0.layer.0.SelfAttention/MatMul.3"
HEAD = "lm_head/MatMul"


def ranges_of(largest: dict[str, float]) -> dict[str, NodeRange]:
    return {key: NodeRange(key, key.rsplit("/", 1)[1], 1.0, value, 0.0, 0.0) for key, value in largest.items()}


def space_of(
    bundle: Bundle,
    *,
    dtype: LowDtype = "float16",
    largest: dict[str, float] | None = None,
    keep: Sequence[str] = (),
    force: Sequence[str] = (),
) -> SpaceReport:
    ranges = ranges_of(largest or {})
    return make_space(bundle.graphs, dtype, ranges, range_safety=2.0, keep_fp32=keep, force_low=force)


def keys_of_type(bundle: Bundle, *op_types: str) -> frozenset[str]:
    by_type = [compute_keys_by_op_type(bundle.graphs, family) for family in FAMILIES]
    return frozenset().union(*(known.get(op, frozenset()) for known in by_type for op in op_types))


def free_keys(report: SpaceReport) -> list[str]:
    return [key for ops in report.space.keys_of.values() for keys in ops.values() for key in keys]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("keep", [(), ("Softmax", r"encoder\.block\.1\..*")])
@pytest.mark.parametrize("force", [(), ("Relu", HEAD)])
def test_every_compute_node_is_free_or_forced_or_fixed_and_only_one_of_them(
    demo_bundle: Bundle, dtype: LowDtype, keep: Sequence[str], force: Sequence[str]
) -> None:
    force = [item for item in force if item != "Relu" or not keep]  # keep names the Relu of a layer

    report = space_of(demo_bundle, dtype=dtype, keep=keep, force=force)

    free, space = free_keys(report), report.space
    assert len(free) == len(set(free))
    assert set(free) | space.fixed | space.forced_low == all_compute_keys(demo_bundle.graphs)
    assert not set(free) & space.fixed
    assert not set(free) & space.forced_low
    assert not space.fixed & space.forced_low
    assert space.fixed == report.fixed.keys()
    assert space.op_types == {family: tuple(sorted(space.keys_of[family])) for family in FAMILIES}


def test_without_pins_only_index_arithmetic_is_fixed(demo_bundle: Bundle) -> None:
    report = space_of(demo_bundle)

    assert report.fixed == dict.fromkeys(pinned_keys(demo_bundle.graphs), "index arithmetic")
    assert report.space.forced_low == frozenset()
    assert "Log" not in report.space.op_types["encoder"]  # all of that type is index arithmetic
    assert INDEX not in report.space.keys_of["encoder"]["Mul"]
    assert report.space.plan_of(frozenset()).fp32 == report.space.fixed
    assert report.space.plan_of(frozenset(report.space.choices)).fp32 == all_compute_keys(demo_bundle.graphs)


def test_the_output_projection_is_a_choice_of_its_own(demo_bundle: Bundle) -> None:
    space = space_of(demo_bundle).space

    assert output_projection(demo_bundle.graphs) == {HEAD}
    assert space.keys_of["decoder"][OUTPUT_PROJECTION] == {HEAD}
    assert HEAD not in space.keys_of["decoder"]["MatMul"]
    assert OUTPUT_PROJECTION not in space.op_types["encoder"]


def test_an_op_type_without_a_kernel_for_the_dtype_is_fixed(demo_bundle: Bundle) -> None:
    report = space_of(demo_bundle, dtype="bfloat16")

    reciprocals = keys_of_type(demo_bundle, "Reciprocal")
    assert {report.fixed[key] for key in reciprocals} == {"CUDA has no bfloat16 kernel for Reciprocal"}
    assert not any("Reciprocal" in op_types for op_types in report.space.op_types.values())


def with_weight(bundle: Bundle, key: str, value: float) -> Bundle:
    """The bundle with one element of a node's weight changed."""
    graph = bundle.graphs["encoder"]
    model = graph.model.clone()
    node = next(node for node in model.graph if node.name == key)
    old = node.inputs[1]
    assert old is not None
    assert old.const_value is not None
    array = old.const_value.numpy().copy()
    array[0, 0] = value
    old.const_value = ir.Tensor(array, name=old.name)
    graphs: dict[GraphName, Graph] = {**bundle.graphs, "encoder": dataclasses.replace(graph, model=model)}
    return dataclasses.replace(bundle, graphs=MappingProxyType(graphs))


def test_a_weight_that_does_not_fit_fixes_its_node(demo_bundle: Bundle) -> None:
    heavy = with_weight(demo_bundle, WO[1], -1e5)

    assert space_of(heavy).fixed[WO[1]] == "a weight of 1e+05 does not fit into float16"
    assert WO[1] not in space_of(heavy, dtype="bfloat16").fixed
    with pytest.raises(ConfigError, match="does not fit into float16"):
        space_of(heavy, force=[WO[1].replace(".", r"\.")])


# Hard nodes.


def test_what_exceeds_the_range_with_the_safety_factor_makes_its_op_type_hard(demo_bundle: Bundle) -> None:
    limit = 65504 / 2

    report = space_of(demo_bundle, largest={WO[0]: limit * 1.01, SCORES: limit, HEAD: 3.0})

    assert report.hard == {WO[0]: pytest.approx(limit * 1.01)}
    assert report.space.hard == {"encoder": frozenset({"MatMul"}), "decoder": frozenset()}
    assert report.space.hard_choices == {("encoder", "MatMul")}


def test_a_range_that_is_not_finite_is_hard(demo_bundle: Bundle) -> None:
    report = space_of(demo_bundle, largest={WO[0]: float("inf"), HEAD: float("inf")})

    assert set(report.hard) == {WO[0], HEAD}
    assert report.space.hard_choices == {("encoder", "MatMul"), ("decoder", OUTPUT_PROJECTION)}


def test_what_is_decided_anyway_makes_nothing_hard(demo_bundle: Bundle) -> None:
    largest = {WO[0]: 1e9, WO[1]: 1e9, INDEX: 1e9}

    report = space_of(demo_bundle, largest=largest, keep=[WO[0]], force=[WO[1]])

    assert report.space.hard_choices == frozenset()
    assert report.hard == {WO[1]: 1e9}  # forced low, and people should see what they forced


# Pins.


@pytest.mark.parametrize(
    ("items", "wanted"),
    [
        (["Softmax"], ["Softmax"]),
        (["Softmax", "Relu"], ["Softmax", "Relu"]),
        ([OUTPUT_PROJECTION], [HEAD]),
        ([r"encoder\..*/Softmax"], [r"encoder/Softmax"]),
        ([r"encoder\.block\.\d+\.layer\.1\.DenseReluDense\.wo/MatMul"], list(WO)),
        ([WO[2], "Relu"], [WO[2], "Relu"]),
    ],
)
def test_pins_are_op_types_the_output_projection_or_patterns(
    demo_bundle: Bundle, items: list[str], wanted: list[str]
) -> None:
    keys = frozenset(
        key for key in all_compute_keys(demo_bundle.graphs) if any(_is_meant(key, name) for name in wanted)
    )
    assert keys

    kept, forced = space_of(demo_bundle, keep=items), space_of(demo_bundle, force=items)

    assert {key for key, reason in kept.fixed.items() if reason == "search.keep_fp32"} == keys
    assert forced.space.forced_low == keys
    assert not forced.space.plan_of(frozenset(forced.space.choices)).fp32 & keys
    assert kept.space.plan_of(frozenset()).fp32 >= keys


def _is_meant(key: str, name: str) -> bool:
    """Whether a key is the one named, of the op type named, or of `family/op type`."""
    op_type = key.rpartition("/")[2].partition(".")[0]
    return name in (key, op_type, f"{key.partition('.')[0]}/{op_type}")


def test_a_pinned_op_type_leaves_its_index_arithmetic_alone(demo_bundle: Bundle) -> None:
    """Every exporter has a few Mul and Div among the indices: without this nobody could force these types."""
    report = space_of(demo_bundle, force=["Mul"])

    assert report.space.forced_low == keys_of_type(demo_bundle, "Mul") - pinned_keys(demo_bundle.graphs)
    assert report.fixed[INDEX] == "index arithmetic"
    for keep in ("Mul", "encoder.*"):
        kept = space_of(demo_bundle, keep=[keep]).fixed
        assert kept[INDEX] == "index arithmetic"
        assert kept["encoder.block.0.layer.0.layer_norm/Mul"] == "search.keep_fp32"


@pytest.mark.parametrize("item", ["Log", INDEX, r".*SelfAttention/Mul", "encoder.*"])
def test_index_arithmetic_cannot_be_forced_low(demo_bundle: Bundle, item: str) -> None:
    with pytest.raises(ConfigError, match=r"search\.force_low wants .*SelfAttention/\w+ low") as caught:
        space_of(demo_bundle, force=[item])

    assert caught.value.why == "index arithmetic"
    assert "search.force_low" in caught.value.fix


def test_what_has_no_kernel_cannot_be_forced_low(demo_bundle: Bundle) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(demo_bundle, dtype="bfloat16", force=["Reciprocal"])

    assert caught.value.why == "CUDA has no bfloat16 kernel for Reciprocal"


@pytest.mark.parametrize(("keep", "force"), [(["MatMul"], [WO[0]]), ([r".*\.wo/MatMul"], ["MatMul"])])
def test_a_node_cannot_be_pinned_both_ways(demo_bundle: Bundle, keep: Collection[str], force: Collection[str]) -> None:
    with pytest.raises(ConfigError, match=r"keep_fp32 and search\.force_low both name .*wo/MatMul"):
        space_of(demo_bundle, keep=list(keep), force=list(force))


@pytest.mark.parametrize("where", ["keep_fp32", "force_low"])
@pytest.mark.parametrize(
    ("item", "near"),
    [
        ("Sofmax", "Softmax"),
        ("matmul", "MatMul"),
        ("output_projection", OUTPUT_PROJECTION),
        ("lm_head/MatMull", HEAD),
        ("encoder.block.9.layer.1.DenseReluDense.wo/MatMul", WO[0][:14]),
    ],
)
def test_a_pin_that_names_nothing_is_told_the_nearest(demo_bundle: Bundle, where: str, item: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"search.{where} names the unknown") as caught:
        space_of(demo_bundle, keep=[item] if where == "keep_fp32" else (), force=[item] if where == "force_low" else ())

    assert "did you mean" in caught.value.fix
    assert near in caught.value.fix


def test_pins_can_be_checked_before_anything_is_measured(demo_bundle: Bundle) -> None:
    check_pins(demo_bundle, ["Softmax"], [r".*wo/MatMul"])

    with pytest.raises(ConfigError, match=r"search\.keep_fp32 names the unknown"):
        check_pins(demo_bundle, ["Sofmax"], [])
    with pytest.raises(ConfigError, match=r"search\.force_low names the unknown"):
        check_pins(demo_bundle, [], ["Sofmax"])


def test_a_broken_pattern_is_a_config_error(demo_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        space_of(demo_bundle, keep=["(["])


def test_ranges_of_strange_keys_do_no_harm(demo_bundle: Bundle) -> None:
    """A space is made of the graphs; a range that belongs to none of their nodes is nobody's."""
    report = space_of(demo_bundle, largest={"nowhere/MatMul": float(np.float32(1e30))})

    assert report.space.hard_choices == frozenset()
