"""What is handed to a generator, checked: texts or token ids in whatever container, to rows of ids.

In: texts, or ids as lists, arrays or tensors. Out: rows that the model can read. Nothing is trusted: whatever cannot be
generated from is refused with the number of its row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from precision_search.errors import InputError, counted
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.layout import SEQ2SEQ
from precision_search.model.tokenizer import Tokenizer

Row = tuple[int, ...]


def read_inputs(
    inputs: object, prefix: str, tokenizer: Tokenizer, generation: GenerationSettings, *, vocabulary: int, limit: int
) -> list[Row]:
    """Rows of token ids, each of 1 to `limit` of them, in the order of the inputs.

    Args:
        inputs: a sequence of texts, or of rows of ids; arrays and tensors count as sequences.
        prefix: put before each text.
        tokenizer: for texts.
        generation: which token pads.
        vocabulary: ids go from 0 to one less.
        limit: longest row.

    Raises:
        InputError: anything else.
    """
    entries = _entries(inputs)
    if not isinstance(prefix, str):
        raise InputError("the prefix is no text", why=f"it is {prefix!r:.60}", fix="give a text, or nothing")
    texts = [isinstance(entry, str) for entry in entries]
    if any(texts) and not all(texts):
        other = texts.index(not texts[0])
        raise InputError(
            f"row {other} of the inputs is {'a' if texts[other] else 'no'} text, unlike row 0",
            why=f"it is {entries[other]!r:.60}",
            fix="give texts only, or rows of token ids only",
        )
    if all(texts):
        rows = [_encoded(prefix + str(text), index, tokenizer) for index, text in enumerate(entries)]
    elif prefix:
        raise InputError(
            "a prefix goes before texts, not before token ids",
            why="the inputs are no texts",
            fix="give texts, or put the prefix's own ids at the start of each row",
        )
    else:
        rows = [_row(entry, index) for index, entry in enumerate(entries)]
        _refuse_padding(rows, generation)
    _check_ids(rows, vocabulary)
    _check_lengths(rows, limit)
    return rows


def check_count(name: str, value: object, *, most: int | None = None) -> None:
    """Refuses what does not count tokens or threads: all but None and whole numbers from 1 to `most`.

    Raises:
        InputError: it is refused.
    """
    if value is not None and (not _is_whole(value) or value < 1):  # type: ignore[operator]
        raise InputError(
            f"{name} is {value!r:.60}", why="it is a count", fix="give a whole number of at least 1, or None"
        )
    if value is not None and most is not None and value > most:  # type: ignore[operator]
        raise InputError(f"{name} is {value}", why=f"more than {most} use up the machine", fix="give fewer, or None")


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _listed(value: object) -> object:
    """An array of numpy or a tensor of any library as lists and numbers, all else as it is."""
    to_list = getattr(value, "tolist", None)
    return to_list() if callable(to_list) and not isinstance(value, str | bytes | bytearray) else value


def _entries(inputs: object) -> Sequence[object]:
    entries = _listed(inputs)
    if isinstance(entries, str | bytes | bytearray | memoryview) or not isinstance(entries, Sequence):
        fix = "give a list of texts, or a list of rows of token ids; for one text, a list of one"
        if isinstance(inputs, Mapping):
            ids = SEQ2SEQ.encoder.input("source_ids")
            fix = f"give its {ids}, as rows without padding; or better the texts themselves"
        raise InputError("the inputs are no list", why=f"they are of type {type(inputs).__name__}", fix=fix)
    if len(entries) == 0:
        raise InputError("there is nothing to generate from", why="the list is empty", fix="give at least one text")
    return entries


def _encoded(text: str, index: int, tokenizer: Tokenizer) -> Row:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"row {index} of the inputs is no valid Unicode",
            why=f"it holds half of a surrogate pair at character {error.start}",
            fix='read it with the right encoding, or pass text.encode("utf-8", "replace").decode()',
        ) from error
    return tokenizer.encode(text)


def _row(entry: object, index: int) -> Row:
    values = _listed(entry)
    whole = isinstance(values, Sequence) and not isinstance(values, str | bytes | bytearray | memoryview)
    row = [_listed(value) for value in values] if whole and isinstance(values, Sequence) else []
    if not whole or not all(map(_is_whole, row)):
        raise InputError(
            f"row {index} of the inputs is neither a text nor a row of token ids",
            why=f"it is {entry!r:.60}",
            fix="give a list of texts, or a list of rows of whole numbers",
        )
    if not row:
        raise InputError(
            f"row {index} of the inputs is empty", why="it holds no token", fix="give at least the end token"
        )
    return tuple(int(value) for value in row)  # type: ignore[call-overload]


def _refuse_padding(rows: Sequence[Row], generation: GenerationSettings) -> None:
    """Padding given as if it were tokens would be attended to; a model may have one token for pad and end."""
    pad = generation.pad_token_id
    for index, row in enumerate(rows):
        side = "ends" if row[-1] == pad and pad not in generation.eos_token_ids else "starts" if row[0] == pad else ""
        if side:
            raise InputError(
                f"row {index} of the inputs is padded",
                why=f"it {side} with the pad token {pad}",
                fix="give rows of different lengths without padding; they are padded and masked here",
            )


def _check_ids(rows: Sequence[Row], vocabulary: int) -> None:
    for index, row in enumerate(rows):
        if not 0 <= min(row) <= max(row) < vocabulary:
            raise InputError(
                f"row {index} of the inputs has an id outside the vocabulary",
                why=f"its ids go from {min(row)} to {max(row)}, the model knows 0 to {vocabulary - 1}",
                fix="use the tokenizer files of the model, and pad with no negative ids",
            )


def _check_lengths(rows: Sequence[Row], limit: int) -> None:
    longest = max(range(len(rows)), key=lambda index: len(rows[index]))
    if len(rows[longest]) > limit:
        raise InputError(
            f"row {longest} of the inputs is too long",
            why=f"it has {counted(len(rows[longest]), 'token')}, the limit is {limit}",
            fix="split it into sentences; or pass max_length, if the model is good for more",
        )
