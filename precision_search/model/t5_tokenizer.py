"""What transformers' T5Tokenizer makes of a `tokenizer.json`: vocabulary and precompiled map stay, no other step does.

In: the tokenizer as the file has it. Out: the same object with the steps of the class (transformers 5.23,
`T5Tokenizer.__init__` and `TokenizersBackend.convert_to_native_format`). A file that was saved by the class has them
already; one that was edited, or made by another tool, may lower-case or strip accents, which the class then does not.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

_SPACE = "\u2581"
_UNKNOWN_ID = 2


def rebuild(backend: tokenizers.Tokenizer, content: Mapping[str, Any]) -> None:
    """Gives a tokenizer of a Unigram model the steps of the class.

    Args:
        backend: the tokenizer, which is changed.
        content: its file as JSON.
    """
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    model = content["model"]
    if model.get("unk_id") != _UNKNOWN_ID or model.get("byte_fallback"):
        vocabulary = [(piece, score) for piece, score in model["vocab"]]
        backend.model = models.Unigram(vocabulary, unk_id=_UNKNOWN_ID, byte_fallback=False)
    charsmap = _precompiled(content.get("normalizer"))
    backend.normalizer = None if charsmap is None else normalizers.Precompiled(base64.b64decode(charsmap))
    split = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always", split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    backend.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always", split=True)


def _precompiled(normalizer: object) -> str | None:
    """The first precompiled map among the steps of a normalizer."""
    inner = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, Mapping) else normalizer
    for step in inner if isinstance(inner, list) else ():
        if isinstance(step, Mapping) and step.get("type") == "Precompiled":
            found = step.get("precompiled_charsmap")
            return found if isinstance(found, str) else None
    return None
