"""A family is one module and one line: another architecture is added that way, and generates what transformers does."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from precision_search.errors import InputError
from precision_search.model import families
from precision_search.model.bundle import open_bundle, oracle_tokens
from precision_search.model.families import FAMILIES, family_in, likely_family, model_family_of, vocabulary_files
from precision_search.model.families.base import ModelFamily, Parts, SizeNames, TokenRules, family_from_json
from precision_search.model.families.t5 import MT5, T5
from precision_search.model.generation_config import read_generation_settings, read_model_config
from precision_search.runtime.generator import Generator
from precision_search.runtime.reference import compare_with_oracle, make_reference
from precision_search.runtime.session import SessionSettings
from tests.checkpoints import word_tokenizer
from tests.warm import torch_command

# What the module of a new family would hold. Nothing in it is called as in T5: sizes, parts, an output bias, absolute
# positions, a head size that follows from the width.
BART = ModelFamily(
    model_type="bart",
    title="BART",
    classes=("BartForConditionalGeneration",),
    model_class="transformers.BartForConditionalGeneration",
    sizes=SizeNames(
        vocabulary="vocab_size",
        width="d_model",
        inner_width="encoder_ffn_dim",
        heads="decoder_attention_heads",
        head_size=None,
        encoder_layers="encoder_layers",
        decoder_layers="decoder_layers",
        positions="max_position_embeddings",
    ),
    parts=Parts(
        encoder="model.encoder",
        decoder="model.decoder",
        output_projection="lm_head",
        output_bias="final_logits_bias",
        output_scale=None,
    ),
    tokens=TokenRules(
        pad_token="<pad>",
        eos_token="</s>",
        pad_id=1,
        eos_id=2,
        usual_start_id=2,
        longest_input=1024,
        vocabulary_files=("vocab.json", "bpe.vocab"),
        needs_no_file=(),
    ),
)

_SAVE = """
import sys
import torch
from transformers import BartConfig, BartForConditionalGeneration

config = BartConfig(
    vocab_size=61, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
    pad_token_id=0, bos_token_id=3, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
)
torch.manual_seed(3)
model = BartForConditionalGeneration(config)
with torch.no_grad():
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(std=0.7)
    model.final_logits_bias.normal_(std=0.7)
