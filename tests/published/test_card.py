"""The model card: a header the Hub can read, the plan and the proof in words, nothing of the machine it came from."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from precision_search.judging.trial import FlipRisk, TrialLatency
from precision_search.precision.blocklist import Blocklist
from precision_search.published.card import MOST_NAMES, BaseModel, hub_id, model_card
from precision_search.published.facts import ModelFacts
from precision_search.records.run_json import Match, SampleFile
from tests.output_models import NUMBERS, SAMPLES
from tests.published.test_facts import model_facts

BASE = BaseModel("t5", "google-t5/t5-small")


def card_of(facts: ModelFacts | None = None, *, base: BaseModel = BASE) -> str:
    return model_card(model_facts() if facts is None else facts, base)


def header(card: str) -> dict[str, Any]:
    """The header as the Hub's own client reads it."""
    return {key: value for key, value in vars(ModelCard(card).data).items() if value is not None}


def test_the_header_is_yaml_for_the_hub() -> None:
    assert header(card_of()) == {
        "library_name": "onnxruntime",
        "tags": ["onnx", "t5", "precision-search", "mixed-precision", "fp16"],
        "base_model": "google-t5/t5-small",
        "base_model_relation": "quantized",
    }
    assert "base_model" not in header(card_of(base=BaseModel("t5", None)))


def test_the_plan_and_its_numbers_are_there() -> None:
    card = card_of()
    kept = "125 of 320 nodes in fp32 (the decoder graphs share theirs), the others in float16"
    assert f"{kept}, 204 casts between, 18.3 MB" in card
    assert "- in the encoder, the op types `Pow`\n" in card
    assert "both decoder graphs" not in card
    assert "- nodes whose keys match `x.*`\n" in card
    assert "- the nodes `a`\n" in card


def test_an_estimate_is_called_one() -> None:
    card = card_of()
    assert "1.41 times as fast as fp32 (estimated by a cost model for t4, not measured; batch 1024, 16 source" in card
    measured = TrialLatency(5.0, 4.0, 6.0, 1.5, "measured", None)
    card = card_of(replace(model_facts(), latency=measured))
    assert "1.50 times as fast as fp32 (measured; batch 1024" in card
    assert "times as fast" not in card_of(replace(model_facts(), latency=None))


def test_the_proof_is_there() -> None:
    card = card_of()
    assert "| calibration.txt | 100 | `abababababababab` | 100% |  |" in card
    assert "| validation.txt | 100 | `cdcdcdcdcdcdcdcd` | 99.0% | 94.5% to 99.9% |" in card
    assert "| test.txt | 200 | `efefefefefefefef` | 98.0% | 94.9% to 99.3% |" in card
    assert "rounding of the CUDA kernels emulated" in card
    assert "1.2 (90% interval 0.3 to 2.1)" in card
    assert "batches of 32 sentences, padded on the right" in card
    assert "TF32 off; `ORT_CUDA_GEMM_OPTIONS` unset" in card
    assert "onnxruntime 1.31.1" in card
    assert "transformers" not in card.partition("## Made with")[2]


def test_a_large_flip_risk_is_a_plain_number() -> None:
    facts = model_facts()
    verdict = replace(facts.verdict, flip_risk=FlipRisk(370.2, 9.0, 1000.0))
    assert "370 (90% interval 9 to 1000)" in card_of(replace(facts, verdict=verdict))


def test_what_was_not_run_is_not_claimed() -> None:
    facts = model_facts()
    verdict = replace(facts.verdict, test_match=None, validation_match=None, flip_risk=None, source="cuda")
    card = card_of(replace(facts, verdict=verdict))
    assert "test.txt" not in card
    assert "validation.txt" not in card
    assert "Flip risk" not in card
    assert "emulated" not in card
    assert "ran on a CUDA device" in card


def test_a_perfect_share_has_an_interval_and_bounds_round_outwards() -> None:
    facts = model_facts()
    verdict = replace(facts.verdict, test_match=Match.of(200, 200), validation_match=Match(0.9996, 0.98765, 0.99961))
    card = card_of(replace(facts, verdict=verdict))
    assert "| 100% | 98.1% to 100% |" in card
    assert "| 99.9% | 98.7% to 100% |" in card


def test_the_commands_that_verify_it_again_are_there() -> None:
    samples = replace(
        SAMPLES,
        calibration=replace(SAMPLES.calibration, prefix="it's German: ", max_length=64),
        validation=SampleFile("-x y`.txt", 100, "cd" * 32, 0, prefix="```\n"),
    )
    card = card_of(replace(model_facts(), samples=samples))
    block = re.search(r"^(````+)\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    assert block is not None
    words = [shlex.split(command) for command in re.split(r"\n(?=precision-search)", block[2])]
    start = ["precision-search", "verify", ".", "--reference", "google-t5/t5-small", "--data"]
    batch = ["--batch-size", "32", "--min-exact-match"]
    assert words == [
        [*start, "calibration.txt", "--prefix", "it's German: ", "--max-length", "64", *batch, "1"],
        [*start, "./-x y`.txt", "--prefix", "```\n", *batch, "0.99"],
        [*start, "test.txt", *batch, "0.98"],
    ]


def test_a_set_that_was_not_run_has_no_command_and_the_share_asked_for_is_what_was_found() -> None:
    facts = model_facts()
    verdict = replace(facts.verdict, test_match=None, validation_match=Match(2 / 3, 0.6, 0.7))
    card = card_of(replace(facts, verdict=verdict), base=BaseModel("t5", None))
    assert "--data test.txt" not in card
    assert "--reference t5-small --data validation.txt --batch-size 32 --min-exact-match 0.6666\n" in card


def test_fp32_is_called_fp32() -> None:
    card = card_of(replace(model_facts(), numbers=replace(NUMBERS, fp32_nodes=507)))
    assert "# t5-small, fp32\n" in card
    assert "all in fp32." in card
    assert "mixed-precision" not in card
    assert "## What stays in fp32\n\nEverything.\n" in card


def test_long_lists_are_cut() -> None:
    nodes = tuple(f"encoder.block.{n}/MatMul" for n in range(MOST_NAMES + 7))
    plan = Blocklist("float16", "base", {}, (), {"encoder": nodes})
    card = card_of(replace(model_facts(), plan=plan))
    assert card.count("/MatMul`") == MOST_NAMES
    assert "and 7 more" in card


@pytest.mark.parametrize("name", ["a|b.txt", "<script>.txt", "[x](y).txt", "`x`.txt"])
def test_names_from_data_have_no_meaning_in_markdown(name: str) -> None:
    facts = replace(model_facts(), samples=replace(SAMPLES, calibration=SampleFile(name, 100, "ab" * 32, 0)))
    row = next(line for line in card_of(facts).splitlines() if line.startswith("| calibration"))
    assert name not in row
    assert re.sub(r"\\(.)", r"\1", row).count(name) == 1
    assert row.replace(r"\|", "").count("|") == 7


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/.cache/huggingface/hub/models--google-t5--t5-small/snapshots/0123", "google-t5/t5-small"),
        ("/home/me/.cache/huggingface/hub/models--t5-small/snapshots/0123", "t5-small"),
        ("/home/me/models/t5-small", None),
    ],
)
def test_the_base_model_is_known_only_from_the_hub_s_own_cache(path: str, expected: str | None) -> None:
    assert hub_id(Path(path)) == expected
