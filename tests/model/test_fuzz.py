"""Whatever an ONNX file holds, reading it ends with a graph whose keys are sound, or with an error of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from precision_search.errors import InputError
from precision_search.model.bundle import open_bundle
from precision_search.model.graph import describe
from precision_search.model.onnx_files import read_model
from precision_search.model.pairing import aligned
from precision_search.precision.kernels import KERNELS
from tests.other_layouts import merged_files, write_configs, write_graphs

BOUNDED = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
OTHERS = ("Identity", "Cast", "Shape", "Transpose", "Concat", "Unsqueeze", "Where", "Dropout", "Split", "Constant")
OP_TYPES = (*sorted(KERNELS), *OTHERS)
CONSTANTS = {
    "one": np.float32(1),
    "inf": np.float32(np.inf),
    "lowest": np.array([-np.inf, 0, np.nan, 1], np.float32),
    "square": np.eye(4, dtype=np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "axes": np.array([0]),
    "ids": np.array([0, 3, 1, 2]),
    "yes": np.array(True),
}
NAMES = ("", "", "node", "/encoder/block.0/a/Op", "n{}")


@dataclass(frozen=True, slots=True)
class Step:
    """A node: its operator, what it reads (counted from the last value back, or a constant), its name, its outputs."""

    op_type: str
    reads: tuple[int | str, ...]
    name: str
    outputs: int


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(OP_TYPES),
        st.lists(st.integers(0, 5) | st.sampled_from(("", *CONSTANTS)), min_size=1, max_size=3).map(tuple),
        st.sampled_from(NAMES),
        st.sampled_from((1, 1, 1, 2)),
    ),
    min_size=1,
    max_size=12,
)


def written(steps: Sequence[Step], names: Sequence[str] = ()) -> bytes:
    """An ONNX file of these nodes; each value is float [4], or whatever comes of it."""
    values, nodes = ["x"], []
    for index, step in enumerate(steps):
        reads = [each if isinstance(each, str) else values[-1 - each % len(values)] for each in step.reads]
        made = [f"v{index}", *([f"v{index}.1" if index % 2 else ""] if step.outputs == 2 else [])]
        node = helper.make_node(step.op_type, reads, made, (names or [s.name for s in steps])[index].format(index))
        if step.op_type == "Cast":
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT if index % 2 else TensorProto.INT64))
        if step.op_type == "Concat":
            node.attribute.append(helper.make_attribute("axis", 0))
        nodes.append(node)
        values.append(made[0])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", values[-1])]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in CONSTANTS.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 23)]
    content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return content


def read(path: Path, content: bytes) -> ir.Model | None:
    """The model, or None where it is refused with an error of ours."""
    path.write_bytes(content)
    try:
        return read_model(path)
    except InputError as error:
        assert error.why
        assert error.fix
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(BOUNDED, max_examples=150)
@given(steps=STEPS)
def test_random_graphs_have_sound_keys_or_are_refused(folder: Path, steps: list[Step]) -> None:
    path = folder / "decoder_model.onnx"
    content = written(steps)
    if (model := read(path, content)) is None:
        return
    graph = describe("decoder", model)
    assert len(graph.nodes) == len(graph.model.graph)
    assert all(key.startswith(("decoder", "lm_head")) for key in graph.nodes)
    again = read(path, content)
    assert again is not None
    assert list(describe("decoder", again).nodes) == list(graph.nodes)
    other = read(path, written(steps, [f"/n{index}/{index}" for index in range(len(steps))]))
    assert other is not None
    later = aligned(graph, describe("decoder_with_past", other))
    assert sorted(node.key for node in later.compute) == sorted(node.key for node in graph.compute)


def test_most_random_graphs_are_read(folder: Path) -> None:
    """Or the test above would say little."""
    chain = [Step(op_type, (0,), "", 1) for op_type in ("Relu", "Tanh", "Softmax", "Dropout", "Neg", "Identity")]
    model = read(folder / "decoder_model.onnx", written([*chain, Step("MatMul", (0, "square"), "", 1)]))
    assert model is not None
    assert len(describe("decoder", model).compute) == 6


MERGED = {name: proto.SerializeToString() for name, proto in merged_files().items()}
(ENCODER, DECODER) = MERGED


@settings(BOUNDED, max_examples=40)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(MERGED[DECODER]) - 1), st.integers(0, 7)), min_size=1, max_size=3),
    name=st.sampled_from((ENCODER, DECODER, DECODER)),
)
def test_a_model_with_flipped_bits_opens_or_is_refused(folder: Path, flips: list[tuple[int, int]], name: str) -> None:
    where = folder / "flipped"
    if not where.exists():
        write_graphs(write_configs(where), merged_files())
    content = bytearray(MERGED[name])
    for place, bit in flips:
        content[place % len(content)] ^= 1 << bit
    (where / name).write_bytes(content)
    try:
        bundle = open_bundle(str(where), folder / "cache")
        assert all(len(graph.nodes) == len(graph.model.graph) for graph in bundle.graphs.values())
    except InputError as error:
        assert error.fix
    finally:
        (where / name).write_bytes(MERGED[name])
