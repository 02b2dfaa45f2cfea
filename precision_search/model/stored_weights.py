"""Whether a checkpoint's weights are those of its config: names, shapes and number types, from headers alone.

In: a checkpoint directory. Out: nothing, or the error that names the file or the tensor and what to do. What libraries
make of such a checkpoint is often no error: weights are dropped, made up, or read as other numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from precision_search.errors import InputError, first_line
from precision_search.files import read_json
from precision_search.model.families.base import ModelFamily
from precision_search.model.generation_config import ModelConfig

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""What peft writes."""

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Number types of safetensors in which weights are what they are."""

_SHOWN = 3


def refuse_adapter(directory: Path) -> None:
    """Raises InputError where weights of an adapter lie in the directory: without them the model is another one."""
    if found := next((name for name in ADAPTER_FILES if (directory / name).is_file()), None):
        raise InputError(
            f"{directory} holds an adapter (LoRA or the like)",
            why=f"{found} is there, and what it changes is not in the model's own weights",
            fix="merge it with peft: AutoPeftModelForSeq2SeqLM.from_pretrained(...).merge_and_unload(), then "
            f"save_pretrained; or remove {found}, if the adapter is not meant",
        )


def refuse_quantized(directory: Path) -> None:
    """Raises InputError where a checkpoint's config says that its weights are quantized."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # who reads the sizes there says so
        found = read_json(directory / "config.json").get("quantization_config")
        if found:
            method = found.get("quant_method") if isinstance(found, dict) else None
            raise InputError(
                f"the checkpoint in {directory} is quantized ({str(method or 'no quant_method is named')[:40]})",
                why="config.json has a quantization_config: the values that the reference needs are lost",
                fix="give the checkpoint that was quantized",
            )


def check_weights(
    checkpoint: Path, expected: Mapping[str, tuple[int, ...]], sizes: ModelConfig, family: ModelFamily
) -> None:
    """Holds the stored weights against those of a model that has the config's sizes.

    Args:
        checkpoint: its directory.
        expected: shapes of the model's weights, by name.
        sizes: what the config says.
        family: how it calls them.

    Raises:
        InputError: a weight has another shape, or numbers that are no floats; or a file is broken.
    """
    from safetensors import SafetensorError, safe_open

    names = set[str]()
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118
                stored = {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices}
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is broken", why=first_line(error), fix="copy it again, whole, from where it came from"
            ) from error
        names |= stored.keys()
        for name, (shape, dtype) in stored.items():
            if name in expected and dtype not in FLOATS:
                raise InputError(
                    f"the checkpoint in {checkpoint} is quantized",
                    why=f"the numbers of its weight {name} are {dtype}",
                    fix="give the checkpoint that was quantized",
                )
            if name in expected and shape != expected[name]:
                raise InputError(
                    f"{checkpoint / 'config.json'} does not describe its weights",
                    why=f"{name} is {_shape(shape)} there, and {_shape(expected[name])} by "
                    + _keys(shape, expected[name], sizes, family),
                    fix="restore the checkpoint's own config.json, or copy the weights that belong to it",
                )

    head = f"{family.parts.output_projection}.weight"
    if names and not sizes.tie_word_embeddings and head in expected and head not in names:
        raise InputError(
            f"the checkpoint in {checkpoint} has no {head}",
            why="config.json says tie_word_embeddings = false, and transformers would take the embedding for it",
            fix="copy all of its safetensors files, or restore its own config.json",
        )


def refuse_surplus(checkpoint: Path, surplus: list[str]) -> None:
    """Raises InputError where there are weights that the model has no place for."""
    if surplus:
        more = f" and {len(surplus) - _SHOWN} more" if len(surplus) > _SHOWN else ""
        raise InputError(
            f"the checkpoint in {checkpoint} has weights that its config has no place for",
            why=f"{', '.join(surplus[:_SHOWN])}{more} would be left out, and the model would be another one",
            fix="restore the checkpoint's own config.json (the number of layers, say), or save the weights without "
            "them",
        )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _keys(stored: tuple[int, ...], expected: tuple[int, ...], sizes: ModelConfig, family: ModelFamily) -> str:
    """The keys of the config that a shape follows from, where it differs."""
    names = family.sizes
    head_size = f" x {names.head_size}" if names.head_size else ""
    by_size = {
        sizes.vocab_size: names.vocabulary,
        sizes.d_ff: names.inner_width,
        sizes.num_heads: names.heads,
        sizes.num_heads * sizes.d_kv: f"{names.heads}{head_size}",
        sizes.d_model: names.width,
    }
    if len(stored) != len(expected):
        return "config.json"
    keys = [by_size.get(ours) for theirs, ours in zip(stored, expected, strict=True) if theirs != ours]
    return " and ".join(dict.fromkeys(key for key in keys if key)) or "config.json"
