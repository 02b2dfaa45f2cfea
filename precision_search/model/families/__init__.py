"""The model families: one module each, named in one table.

In: a checkpoint's `config.json`. Out: its `ModelFamily`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from precision_search.errors import InputError, cut, short
from precision_search.files import read_json
from precision_search.model.families.base import ModelFamily
from precision_search.model.families.t5 import MT5, T5

FAMILIES: dict[str, ModelFamily] = {family.model_type: family for family in (T5, MT5)}
"""By `model_type`. A new family is one more name here."""


def model_family_of(config: Mapping[str, object], path: Path) -> ModelFamily:
    """The family of a checkpoint, from the content of its `config.json`; `path` is that file.

    Raises:
        InputError: the model type is unknown, its class is another one, or it is no encoder-decoder model.
    """
    model_type = config.get("model_type")
    architectures = config.get("architectures")
    names = tuple(str(name) for name in architectures) if isinstance(architectures, list) else ()
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    # A config without class names is what a bare `T5Config(...).save_pretrained` writes: the model type decides.
    fits = family is not None and (not names or any(name in family.classes for name in names))
    if family is None or not fits or config.get("is_encoder_decoder") is False:
        found = f"model_type {short(model_type)}, architectures {cut(', '.join(names)) or 'not given'}"
        if config.get("is_encoder_decoder") is False:
            found += ", is_encoder_decoder false"
        titles = " or ".join(dict.fromkeys(family.title for family in FAMILIES.values()))
        classes = " or ".join(family.classes[0] for family in FAMILIES.values())
        raise InputError(
            f"{path.parent} is not a sequence-to-sequence {titles}",
            why=f"its config.json says {found}",
            fix=f"give a checkpoint of {classes}",
        )
    return family


def family_in(directory: Path) -> ModelFamily:
    """`likely_family` of the model in a directory, whatever its `config.json` is."""
    try:
        config = read_json(directory / "config.json")
    except (OSError, ValueError):
        config = None
    return likely_family(config if isinstance(config, dict) else {})


def likely_family(config: Mapping[str, object]) -> ModelFamily:
    """The family that a config names; the first of the table where it names none that is known.

    For those who read something else beside it: `model_family_of` says what is wrong with the config.
    """
    model_type = config.get("model_type")
    known = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    return known or next(iter(FAMILIES.values()))


def vocabulary_files() -> tuple[str, ...]:
    """Names of the vocabulary files of all families."""
    return tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.tokens.vocabulary_files))
