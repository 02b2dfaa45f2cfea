"""What a published model says of itself: taken from the run, read back, refused when broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from precision_search.errors import InputError
from precision_search.precision.blocklist import Blocklist
from precision_search.published.facts import JudgedSettings, ModelFacts, publish_facts, read_model_facts
from precision_search.published.load import FACTS_FILE
from precision_search.records.run_files import write_json_atomically
from precision_search.records.run_json import Match
from tests.output_models import BEST, NUMBERS, SAMPLES, VERSIONS, publish_facts_of_a_run, run_info, run_nodes, small_run


def model_facts() -> ModelFacts:
    facts = publish_facts_of_a_run()
    nodes = {"encoder": ("a",), "decoder": (), "decoder_with_past": ()}
    plan = Blocklist("float16", "base", {"encoder": ("Pow",), "decoder": ()}, ("x.*",), nodes)  # type: ignore[arg-type]
    return ModelFacts(
        1,
        "0.1.0",
        plan,
        "0123456789ab",
        "t5-small",
        "12" * 32,
        facts.settings,
        facts.verdict,
        SAMPLES,
        VERSIONS,
        NUMBERS,
        facts.latency,
        facts.workload,
    )


def test_the_facts_of_the_winner_come_from_the_run() -> None:
    winner = small_run()[3]
    facts = publish_facts(run_info(), run_nodes(), winner)
    assert facts.settings == JudgedSettings("cpu", "basic", False, None, 32, "right")
    assert facts.verdict.test_match == BEST.test_match
    assert facts.verdict.validation_match == Match.of(100, 100)
    assert (facts.verdict.verdict, facts.verdict.source, facts.verdict.exact_match) == ("stable", "emulated", 1.0)
    assert facts.verdict.flip_risk == winner.flip_risk
    assert facts.latency == winner.latency


def test_the_winner_s_test_result_is_not_lent_to_another_plan() -> None:
    facts = publish_facts(run_info(), run_nodes(), small_run()[5])
    assert facts.verdict.test_match is None
    assert facts.verdict.validation_match == Match.of(98, 100)


def test_without_validation_there_is_no_validation_match() -> None:
    info = run_info(samples=replace(SAMPLES, validation=None), best=None)
    assert publish_facts(info, run_nodes(), small_run()[3]).verdict.validation_match is None


def test_the_file_is_read_back_and_has_the_documented_keys(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / FACTS_FILE, model_facts())
    assert read_model_facts(tmp_path) == model_facts()
    data = json.loads((tmp_path / FACTS_FILE).read_text())
    assert set(data) >= {"schema_version", "tool_version", "plan", "plan_digest", "content_hash", "settings"}
    assert set(data) >= {"verdict", "samples", "versions"}
    assert set(data["settings"]) == {
        *("device", "optimization_level", "use_tf32", "gemm_options", "batch_size", "padding"),
    }
    assert data["settings"]["padding"] == "right"
    assert set(data["verdict"]) == {
        *(
            "verdict",
            "source",
            "exact_match",
            "validation_match",
            "test_match",
            "flip_risk",
            "min_exact_match",
            "requirements_met",
        ),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"no json", "does not describe"),
        (b"{}", "lacks"),
        (b'{"schema_version": 2}', "later"),
    ],
)
def test_a_missing_or_broken_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / FACTS_FILE).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_model_facts(tmp_path)
    assert FACTS_FILE in str(caught.value)
