"""Running a model: from a directory that a run published to texts, on a CPU or a CUDA device.

In: a model directory in the layout of the Hub, and texts or token ids. Out: `Generated`, what greedy decoding gives.
The model runs as it was judged: `precision_search.json` says under which settings.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from precision_search.config import MOST_THREADS
from precision_search.errors import InputError, UsageError
from precision_search.model.generation_config import (
    GenerationSettings,
    ModelConfig,
    read_generation_settings,
    read_model_config,
)
from precision_search.model.graph import GraphName
from precision_search.model.inputs import check_count, read_inputs
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.samples import batches
from precision_search.model.snapshot import unchanged
from precision_search.model.tokenizer import Tokenizer
from precision_search.precision.emulate import is_mixed
from precision_search.precision.weights import WeightCache
from precision_search.published.load import LoadedModel, judged_settings, load_published
from precision_search.runtime.backends import backend_of, check_device_kind, resolve_device
from precision_search.runtime.decoding import Step
from precision_search.runtime.generator import Generation, Generator
from precision_search.runtime.reference import NEAR_TIE
from precision_search.runtime.session import OptimizationLevel, SessionSettings
from precision_search.runtime.token_matrix import TokenMatrix

__all__ = ["Generated", "Seq2SeqGenerator", "Step"]


@dataclass(frozen=True, slots=True, eq=False)
class Generated:
    """What came out for a batch of B rows.

    Attributes:
        texts: without special tokens.
        ids: token ids of each row, its end token included, without start token and padding.
        finished: whether each row ends with an end token (False: it was cut at the limit).
        nonfinite: whether each row met NaN or infinity in a logit or in the encoder's output: such a row is worth
            nothing.
        margins: if asked for, by how much each token won, in logits: float32 of the length of the row; infinite where
            a token was forced, NaN where a logit was not finite.
        tokens: the padded matrix [B, T] for tensor libraries (DLPack), on the generator's device.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    finished: tuple[bool, ...]
    nonfinite: tuple[bool, ...]
    margins: tuple[npt.NDArray[np.float32], ...] | None
    tokens: TokenMatrix

    @property
    def near_ties(self) -> tuple[tuple[int, int], ...]:
        """Row and position of tokens that won by less than `NEAR_TIE`: another batch or device may choose otherwise.

        Raises:
            UsageError: margins were not asked for.
        """
        if self.margins is None:
            raise UsageError("near-ties are not known", why="margins were not asked for", fix="pass with_margins=True")
        return tuple(
            (row, int(position))
            for row, margins in enumerate(self.margins)
            for position in np.flatnonzero(margins < NEAR_TIE)
        )


