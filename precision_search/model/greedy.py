"""What a generation config may ask for beside plain greedy decoding, and what of it a user can choose to leave out.

In: the content of a generation config. Out: what of it is not greedy decoding, or an error that names all of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from precision_search.config import OVERRIDES
from precision_search.errors import InputError

# Every attribute of transformers 5.23's GenerationConfig (and of older ones) that changes which tokens come out of
# `generate`, with the values under which it changes nothing. `None` is neutral for all. What only sampling or beam
# search reads (temperature, top_k, length_penalty, ...) is not here: greedy decoding ignores it.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "do_sample": (False,),
    "penalty_alpha": (0,),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "use_mtp": (False,),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "constraints": (),
    "force_words_ids": (),
    "max_time": (),
    "stop_strings": (),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": (),  # of several tokens each; those of one token are a rule
    "sequence_bias": (),
    "forced_decoder_ids": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "renormalize_logits": (False,),
    "watermarking_config": (),
    "token_healing": (False,),
    "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static", "hybrid"),  # not "quantized"
}

NOTHING_OVERRIDDEN: Mapping[str, object] = MappingProxyType({})


def refuse_what_is_not_greedy(generation: Mapping[str, object], path: Path) -> None:
    """Raises InputError for all that asks for something else than greedy decoding, named at once."""
    asked = asked_beyond_greedy(generation)
    if asked:
        chosen = [f"{name} = {json.dumps(NEUTRAL[name][0])}" for name in asked if name in OVERRIDES]
        others = [
            f"set {name} to {json.dumps(NEUTRAL[name][0])}" if NEUTRAL[name] else f"remove {name}"
            for name in asked
            if name not in OVERRIDES
        ]
        repair = [f"{', '.join(others)} in {path.name}"] if others else []
        if chosen:
            repair.insert(
                0, f"write {', '.join(chosen)} under [generation] in the config of the run, or in {path.name}"
            )
        raise InputError(
            f"{path} asks for {', '.join(f'{name} = {json.dumps(value)}' for name, value in asked.items())}",
            why="plans are judged by the tokens of plain greedy decoding, which this is not",
            fix=f"{'; '.join(repair)} (we check greedy decoding)",
        )


def asked_beyond_greedy(generation: Mapping[str, object]) -> dict[str, object]:
    """What of it is not plain greedy decoding."""
    return {
        name: generation[name]
        for name, neutral in NEUTRAL.items()
        if generation.get(name) is not None and generation[name] not in neutral
        if name != "bad_words_ids" or not _are_single_tokens(generation[name])
    }


def greedy_by_choice(overridden: Mapping[str, str]) -> str:
    """What was overridden, for people: names with their values as JSON."""
    asked = ", ".join(f"{name} {value}" for name, value in overridden.items())
    return f"greedy decoding by choice: the checkpoint asks for {asked}"


def _are_single_tokens(words: object) -> bool:
    return isinstance(words, list) and bool(words) and all(isinstance(word, list) and len(word) == 1 for word in words)
