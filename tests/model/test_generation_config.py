"""Proves that model and generation configs are read as transformers means them, and refused by name where we differ."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.config import GREEDY
from precision_search.errors import InputError
from precision_search.model.generation_config import (
    GenerationSettings,
    ModelConfig,
    read_generation_settings,
    read_model_config,
    write_overridden,
)
from precision_search.model.greedy import NEUTRAL
from tests.conftest import DEMO_MODEL as DEMO

CONFIG: dict[str, object] = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 100,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 16,
    "num_heads": 2,
    "num_layers": 3,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# What transformers 5.23's GenerationConfig holds besides NEUTRAL and what we read: nothing that changes which tokens
# greedy decoding chooses. An attribute that a new transformers adds must be put here or into NEUTRAL.
WITHOUT_EFFECT_ON_GREEDY = {
    # only beam search reads these
    "early_stopping", "length_penalty", "low_memory",
    # only sampling
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    # only an assistant model
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "max_matching_ngram_size", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
    "speculation_type",
    # what is returned, and how it is computed
    "use_cache", "cache_config", "max_cache_len", "prefill_chunk_size", "compile_config", "disable_compile",
    "continuous_batching_config", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "transformers_version", "_from_model_config",
    # replaces NaN and infinity, which a reference never has
    "remove_invalid_values",
}  # fmt: skip
READ = {
    "max_length",
    "max_new_tokens",
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "suppress_tokens",
    "begin_suppress_tokens",
}


def model_dir(directory: Path, generation: dict[str, object] | None = None, /, **changes: object) -> Path:
    config = {key: value for key, value in (CONFIG | changes).items() if value != "absent"}
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def refusal(directory: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_model_config(directory)
        read_generation_settings(directory, None)
    error = caught.value
    assert error.what and error.why and error.fix
    return error


def test_the_demo_model() -> None:
    assert read_model_config(DEMO) == ModelConfig(
        model_type="t5",
        vocab_size=4096,
        d_model=192,
        d_kv=48,
        d_ff=768,
        num_heads=4,
        num_layers=4,
        num_decoder_layers=4,
        tie_word_embeddings=True,
        scale_decoder_outputs=True,
    )
    assert read_generation_settings(DEMO, None) == GenerationSettings(
        decoder_start_token_id=0,
        eos_token_ids=(1,),
        pad_token_id=0,
        max_new_tokens=64,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
    )


@pytest.mark.parametrize(
    ("changes", "tied", "scaled"),
    [
        ({}, True, True),
        ({"tie_word_embeddings": True}, True, True),
        ({"tie_word_embeddings": False}, False, False),  # T5 v1.1 as published
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, False),  # ... as transformers 5 saves it
        ({"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}, True, False),
    ],
)
def test_scaling_is_what_transformers_does(
    tmp_path: Path, changes: dict[str, object], *, tied: bool, scaled: bool
) -> None:
    config = read_model_config(model_dir(tmp_path, **changes))
    assert (config.tie_word_embeddings, config.scale_decoder_outputs) == (tied, scaled)

    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(tmp_path)
    assert getattr(theirs, "scale_decoder_outputs", False) == scaled


@pytest.mark.parametrize(("given_layers", "layers"), [("absent", 3), (None, 3), (5, 5)])
def test_a_decoder_is_as_deep_as_the_encoder_unless_it_says_otherwise(
    tmp_path: Path, given_layers: object, layers: int
) -> None:
    assert read_model_config(model_dir(tmp_path, num_decoder_layers=given_layers)).num_decoder_layers == layers


@pytest.mark.parametrize("architectures", ["absent", None, [], ["T5WithLMHeadModel"], ["T5ForConditionalGeneration"]])
def test_a_t5_is_accepted_under_its_old_name_or_without_a_class_name(tmp_path: Path, architectures: object) -> None:
    assert read_model_config(model_dir(tmp_path, architectures=architectures)).model_type == "t5"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ({"model_type": "marian", "architectures": ["MarianMTModel"], "is_encoder_decoder": True}, "marian"),
        ({"model_type": "absent"}, "model_type None"),
        ({"model_type": ["t5"]}, "['t5']"),
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ({"architectures": ["MT5ForConditionalGeneration"]}, "MT5ForConditionalGeneration"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder false"),
    ],
)
def test_anything_but_a_seq2seq_t5_is_refused_by_name(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    error = refusal(model_dir(tmp_path, **changes))
    assert "not a sequence-to-sequence T5" in error.what
    assert named in error.why
    assert "T5ForConditionalGeneration or MT5ForConditionalGeneration" in error.fix


@pytest.mark.parametrize("value", ["absent", None, 0, -1, 1.5, True, "8"])
def test_a_missing_or_impossible_size_is_named(tmp_path: Path, value: object) -> None:
    assert "`d_kv`" in refusal(model_dir(tmp_path, d_kv=value)).why


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"{", "not valid JSON"), (b"\xff\xfe", "not valid JSON"), (b"[]", "is no config"), (b"[" * 99999, "not valid")],
    ids=["cut", "binary", "list", "nested"],
)
def test_a_broken_config_is_said(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert what in refusal(tmp_path).what


def test_missing_files_and_directories_are_told_apart(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path).why
    assert "no such directory" in refusal(tmp_path / "absent").why
    (tmp_path / "file").write_text("")
    assert "no such directory" in refusal(tmp_path / "file").why
    (tmp_path / "config.json").mkdir()
    assert "cannot be read" in refusal(tmp_path).what


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"max_new_tokens": 7}, 7),
        ({"max_new_tokens": 7, "max_length": 20}, 7),
        ({"max_length": 20}, 19),
        ({"max_length": None}, 128),
        ({}, 128),
    ],
)
def test_length_comes_from_the_argument_then_the_file_then_128(
    tmp_path: Path, generation: dict[str, object], expected: int
) -> None:
    directory = model_dir(tmp_path, generation)
    assert read_generation_settings(directory, None).max_new_tokens == expected
    assert read_generation_settings(directory, 3).max_new_tokens == 3


@pytest.mark.parametrize(
    "generation", [{"max_new_tokens": 0}, {"max_length": 1}, {"max_length": "20"}, {"max_new_tokens": True}]
)
def test_a_length_without_room_is_refused_unless_the_argument_gives_one(
    tmp_path: Path, generation: dict[str, object]
) -> None:
    directory = model_dir(tmp_path, generation)
    assert next(iter(generation)) in refusal(directory).why
    assert read_generation_settings(directory, 3).max_new_tokens == 3


def test_without_a_generation_config_config_json_speaks(tmp_path: Path) -> None:
    changes = {"max_length": 21, "forced_bos_token_id": 9, "eos_token_id": [4, 5]}
    settings = read_generation_settings(model_dir(tmp_path, **changes), None)
    assert settings == GenerationSettings(0, (4, 5), 0, 20, 9, None)


def test_a_generation_config_wins_and_lacking_ids_come_from_config_json(tmp_path: Path) -> None:
    generation: dict[str, object] = {"eos_token_id": [7, 8], "forced_eos_token_id": [7]}
    directory = model_dir(tmp_path, generation, pad_token_id=3, forced_bos_token_id=9, max_length=21, num_beams=4)
    assert read_generation_settings(directory, None) == GenerationSettings(0, (7, 8), 3, 128, None, 7)


def test_start_falls_back_to_bos_and_t5_defaults_fill_eos_and_pad(tmp_path: Path) -> None:
    absent = dict.fromkeys(("decoder_start_token_id", "eos_token_id", "pad_token_id"), "absent")
    settings = read_generation_settings(model_dir(tmp_path, {"bos_token_id": 2}, **absent), None)
    assert (settings.decoder_start_token_id, settings.eos_token_ids, settings.pad_token_id) == (2, (1,), 0)


def test_no_start_token_is_refused(tmp_path: Path) -> None:
    error = refusal(model_dir(tmp_path, {}, decoder_start_token_id="absent"))
    assert "decoder_start_token_id" in error.why


@pytest.mark.parametrize("value", [100, -1, "1", 1.0, True, [1, 100]])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path, value: object) -> None:
    error = refusal(model_dir(tmp_path, {"eos_token_id": value}))
    assert "eos_token_id" in error.what
    assert "vocabulary of 100" in error.why


@pytest.mark.parametrize(
    "name", ["forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id", "pad_token_id"]
)
def test_several_tokens_where_there_can_be_one_are_refused(tmp_path: Path, name: str) -> None:
    """Of transformers' start tokens, one for each row of a batch, a directory cannot know how many."""
    assert f"{name} = [1, 2]" in refusal(model_dir(tmp_path, {name: [1, 2]})).what


