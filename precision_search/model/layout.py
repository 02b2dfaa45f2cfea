"""What the graphs of a model are called, what they take and give, and how often they run.

In: nothing. Out: `SEQ2SEQ`, the layout of an encoder-decoder model as optimum and the Hub have it. No other module
spells the name of a graph's file or of a tensor; a test sees to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from precision_search.model.graph import GraphName

InputKind = Literal["source_ids", "source_mask", "decoder_ids", "encoder_states"]
"""What an input is fed with, caches apart."""

Axis = Literal["batch", "source", "target", "past", "total"]
"""What an axis of an input counts: rows, source positions, decoder positions of this run, those before it, both."""

SYMBOLS: Mapping[Axis, str] = {
    "batch": "batch_size",
    "source": "encoder_sequence_length",
    "target": "decoder_sequence_length",
    "past": "past_sequence_length",
}
"""What an exported graph calls its dynamic axes."""

Axes = tuple[Axis | None, ...]
"""The axes of an input; None for one whose size is fixed by the model."""

Caches = Literal["none", "self", "all"]
"""Which tensors of the cache: none, those of self-attention, those of self- and cross-attention."""


@dataclass(frozen=True, slots=True)
class GraphInput:
    """One input of a graph, caches apart.

    Attributes:
        name: as in the graph.
        kind: what it is fed with. All but the encoder's output are integers.
        axes: what its axes count.
        is_optional: whether a graph of the layout may lack it; ours does.
    """

    name: str
    kind: InputKind
    axes: Axes
    is_optional: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether it holds int64; else fp32."""
        return self.kind != "encoder_states"


@dataclass(frozen=True, slots=True)
class CacheLink:
    """One tensor of the cache, [batch, heads, positions, head size], on its way from a step to the next.

    Attributes:
        past: its name as an input.
        present: its name as an output.
        is_self: of self-attention: grows by one position a step. Else of cross-attention: written by the first step,
            constant from then on.
    """

    past: str
    present: str
    is_self: bool

    @property
    def axes(self) -> Axes:
        """What the axes of the input count."""
        return ("batch", None, "past" if self.is_self else "source", None)


