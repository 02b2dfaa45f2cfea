"""The tokens that a tokenizer has beside its vocabulary, wherever transformers reads them.

In: what a model's tokenizer files say. Out: the tokens to add to a tokenizer that was read from `tokenizer.json`, in
transformers' order, which gives those that are in no vocabulary their ids. The rules are those of transformers 5.23
(`PreTrainedTokenizerBase._from_pretrained`, `TokenizersBackend.__init__`, `T5Tokenizer.__init__`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from precision_search.errors import InputError
from precision_search.files import read_json, reason

MOST_EXTRA_IDS = 100_000
"""Sentinels, and other tokens, that a tokenizer may have beside its vocabulary."""

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
"""Keys of special tokens that every tokenizer may have."""

_SENTINELS = 100
"""Sentinels that a T5Tokenizer has where `extra_ids` does not say."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in a text before the vocabulary is asked.

    Attributes:
        content: its text.
        special: whether decoding leaves it out.
        normalized: whether it is looked for in the normalized text.
        single_word, lstrip, rstrip: whether it must be a word, and takes the space before and after it.
    """

    content: str
    special: bool = True
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


def read_settings(path: Path) -> Mapping[str, Any]:
    """The JSON object in a tokenizer's file; nothing where there is no such file.

    Raises:
        InputError: it is something else.
    """
    try:
        settings = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not valid JSON", why=reason(error), fix="restore the file") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} is no config", why="it holds no JSON object", fix="restore the file")
    return settings


def added_tokens(model_dir: Path, settings: Mapping[str, Any], *, has_sentinels: bool) -> list[AddedToken]:
    """The tokens to add, each once; those in a vocabulary or added already keep their ids.

    Args:
        model_dir: where the tokenizer's files are.
        settings: its `tokenizer_config.json`.
        has_sentinels: whether its class makes sentinels (`<extra_id_0>`, ...) where the files name no further tokens.

    Raises:
        InputError: a file is broken, or asks for more tokens than there can be.
    """
    path = model_dir / "tokenizer_config.json"
    found: list[AddedToken] = []
    if "added_tokens_decoder" in settings:
        found += _by_index(settings["added_tokens_decoder"], path)
    else:  # as older files have it
        older = read_settings(model_dir / "special_tokens_map.json")
        settings = {**settings, **older}
        found += _numbered(read_settings(model_dir / "added_tokens.json"), _special_texts(settings))
    extra = list(_extra(settings))
    if has_sentinels and not extra:
        extra = [f"<extra_id_{number}>" for number in range(_sentinels(settings, path))]
    named = [token for each in _named(settings) for token in _token(each, path, special=True)]
    found += [replace(token, special=True) for token in named]
    found += [token for each in extra for token in _token(each, path, special=True)]
    if len(found) > MOST_EXTRA_IDS:
        raise InputError(
            f"{path} asks for {len(found)} added tokens", why=f"{MOST_EXTRA_IDS} are the most", fix="restore the file"
        )
    first = {token.content: token for token in reversed(found)}
    special = {token.content for token in found if token.special}
    return [replace(first[text], special=text in special) for text in dict.fromkeys(each.content for each in found)]


def _by_index(tokens: object, path: Path) -> list[AddedToken]:
    try:
        numbered = sorted((int(index), token) for index, token in dict(tokens).items())  # type: ignore[call-overload]
    except (TypeError, ValueError):
        numbered = [(0, None)]
    return [token for _, each in numbered for token in _token(each, path, special=False)]


def _numbered(ids: Mapping[str, Any], special: Sequence[str]) -> list[AddedToken]:
    """The tokens of `added_tokens.json`, by their ids."""
    ordered = sorted((index, text) for text, index in ids.items() if isinstance(index, int))
    return [AddedToken(text, text in special, text not in special) for _, text in ordered]


def _token(value: object, path: Path, *, special: bool) -> Iterator[AddedToken]:
    if isinstance(value, str) and value:
        yield AddedToken(value)
        return
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(content, str):
        raise InputError(f"{path} names a broken token", why=f"it is {value!r:.60}", fix="restore the file")
    if content:
        is_special = value.get("special", special) is True
        flags = {key: value.get(key) is True for key in ("single_word", "lstrip", "rstrip")}
        yield AddedToken(content, is_special, value.get("normalized", not is_special) is True, **flags)


def _named(settings: Mapping[str, Any]) -> list[object]:
    """Named special tokens, also those that only this model has."""
    own = [key for key in settings if key.endswith("_token") and key not in NAMED]
    extra = settings.get("extra_special_tokens")
    named = [settings.get(key) for key in (*NAMED, *own)]
    named += extra.values() if isinstance(extra, dict) else []
    return [token for token in named if isinstance(token, str | dict) and token]


def _extra(settings: Mapping[str, Any]) -> list[object]:
    """The list of further special tokens; the second name is the older one."""
    for key in ("extra_special_tokens", "additional_special_tokens"):
        found = settings.get(key)
        if isinstance(found, list) and found:
            return found
    return []


def _special_texts(settings: Mapping[str, Any]) -> list[str]:
    tokens = [*_named(settings), *_extra(settings)]
    return [str(token.get("content")) if isinstance(token, dict) else str(token) for token in tokens]


def _sentinels(settings: Mapping[str, Any], path: Path) -> int:
    count = settings.get("extra_ids", _SENTINELS)
    if not isinstance(count, int) or not 0 <= count <= MOST_EXTRA_IDS:
        raise InputError(
            f"{path} asks for {count!r:.60} extra ids",
            why=f"transformers would make a token for each, and {MOST_EXTRA_IDS} are the most",
            fix="restore the file",
        )
    return count
