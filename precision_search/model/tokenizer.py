"""The checkpoint's tokenizer: text to token ids and back, as transformers does it.

In: a model directory. Out: a `Tokenizer`. `tokenizer.json` is read by the `tokenizers` library itself, which
transformers only wraps; its other formats are left to transformers, whose import takes seconds.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precision_search.errors import InputError, counted, first_line, short
from precision_search.files import LARGEST_JSON, check_size, parse_json, read_file, reason
from precision_search.model.added_tokens import AddedToken, added_tokens, read_settings
from precision_search.model.families import family_in
from precision_search.model.families.base import ModelFamily
from precision_search.model.hf_files import hf_files
from precision_search.model.t5_tokenizer import rebuild

if TYPE_CHECKING:
    import tokenizers

MOST_GROWTH = 10_000
"""Times as long as a text that its replacements may make it; known tokenizers stay below ten."""

MOST_ADDED = 1_000
"""Special tokens that may be put around a text; known tokenizers put up to three."""

# What transformers writes for "no limit" is 1e30; no model was trained on lines of this many tokens.
_SANE_LENGTH = 100_000


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A checkpoint's tokenizer. `model_max_length` is the longest input in tokens, end token included.

    `ends_inputs` is whether its class ends every input, as T5Tokenizer does where the file has no template that would.
    `special` has the ids of added and special tokens, by their texts; `is_transformers` is whether transformers reads
    the files.
    """

    path: Path
    pad_id: int
    eos_id: int
    model_max_length: int
    _to_ids: Callable[[str], Sequence[int]]
    _to_text: Callable[[Sequence[int]], str]
    ends_inputs: bool = True
    special: Mapping[str, int] = field(default_factory=dict)
    is_transformers: bool = False

    def encode(self, text: str) -> tuple[int, ...]:
        """Gives the ids of `text` with the special tokens the model expects.

        Raises:
            InputError: the tokenizer cannot take it apart.
        """
        with _in_words(self.path, f"fails at the text {text!r:.60}"):
            ids = tuple(self._to_ids(text))
        return (*ids, self.eos_id) if self.ends_inputs and ids[-1:] != (self.eos_id,) else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Gives the text of `ids`, special tokens left out.

        Raises:
            InputError: the tokenizer cannot put it together.
        """
        with _in_words(self.path, "fails at token ids"):
            return self._to_text([int(token) for token in ids])


@contextlib.contextmanager
def _in_words(path: Path, fails: str) -> Iterator[None]:
    """Whatever a tokenizers library raises, as an InputError; what panics in Rust is no Exception.

    Raises:
        InputError: something was raised inside.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"the tokenizer in {path} {fails}", why=reason(error), fix=_RESTORE) from error
    except BaseException as error:
        # The library raises bare Exception for whatever is wrong with a file, and a class of its own for a panic.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"the tokenizer in {path} {fails}", why=first_line(str(error)), fix=_RESTORE) from error


_RESTORE = "restore the tokenizer's files, or save them again with AutoTokenizer...save_pretrained where they load"


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """Loads the tokenizer in `model_dir`: `tokenizer.json` directly, or another format through transformers.

    The first is what transformers' T5Tokenizer does, without its seconds of import. Code from the directory is never
    run. Raises InputError where there is no tokenizer, or one that cannot be loaded or has no end or pad token.
    """
    settings = _settings(model_dir)
    family = family_in(model_dir)
    file = model_dir / "tokenizer.json"
    if file.is_file():
        return _load_tokenizer_json(file, settings, family)
    needs_file = not str(settings.get("tokenizer_class", "")).startswith(family.tokens.needs_no_file)
    # Without a vocabulary transformers does not fail: it makes a T5Tokenizer of special tokens only.
    vocabularies = family.tokens.vocabulary_files
    if needs_file and not any((model_dir / name).is_file() for name in vocabularies):
        raise InputError(
            f"{model_dir} has no tokenizer",
            why=f"neither tokenizer.json nor {', '.join(vocabularies)} is there",
            fix="copy tokenizer.json and tokenizer_config.json there from the model this checkpoint was trained from",
        )
    return _load_with_transformers(model_dir, settings, family)