def test_a_list_of_one_token_is_that_token(tmp_path: Path) -> None:
    directory = model_dir(tmp_path, {"decoder_start_token_id": [2], "pad_token_id": [3], "forced_bos_token_id": [4]})
    assert read_generation_settings(directory, None) == GenerationSettings(2, (1,), 3, 128, 4, None)


REFUSED_VALUES: dict[str, object] = {
    "num_beams": 4,
    "num_beam_groups": 2,
    "num_return_sequences": 2,
    "do_sample": True,
    "penalty_alpha": 0.6,
    "diversity_penalty": 0.5,
    "dola_layers": "high",
    "use_mtp": True,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 2,
    "constraints": [[1]],
    "force_words_ids": [[1]],
    "max_time": 1.0,
    "stop_strings": ["."],
    "repetition_penalty": 1.2,
    "encoder_repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 3,
    "bad_words_ids": [[5, 6]],
    "sequence_bias": [[[5], 1.0]],
    "forced_decoder_ids": [[1, 5]],
    "exponential_decay_length_penalty": [5, 1.1],
    "guidance_scale": 1.5,
    "renormalize_logits": True,
    "watermarking_config": {"bias": 2.0},
    "token_healing": True,
    "cache_implementation": "quantized",
}


def test_every_attribute_of_the_table_has_a_refused_value_here() -> None:
    assert REFUSED_VALUES.keys() == NEUTRAL.keys()