model.save_pretrained(sys.argv[1])
"""

CPU = SessionSettings("cpu", threads=1)
ROWS = ((5, 6, 7, 8, 1), (9, 1), (40, 41, 42, 3, 17, 60, 1), (22, 5, 1))


@pytest.fixture
def with_bart(monkeypatch: pytest.MonkeyPatch) -> ModelFamily:
    """The one line: the table names the family."""
    monkeypatch.setitem(FAMILIES, BART.model_type, BART)
    return BART


def refusal(config: dict[str, object]) -> InputError:
    with pytest.raises(InputError) as caught:
        model_family_of(config, Path("model/config.json"))
    return caught.value


@pytest.mark.slow
@pytest.mark.usefixtures("with_bart")
def test_a_family_added_by_one_line_is_exported_and_generates_what_transformers_does(tmp_path: Path) -> None:
    checkpoint = tmp_path / "bart"
    subprocess.run([*torch_command(), "-c", _SAVE, str(checkpoint)], check=True)
    (checkpoint / "tokenizer.json").write_text(word_tokenizer())
    bundle = open_bundle(str(checkpoint), tmp_path / "cache", max_new_tokens=10)
    assert (bundle.config.num_layers, bundle.config.num_decoder_layers, bundle.config.d_kv) == (1, 2, 4)
    roots = {key.split("/")[0].split(".")[0] for graph in bundle.graphs.values() for key in graph.nodes}
    assert {"encoder", "decoder", "lm_head"} <= roots

    generator = Generator(bundle.models, bundle.generation, CPU)
    reference = make_reference(bundle, generator, ROWS, 2, CPU)
    oracle = oracle_tokens(bundle, ROWS, tmp_path / "cache", batch_size=2)
    assert compare_with_oracle(reference, oracle) == ()
    assert len({tuple(tokens) for tokens in oracle}) == len(ROWS)


def test_the_table_names_each_family_by_its_model_type() -> None:
    assert FAMILIES == {"t5": T5, "mt5": MT5}
    assert model_family_of({"model_type": "t5"}, Path("model/config.json")) is T5
    assert model_family_of({"model_type": "mt5", "architectures": list(MT5.classes)}, Path("model/config.json")) is MT5


@pytest.mark.parametrize("family", [T5, MT5, BART])
def test_a_family_survives_the_way_to_the_child(family: ModelFamily) -> None:
    assert family_from_json(json.loads(json.dumps(dataclasses.asdict(family)))) == family


def test_an_unknown_family_is_named_with_those_that_are_known(with_bart: ModelFamily) -> None:
    error = refusal({"model_type": "pegasus", "architectures": ["PegasusForConditionalGeneration"]})
    assert error.what == "model is not a sequence-to-sequence T5 or BART"
    assert "pegasus" in error.why
    assert error.fix.endswith(f"MT5ForConditionalGeneration or {with_bart.classes[0]}")


@pytest.mark.parametrize("model_type", ["os.system", "tests.model.families.test_families.BART", ["t5"], None, "bart"])
def test_a_config_cannot_name_code_to_load(model_type: object) -> None:
    config = {
        "model_type": model_type,
        "model_class": "os.system",
        "family": {"model_class": "os.system"},
        "auto_map": {"AutoModelForSeq2SeqLM": "os.system"},
    }
    assert refusal(config).what == "model is not a sequence-to-sequence T5"
    assert likely_family(config) is T5


def test_keys_of_a_config_do_not_change_a_family() -> None:
    """All that a config decides is which entry of the table is taken."""
    config = {"model_type": "t5", "model_class": "os.system", "parts": {"encoder": "os.system"}, "auto_map": {}}
    assert model_family_of(config, Path("model/config.json")) is T5


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model_type": 5}', '{"model_type": "bert"}'])
def test_a_directory_that_names_no_family_is_taken_for_a_t5(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert family_in(tmp_path) is T5


@pytest.mark.usefixtures("with_bart")
def test_files_of_all_families_are_known_once_each() -> None:
    assert vocabulary_files() == (*T5.tokens.vocabulary_files, "bpe.vocab")


def bart_config(directory: Path, **generation: object) -> Path:
    sizes = {"vocab_size": 61, "d_model": 16, "encoder_layers": 1, "decoder_attention_heads": 4, "encoder_ffn_dim": 24}
    config = {"model_type": "bart", **sizes, "max_position_embeddings": 32}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 2, **generation}))
    return directory


@pytest.mark.usefixtures("with_bart")
def test_sizes_are_read_under_the_names_of_the_family(tmp_path: Path) -> None:
    config = read_model_config(bart_config(tmp_path))
    assert (config.model_type, config.d_kv, config.num_heads, config.num_decoder_layers) == ("bart", 4, 4, 1)
    assert not config.scale_decoder_outputs
    settings = read_generation_settings(tmp_path, 32)
    assert (settings.pad_token_id, settings.eos_token_ids) == (1, (2,))


@pytest.mark.usefixtures("with_bart")
def test_no_more_tokens_are_asked_for_than_there_are_positions(tmp_path: Path) -> None:
    bart_config(tmp_path, max_new_tokens=33)
    with pytest.raises(InputError) as caught:
        read_generation_settings(tmp_path, None)
    assert caught.value.what == "33 new tokens are more than the model has positions for"
    assert caught.value.why.endswith("config.json says max_position_embeddings = 32")
    assert "max_new_tokens to 32 or less" in caught.value.fix


@pytest.mark.usefixtures("with_bart")
def test_errors_call_the_family_by_its_name(tmp_path: Path) -> None:
    bart_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bart", "vocab_size": 61}')
    with pytest.raises(InputError, match="does not describe a BART"):
        read_model_config(tmp_path)


def test_family_modules_import_nothing_but_data() -> None:
    """Neither torch nor transformers, and of the package only base and layout."""
    folder = Path(families.__file__).parent
    for path in folder.glob("*.py"):
        if path.name == "__init__.py":
            continue
        lines = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        ours = [line for line in lines if "precision_search" in line]
        assert all("model.families.base" in line or "model.layout" in line for line in ours), path
        assert not [line for line in lines if "torch" in line or "transformers" in line], path