def _settings(model_dir: Path) -> Mapping[str, Any]:
    """What `tokenizer_config.json` says, with the class from `config.json` where it names none."""
    settings = read_settings(model_dir / "tokenizer_config.json")
    if settings.get("tokenizer_class") is None and (model_dir / "config.json").is_file():
        with contextlib.suppress(InputError):  # who reads the sizes there says so
            named = read_settings(model_dir / "config.json").get("tokenizer_class")
            return settings if named is None else {**settings, "tokenizer_class": named}
    return settings


def _max_length(settings: Mapping[str, Any], family: ModelFamily) -> int:
    value = settings.get("model_max_length")
    return int(value) if isinstance(value, int | float) and 0 < value < _SANE_LENGTH else family.tokens.longest_input


def _content(token: object) -> str:
    """Older files hold a special token as an object, newer ones as its text."""
    return str(token.get("content", "")) if isinstance(token, Mapping) else str(token)


def _load_tokenizer_json(file: Path, settings: Mapping[str, Any], family: ModelFamily) -> Tokenizer:
    import tokenizers

    kind, classes = settings.get("tokenizer_class"), family.tokens.tokenizer_classes
    is_family_s = kind is None or str(kind).startswith(classes)
    rules = family.tokens
    tokens = {"pad_token": rules.pad_token, "eos_token": rules.eos_token, "unk_token": rules.unk_token}
    named = {**tokens, **settings} if is_family_s else settings
    is_rebuilt = is_family_s and rules.is_rebuilt
    with _in_words(file, "cannot be loaded"):
        data = read_file(file, LARGEST_JSON)
        content = parse_json(data)
        _check_growth(content, file)
        _check_added(content, file)
        backend = tokenizers.Tokenizer.from_buffer(data)
        if is_rebuilt and backend.model.__class__ is tokenizers.models.Unigram:
            rebuild(backend, content)
        # Some files carry the padding and truncation of their training run.
        backend.no_padding()
        backend.no_truncation()
        known_only = {_content(named.get(key, "")) for key in tokens}
        added = added_tokens(file.parent, named, has_sentinels=is_rebuilt)
        _add_tokens(backend, added, known_only)
    return Tokenizer(
        path=file,
        pad_id=_token_id(backend, settings, "pad_token", family.tokens.pad_token, file),
        eos_id=_token_id(backend, settings, "eos_token", family.tokens.eos_token, file),
        model_max_length=_max_length(settings, family),
        _to_ids=lambda text: backend.encode(text).ids,
        _to_text=lambda tokens: str(backend.decode(list(tokens), skip_special_tokens=True)),
        ends_inputs=is_family_s,
        special={token.content: index for index, token in backend.get_added_tokens_decoder().items()},
    )


def _add_tokens(backend: "tokenizers.Tokenizer", tokens: Sequence[AddedToken], known_only: Collection[str]) -> None:
    """Adds the tokens that are not added yet; ids of those in the vocabulary stay, others get the next ones.

    `known_only` are not made up: no model was trained with an end token that is not in its vocabulary.
    """
    import tokenizers

    there = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    new = [each for each in tokens if each.content not in there or each.special > there[each.content].special]
    new = [each for each in new if each.content not in known_only or backend.token_to_id(each.content) is not None]
    backend.add_tokens([tokenizers.AddedToken(**asdict(token)) for token in new])


def _check_growth(content: Any, file: Path) -> None:
    """Refuses a tokenizer that replaces text by ever longer text, before it does so to its own added tokens.

    The bound is of replacements alone: what Unicode's normal forms and a precompiled map add is a few characters for
    each, and is not counted.
    """
    for part in ("normalizer", "decoder"):
        steps = _steps(content.get(part) if isinstance(content, dict) else None, "Replace", "Prepend")
        growth = math.prod(map(_growth, steps))
        if growth > MOST_GROWTH:
            raise InputError(
                f"{file} makes text up to {growth:.3g} times as long",
                why=f"its {part} replaces text {len(steps)} times in a row; {MOST_GROWTH} times as long is the most",
                fix="restore the file, or remove the replacements there",
            )


