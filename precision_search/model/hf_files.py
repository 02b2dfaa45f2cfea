"""The Hugging Face files beside the graphs: which they are, and copies that load elsewhere and tell nothing private.

Configs and tokenizer configs record where a model was loaded from, and now and then with which token. None of that is
of use elsewhere, so it does not go into what is published.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from precision_search.files import LARGEST_JSON, parse_json, read_file
from precision_search.model.families import vocabulary_files
from precision_search.private import without_private

_COMMON = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

_CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""Those that hold settings; in the others every text is part of a vocabulary."""

_TOKENIZER_CONFIG = "tokenizer_config.json"


def hf_files() -> tuple[str, ...]:
    """Names of the files that there can be: configs, the tokenizer, and the vocabularies of all families."""
    return (*_COMMON, *vocabulary_files())


def copy_hf_files(source: Path, target: Path) -> None:
    """Copies config, generation config and tokenizer files, as far as they are there, without what is private.

    A tokenizer config is written so that transformers 4 reads it too, which optimum still needs. A file in which
    nothing changes is copied byte by byte.
    """
    for name in hf_files():
        if not (source / name).is_file():
            continue
        content = _json(source / name) if name in _CONFIGS else None
        public = without_private(content)
        if name == _TOKENIZER_CONFIG:
            public = _for_transformers_4(public)
        if content is None or public == content:
            shutil.copyfile(source / name, target / name)
        else:
            (target / name).write_text(json.dumps(public, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _for_transformers_4(settings: Any) -> Any:
    """A tokenizer config whose list of further special tokens has the name that transformers 4 and 5 know.

    Transformers 4.57 takes `extra_special_tokens` for a mapping and fails to load a tokenizer that has a list there.
    """
    if not isinstance(settings, dict) or "additional_special_tokens" in settings:
        return settings
    if not isinstance(settings.get("extra_special_tokens"), list):
        return settings
    names = {"extra_special_tokens": "additional_special_tokens"}
    return {names.get(key, key): value for key, value in settings.items()}


def _json(path: Path) -> Any:
    """None for what is no JSON: it was refused before, or nobody reads it."""
    try:
        content = read_file(path, LARGEST_JSON)
        parse_json(content)
        return json.loads(content)  # not what was parsed: numbers are to stay as they stand
    except (OSError, ValueError):
        return None


def weight_bytes(checkpoint: Path) -> int:
    """Bytes of the weights in a checkpoint directory, which are read from safetensors alone."""
    return sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
