"""A checkpoint that asks for beams and has token rules, through the command line: nobody edits a file of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from precision_search import Seq2SeqGenerator, api
from precision_search.config import load_config
from precision_search.model.generation_config import read_generation_settings
from precision_search.records.run_files import read_run
from tests.cli_models import invoke
from tests.tiny_model import write_tiny_config

pytestmark = pytest.mark.slow
CHOICE = "greedy decoding by choice: the checkpoint asks for num_beams 5"
BANNED = 6
LEAST = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_tiny_config(tmp_path_factory.mktemp("greedy"), max_trials=6)
    file = path.parent / "model/generation_config.json"
    rules = {"num_beams": 5, "bad_words_ids": [[BANNED]], "min_new_tokens": LEAST}
    file.write_text(json.dumps({**json.loads(file.read_text()), **rules}))
    return path


def test_without_a_choice_the_line_to_write_is_named(config: Path, tmp_path: Path) -> None:
    result = invoke("run", config, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "num_beams = 5" in result.output
    assert "write num_beams = 1 under [generation]" in " ".join(result.output.split())


def test_a_run_says_everywhere_that_greedy_decoding_was_chosen(config: Path, tmp_path: Path) -> None:
    run, reference = tmp_path / "run", config.parent / "model"
    result = invoke("run", config, "--set", "generation.num_beams=1", "--out", run)
    assert result.exit_code in (0, 1), result.output
    assert CHOICE in " ".join(result.output.split())
    settings = read_generation_settings(reference, None, {"num_beams": 1})
    told = {"overridden": {"num_beams": "5"}, "content_hash": settings.content_hash}
    assert json.loads((run / "run.json").read_text())["generation"] == told
    assert read_run(run).info.generation.text == CHOICE
    assert any(trial.verdict == "stable" and not trial.is_fp32 for trial in read_run(run).trials)
    assert load_config(run / "config.toml").generation.num_beams == 1
    assert CHOICE in (run / "report.html").read_text()
    assert CHOICE in " ".join(invoke("pareto", run).output.split())
    _check_published(run / "model", reference, config.parent / "test.txt")
    invoke("export", run, "--out", tmp_path / "again")
    _check_published(tmp_path / "again", reference, config.parent / "test.txt")
    _check_published(api.export_bundle(reference, tmp_path / "fp32"), reference, config.parent / "test.txt", card=False)
    data = ("--data", config.parent / "test.txt")
    assert invoke("inspect", reference, *data).exit_code == 0


def _check_published(model: Path, reference: Path, data: Path, *, card: bool = True) -> None:
    """The rules travel, the beams do not, and it is compared with a reference that still asks for them."""
    generation = json.loads((model / "generation_config.json").read_text())
    assert (generation["num_beams"], generation["bad_words_ids"]) == (1, [[BANNED]])
    ids = Seq2SeqGenerator.from_pretrained(model, device="cpu").generate(["a b c", "d e"]).ids
    assert all(len(row) >= LEAST and BANNED not in row for row in ids)
    verified = invoke("verify", model, "--reference", reference, "--data", data)
    assert verified.exit_code == 0, verified.output
    assert "asks for other generation settings" not in verified.output
    if card:
        assert CHOICE in (model / "README.md").read_text().replace("\\_", "_")
