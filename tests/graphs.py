"""Small graphs for the tests of the precision room: a tiny T5 by hand, and random graphs of every kind of node."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from precision_search.model.graph import GRAPH_NAMES, Graph, GraphName, describe
from precision_search.precision.kernels import kernel_for
from precision_search.precision.low import LOW_DTYPES, LowDtype
from precision_search.precision.plan import Plan, all_compute_keys, pinned_keys

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
MASK = float(np.finfo(np.float32).min)
VOCABULARY, WIDTH, HEADS, HEAD_WIDTH, INNER, BUCKETS, LAYERS = 13, 8, 2, 4, 12, 6, 2


class Writer:
    """Collects nodes, weights, inputs and outputs of one graph under names that a tracing exporter would give."""

    def __init__(self, name: GraphName, opset: int = 20) -> None:
        self.name = name
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: Arrays = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._count = itertools.count()

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def weight(self, name: str, array: Array | float) -> str:
        self.weights[name] = np.asarray(array, np.float32) if isinstance(array, float) else array
        return name

    def integers(self, *numbers: int) -> str:
        return self.weight("ints." + "_".join(map(str, numbers)), np.array(numbers, np.int64))

    def integer(self, number: int) -> str:
        return self.weight(f"int.{number}", np.array(number, np.int64))

    def op(self, path: str, op_type: str, *inputs: str, output: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Adds a node of the module `path`; gives the name of its first output, the others end in `:1`, `:2`, ..."""
        number = next(self._count)
        root = "/" + path.replace(".", "/") if path else ""
        first = output or f"v{number}"
        names = [first, *(f"{first}:{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, inputs, names, f"{root}/{op_type}_{number}", **attributes))
        return first

    def output(self, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def proto(self) -> onnx.ModelProto:
        """The model, checked, with all types inferred."""
        initializers = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)

    def graph(self) -> Graph:
        return describe(self.name, ir.from_proto(self.proto()))


def tiny_t5(seed: int = 0, opset: int = 20) -> dict[GraphName, Graph]:
    """The three graphs of a T5 with two layers, all dynamic, written as torch's exporters write them."""
    return {name: describe(name, ir.from_proto(proto)) for name, proto in tiny_t5_protos(seed, opset).items()}


def tiny_t5_protos(seed: int = 0, opset: int = 20) -> dict[GraphName, onnx.ModelProto]:
    """The tiny T5 before its nodes are described."""
    return {name: _TinyT5(name, seed, opset).build() for name in GRAPH_NAMES}


def tiny_feeds(seed: int = 0) -> Arrays:
    """Source and target tokens: three sentences, the first padded, and four target tokens each."""
    rng = np.random.default_rng(seed)
    mask = np.ones((3, 5), np.int64)
    mask[0, 3:] = 0
    ids = rng.integers(2, VOCABULARY, (3, 5))
    return {"ids": ids * mask, "mask": mask, "tokens": rng.integers(2, VOCABULARY, (3, 4))}


class _TinyT5:
    """One of the three graphs. A weight depends on its name and the seed only, so that the graphs share them."""

    def __init__(self, name: GraphName, seed: int, opset: int) -> None:
        self.write = Writer(name, opset)
        self.stack = "encoder" if name == "encoder" else "decoder"
        self.seed = seed

    def build(self) -> onnx.ModelProto:
        write, name = self.write, self.write.name
        hidden_shape = ("batch", "source", WIDTH)
        ids = write.input("input_ids", INT64, ("batch", 1 if name == "decoder_with_past" else "length"))
        mask = write.input("attention_mask" if name == "encoder" else "encoder_attention_mask", INT64, ("batch", "s"))
        if name == "decoder":
            write.input("encoder_hidden_states", FLOAT, hidden_shape)
        x = write.op(f"{self.stack}.embed_tokens", "Gather", self._weight("shared", VOCABULARY, WIDTH), ids)
        own_bias, cross_bias = self._own_bias(ids, mask), self._padding(mask)
        for layer in range(LAYERS):
            block = f"{self.stack}.block.{layer}.layer"
            x = self._residual(f"{block}.0", "SelfAttention", x, own_bias, layer)
            if name != "encoder":
                x = self._residual(f"{block}.1", "EncDecAttention", x, cross_bias, layer)
            x = self._feed_forward(f"{block}.{1 if name == 'encoder' else 2}", x)
        if name == "encoder":
            self._norm("encoder.final_layer_norm", x, "last_hidden_state")
            write.output("last_hidden_state", FLOAT, hidden_shape)
        else:
            x = self._norm("decoder.final_layer_norm", x)
            scaled = write.op("lm_head", "Mul", x, write.weight("scale", WIDTH**-0.5))
            write.op("lm_head", "MatMul", scaled, self._weight("lm_head", WIDTH, VOCABULARY), output="logits")
            write.output("logits", FLOAT, ("batch", "length", VOCABULARY))
        return write.proto()

    def _weight(self, name: str, *shape: int) -> str:
        rng = np.random.default_rng([self.seed, *name.encode()])
        return self.write.weight(f"{name}.weight", rng.normal(size=shape).astype(np.float32))

    def _linear(self, path: str, x: str, inputs: int, outputs: int) -> str:
        return self.write.op(path, "MatMul", x, self._weight(path, inputs, outputs))

    def _norm(self, path: str, x: str, output: str = "") -> str:
        write = self.write
        squares = write.op(path, "Pow", x, write.weight("two", 2.0))
        attributes: dict[str, Any] = {} if write.opset >= 18 else {"axes": [-1]}
        axes = [write.integers(-1)] if write.opset >= 18 else []
        mean = write.op(path, "ReduceMean", squares, *axes, keepdims=1, **attributes)
        root = write.op(path, "Sqrt", write.op(path, "Add", mean, write.weight("epsilon", 1e-6)))
        normed = write.op(path, "Mul", x, write.op(path, "Reciprocal", root))
        return write.op(path, "Mul", normed, self._weight(path, WIDTH), output=output)

    def _length(self, value: str, axis: int) -> str:
        sizes = self.write.op("", "Shape", value)
        return self.write.op("", "Gather", sizes, self.write.integer(axis), axis=0)

    def _padding(self, mask: str) -> str:
        """0 where a source token is, the fp32 minimum where padding is: float [batch, 1, 1, source]."""
        write = self.write
        real = write.op(self.stack, "Cast", mask, to=BOOL)
        real = write.op(self.stack, "Unsqueeze", real, write.integers(1, 2))
        return write.op(self.stack, "Where", real, write.weight("zero", 0.0), write.weight("minimum", MASK))

    def _own_bias(self, ids: str, mask: str) -> str:
        """Position bias of the self-attention, from relative positions through float buckets, and its mask."""
        write, path = self.write, f"{self.stack}.block.0.layer.0.SelfAttention"
        new, past = self._length(ids, 1), write.integer(0)
        if write.name == "decoder_with_past":
            for layer, part in itertools.product(range(LAYERS), ("decoder", "encoder")):
                for kind in ("key", "value"):
                    shape = ("batch", HEADS, "past" if part == "decoder" else "source", HEAD_WIDTH)
                    write.input(f"past_key_values.{layer}.{part}.{kind}", FLOAT, shape)
            past = self._length("past_key_values.0.decoder.key", 2)
        total = write.op("", "Add", past, new)
        keys = write.op("", "Range", write.integer(0), total, write.integer(1))
        queries = write.op("", "Unsqueeze", write.op("", "Range", past, total, write.integer(1)), write.integers(1))
        distance = write.op(path, "Abs", write.op(path, "Sub", queries, keys))
        distance = write.op(path, "Max", distance, write.integer(1))
        scaled = write.op(path, "Div", write.op(path, "Cast", distance, to=FLOAT), write.weight("exact", 1.5))
        bucket = write.op(path, "Mul", write.op(path, "Log", scaled), write.weight("factor", 1.9))
        bucket = write.op(path, "Min", write.op(path, "Cast", bucket, to=INT64), write.integer(BUCKETS - 1))
        table = self._weight(f"{path}.relative_attention_bias", BUCKETS, HEADS)
        bias = write.op(f"{path}.relative_attention_bias", "Gather", table, bucket)
        bias = write.op(path, "Unsqueeze", write.op(path, "Transpose", bias, perm=[2, 0, 1]), write.integers(0))
        if write.name == "encoder":
            return write.op(path, "Add", bias, self._padding(mask))
        seen = write.op(path, "LessOrEqual", keys, queries)
        causal = write.op("decoder", "Where", seen, write.weight("zero", 0.0), write.weight("minimum", MASK))
        return write.op(path, "Add", bias, causal)

    def _heads(self, path: str, x: str, output: str = "") -> str:
        split = self.write.op(path, "Reshape", x, self.write.integers(0, -1, HEADS, HEAD_WIDTH))
        return self.write.op(path, "Transpose", split, perm=[0, 2, 1, 3], output=output)

    def _residual(self, path: str, kind: str, x: str, bias: str, layer: int) -> str:
        write, inside = self.write, f"{path}.{kind}"
        normed = self._norm(f"{path}.layer_norm", x)
        query = self._heads(inside, self._linear(f"{inside}.q", normed, WIDTH, WIDTH))
        own = kind == "SelfAttention"
        key, value = (self._cached(inside, part, normed, layer, own) for part in ("key", "value"))
        scores = write.op(inside, "MatMul", query, write.op(inside, "Transpose", key, perm=[0, 1, 3, 2]))
        weights = write.op(inside, "Softmax", write.op(inside, "Add", scores, bias), axis=-1)
        mixed = write.op(inside, "Transpose", write.op(inside, "MatMul", weights, value), perm=[0, 2, 1, 3])
        merged = write.op(inside, "Reshape", mixed, write.integers(0, -1, WIDTH))
        return write.op(path, "Add", x, self._linear(f"{inside}.o", merged, WIDTH, WIDTH))

    def _cached(self, path: str, kind: str, normed: str, layer: int, own: bool) -> str:
        """Keys or values: computed, and where there is a past, appended to it or taken from it."""
        write, part = self.write, "decoder" if own else "encoder"
        past, present = f"past_key_values.{layer}.{part}.{kind}", f"present.{layer}.{part}.{kind}"
        with_past = write.name == "decoder_with_past"
        if with_past and not own:
            return past
        source = normed if own else "encoder_hidden_states"
        name = "" if write.name == "encoder" or with_past else present
        made = self._heads(path, self._linear(f"{path}.{kind[0]}", source, WIDTH, WIDTH), output=name)
        if with_past:
            made = write.op(path, "Concat", past, made, axis=2, output=present)
        if write.name != "encoder":
            write.output(present, FLOAT, ("batch", HEADS, f"{part}_length", HEAD_WIDTH))
        return made

    def _feed_forward(self, path: str, x: str) -> str:
        inside = f"{path}.DenseReluDense"
        wide = self._linear(f"{inside}.wi", self._norm(f"{path}.layer_norm", x), WIDTH, INNER)
        narrow = self._linear(f"{inside}.wo", self.write.op(f"{inside}.act", "Relu", wide), INNER, WIDTH)
        return self.write.op(path, "Add", x, narrow)


Step = tuple[str, int, int]
"""An op of a random graph: what it is and which earlier values it reads, counted from the last one back."""

UNARY = ("Relu", "Tanh", "Neg", "Exp", "Sigmoid", "Gelu", "Softmax", "Abs", "Reciprocal", "Sqrt")
BINARY = ("Add", "Sub", "Mul", "MatMul", "Min")
SPECIAL = (
    *("mean", "sum", "scalar", "square", "weight", "turned weight", "lookup", "indices", "zeros", "twice", "tenth"),
    *("masked", "mask", "shape", "pad", "Concat", "Split", "Where", "Gather", "Unsqueeze", "Reshape"),
    *("Transpose", "Identity", "Trilu"),
)
SIDE = 4


class RandomGraph:
    """A graph in which every value is float [4, 4], so that any op can read any value."""

    def __init__(self, name: GraphName, inputs: Sequence[str], seed: int) -> None:
        self.write = Writer(name)
        self.rng = np.random.default_rng(seed)
        self.values = [self.write.input(each, FLOAT, (SIDE, SIDE)) for each in inputs]
        self.ids = self.write.input("ids", INT64, (SIDE,))
        self.made: list[str] = []

    def build(self, steps: Sequence[Step], outputs: Sequence[str]) -> Graph:
        for _ in range(len(outputs) - len(steps)):
            self._add("scalar", 0, 0)
        for step in steps:
            self._add(*step)
        for name, value in zip(outputs, reversed(self.made), strict=False):
            self._name_output(value, name)
        return self.write.graph()

    def _name_output(self, value: str, name: str) -> None:
        for node in self.write.nodes:
            node.input[:] = [name if each == value else each for each in node.input]
            node.output[:] = [name if each == value else each for each in node.output]
        self.write.output(name, FLOAT, (SIDE, SIDE))

    def _add(self, kind: str, first: int, second: int) -> None:
        a, b = (self.values[-1 - index % len(self.values)] for index in (first, second))
        if kind in UNARY:
            made = self.write.op("", kind, self._positive(a) if kind == "Sqrt" else a)
        elif kind in BINARY:
            made = self.write.op("", kind, a, b)
        else:
            made = self._special(kind, a, b)
        self.values.append(made)
        self.made.append(made)

    def _positive(self, value: str) -> str:
        return self.write.op("", "Abs", value)

    def _scalar(self, number: float) -> str:
        return self.write.weight(f"scalar.{number}", number)

    def _table(self, *shape: int) -> str:
        name = f"table.{len(self.write.weights)}"
        return self.write.weight(name, (3 * self.rng.normal(size=shape)).astype(np.float32))

    def _special(self, kind: str, a: str, b: str) -> str:
        op, axes, scalar = self.write.op, self.write.integers, self._scalar
        makers: dict[str, Callable[[], str]] = {
            "mean": lambda: op("", "Sub", b, op("", "ReduceMean", a, axes(-1), keepdims=1)),
            "sum": lambda: op("", "Add", op("", "ReduceSum", a, axes(0), keepdims=0), b),
            "scalar": lambda: op("", "Mul", a, scalar(1.7)),
            "square": lambda: op("", "Pow", a, scalar(2.0)),
            "weight": lambda: op("", "MatMul", a, self._table(SIDE, SIDE)),
            "turned weight": lambda: op("", "MatMul", a, op("", "Transpose", self._table(SIDE, SIDE))),
            "lookup": lambda: op("", "Gather", self._table(6, SIDE), self.ids),
            "indices": self._indices,
            "zeros": lambda: op("", "Add", a, op("", "ConstantOfShape", axes(SIDE, SIDE))),
            "twice": lambda: self._twice(op("", "Transpose", a)),
            "tenth": lambda: self._twice(op("", "Expand", scalar(0.1), axes(SIDE, SIDE))),
            "masked": lambda: op("", "Where", op("", "Less", a, b), a, scalar(MASK)),
            "mask": lambda: op("", "Softmax", op("", "Add", self._mask(a, b), b), axis=-1),
            "shape": lambda: op("", "Reshape", a, op("", "Shape", b)),
            "pad": lambda: op("", "Slice", op("", "Pad", a, axes(0, 0, 1, 0), scalar(0.3)), axes(1), axes(5), axes(0)),
            "Concat": lambda: op("", "Slice", op("", "Concat", a, b, axis=0), axes(2), axes(2 + SIDE), axes(0)),
            "Split": lambda: self._swapped(op("", "Split", a, axis=1, outputs=2, num_outputs=2)),
            "Where": lambda: op("", "Where", op("", "Less", a, scalar(0.5)), a, b),
            "Gather": lambda: op("", "Gather", a, self.ids),
            "Unsqueeze": lambda: op("", "Squeeze", op("", "Unsqueeze", a, axes(1)), axes(1)),
            "Reshape": lambda: op("", "Reshape", op("", "Reshape", a, axes(-1)), axes(SIDE, SIDE)),
        }
        return makers[kind]() if kind in makers else op("", kind, a)

    def _indices(self) -> str:
        """Index arithmetic: integers that pass through floats on their way to a lookup."""
        op = self.write.op
        places = op("", "Mul", op("", "Cast", self.ids, to=FLOAT), self._scalar(0.6))
        return op("", "Gather", self._table(6, SIDE), op("", "Cast", places, to=INT64))

    def _mask(self, a: str, b: str) -> str:
        return self.write.op("", "Where", self.write.op("", "Less", a, b), self._scalar(0.0), self._scalar(MASK))

    def _twice(self, moved: str) -> str:
        """Two readers of one moved value."""
        op = self.write.op
        return op("", "Add", op("", "Relu", moved), op("", "Neg", moved))

    def _swapped(self, halves: str) -> str:
        return self.write.op("", "Concat", f"{halves}:1", halves, axis=1)


STEPS = st.lists(
    st.tuples(st.sampled_from((*UNARY, *BINARY, *SPECIAL)), st.integers(0, 4), st.integers(0, 4)), max_size=12
)

CACHE = ("0.decoder.key", "0.encoder.key")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What three random graphs are made of; each graph's outputs are the next one's inputs."""

    seed: int
    encoder: Sequence[Step]
    decoder: Sequence[Step]
    with_past: Sequence[Step]

    def graphs(self) -> dict[GraphName, Graph]:
        past, present = ([f"{prefix}{name}" for name in CACHE] for prefix in ("past_key_values.", "present."))
        first = RandomGraph("encoder", ["x"], self.seed)
        second = RandomGraph("decoder", ["y", "encoder_hidden_states"], self.seed)
        third = RandomGraph("decoder_with_past", ["y", *past], self.seed)
        return {
            "encoder": first.build(self.encoder, ["last_hidden_state"]),
            "decoder": second.build(self.decoder, ["logits", *present]),
            "decoder_with_past": third.build(self.with_past, ["logits", present[0]]),
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """A random plan: the share of compute nodes in fp32, and which."""

    dtype: LowDtype
    share: float
    seed: int

    def plan(self, graphs: Mapping[GraphName, Graph], always: frozenset[str] = frozenset()) -> Plan:
        """The plan over these graphs; what no plan may make low, what has no low kernel and `always` stay in fp32."""
        rng = np.random.default_rng(self.seed)
        chosen = {key for key in sorted(all_compute_keys(graphs)) if rng.random() < self.share}
        nodes = (node for graph in graphs.values() for node in graph.compute)
        chosen |= {node.key for node in nodes if kernel_for(node.op_type, self.dtype) is None}
        return Plan(self.dtype, "base", frozenset(chosen) | pinned_keys(graphs) | always)


RECIPES = st.builds(Recipe, st.integers(0, 9), STEPS, STEPS, STEPS)
CHOICES = st.builds(
    Choice, st.sampled_from(LOW_DTYPES), st.sampled_from((0.0, 0.1, 0.5, 0.9)), st.integers(0, 2**32 - 1)
)


def random_feeds(seed: int) -> Arrays:
    """Inputs of random graphs: numbers of ordinary size, a few that overflow fp16 when squared or summed."""
    rng = np.random.default_rng(seed)
    feeds: Arrays = {name: rng.normal(size=(SIDE, SIDE)).astype(np.float32) for name in ("x", "y")}
    feeds["x"][0] *= 300
    feeds["y"][:, 1] *= 30000
    feeds["ids"] = rng.integers(0, SIDE, SIDE)
    return feeds


def run(model: ir.Model, feeds: Mapping[str, Array], level: Literal["disabled", "basic", "all"] = "basic") -> Arrays:
    """All outputs of a model on the CPU, by name; feeds that the model does not take are left out."""
    from precision_search.runtime.backends import create_session
    from precision_search.runtime.session import SessionSettings

    session = create_session(model, SessionSettings(optimization_level=level, threads=1))
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, wanted), strict=True))


def run_chain(models: Mapping[GraphName, ir.Model], feeds: Mapping[str, Array]) -> dict[GraphName, Arrays]:
    """Runs the three random graphs one after the other, each on what the ones before it gave."""
    known: Arrays = dict(feeds)
    found: dict[GraphName, Arrays] = {}
    for name in GRAPH_NAMES:
        found[name] = run(models[name], known)
        for output, array in found[name].items():
            known[entry_name(output)] = array
    return found


def entry_name(output: str) -> str:
    """The name under which the next graph takes an output."""
    if output == "last_hidden_state":
        return "encoder_hidden_states"
    return output.replace("present.", "past_key_values.")


def run_t5(models: Mapping[GraphName, ir.Model], feeds: Mapping[str, Array]) -> dict[GraphName, Arrays]:
    """Encoder, decoder over all target tokens, and one more token on top of that decoder's caches."""
    found: dict[GraphName, Arrays] = {}
    found["encoder"] = run(models["encoder"], {"input_ids": feeds["ids"], "attention_mask": feeds["mask"]})
    states = {
        "input_ids": feeds["tokens"],
        "encoder_attention_mask": feeds["mask"],
        "encoder_hidden_states": found["encoder"]["last_hidden_state"],
    }
    found["decoder"] = run(models["decoder"], states)
    cache = {entry_name(name): array for name, array in found["decoder"].items()}
    step = {"input_ids": feeds["tokens"][:, -1:], "encoder_attention_mask": feeds["mask"], **cache}
    found["decoder_with_past"] = run(models["decoder_with_past"], step)
    return found


def same(left: Mapping[str, Array], right: Mapping[str, Array]) -> bool:
    """Whether two sets of arrays are equal bit for bit, NaN like NaN."""
    return left.keys() == right.keys() and all(
        np.array_equal(array, right[name], equal_nan=True) for name, array in left.items()
    )


def weight_of(graph: Graph, key: str) -> Array:
    """The first weight that a node reads directly."""
    node = next(node for node in graph.model.graph if node.name == key)
    arrays = [v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None]
    return next(array for array in arrays if array.dtype == np.float32 and math.prod(array.shape) > 1)
