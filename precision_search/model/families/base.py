"""What a model family must say of itself, as plain data: texts, numbers and dotted names, no code to run at import.

In: nothing. Out: `ModelFamily`, of which each module beside this one makes one or more. A family is what a checkpoint's
`model_type` selects from the table in `families`; nothing in a checkpoint can add to it or name a class to load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SizeNames:
    """What `config.json` calls the sizes of a model.

    Attributes:
        vocabulary: rows of the embedding.
        width: of the residual stream.
        inner_width: inside a feed-forward layer.
        heads: of an attention, and of the cache.
        head_size: of the cache; None where it is the width over the heads.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder; as many as the encoder has where a config lacks it.
        positions: the most positions that the model knows; None where it has no such limit.
    """

    vocabulary: str
    width: str
    inner_width: str
    heads: str
    head_size: str | None
    encoder_layers: str
    decoder_layers: str
    positions: str | None


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the export finds the parts of a loaded model: dotted paths of modules and buffers.

    The graphs call them `encoder`, `decoder` and `lm_head` whatever a model calls them: that is what node keys begin
    with. The decoder must take transformers' `EncoderDecoderCache` as `past_key_values`.

    Attributes:
        encoder: takes `input_ids` and `attention_mask`.
        decoder: takes `input_ids`, `encoder_hidden_states`, `encoder_attention_mask` and the cache.
        output_projection: its `weight` turns the decoder's output into logits.
        output_bias: is added to the logits; None where there is none.
        output_scale: key of `config.json` that says whether the decoder's output is divided by the root of the width
            before the projection; a config without it does so if its embeddings are tied. None: never.
    """

    encoder: str
    decoder: str
    output_projection: str
    output_bias: str | None
    output_scale: str | None


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What holds for tokens where the files of a checkpoint do not say it.

    Attributes:
        pad_token: text of the padding token.
        eos_token: text of the end token, which ends every input.
        unk_token: text of the token for what the vocabulary lacks.
        pad_id: id of the padding token.
        eos_id: id of the end token.
        usual_start_id: what decoding usually starts with; for the error where a checkpoint does not say.
        longest_input: tokens of the longest input, end token included.
        vocabulary_files: what a tokenizer that is no `tokenizer.json` is read from.
        needs_no_file: what the name of a tokenizer class begins with that has no vocabulary file.
        tokenizer_classes: what the name of the family's own tokenizer class begins with: it ends every input with the
            end token. One that is not named is such a one.
        is_rebuilt: whether that class takes the vocabulary alone from `tokenizer.json` and makes the rest itself, as
            transformers' T5Tokenizer does, sentinels (`<extra_id_0>`, ...) included.
    """

    pad_token: str
    eos_token: str
    pad_id: int
    eos_id: int
    usual_start_id: int
    longest_input: int
    vocabulary_files: tuple[str, ...]
    needs_no_file: tuple[str, ...]
    tokenizer_classes: tuple[str, ...] = ()
    is_rebuilt: bool = False
    unk_token: str = "<unk>"


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A kind of checkpoint that can be read and exported.

    Attributes:
        model_type: what `config.json` calls it.
        title: what people call it.
        classes: names that `architectures` may give it; the first is today's.
        model_class: dotted name of the transformers class that loads it.
        sizes: what `config.json` calls its sizes.
        parts: where the export finds its parts.
        tokens: what holds for its tokens.
    """

    model_type: str
    title: str
    classes: tuple[str, ...]
    model_class: str
    sizes: SizeNames
    parts: Parts
    tokens: TokenRules


def family_from_json(data: Mapping[str, Any]) -> ModelFamily:
    """The family whose `dataclasses.asdict` went through JSON, where tuples become lists."""
    tokens: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data["tokens"].items()
    }
    return ModelFamily(
        model_type=data["model_type"],
        title=data["title"],
        classes=tuple(data["classes"]),
        model_class=data["model_class"],
        sizes=SizeNames(**data["sizes"]),
        parts=Parts(**data["parts"]),
        tokens=TokenRules(**tokens),
    )