class Seq2SeqGenerator:
    """Generates greedily with a published model. Made by `from_pretrained`.

    Sentences of different lengths may share a batch: each gives the tokens it gives alone, near-ties aside (a batch of
    another shape moves logits by the rounding of fp32, about 1e-5; `Generated.near_ties` tells which tokens are so
    close).

    One generator may be used from several threads: their calls run one after another, since buffers on the device are
    shared. For work side by side make one generator a thread. It works in the process that loaded it: forked children
    and pickling are refused. A call that ends early, by an error or Ctrl-C, leaves it usable.

    Its files are read while it is made; they may go away afterwards. Buffers grow to the largest batch, source and
    number of new tokens seen and are kept for the next call. There is nothing to close: memory is free for others when
    the last reference to the generator is gone.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        config: ModelConfig,
        generation: GenerationSettings,
        settings: SessionSettings,
    ) -> None:
        self._generator = generator
        self._tokenizer = tokenizer
        self._vocabulary = config.vocab_size
        self._generation = generation
        self._settings = settings
        self._process = os.getpid()

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a Seq2SeqGenerator can be neither pickled nor copied",
            why="its sessions and buffers belong to this process",
            fix="hand over the directory, and call from_pretrained where it is used",
        )

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        device_id: int = 0,
        threads: int | None = None,
    ) -> Seq2SeqGenerator:
        """Loads a model directory: what `run` and `export` write, or any in the usual layout of three ONNX files.

        It runs at the optimization level, with the TF32 setting and (on CUDA, for the whole process) with the GEMM
        options it was judged under. On a CPU graphs in low precision run as fp32 graphs that round as CUDA kernels do,
        which shows what a GPU will say and is slow. Where no verdict pins the level, an fp32 model on a CPU runs with
        all optimizations, and any other model with basic ones.

        Args:
            directory: with encoder_model.onnx, decoder_model.onnx, decoder_with_past_model.onnx, config and tokenizer.
            device: `auto` takes CUDA where it starts, else the CPU.
            device_id: which CUDA device.
            threads: threads within an operator on the CPU, None for as many as there are cores.

        Raises:
            InputError: a file is missing, broken, or changes meanwhile; or the generation config asks for anything but
                greedy decoding.
            UsageError: the GEMM options it was judged under contradict those set for this process.
            MissingPackageError, DeviceError: `device` is `cuda` and CUDA does not start, or its memory is used up.
        """
        path = Path(directory)
        check_device_kind(device)
        check_count("threads", threads, most=MOST_THREADS)
        with unchanged(path):
            return cls._load(path, device, device_id, threads)

    @classmethod
    def _load(
        cls, path: Path, device: Literal["auto", "cpu", "cuda"], device_id: int, threads: int | None
    ) -> Seq2SeqGenerator:
        _check_layout(path)
        config, generation = read_model_config(path), read_generation_settings(path, None)
        model = load_published(path)
        place = resolve_device(device, device_id, warn=lambda text: warnings.warn(text, RuntimeWarning, stacklevel=5))
        settings = SessionSettings(device=place, device_id=device_id, threads=threads)
        graphs, settings = _as_judged(model, settings)
        mixed = any(map(is_mixed, model.graphs.values()))
        generator = Generator(graphs, generation, settings, leave_out_finished=True, leave_out_padding=not mixed)
        return cls(generator, model.tokenizer, config, generation, settings)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out; for what `on_step` receives."""
        return self._tokenizer.decode(ids)

    @property
    def device(self) -> str:
        """Where it runs: `cpu` or `cuda`."""
        return self._settings.device

    @property
    def optimization_level(self) -> OptimizationLevel:
        """What ONNX Runtime may rewrite in its sessions."""
        return self._settings.optimization_level

    def generate(
        self,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        *,
        prefix: str = "",
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        with_margins: bool = False,
        on_step: Callable[[Step], None] | None = None,
    ) -> Generated:
        """Generates for texts or for rows of token ids, all as one batch.

        Args:
            inputs: texts; or rows of ids as the tokenizer gives them, end token included, without padding: lists,
                arrays or tensors.
            prefix: put before each text, as in "translate English to German: ".
            max_new_tokens: most tokens a row gets, its end token included; None takes the generation config's.
            max_length: longest input in tokens; None takes the tokenizer's limit.
            with_margins: also returns by how much each token won; the first time it makes two more sessions, with
                weights of their own.
            on_step: receives the tokens of all rows after each step, to show text while it grows. It runs in the
                calling thread; what it raises ends the generation. It must not wait for another thread that generates
                with the same generator. On CUDA every step then waits for the device.

        Raises:
            InputError: nothing to generate from, or inputs of the wrong type, too long, or outside the vocabulary.
            DeviceError: the device has no memory left.
            UsageError: called from its own `on_step`, or in a child of the process that loaded the model.
        """
        self._check_process()
        check_count("max_new_tokens", max_new_tokens)
        check_count("max_length", max_length)
        limit = self._tokenizer.model_max_length if max_length is None else max_length
        rows = read_inputs(inputs, prefix, self._tokenizer, self._generation, vocabulary=self._vocabulary, limit=limit)
        batch = batches(rows, len(rows), self._generation.pad_token_id)[0]
        out = self._generator.generate(
            batch.input_ids,
            batch.attention_mask,
            max_new_tokens=None if max_new_tokens is None else int(max_new_tokens),
            with_margins=with_margins,
            on_step=on_step,
        )
        return self._result(out)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise UsageError(
                "this generator was loaded before the process forked",
                why="its threads and its CUDA device stayed with the parent",
                fix="call from_pretrained in the child, or start processes with the method spawn",
            )

    def _result(self, out: Generation) -> Generated:
        ids = tuple(tuple(row[:length].tolist()) for row, length in zip(out.tokens, out.lengths, strict=True))
        ends = frozenset(self._generation.eos_token_ids)
        return Generated(
            texts=tuple(self._tokenizer.decode(row) for row in ids),
            ids=ids,
            finished=tuple(row[-1] in ends for row in ids),
            nonfinite=tuple(bool(flag) for flag in out.nonfinite),
            margins=None
            if out.margins is None
            else tuple(row[:length] for row, length in zip(out.margins, out.lengths, strict=True)),
            tokens=TokenMatrix(out.tokens, self._settings),
        )


def _check_layout(path: Path) -> None:
    if path.is_dir() and not (path / SEQ2SEQ.encoder.file).is_file() and any(path.glob("*.safetensors")):
        raise InputError(
            f"{path} is a checkpoint, not a published model",
            why=f"it has weights in safetensors and no {SEQ2SEQ.encoder.file}",
            fix="`precision-search run` makes a model of it; for fp32 alone, "
            '`precision_search.export_bundle("MODEL", "DIRECTORY")` writes its ONNX graphs',
        )


def _as_judged(model: LoadedModel, settings: SessionSettings) -> tuple[Mapping[GraphName, ir.Model], SessionSettings]:
    """The graphs as they run on the device, and the settings the model was judged under."""
    graphs, level, mixed = model.graphs, model.optimization_level, any(map(is_mixed, model.graphs.values()))
    backend = backend_of(settings)
    if mixed:
        graphs = backend.prepare(graphs, WeightCache())
    elif level is None:
        settings = replace(settings, optimization_level=backend.fp32_level)
    return graphs, judged_settings(model, settings)
