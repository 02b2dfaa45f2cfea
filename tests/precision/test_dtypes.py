"""From a plan to dtypes: data movement follows its neighbours without loss, cache tensors agree in all three graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from onnx import TensorProto

from precision_search.errors import InputError
from precision_search.model.bundle import Bundle
from precision_search.model.graph import Graph, GraphName, NodeKind, float_inputs, is_float
from precision_search.model.layout import SEQ2SEQ
from precision_search.precision.convert import convert
from precision_search.precision.dtypes import Assignment, assign, planned_casts
from precision_search.precision.low import LowDtype, is_exact_or_mask
from precision_search.precision.plan import Plan, all_compute_keys, pinned_keys
from precision_search.precision.wiring import sources
from tests.graphs import CHOICES, LAYERS, MASK, RECIPES, Choice, Recipe, Writer, tiny_t5

Graphs = Mapping[GraphName, Graph]
FLOAT = TensorProto.FLOAT
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def tiny() -> Graphs:
    return tiny_t5()


def plan_with(graphs: Graphs, *fp32: str, low: tuple[str, ...] | None = None, dtype: LowDtype = "float16") -> Plan:
    """Everything low but these nodes, or everything in fp32 but those."""
    if low is not None:
        return Plan(dtype, "base", all_compute_keys(graphs) - set(low))
    assert set(fp32) <= all_compute_keys(graphs)
    return Plan(dtype, "base", pinned_keys(graphs) | set(fp32))


def one_graph(write: Writer) -> dict[GraphName, Graph]:
    return {"encoder": write.graph()}


def test_compute_nodes_follow_the_plan_and_nothing_else_does(tiny: Graphs) -> None:
    plan = plan_with(tiny, "encoder.final_layer_norm/Pow", "lm_head/MatMul")
    for name, assignment in assign(tiny, plan).items():
        for node in tiny[name].nodes.values():
            if node.kind is NodeKind.COMPUTE:
                assert (node.key in assignment.low_nodes) == (node.key not in plan.fp32)
            elif node.kind is NodeKind.OTHER:
                assert node.key not in assignment.low_nodes


def test_everything_in_fp32_leaves_nothing_low(tiny: Graphs) -> None:
    assignments = assign(tiny, plan_with(tiny, low=()))
    assert set(assignments.values()) == {Assignment(frozenset(), frozenset(), frozenset())}


@PROPERTY
@given(recipe=RECIPES, choice=CHOICES)
def test_data_movement_loses_nothing_in_random_graphs(recipe: Recipe, choice: Choice) -> None:
    graphs = recipe.graphs()
    plan = choice.plan(graphs)
    for name, assignment in assign(graphs, plan).items():
        assert_lossless(graphs[name], assignment, plan.dtype)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(choice=CHOICES)
def test_data_movement_loses_nothing_on_the_demo(demo_bundle: Bundle, choice: Choice) -> None:
    plan = choice.plan(demo_bundle.graphs)
    for name, assignment in assign(demo_bundle.graphs, plan).items():
        assert_lossless(demo_bundle.graphs[name], assignment, plan.dtype)


def assert_lossless(graph: Graph, assignment: Assignment, dtype: LowDtype) -> None:
    """Where data movement rounds a value (it is low, what it moves is not), nobody reads the result in fp32.

    Constants are the exception: a mask, and what is exact anyway, may be stored low for everybody.
    """
    for node in graph.model.graph:
        key = str(node.name)
        if graph.nodes[key].kind is not NodeKind.MOVEMENT or key not in assignment.low_nodes:
            continue
        rounded = [value for _, value in float_inputs(node) if str(value.name) not in assignment.low_values]
        if not rounded:
            continue
        readers = list(final_readers(node, graph, assignment))
        if all(value.is_initializer() for value in rounded) and not all(readers):
            arrays = [value.const_value.numpy() for value in rounded if value.const_value is not None]
            moves_low_data = any(str(value.name) in assignment.low_values for _, value in float_inputs(node))
            assert moves_low_data or all(is_exact_or_mask(array, dtype) for array in arrays)
        elif not all(value.is_initializer() for value in rounded):
            assert all(readers), key


def final_readers(node: ir.Node, graph: Graph, assignment: Assignment) -> Iterator[bool]:
    """For each reader behind all data movement, whether it reads low."""
    for output in node.outputs:
        if output.is_graph_output():
            yield str(output.name) in assignment.low_outputs
        for reader, _ in output.uses():
            kind = graph.nodes[str(reader.name)].kind
            if kind is NodeKind.MOVEMENT:
                yield from final_readers(reader, graph, assignment)
            elif reader.op_type not in ("Shape", "Size"):
                yield str(reader.name) in assignment.low_nodes


@PROPERTY
@given(choice=CHOICES)
def test_a_cache_tensor_is_low_iff_all_makers_or_all_readers_are(tiny: Graphs, choice: Choice) -> None:
    plan = choice.plan(tiny)
    assignments = assign(tiny, plan)

    def low(key: str) -> bool:
        assert key in all_compute_keys(tiny)
        return key not in plan.fp32

    for layer in range(LAYERS):
        for part, attention in (("decoder", "0.SelfAttention"), ("encoder", "1.EncDecAttention")):
            for kind, reader in (("key", "MatMul"), ("value", "MatMul.1")):
                path = f"decoder.block.{layer}.layer.{attention}"
                wanted = low(f"{path}.{kind[0]}/MatMul") or low(f"{path}/{reader}")
                assert_agreed(assignments, f"{layer}.{part}.{kind}", wanted)
    crossing = [
        low(f"decoder.block.{layer}.layer.1.EncDecAttention.{kind}/MatMul") for layer in range(LAYERS) for kind in "kv"
    ]
    wanted = low("encoder.final_layer_norm/Mul.1") or all(crossing)
    assert ("last_hidden_state" in assignments["encoder"].low_outputs) == wanted
    assert ("encoder_hidden_states" in assignments["decoder"].low_values) == wanted


def assert_agreed(assignments: Mapping[GraphName, Assignment], name: str, wanted: bool) -> None:
    decoder, with_past = assignments["decoder"], assignments["decoder_with_past"]
    assert (f"present.{name}" in decoder.low_outputs) == wanted, name
    assert (f"past_key_values.{name}" in with_past.low_values) == wanted, name
    if ".decoder." in name:
        assert (f"present.{name}" in with_past.low_outputs) == wanted, name


def test_the_demo_keeps_its_cache_low_where_only_the_readers_are(demo_bundle: Bundle) -> None:
    graphs = demo_bundle.graphs
    path = "decoder.block.2.layer.0.SelfAttention"
    both = plan_with(graphs, f"{path}.k/MatMul", f"{path}/MatMul")
    assert_agreed(assign(graphs, both), "2.decoder.key", False)
    assert_agreed(assign(graphs, both), "2.decoder.value", True)
    assert_agreed(assign(graphs, both), "1.decoder.key", True)
    for one in (f"{path}.k/MatMul", f"{path}/MatMul"):
        assert_agreed(assign(graphs, plan_with(graphs, one)), "2.decoder.key", True)


def test_logits_are_as_the_projection_makes_them(tiny: Graphs) -> None:
    low = assign(tiny, plan_with(tiny))
    kept = assign(tiny, plan_with(tiny, "lm_head/MatMul"))
    for name in ("decoder", "decoder_with_past"):
        assert "logits" in low[name].low_outputs
        assert "logits" not in kept[name].low_outputs


@pytest.mark.parametrize("opset", [13, 15, 16, 17])
def test_old_opsets_are_refused_for_bfloat16(opset: int) -> None:
    graphs = tiny_t5(opset=opset)
    assign(graphs, plan_with(graphs))
    assign(graphs, plan_with(graphs, low=(), dtype="bfloat16"))
    low = plan_with(graphs, dtype="bfloat16")
    if opset >= 16:
        for model in convert(graphs, low).models.values():
            onnx.checker.check_model(ir.to_proto(model), full_check=True)
    else:
        with pytest.raises(InputError, match="the encoder cannot be bfloat16") as caught:
            assign(graphs, low)
        assert f"opset {opset}" in caught.value.why
        assert "opset 16" in caught.value.fix


def moved(*readers: str) -> dict[GraphName, Graph]:
    """`x` → Neg → Transpose → Unsqueeze → each reader."""
    write = Writer("encoder")
    x = write.input("x", FLOAT, (4, 4))
    turned = write.op("", "Transpose", write.op("", "Neg", x))
    wide = write.op("", "Unsqueeze", turned, write.integers(0))
    for number, reader in enumerate(readers):
        write.op("", reader, wide, output=f"y{number}")
        if reader == "Shape":
            write.output(f"y{number}", TensorProto.INT64, (3,))
        else:
            write.output(f"y{number}", FLOAT, (1, 4, 4))
    return one_graph(write)


TRANSPOSE, UNSQUEEZE = "encoder/aux/Transpose", "encoder/aux/Unsqueeze"


@pytest.mark.parametrize(
    ("low", "moves_low"),
    [
        (("Neg", "Abs", "Relu"), True),
        (("Neg",), True),
        (("Abs", "Relu"), True),
        (("Abs",), False),
        ((), False),
    ],
)
def test_movement_is_low_where_its_maker_or_all_readers_are(low: tuple[str, ...], moves_low: bool) -> None:
    graphs = moved("Abs", "Relu")
    assignment = assign(graphs, plan_with(graphs, low=tuple(f"encoder/{op}" for op in low)))["encoder"]
    assert ({TRANSPOSE, UNSQUEEZE} <= assignment.low_nodes) == moves_low
    assert ({TRANSPOSE, UNSQUEEZE} & assignment.low_nodes == frozenset()) == (not moves_low)


def test_movement_behind_a_branch_is_decided_for_each_branch() -> None:
    write = Writer("encoder")
    x = write.input("x", FLOAT, (4, 4))
    turned = write.op("", "Transpose", write.op("", "Neg", x))
    write.op("", "Abs", write.op("", "Unsqueeze", turned, write.integers(0)), output="y0")
    write.op("", "Relu", turned, output="y1")
    write.output("y0", FLOAT, (1, 4, 4))
    write.output("y1", FLOAT, (4, 4))
    graphs = one_graph(write)
    low = assign(graphs, plan_with(graphs, low=("encoder/Abs",)))["encoder"].low_nodes
    assert low == {"encoder/Abs", UNSQUEEZE}


def test_a_reader_of_shapes_or_of_nothing_wants_no_dtype() -> None:
    graphs = moved("Abs", "Shape")
    low = assign(graphs, plan_with(graphs, low=("encoder/Abs",)))["encoder"].low_nodes
    assert {TRANSPOSE, UNSQUEEZE} <= low


def test_movement_that_nobody_reads_casts_nothing_up() -> None:
    write = Writer("encoder")
    x = write.input("x", FLOAT, (4, 4))
    turned = write.op("", "Transpose", write.op("", "Neg", x))
    write.op("", "Shape", write.op("", "Concat", turned, x, axis=0), output="sizes")
    write.op("", "Abs", turned, output="y")
    write.output("sizes", TensorProto.INT64, (2,))
    write.output("y", FLOAT, (4, 4))
    graphs = one_graph(write)
    low = assign(graphs, plan_with(graphs, low=("encoder/Abs",)))["encoder"].low_nodes
    assert {TRANSPOSE, "encoder/aux/Concat"} <= low
    assert "encoder/aux/Concat" not in assign(graphs, plan_with(graphs, low=()))["encoder"].low_nodes


def masks(constant: float, table: bool = False) -> dict[GraphName, Graph]:
    """A mask of constants that two Adds read: zeros and `constant`, chosen by a comparison or read from a table."""
    write = Writer("encoder")
    x = write.input("x", FLOAT, (4, 4))
    if table:
        array = np.where(np.tri(4) > 0, 0, constant).astype(np.float32)
        mask = write.op("", "Transpose", write.weight("table", array))
    else:
        chosen = write.op("", "Less", x, write.weight("half", 0.5))
        mask = write.op("", "Where", chosen, write.weight("zero", 0.0), write.weight("constant", constant))
    for number in range(2):
        write.op("", "Add", x, mask, output=f"y{number}")
        write.output(f"y{number}", FLOAT, (4, 4))
    return one_graph(write)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(
    ("constant", "shared"), [(MASK, True), (-1e9, True), (-np.inf, True), (0.5, True), (0.1, False)]
)
def test_a_mask_of_constants_is_low_for_everybody_if_nothing_is_lost(
    constant: float, shared: bool, table: bool
) -> None:
    graphs = masks(constant, table)
    mixed = assign(graphs, plan_with(graphs, low=("encoder/Add",)))["encoder"]
    move = "encoder/aux/Transpose" if table else "encoder/aux/Where"
    assert (move in mixed.low_nodes) == shared
    assert move in assign(graphs, plan_with(graphs))["encoder"].low_nodes
    assert move not in assign(graphs, plan_with(graphs, low=()))["encoder"].low_nodes


def test_bfloat16_holds_what_float16_does_not() -> None:
    graphs = masks(-1e9)
    mixed = assign(graphs, plan_with(graphs, low=("encoder/Add",), dtype="bfloat16"))["encoder"]
    assert "encoder/aux/Where" not in mixed.low_nodes  # -1e9 is neither exact in bfloat16 nor beyond its range


def test_sources_are_found_behind_data_movement() -> None:
    graphs = moved("Abs")
    graph = graphs["encoder"]
    last = next(node for node in graph.model.graph if node.op_type == "Abs")
    assert last.inputs[0] is not None
    assert [str(value.name) for value in sources(last.inputs[0], graph)] == [
        str(next(node for node in graph.model.graph if node.op_type == "Neg").outputs[0].name)
    ]


@pytest.mark.parametrize(
    ("name", "common"),
    [
        ("last_hidden_state", "encoder_hidden_states"),
        ("encoder_hidden_states", "encoder_hidden_states"),
        ("past_key_values.3.decoder.key", "3.decoder.key"),
        ("present.3.decoder.key", "3.decoder.key"),
        ("logits", None),
        ("input_ids", None),
    ],
)
def test_crossing_tensors_have_one_name(name: str, common: str | None) -> None:
    assert SEQ2SEQ.crossing(name) == common


@PROPERTY
@given(recipe=RECIPES, choice=CHOICES)
def test_planned_casts_are_those_a_conversion_adds(recipe: Recipe, choice: Choice) -> None:
    graphs = recipe.graphs()
    plan = choice.plan(graphs)
    planned = {name: planned_casts(graphs[name], assignment) for name, assignment in assign(graphs, plan).items()}
    assert sum(map(len, planned.values())) == convert(graphs, plan).casts


def test_planned_casts_name_values_of_the_graph(tiny: Graphs) -> None:
    plan = plan_with(tiny, "encoder.block.0.layer.1.DenseReluDense.wo/MatMul")
    for name, assignment in assign(tiny, plan).items():
        graph = tiny[name].model.graph
        known = {str(value.name) for node in graph for value in node.outputs if is_float(value)}
        known |= {str(value.name) for value in graph.inputs}
        assert {value for value, _ in planned_casts(tiny[name], assignment)} <= known
