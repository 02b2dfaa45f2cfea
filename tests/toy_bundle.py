"""A toy encoder-decoder in the three-graph layout, whose greedy tokens numpy can say exactly.

Its state is the sum of the embeddings of all tokens so far, kept in a key-value cache in any float dtype, plus the sum
of the encoder states that count. All numbers are small integers, so every dtype holds them exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from precision_search.model.generation_config import GenerationSettings
from precision_search.model.graph import GraphName

VOCABULARY, WIDTH = 11, 4
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
KINDS = ("key", "value")


def forbidden(settings: GenerationSettings, step: int) -> list[int]:
    """What transformers' processors set to -inf at a step, one after the other."""
    found = list(settings.suppressed_tokens)
    if step < settings.min_new_tokens:
        found += settings.eos_token_ids
    if step == (0 if settings.forced_bos_token_id is None else 1):
        found += settings.begin_suppressed_tokens
    return found


@dataclass(frozen=True, slots=True)
class Toy:
    """The tables: encoder and decoder embeddings [V, D], and what turns each sum into logits [D, V]."""

    encoder: np.ndarray
    decoder: np.ndarray
    from_self: np.ndarray
    from_cross: np.ndarray

    @classmethod
    def random(cls, seed: int) -> Toy:
        """Tables of integers from -3 to 3. A token lowers its own logit, so that sentences move on and end."""
        rng = np.random.default_rng(seed)
        encoder = rng.integers(-3, 4, (VOCABULARY, WIDTH)).astype(np.float32)
        from_self, from_cross = rng.integers(-3, 4, (2, WIDTH, VOCABULARY)).astype(np.float32)
        return cls(encoder, -from_self.T.copy(), from_self, from_cross)

    def models(self, dtype: int = FLOAT, *, states_again: bool = False) -> dict[GraphName, ir.Model]:
        """The graphs, with encoder states and cache in `dtype`; the later steps may take the states as well."""
        return {
            "encoder": self._encoder(dtype),
            "decoder": self._decoder(dtype),
            "decoder_with_past": self._decoder_with_past(dtype, states_again),
        }

    def greedy(self, ids: list[int], settings: GenerationSettings, limit: int) -> tuple[list[int], list[float]]:
        """Tokens of one sentence, EOS included, and the margin of each: infinite where the token was forced."""
        cross = self.encoder[ids].sum(axis=0) @ self.from_cross
        state = self.decoder[settings.decoder_start_token_id].copy()
        tokens: list[int] = []
        margins: list[float] = []
        while len(tokens) < limit and not set(tokens) & set(settings.eos_token_ids):
            logits = state @ self.from_self + cross
            logits[forbidden(settings, len(tokens))] = -np.inf
            token, margin = int(logits.argmax()), float(np.diff(np.sort(logits)[-2:])[0])
            forced = [settings.forced_bos_token_id] if not tokens else []
            forced += [settings.forced_eos_token_id] if len(tokens) == limit - 1 else []
            for choice in forced:
                if choice is not None:
                    token, margin = choice, np.inf
            tokens.append(token)
            margins.append(margin)
            state += self.decoder[token]
        return tokens, margins

    def _encoder(self, dtype: int) -> ir.Model:
        nodes = [
            helper.make_node("Gather", ["encoder_table", "input_ids"], ["looked_up"]),
            helper.make_node("Cast", ["looked_up"], ["last_hidden_state"], to=dtype),
        ]
        inputs = [_info("input_ids", INT64, "bs"), _info("attention_mask", INT64, "bs")]
        outputs = [_info("last_hidden_state", dtype, ["b", "s", WIDTH])]
        return _model(nodes, inputs, outputs, {"encoder_table": self.encoder})

    def _decoder(self, dtype: int) -> ir.Model:
        nodes = [
            *_embed(),
            *_negated_pair("embedded", "present.0.decoder", dtype),
            helper.make_node("CumSum", ["embedded", "one"], ["self_sum"]),
            helper.make_node("Cast", ["encoder_attention_mask"], ["mask"], to=TensorProto.BOOL),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3d"]),
            helper.make_node("Cast", ["encoder_hidden_states"], ["states"], to=FLOAT),
            helper.make_node("Where", ["mask_3d", "states", "zero"], ["counted"]),
            *_negated_pair("counted", "present.0.encoder", dtype),
            helper.make_node("ReduceSum", ["counted", "one"], ["cross_sum"]),
            *_logits(),
        ]
        inputs = [
            _info("input_ids", INT64, "bt"),
            _info("encoder_hidden_states", dtype, ["b", "s", WIDTH]),
            _info("encoder_attention_mask", INT64, "bs"),
        ]
        outputs = [_info("logits", FLOAT, ["b", "t", VOCABULARY])]
        for side, positions in (("decoder", "t"), ("encoder", "s")):
            outputs += [_info(f"present.0.{side}.{kind}", dtype, ["b", 1, positions, WIDTH]) for kind in KINDS]
        return self._decoder_model(nodes, inputs, outputs)

    def _decoder_with_past(self, dtype: int, states_again: bool) -> ir.Model:
        nodes = [*_embed(), *_negated_pair("embedded", "new", dtype)]
        for kind in KINDS:
            cached = [f"past_key_values.0.decoder.{kind}", f"new.{kind}"]
            nodes.append(helper.make_node("Concat", cached, [f"present.0.decoder.{kind}"], axis=2))
        nodes += [
            *_half_difference("present.0.decoder", "self_sum"),
            *_half_difference("past_key_values.0.encoder", "cross_sum"),
            *_logits(),
        ]
        inputs = [_info("input_ids", INT64, ["b", 1]), _info("encoder_attention_mask", INT64, "bs")]
        for side, positions in (("decoder", "p"), ("encoder", "s")):
            names = [f"past_key_values.0.{side}.{kind}" for kind in KINDS]
            inputs += [_info(name, dtype, ["b", 1, positions, WIDTH]) for name in names]
        if states_again:
            inputs.append(_info("encoder_hidden_states", dtype, ["b", "s", WIDTH]))
        outputs = [_info("logits", FLOAT, ["b", 1, VOCABULARY])]
        outputs += [_info(f"present.0.decoder.{kind}", dtype, ["b", 1, "p + 1", WIDTH]) for kind in KINDS]
        return self._decoder_model(nodes, inputs, outputs)

    def _decoder_model(
        self,
        nodes: list[onnx.NodeProto],
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
    ) -> ir.Model:
        tables = {"decoder_table": self.decoder, "from_self": self.from_self, "from_cross": self.from_cross}
        return _model(nodes, inputs, outputs, tables)