def _check_added(content: Any, file: Path) -> None:
    """Refuses a tokenizer that puts more special tokens around each text than memory holds."""
    for step in _steps(content.get("post_processor") if isinstance(content, dict) else None, "TemplateProcessing"):
        single, tokens = step.get("single"), step.get("special_tokens")
        pieces = len(single) if isinstance(single, list) else 0
        each = tokens.values() if isinstance(tokens, dict) else ()
        ids = [token["ids"] for token in each if isinstance(token, dict) and isinstance(token.get("ids"), list)]
        if (most := pieces * max(map(len, ids), default=0)) > MOST_ADDED:
            raise InputError(
                f"{file} adds up to {counted(most, 'token')} to each text",
                why=f"its post_processor has {counted(pieces, 'piece')}; {MOST_ADDED} tokens are the most",
                fix="restore the file",
            )


def _steps(value: Any, *kinds: str) -> list[Mapping[str, Any]]:
    """The parts of a tokenizer that are of these kinds, in `value` and in all that is in it."""
    inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    steps = [step for each in inner for step in _steps(each, *kinds)]
    return [value, *steps] if isinstance(value, dict) and value.get("type") in kinds else steps


def _growth(step: Mapping[str, Any]) -> float:
    """How many times as long a text can be after it, in characters."""
    added = len(str(step.get("content", step.get("prepend", ""))))
    pattern = step.get("pattern")
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    # A regular expression may match between any two characters.
    return max(1.0, added / len(replaced)) if isinstance(replaced, str) and replaced else 1.0 + added


def _token_id(backend: "tokenizers.Tokenizer", settings: Mapping[str, Any], key: str, default: str, file: Path) -> int:
    token = _content(settings.get(key) or default)
    found = backend.token_to_id(token)
    if found is None:
        raise InputError(
            f"{file} has no {key.replace('_', ' ')}",
            why=f"{short(token)} is not in its vocabulary",
            fix=f"restore tokenizer_config.json, or set {key} there to the one this tokenizer uses",
        )
    return int(found)


def transformers_ids(model_dir: Path, texts: Sequence[str]) -> Mapping[str, Any]:
    """What transformers' AutoTokenizer gives: `ids` of the texts, and `added`, the ids of its added tokens by text.

    Where it does not load, or fails at a text, `problem` says why instead.
    """
    try:
        with _in_words(model_dir, "fails"):
            backend = _auto_tokenizer(model_dir)
            ids = [list(backend(text, truncation=False, verbose=False).input_ids) for text in texts]
            return {"ids": ids, "added": dict(backend.get_added_vocab())}
    except InputError as error:
        return {"problem": error.why}


def _auto_tokenizer(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)


def _load_with_transformers(model_dir: Path, settings: Mapping[str, Any], family: ModelFamily) -> Tokenizer:
    added_tokens(model_dir, settings, has_sentinels=True)  # refuses more than there can be, before they are made
    for path in (model_dir / name for name in hf_files()):
        try:
            check_size(path, LARGEST_JSON)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{path} cannot be loaded", why=reason(error), fix="restore the file") from error
    with _in_words(model_dir, "cannot be loaded"):
        backend = _auto_tokenizer(model_dir)
    if backend.eos_token_id is None or backend.pad_token_id is None:
        raise InputError(
            f"the tokenizer in {model_dir} has no end or pad token",
            why=f"a {family.title} needs both",
            fix="set eos_token and pad_token in tokenizer_config.json",
        )
    return Tokenizer(
        path=model_dir,
        pad_id=int(backend.pad_token_id),
        eos_id=int(backend.eos_token_id),
        model_max_length=_max_length(settings, family),
        _to_ids=lambda text: backend(text, truncation=False).input_ids,
        _to_text=lambda tokens: str(backend.decode(list(tokens), skip_special_tokens=True)),
        is_transformers=True,
    )