@dataclass(frozen=True, slots=True)
class GraphLayout:
    """One graph.

    Attributes:
        name: which one.
        inputs: caches apart, in the order of an export.
        output: its output, caches apart.
        reads: the caches that it takes.
        writes: the caches that it gives.
        is_later_step: whether it runs for every token but the first; else it runs once a batch.
    """

    name: GraphName
    inputs: tuple[GraphInput, ...]
    output: str
    reads: Caches = "none"
    writes: Caches = "none"
    is_later_step: bool = False

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{self.name}_model.onnx"

    @property
    def known_inputs(self) -> frozenset[str]:
        """Names of all inputs that it may have, caches apart."""
        return frozenset(each.name for each in self.inputs)

    def input(self, kind: InputKind) -> str:
        """The name of the input that is fed with this."""
        return next(each.name for each in self.inputs if each.kind == kind)

    def feed(self, values: Mapping[InputKind, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The given arrays by the names of this graph's inputs; what it does not take is left out."""
        return {each.name: values[each.kind] for each in self.inputs if each.kind in values}

    def pasts(self, steps: int) -> Sequence[int]:
        """For each run of this graph while `steps` tokens are generated, how many positions there are before it."""
        return range(1, steps) if self.is_later_step else range(1)


@dataclass(frozen=True, slots=True)
class Layout:
    """The graphs of a kind of model, and the cache that they hand to each other.

    Attributes:
        encoder: source ids to encoder output.
        decoder: the first step, or a whole prefix at once; no past.
        decoder_with_past: every later step: one token on top of the cache.
        past: what the inputs of the cache begin with.
        present: what its outputs begin with.
        foreign: axes of inputs that other exporters add.
    """

    encoder: GraphLayout
    decoder: GraphLayout
    decoder_with_past: GraphLayout
    past: str
    present: str
    foreign: Mapping[str, Axes]

    @property
    def graphs(self) -> tuple[GraphLayout, ...]:
        """All graphs, in the order of `GRAPH_NAMES`."""
        return self.encoder, self.decoder, self.decoder_with_past

    @property
    def files(self) -> str:
        """The file names as a sentence has them."""
        return _listed(graph.file for graph in self.graphs)

    @property
    def names(self) -> str:
        """The names of the graphs as a sentence has them."""
        return _listed(graph.name for graph in self.graphs)

    def graph(self, name: GraphName) -> GraphLayout:
        """The graph of that name."""
        return next(graph for graph in self.graphs if graph.name == name)

    def caches(self, layers: int, which: Caches = "all") -> tuple[CacheLink, ...]:
        """The cache of a decoder of so many layers: of each layer key and value, first those of self-attention."""
        parts = {"none": (), "self": (_SELF,), "all": (_SELF, _CROSS)}[which]
        return tuple(
            self._link(f"{layer}.{part}.{kind}") for layer in range(layers) for part in parts for kind in _KINDS
        )

    def cache_link(self, input_name: str) -> CacheLink | None:
        """The cache tensor that an input takes, None for other inputs."""
        suffix = input_name.removeprefix(f"{self.past}.")
        return self._link(suffix) if suffix != input_name and _CACHE.fullmatch(suffix) else None

    def is_past(self, input_name: str) -> bool:
        """Whether an input is called like one of the cache."""
        return input_name.startswith(f"{self.past}.")

    def crossing(self, name: str) -> str | None:
        """The common name of a tensor that leaves one graph and enters another, None for other inputs and outputs."""
        states = self.decoder.input("encoder_states")
        if name in (self.encoder.output, states):
            return states
        for prefix in (f"{self.past}.", f"{self.present}."):
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return None

    def input_names(self, graph: GraphLayout, layers: int) -> tuple[str, ...]:
        """Names of the inputs that a graph has at least, in the order of an export."""
        own = (each.name for each in graph.inputs if not each.is_optional)
        return (*own, *(link.past for link in self.caches(layers, graph.reads)))

    def output_names(self, graph: GraphLayout, layers: int) -> tuple[str, ...]:
        """Names of the outputs that a graph has at least, in the order of an export."""
        return (graph.output, *(link.present for link in self.caches(layers, graph.writes)))

    def axes(self, input_names: Iterable[str]) -> Mapping[str, Axes]:
        """What the axes of a graph's inputs count, from their names; inputs of unknown names are left out.

        Told from all names together, since encoder and decoder call their tokens alike.
        """
        names = list(input_names)
        graphs = (self.encoder, self.decoder_with_past, self.decoder)  # a later one decides
        parts = graphs if any(name.startswith(("encoder_", "decoder_", self.past)) for name in names) else graphs[:1]
        known = {**self.foreign, **{each.name: each.axes for graph in parts for each in graph.inputs}}
        for name in names:
            if name.startswith(self.past):
                known[name] = self._link(_CROSS if f".{_CROSS}." in name else _SELF).axes
        return {name: known[name] for name in names if name in known}

    def _link(self, suffix: str) -> CacheLink:
        return CacheLink(f"{self.past}.{suffix}", f"{self.present}.{suffix}", is_self=_CROSS not in suffix)


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}"


_SELF, _CROSS = "decoder", "encoder"
"""Self-attention is over the decoder's positions, cross-attention over the encoder's."""

_KINDS = ("key", "value")
_CACHE = re.compile(rf"\d+\.({_SELF}|{_CROSS})\.({'|'.join(_KINDS)})")

_STATES = GraphInput("encoder_hidden_states", "encoder_states", ("batch", "source", None))
_ENCODER_MASK = GraphInput("encoder_attention_mask", "source_mask", ("batch", "source"))

SEQ2SEQ = Layout(
    encoder=GraphLayout(
        name="encoder",
        inputs=(
            GraphInput("input_ids", "source_ids", ("batch", "source")),
            GraphInput("attention_mask", "source_mask", ("batch", "source")),
        ),
        output="last_hidden_state",
    ),
    decoder=GraphLayout(
        name="decoder",
        inputs=(GraphInput("input_ids", "decoder_ids", ("batch", "target")), _STATES, _ENCODER_MASK),
        output="logits",
        writes="all",
    ),
    decoder_with_past=GraphLayout(
        name="decoder_with_past",
        inputs=(
            GraphInput("input_ids", "decoder_ids", ("batch", None)),
            GraphInput(_STATES.name, _STATES.kind, _STATES.axes, is_optional=True),
            _ENCODER_MASK,
        ),
        output="logits",
        reads="all",
        writes="self",
        is_later_step=True,
    ),
    past="past_key_values",
    present="present",
    foreign={
        "decoder_input_ids": ("batch", "target"),
        "decoder_attention_mask": ("batch", "total"),
        "cache_position": ("target",),
    },
)
"""The layout that optimum and the Hub use for encoder-decoder models: the one kind that this package runs."""


def graph_file(name: GraphName) -> str:
    """The file name of a graph."""
    return SEQ2SEQ.graph(name).file
