"""The page's commands for trtexec name exactly the inputs of the graphs, with shapes that they take."""

from __future__ import annotations

import contextlib
import io
import shlex
from pathlib import Path

import onnx
import pytest

from precision_search.model.bundle import Bundle
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.layout import graph_file
from precision_search.published.publish import publish
from tests.around.page import code_under
from tests.output_models import publish_facts_of_a_run
from tests.plans import NORMS, WO, keeping

Shapes = dict[str, list[int]]


@pytest.fixture(scope="module")
def model(demo_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trt") / "model"
    return publish(demo_bundle, keeping(demo_bundle, NORMS, WO), publish_facts_of_a_run(), out)


def printed(model: Path) -> list[list[str]]:
    (code,) = code_under("TensorRT")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code.replace('"RUN/model"', repr(str(model))), {})
    return [shlex.split(line) for line in out.getvalue().splitlines()]


def shapes(command: list[str], flag: str) -> Shapes:
    (text,) = [part.partition("=")[2] for part in command if part.startswith(f"{flag}=")]
    pairs = [part.rpartition(":") for part in text.split(",")]
    return {name: [int(size) for size in shape.split("x")] for name, _, shape in pairs}


@pytest.mark.slow
def test_the_commands_cover_each_graph_and_its_inputs(model: Path) -> None:
    commands = printed(model)
    assert len(commands) == len(GRAPH_NAMES)
    for command, name in zip(commands, GRAPH_NAMES, strict=True):
        path = model / graph_file(name)
        assert command[0] == "trtexec"
        assert {"--stronglyTyped", "--noTF32", f"--onnx={path}"} < set(command)
        assert not [part for part in command if part.startswith(("--fp16", "--bf16", "--best", "--precision"))]
        wanted = {value.name: value.type.tensor_type.shape.dim for value in onnx.load(path).graph.input}
        least, usual, most = (shapes(command, f"--{key}Shapes") for key in ("min", "opt", "max"))
        for found in (least, usual, most):
            assert list(found) == list(wanted)
            for key, dims in wanted.items():
                assert len(found[key]) == len(dims)
                assert [size for size, dim in zip(found[key], dims, strict=True) if dim.dim_value] == [
                    dim.dim_value for dim in dims if dim.dim_value
                ]
        assert all(
            one <= two <= three
            for key in wanted
            for one, two, three in zip(least[key], usual[key], most[key], strict=True)
        )


@pytest.mark.slow
def test_graphs_run_at_the_ends_of_the_ranges(model: Path) -> None:
    """On the CPU; what TensorRT makes of them we have not tried."""
    import numpy as np
    import onnxruntime

    dtypes = {"tensor(int64)": np.int64, "tensor(float16)": np.float16, "tensor(float)": np.float32}
    for command, name in zip(printed(model), GRAPH_NAMES, strict=True):
        session = onnxruntime.InferenceSession(str(model / graph_file(name)), providers=["CPUExecutionProvider"])
        types = {each.name: dtypes[each.type] for each in session.get_inputs()}
        for key in ("min", "max"):
            feed = {each: np.ones(shape, types[each]) for each, shape in shapes(command, f"--{key}Shapes").items()}
            assert all(np.asarray(out).size for out in session.run(None, feed))
