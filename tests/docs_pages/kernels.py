"""Which kernels ONNX Runtime takes on this processor, and with which a page was written.

Processors have other vector units, so other kernels add the same products up in another order: the last bits of a sum
differ, and where two tokens are nearly tied, so does the token. A page is held to what it says of near-ties only where
the kernels are those that it was written with.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

WRITTEN_WITH = Path(__file__).with_name("written_with.json")
"""The kernels of each page that `--console` wrote."""


def kernels() -> str:
    """A name for this processor's kernels: a digest of what they make of a product and a softmax of fixed numbers."""
    shape = (64, 512)
    left = (np.arange(64 * 512, dtype=np.int64) * 7919 % 1009 / np.float32(505) - 1).astype(np.float32).reshape(shape)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["left", "right"], ["product"]),
            helper.make_node("Softmax", ["product"], ["share"]),
        ],
        "kernels",
        [
            helper.make_tensor_value_info("left", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("right", TensorProto.FLOAT, shape[::-1]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (64, 64)) for name in ("product", "share")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"left": left, "right": np.ascontiguousarray(left.T[:, ::-1])})
    return hashlib.sha256(b"".join(output.tobytes() for output in outputs)).hexdigest()[:16]


def written_here(page: str) -> bool:
    """Whether the page (its path in the repository) was written with this processor's kernels."""
    return _written_with().get(page) == kernels()


def note(page: str) -> None:
    """Keeps that the page was written with this processor's kernels."""
    text = json.dumps(dict(sorted({**_written_with(), page: kernels()}.items())), indent=2)
    WRITTEN_WITH.write_text(f"{text}\n")


def _written_with() -> dict[str, str]:
    return dict(json.loads(WRITTEN_WITH.read_text()))