@pytest.mark.parametrize("name", REFUSED_VALUES)
@pytest.mark.parametrize("in_generation_config", [True, False])
def test_what_greedy_decoding_does_not_do_is_refused_by_name(
    tmp_path: Path, name: str, *, in_generation_config: bool
) -> None:
    asked = {name: REFUSED_VALUES[name]}
    error = refusal(model_dir(tmp_path, asked) if in_generation_config else model_dir(tmp_path, **asked))
    assert f"{name} = {json.dumps(asked[name])}" in error.what
    assert name in error.fix
    assert ("generation_config.json" if in_generation_config else "config.json") in error.fix


def test_all_that_is_refused_is_named_at_once_with_the_value_to_set(tmp_path: Path) -> None:
    error = refusal(model_dir(tmp_path, {"num_beams": 4, "bad_words_ids": [[3, 4]], "renormalize_logits": True}))
    assert error.fix.startswith(
        "write num_beams = 1 under [generation] in the config of the run, or in generation_config.json; "
        "remove bad_words_ids, set renormalize_logits to false in generation_config.json"
    )


RULES: tuple[tuple[dict[str, object], dict[str, Any]], ...] = (
    ({"bad_words_ids": [[5], [3], [5], [1]]}, {"suppressed_tokens": (3, 5)}),  # an end token is no bad word
    ({"suppress_tokens": [7, 1]}, {"suppressed_tokens": (1, 7)}),
    ({"bad_words_ids": [[5]], "suppress_tokens": [7, 5]}, {"suppressed_tokens": (5, 7)}),
    ({"begin_suppress_tokens": [9, 4]}, {"begin_suppressed_tokens": (4, 9)}),
    ({"min_length": 5}, {"min_new_tokens": 4}),  # it counts the start token
    ({"min_length": 1}, {}),
    ({"min_new_tokens": 5}, {"min_new_tokens": 5}),
    ({"min_new_tokens": 2, "min_length": 9}, {"min_new_tokens": 2}),
    ({"min_new_tokens": 0, "min_length": 9}, {}),
)


