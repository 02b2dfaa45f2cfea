"""What a checkpoint's `config.json` and `generation_config.json` say, read without transformers.

In: a Hugging Face model directory. Out: the sizes of the model and how its greedy decoding starts, stops and is forced.
A generation config that asks for more than plain greedy decoding is refused by the name of what it asks for: tokens
compared under other rules would prove nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeGuard

from precision_search.errors import InputError, short
from precision_search.files import read_json, reason
from precision_search.model.families import likely_family, model_family_of
from precision_search.model.families.base import ModelFamily
from precision_search.model.greedy import NEUTRAL, NOTHING_OVERRIDDEN, asked_beyond_greedy, refuse_what_is_not_greedy

_DEFAULT_NEW_TOKENS = 128

_MOST_NEW_TOKENS = 1_000_000
_MOST_LAYERS = 1_000
_MOST_TOKENS = 10_000_000
_MOST_WIDE = 1_000_000
"""What sizes of a model may be, ten times what is known: lists and tensors of so many are made before they are used."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The sizes of a T5, under the names of its `config.json`.

    Attributes:
        model_type: `t5` or `mt5`.
        vocab_size: rows of the embedding.
        d_model: width of the residual stream.
        d_kv: width of a head.
        d_ff: width inside a feed-forward layer.
        num_heads: heads of an attention.
        num_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        tie_word_embeddings: whether the output projection is the embedding.
        scale_decoder_outputs: whether the decoder's output is divided by the root of `d_model` before the output
            projection.
    """

    model_type: str
    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int
    tie_word_embeddings: bool
    scale_decoder_outputs: bool


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How greedy decoding starts and ends. Without `eos_token_ids` it runs for all `max_new_tokens`.

    `max_new_tokens` counts what is generated: the end token, not the start token. `forced_bos_token_id` is the first
    of them, `forced_eos_token_id` the last, at position `max_new_tokens`, where the sentence has not ended by then.

    `suppressed_tokens` are never chosen, `begin_suppressed_tokens` not as the first token that is chosen freely, and no
    end token before `min_new_tokens` others. What is forced is so all the same.

    `overridden` is what the checkpoint asks for where the user chose greedy decoding, values as JSON; it changes no
    token, so settings that differ in nothing else are equal.
    """

    decoder_start_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    max_new_tokens: int
    forced_bos_token_id: int | None
    forced_eos_token_id: int | None
    suppressed_tokens: tuple[int, ...] = ()
    begin_suppressed_tokens: tuple[int, ...] = ()
    min_new_tokens: int = 0
    overridden: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def content_hash(self) -> str:
        """SHA-256 of what tokens depend on, hexadecimal."""
        compared = {each.name: getattr(self, each.name) for each in fields(self) if each.compare}
        return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()


def read_model_config(directory: Path, family: ModelFamily | None = None) -> ModelConfig:
    """Reads `config.json` in `directory`; `family` is whose names its sizes have, None takes the one that it names.

    Raises InputError where it is missing or broken, lacks a size, or belongs to anything but a model of a known family
    with a language-model head.
    """
    path = directory / "config.json"
    config = _read_json(path)
    family = family or model_family_of(config, path)
    names, scale = family.sizes, family.parts.output_scale
    layers = _size(config, names.encoder_layers, path, family, _MOST_LAYERS)
    width, heads = (_size(config, name, path, family) for name in (names.width, names.heads))
    shallow = config.get(names.decoder_layers) is None
    tied = _flag(config, "tie_word_embeddings", True, path, family)
    return ModelConfig(
        model_type=family.model_type,
        vocab_size=_size(config, names.vocabulary, path, family, _MOST_TOKENS),
        d_model=width,
        d_kv=width // heads if names.head_size is None else _size(config, names.head_size, path, family),
        d_ff=_size(config, names.inner_width, path, family),
        num_heads=heads,
        num_layers=layers,
        num_decoder_layers=layers if shallow else _size(config, names.decoder_layers, path, family, _MOST_LAYERS),
        tie_word_embeddings=tied,
        scale_decoder_outputs=scale is not None and _flag(config, scale, tied, path, family),
    )