def _embed() -> list[onnx.NodeProto]:
    return [helper.make_node("Gather", ["decoder_table", "input_ids"], ["embedded"])]


def _negated_pair(source: str, prefix: str, dtype: int) -> list[onnx.NodeProto]:
    """`prefix.key` holds the source with one head, `prefix.value` its negative."""
    return [
        helper.make_node("Unsqueeze", [source, "one"], [f"{prefix}.4d"]),
        helper.make_node("Cast", [f"{prefix}.4d"], [f"{prefix}.key"], to=dtype),
        helper.make_node("Neg", [f"{prefix}.4d"], [f"{prefix}.negated"]),
        helper.make_node("Cast", [f"{prefix}.negated"], [f"{prefix}.value"], to=dtype),
    ]


def _half_difference(prefix: str, result: str) -> list[onnx.NodeProto]:
    """(key - value) / 2, summed over positions: wrong unless both tensors are right."""
    return [
        *(helper.make_node("Cast", [f"{prefix}.{kind}"], [f"{result}.{kind}"], to=FLOAT) for kind in KINDS),
        helper.make_node("Sub", [f"{result}.key", f"{result}.value"], [f"{result}.double"]),
        helper.make_node("Mul", [f"{result}.double", "half"], [f"{result}.each"]),
        helper.make_node("ReduceSum", [f"{result}.each", "two"], [result], keepdims=0),
    ]


def _logits() -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", ["self_sum", "from_self"], ["self_logits"]),
        helper.make_node("MatMul", ["cross_sum", "from_cross"], ["cross_logits"]),
        helper.make_node("Add", ["self_logits", "cross_logits"], ["logits"]),
    ]


def _info(name: str, dtype: int, shape: str | list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    tables: dict[str, np.ndarray],
) -> ir.Model:
    constants = {
        "zero": np.float32(0),
        "half": np.float32(0.5),
        "one": np.array([1]),
        "two": np.array([2]),
        "last": np.array([-1]),
    }
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (tables | constants).items()]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initializers)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
