"""Heads: nodes appended to a graph when a session is made, so that what leaves the graph is small.

In: a graph of a bundle as published, with plain `logits`. Out: a clone whose outputs are tokens and flags (to
generate), or signed margins (to screen). The input model is never modified. Everything is computed in fp32 from the
logits, whatever their dtype: bfloat16 has no ArgMax or ReduceMax on CUDA.

Whether a row of logits is finite is read off its dot product with zeros: 0 if all are finite, NaN if one is not. It is
one pass and exact, while ReduceMax may lose a NaN and a sum of finite values may overflow.
Token rules come after that: a token that must not be chosen has a logit of -inf from there on, so it neither wins nor
comes second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.errors import InputError
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.layout import SEQ2SEQ
from precision_search.runtime.token_rules import forbidden_tokens, has_token_rules

INPUT_IDS = SEQ2SEQ.decoder.input("decoder_ids")
LOGITS = SEQ2SEQ.decoder.output
HIDDEN = SEQ2SEQ.encoder.output

FINISHED_IN = "finished_in"
FORCED_TOKEN = "forced_token"
TOKEN_PHASE = "token_phase"
NEXT_TOKEN = "next_token"
FINISHED = "finished"
FINITE_CHECK = "finite_check"
LABELS = "labels"
MARGIN = "margin"

_OURS = frozenset({FINISHED_IN, FORCED_TOKEN, TOKEN_PHASE, NEXT_TOKEN, FINISHED, FINITE_CHECK, LABELS, MARGIN})

NOT_FORCED = -1
"""Value of `forced_token` that forces nothing."""

_INT64_MAX = int(np.iinfo(np.int64).max)
_AXES_AS_INPUT = {"ReduceMax": 18, "ReduceSum": 13, "Squeeze": 13, "Unsqueeze": 13}
"""Opset from which an operator takes its axes as an input, not as an attribute."""

_Dims = Sequence[int | ir.SymbolicDim | None]


def with_token_head(model: ir.Model, generation: GenerationSettings, *, with_margin: bool = False) -> ir.Model:
    """A decoder that chooses tokens: greedy, at the last position, the lowest id where logits tie.

    `logits` is no longer an output; all other outputs stay. Added (B is the batch):

    - input `finished_in` bool [B, 1]: rows that had ended before this step;
    - input `forced_token` int64 [1], only if the settings force tokens: chosen instead if not `NOT_FORCED`;
    - input `token_phase` int64 [1], only if the settings have token rules: which of them hold (see `token_rules`);
    - output `next_token` int64 [B, 1]: the choice, pad in rows that had ended;
    - output `finished` bool [B, 1]: rows that have ended, this step included;
    - output `finite_check` float32 [B, 1, 1]: NaN where a logit of the row is not finite, else 0;
    - output `margin` float32 [B, 1, 1], only if asked for: the best logit minus the second best of those that may be
      chosen, NaN where one of the row is not finite.

    Raises:
        InputError: the graph has no output `logits` [B, T, V] with a known vocabulary size V.
    """
    clone = model.clone()
    head = _Head(clone, "token_head")
    logits = find_output(clone, LOGITS)
    clone.graph.outputs.remove(logits)
    vocabulary = last_dimension(logits)
    batch = _leading(logits)[0]
    if not _is_single_position(clone):
        starts, ends, axes = (head.constant(name, [value]) for name, value in (("s", -1), ("e", _INT64_MAX), ("a", 1)))
        logits = head.op("Slice", logits, starts, ends, axes)
    logits = head.as_float32(logits)
    check = head.op("MatMul", logits, head.zeros(vocabulary))
    logits = head.allowed(logits, generation, vocabulary, 1)
    choice = head.op("ArgMax", logits, axis=-1, keepdims=0)
    if generation.forced_bos_token_id is not None or generation.forced_eos_token_id is not None:
        forced = head.add_input(FORCED_TOKEN, ir.DataType.INT64, [1])
        is_forced = head.op("Greater", forced, head.constant("not_forced", [NOT_FORCED]))
        choice = head.op("Where", is_forced, forced, choice)
    finished_in = head.add_input(FINISHED_IN, ir.DataType.BOOL, [batch, 1])
    token = head.op("Where", finished_in, head.constant("pad", [generation.pad_token_id]), choice)
    finished = finished_in
    for eos in generation.eos_token_ids:
        finished = head.op("Or", finished, head.op("Equal", token, head.constant(f"eos_{eos}", [eos])))
    if finished is finished_in:
        finished = head.op("Identity", finished_in)
    head.add_output(NEXT_TOKEN, token, ir.DataType.INT64, [batch, 1])
    head.add_output(FINISHED, finished, ir.DataType.BOOL, [batch, 1])
    head.add_output(FINITE_CHECK, check, ir.DataType.FLOAT, [batch, 1, 1])
    if with_margin:
        best, _ = head.op_multi("TopK", logits, head.constant("two", [2]), num_outputs=2, axis=-1)
        signed = head.op("Mul", best, head.constant("signs", [1.0, -1.0]))
        difference = head.op_on_last("ReduceSum", signed, keepdims=1)
        head.add_output(MARGIN, head.op("Add", difference, check), ir.DataType.FLOAT, [batch, 1, 1])
    return clone


def with_margin_head(
    model: ir.Model, *, consume: bool = False, generation: GenerationSettings | None = None
) -> ir.Model:
    """The no-past decoder as the screen uses it: how surely each label wins, and nothing else.

    Added: input `labels` int64 [B, T], ids in [0, V). The only output is `margin` float32 [B, T]: the logit of the
    label minus the best other logit at its position (negative: another token wins; 0: a tie; NaN: a logit at the
    position is not finite). With `consume` the model itself is changed.

    Where `generation` has token rules, the other logits are those that may be chosen, and one more input, `token_phase`
    int64 [T], says which rules hold at each position.

    Raises:
        InputError: the graph has no output `logits` [B, T, V] with a known vocabulary size V.
    """
    clone = model if consume else model.clone()
    head = _Head(clone, "margin_head")
    logits = find_output(clone, LOGITS)
    clone.graph.outputs.clear()
    vocabulary = last_dimension(logits)
    leading = _leading(logits)
    logits = head.as_float32(logits)
    labels = head.op_on_last("Unsqueeze", head.add_input(LABELS, ir.DataType.INT64, leading))
    check = head.op("MatMul", logits, head.zeros(vocabulary))
    if generation is not None:
        logits = head.allowed(logits, generation, vocabulary, leading[1])
    own = head.op("Add", head.op("GatherElements", logits, labels, axis=-1), check)
    # Always -inf. That it depends on both other readers of the logits lets the runtime scatter in place instead of
    # copying them: 0.25 against 0.38 ms for [8, 16, 4096] on two cores, and half the memory.
    lowest = head.op("Min", own, head.constant("lowest", [-np.inf]))
    others = head.op("ScatterElements", logits, labels, lowest, axis=-1)
    margin = head.op("Sub", own, head.op_on_last("ReduceMax", others, keepdims=1))
    head.add_output(MARGIN, head.op_on_last("Squeeze", margin), ir.DataType.FLOAT, leading)
    return clone


def with_finite_head(model: ir.Model) -> ir.Model:
    """The encoder with one more output, `finite_check` float32 [B, S, 1]: NaN where its output is not finite, else 0.

    Raises:
        InputError: the graph has no output `last_hidden_state` [B, S, D] with a known D.
    """
    clone = model.clone()
    head = _Head(clone, "finite_head")
    hidden = find_output(clone, HIDDEN)
    check = head.op("MatMul", head.as_float32(hidden), head.zeros(last_dimension(hidden)))
    head.add_output(FINITE_CHECK, check, ir.DataType.FLOAT, [*_leading(hidden), 1])
    return clone


def find_output(model: ir.Model, name: str) -> ir.Value:
    """The output of that name.

    Raises:
        InputError: there is none.
    """
    for output in model.graph.outputs:
        if output.name == name:
            return output
    raise InputError(
        f"the graph {model.graph.name!r} has no output named {name!r}",
        why=f"its outputs are {', '.join(str(output.name) for output in model.graph.outputs)}",
        fix="export the model in the usual three-graph layout",
    )


def last_dimension(value: ir.Value) -> int:
    """The fixed last dimension of a [batch, positions, size] value.

    Raises:
        InputError: it is not known.
    """
    size = value.shape[-1] if value.shape is not None and len(value.shape) == 3 else None
    if isinstance(size, int):
        return size
    raise InputError(
        f"the output {value.name!r} has no known last dimension",
        why=f"its shape is {value.shape}; [batch, positions, size] with a fixed size is needed",
        fix="export the model again, or run onnx.shape_inference on it",
    )


def _leading(value: ir.Value) -> list[int | ir.SymbolicDim]:
    """The first two dimensions of a [batch, positions, size] value."""
    return [] if value.shape is None else [value.shape[0], value.shape[1]]


def _is_single_position(model: ir.Model) -> bool:
    """Whether the graph takes one position at a time, so that the last is the only one."""
    ids = next((value for value in model.graph.inputs if value.name == INPUT_IDS), None)
    return ids is not None and ids.shape is not None and len(ids.shape) == 2 and ids.shape[1] == 1


class _Head:
    """Appends nodes, constants, inputs and outputs to a graph; all names start with `prefix`."""

    def __init__(self, model: ir.Model, prefix: str) -> None:
        self._graph = model.graph
        self._prefix = prefix
        self._opset = model.graph.opset_imports.get("", 0)
        self._count = 0
        self._free_names()

    def _free_names(self) -> None:
        """Renames the graph's own values that are called like what is added: names in a file may be any."""
        made = (value for node in self._graph for value in node.outputs)
        for value in [*self._graph.initializers.values(), *made]:
            name = str(value.name)
            if name in _OURS or name.startswith(f"{self._prefix}/"):
                value.name = f"model/{name}"

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        return self.op_multi(op_type, *inputs, num_outputs=1, **attributes)[0]

    def op_multi(
        self, op_type: str, *inputs: ir.Value, num_outputs: int, **attributes: int | list[int]
    ) -> tuple[ir.Value, ...]:
        self._count += 1
        name = f"{self._prefix}/{op_type}.{self._count}"
        node = ir.node(op_type, inputs, attributes, num_outputs=num_outputs, name=name)
        for index, output in enumerate(node.outputs):
            output.name = f"{name}:{index}"
        self._graph.append(node)
        return tuple(node.outputs)

    def constant(self, name: str, values: list[int] | list[float]) -> ir.Value:
        array = np.array(values, np.int64 if isinstance(values[0], int) else np.float32)
        return self._initializer(name, array)

    def zeros(self, length: int) -> ir.Value:
        return self._initializer("zeros", np.zeros((length, 1), np.float32))

    def as_float32(self, value: ir.Value) -> ir.Value:
        return value if value.dtype == ir.DataType.FLOAT else self.op("Cast", value, to=int(ir.DataType.FLOAT))

    def op_on_last(self, op_type: str, value: ir.Value, **attributes: int) -> ir.Value:
        """An operator with axes, on the last one."""
        if self._opset >= _AXES_AS_INPUT[op_type]:
            return self.op(op_type, value, self.constant("last", [-1]), **attributes)
        return self.op(op_type, value, axes=[-1], **attributes)

    def allowed(
        self, logits: ir.Value, generation: GenerationSettings, vocabulary: int, positions: int | ir.SymbolicDim
    ) -> ir.Value:
        """The logits, -inf where a token rule forbids the token; the logits themselves where there are no rules."""
        if not has_token_rules(generation):
            return logits
        masks = self._initializer("forbidden", forbidden_tokens(generation, vocabulary))
        forbidden = self.op("Gather", masks, self.add_input(TOKEN_PHASE, ir.DataType.INT64, [positions]), axis=0)
        return self.op("Where", forbidden, self.constant("lowest", [-np.inf]), logits)

    def add_input(self, name: str, dtype: ir.DataType, shape: _Dims) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._graph.inputs.append(value)
        return value

    def add_output(self, name: str, value: ir.Value, dtype: ir.DataType, shape: _Dims) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._graph.outputs.append(value)

    def _initializer(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        full = f"{self._prefix}/{name}"
        if full in self._graph.initializers:
            return self._graph.initializers[full]
        tensor = ir.tensor(array, name=full)
        value = ir.Value(name=full, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self._graph.register_initializer(value)
        return value