def read_generation_settings(
    directory: Path, max_new_tokens: int | None, overrides: Mapping[str, object] = NOTHING_OVERRIDDEN
) -> GenerationSettings:
    """Reads `generation_config.json` in `directory`, or `config.json` where there is none, as transformers does.

    Start, end and pad ids that the first lacks come from `config.json` (transformers would then not stop); as in
    transformers, the start token is the `bos_token_id` where no `decoder_start_token_id` is given. `max_new_tokens` is
    the argument, else that of the generation config, else its `max_length` minus the start token, else 128
    (transformers: 20, too few for sentences). `overrides` are neutral values that replace the files'.

    Raises InputError for files that are missing or broken, ids that are absent or outside the vocabulary, and, all
    named at once, attributes that ask for something else than greedy decoding (see `greedy`).
    """
    config = _read_json(directory / "config.json")
    family = likely_family(config)
    vocab_size = _size(config, family.sizes.vocabulary, directory / "config.json", family, _MOST_TOKENS)
    path = _generation_file(directory)
    generation = _read_json(path)
    asked = asked_beyond_greedy({name: generation.get(name) for name in overrides})
    generation = {**generation, **overrides}
    refuse_what_is_not_greedy(generation, path)

    ids = {name: _ids(generation, name, path, vocab_size) for name in _ID_NAMES}
    fallback = {name: _ids(config, name, directory / "config.json", vocab_size) for name in _ID_NAMES}
    for name in ("decoder_start_token_id", "pad_token_id"):
        _single(ids if ids[name] else fallback, name, path)
    start = _first(ids, fallback, "decoder_start_token_id") or _first(ids, fallback, "bos_token_id")
    if not start:
        raise InputError(
            f"{path} does not say which token decoding starts with",
            why="there is no decoder_start_token_id",
            fix=f'add it, for a {family.title} usually "decoder_start_token_id": {family.tokens.usual_start_id}',
        )
    limit = _max_new_tokens(generation, path) if max_new_tokens is None else max_new_tokens
    _check_positions(config, limit, family, directory / "config.json")
    eos_ids = _first(ids, fallback, "eos_token_id") or (family.tokens.eos_id,)
    settings = GenerationSettings(
        decoder_start_token_id=start[0],
        eos_token_ids=eos_ids,
        pad_token_id=(_first(ids, fallback, "pad_token_id") or (family.tokens.pad_id,))[0],
        max_new_tokens=limit,
        forced_bos_token_id=_single(ids, "forced_bos_token_id", path),
        forced_eos_token_id=_single(ids, "forced_eos_token_id", path),
        suppressed_tokens=_suppressed(generation, path, vocab_size, eos_ids),
        begin_suppressed_tokens=tuple(sorted(set(_ids(generation, "begin_suppress_tokens", path, vocab_size)))),
        min_new_tokens=_min_new_tokens(generation, path),
        overridden={name: json.dumps(value) for name, value in asked.items()},
    )
    _refuse_contradictions(settings, path, vocab_size)
    return settings


def write_overridden(directory: Path, settings: GenerationSettings) -> None:
    """Sets what was overridden to its neutral value in a copy of a model's files: who loads the copy need not know."""
    path = _generation_file(directory)
    if settings.overridden:
        neutral = {name: NEUTRAL[name][0] for name in settings.overridden}
        path.write_text(json.dumps({**_read_json(path), **neutral}, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _generation_file(directory: Path) -> Path:
    path = directory / "generation_config.json"
    return path if path.exists() else directory / "config.json"


_ID_NAMES = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


def _read_json(path: Path) -> Mapping[str, object]:
    try:
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        is_directory = path.parent.is_dir()
        raise InputError(
            f"{path.parent} is not a model directory",
            why=f"it has no {path.name}" if is_directory else "there is no such directory",
            fix="give a directory with config.json, tokenizer.json and the weights or the three ONNX files",
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read", why=reason(error), fix="check the path") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON", why=str(error), fix="restore the file") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} is no config", why=f"it holds a JSON {type(content).__name__}", fix="restore the file"
        )
    return content


def _suppressed(
    generation: Mapping[str, object], path: Path, vocab_size: int, eos_ids: tuple[int, ...]
) -> tuple[int, ...]:
    """What is never chosen; an end token is not a bad word, as in transformers."""
    words = generation.get("bad_words_ids")
    bad = {"bad_words_ids": [word[0] for word in words] if isinstance(words, list) else None}
    found = set(_ids(bad, "bad_words_ids", path, vocab_size)) - set(eos_ids)
    return tuple(sorted(found | set(_ids(generation, "suppress_tokens", path, vocab_size))))