@pytest.mark.parametrize(("asked", "expected"), RULES)
def test_token_rules_are_read(tmp_path: Path, asked: dict[str, object], expected: dict[str, Any]) -> None:
    found = read_generation_settings(model_dir(tmp_path, asked), None)
    assert found == dataclasses.replace(GenerationSettings(0, (1,), 0, 128, None, None), **expected)


@pytest.mark.parametrize("name", ["min_length", "min_new_tokens"])
@pytest.mark.parametrize("value", [-1, 1.5, True, "5"])
def test_a_least_length_that_is_none_is_refused(tmp_path: Path, name: str, value: object) -> None:
    assert f"impossible {name}" in refusal(model_dir(tmp_path, {name: value})).what


@pytest.mark.parametrize(
    "asked",
    [
        {"suppress_tokens": [5], "forced_bos_token_id": 5},
        {"bad_words_ids": [[5]], "forced_eos_token_id": 5},
        {"suppress_tokens": list(range(2, 60)), "begin_suppress_tokens": [0, *range(60, 100)]},
    ],
)
def test_rules_that_contradict_each_other_are_refused(tmp_path: Path, asked: dict[str, object]) -> None:
    assert "contradict each other" in refusal(model_dir(tmp_path, asked)).what


@pytest.mark.parametrize("name", ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids"])
def test_rules_about_tokens_that_do_not_exist_are_refused(tmp_path: Path, name: str) -> None:
    value: list[object] = [[100]] if name == "bad_words_ids" else [100]
    assert f"impossible `{name}`" in refusal(model_dir(tmp_path, {name: value})).what


@pytest.mark.parametrize("in_generation_config", [True, False])
def test_what_is_overridden_is_kept_in_mind_and_not_written(tmp_path: Path, *, in_generation_config: bool) -> None:
    asked: dict[str, object] = {"num_beams": 5, "repetition_penalty": 1.2, "do_sample": False, "length_penalty": 2.0}
    directory = model_dir(tmp_path, asked) if in_generation_config else model_dir(tmp_path, **asked)
    found = read_generation_settings(directory, None, GREEDY.overrides)
    assert found.overridden == {"num_beams": "5", "repetition_penalty": "1.2"}
    assert found == GenerationSettings(0, (1,), 0, 128, None, None)
    write_overridden(directory, found)
    again = read_generation_settings(directory, None)
    assert (again, again.overridden) == (found, {})
    path = directory / ("generation_config.json" if in_generation_config else "config.json")
    assert json.loads(path.read_text())["length_penalty"] == 2.0
    assert refusal(model_dir(tmp_path, {"num_beams": 5})).fix.startswith("write num_beams = 1 under [generation]")


@given(st.data())
def test_neutral_values_change_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    choices = {name: st.sampled_from([None, *values]) for name, values in NEUTRAL.items()}
    generation = data.draw(st.fixed_dictionaries({}, optional=choices))
    directory = model_dir(tmp_path_factory.mktemp("model"), generation)
    assert read_generation_settings(directory, None) == GenerationSettings(0, (1,), 0, 128, None, None)


def test_task_specific_parameters_are_not_generation_settings(tmp_path: Path) -> None:
    directory = model_dir(tmp_path, task_specific_params={"summarization": {"num_beams": 4, "max_length": 200}})
    assert read_generation_settings(directory, None).max_new_tokens == 128


def test_the_table_covers_every_attribute_of_transformers() -> None:
    from transformers import GenerationConfig

    known = NEUTRAL.keys() | READ | WITHOUT_EFFECT_ON_GREEDY
    theirs = GenerationConfig()  # type: ignore[no-untyped-call]
    assert set(vars(theirs)) - {"_original_object_hash", "_commit_hash"} <= known