def _min_new_tokens(generation: Mapping[str, object], path: Path) -> int:
    """How many tokens come before an end token may; `min_length` counts the start token, and yields to the other."""
    for name, start_tokens in (("min_new_tokens", 0), ("min_length", 1)):
        value = generation.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(
                f"{path} asks for an impossible {name}",
                why=f"{value!r:.60} is not a number of tokens",
                fix=f"set {name} to a whole number, 0 or more",
            )
        return max(0, value - start_tokens)
    return 0


def _refuse_contradictions(settings: GenerationSettings, path: Path, vocab_size: int) -> None:
    forced = {settings.forced_bos_token_id, settings.forced_eos_token_id}
    never = set(settings.suppressed_tokens)
    problem = None
    if both := forced & never:
        problem = f"token {min(map(str, both))} is both forced and suppressed"
    elif len(never.union(settings.begin_suppressed_tokens, settings.eos_token_ids)) == vocab_size:
        problem = "no token of the vocabulary is left"
    if problem is not None:
        raise InputError(
            f"the token rules in {path} contradict each other",
            why=problem,
            fix="correct bad_words_ids, suppress_tokens, begin_suppress_tokens or what is forced there",
        )


def _size(config: Mapping[str, object], name: str, path: Path, family: ModelFamily, most: int = _MOST_WIDE) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        expected = "not a positive whole number" if not _is_number(value) or value < 1 else f"and {most} is the most"
        why = f"`{name}` is missing" if value is None else f"`{name}` is {value!r:.60}, {expected}"
        raise InputError(
            f"{path} does not describe a {family.title}", why=why, fix="restore the checkpoint's own config.json"
        )
    return value


def _flag(config: Mapping[str, object], name: str, usual: bool, path: Path, family: ModelFamily) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise InputError(
            f"{path} does not describe a {family.title}",
            why=f"`{name}` is {value!r:.60}, neither true nor false",
            fix="restore the checkpoint's own config.json",
        )
    return usual if value is None else value


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_positions(config: Mapping[str, object], new_tokens: int, family: ModelFamily, path: Path) -> None:
    """The start token and all that follow but the last are read at a position of their own."""
    if family.sizes.positions is None:
        return
    most = _size(config, family.sizes.positions, path, family)
    if new_tokens > most:
        raise InputError(
            f"{new_tokens} new tokens are more than the model has positions for",
            why=f"{path} says {family.sizes.positions} = {most}",
            fix=f"set max_new_tokens to {most} or less in generation_config.json, or in the config of the run",
        )


def _ids(config: Mapping[str, object], name: str, path: Path, vocab_size: int) -> tuple[int, ...]:
    value = config.get(name)
    values = value if isinstance(value, list) else [] if value is None else [value]
    for token in values:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise InputError(
                f"{path} has an impossible `{name}`",
                why=f"{short(token)} is not a token of a vocabulary of {vocab_size}",
                fix="restore the file, or set the id that the tokenizer uses",
            )
    return tuple(values)


def _first(ids: Mapping[str, tuple[int, ...]], fallback: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    return ids[name] or fallback[name]


def _single(ids: Mapping[str, tuple[int, ...]], name: str, path: Path) -> int | None:
    if len(ids[name]) > 1:
        raise InputError(
            f"{path} asks for {name} = {short(list(ids[name]))}",
            why="there can be one such token, not a choice of several",
            fix=f"set {name} to a single id",
        )
    return ids[name][0] if ids[name] else None


def _max_new_tokens(generation: Mapping[str, object], path: Path) -> int:
    for name, start_tokens in (("max_new_tokens", 0), ("max_length", 1)):
        value = generation.get(name)
        if value is None:
            continue
        if _is_number(value) and value > _MOST_NEW_TOKENS:
            raise InputError(
                f"{path} asks for {value:.4g} tokens",
                why=f"`{name}` can be at most {_MOST_NEW_TOKENS}: each has a place in the cache",
                fix="set max_new_tokens there, or generation.max_new_tokens in the config of the run",
            )
        if not isinstance(value, int) or isinstance(value, bool) or value - start_tokens < 1:
            raise InputError(
                f"{path} leaves no room to generate",
                why=f"`{name}` is {short(value)}",
                fix="set max_new_tokens there, or generation.max_new_tokens in the config of the run",
            )
        return value - start_tokens
    return _DEFAULT_NEW_TOKENS
