"""Padding is judged whatever the sets hold, and every file of a run says what was, through the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_search.display.html import REPORT_FILE
from tests.cli_models import invoke
from tests.tiny_model import WORDS, write_padding_model, write_tiny_config

pytestmark = pytest.mark.slow
EQUAL = (4,)
MIXED = (2, 3, 4, 5, 6)
"""Words of the sentences of a set, in turn."""
SETS = ("calibration", "validation", "test", "mixed")
COUNT = 10
ONE_LOW = {"dtype": "float16", "patterns": ["(?!encoder\\.block\\.0\\.layer\\.0/Add$).*"]}
"""The plan in which only the sum is low that leaves fp16's range at padding."""
JUDGED_TEXT = "batches of 1 and 10, the most fragile samples with padding, too; 5 source and 1 to 6 target tokens"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run left: its exit code, what it said on stderr, and its folder."""

    folder: Path
    code: int
    said: str

    @property
    def trials(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "run/trials.jsonl").read_text().splitlines()]

    @property
    def info(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "run/run.json").read_text()))

    def verified(self, batch_size: int, data: str) -> str:
        """What `verify` says of the published model on stderr; every sentence is exact."""
        files: list[str | Path] = ["--reference", self.folder / "model", "--data", self.folder / data, "-q"]
        result = invoke("verify", self.folder / "run/model", *files, "--batch-size", str(batch_size))
        assert result.exit_code == 0, result.output
        return str(result.stderr)


def write_lines(path: Path, lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(SETS.index(path.stem))
    lines = (" ".join(rng.choice(WORDS, lengths[number % len(lengths)])) for number in range(COUNT))
    path.write_text("\n".join(lines) + "\n")


def ran(folder: Path, size: int, lengths: tuple[int, ...], *, leaks: bool = False, search: bool = False) -> Ran:
    """A run whose sets need no padding by themselves; without `search` it judges `ONE_LOW`."""
    config = write_tiny_config(folder, "nodes", max_trials=4)
    shutil.rmtree(folder / "model")
    write_padding_model(folder / "model", breaks=not leaks, leaks=leaks)
    sizes = []
    for name in SETS[:3]:
        write_lines(folder / f"{name}.txt", lengths)
        sizes += ["--set", f"{name}.batch_size={size}"]
    write_lines(folder / "mixed.txt", MIXED)
    (folder / "given.json").write_text(json.dumps(ONE_LOW))
    given = [] if search else ["--blocklist", str(folder / "given.json")]
    result = invoke("run", config, "--out", folder / "run", "-q", *sizes, *given)
    return Ran(folder, result.exit_code, str(result.stderr))


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A search for a model that fp16 breaks in padded rows, on sentences of one length."""
    return ran(tmp_path_factory.mktemp("padded"), 16, EQUAL, search=True)


def test_what_breaks_in_padded_rows_only_is_rejected_and_the_winner_holds_there(padded: Ran) -> None:
    assert padded.code == 0
    by_stage = {trial["stage"]: trial for trial in padded.trials}
    assert by_stage["all-low"]["verdict"] == "nonfinite"
    assert by_stage["all-low"]["first_divergence"]["batch"] == "padded"
    assert padded.info["best"]["faster"]
    assert padded.trials[padded.info["best"]["id"]]["verdict"] == "stable"
    padded.verified(16, "mixed.txt")


def test_it_is_rejected_where_sentences_run_one_by_one(tmp_path: Path) -> None:
    alone = ran(tmp_path, 1, MIXED)
    fp32, given = alone.trials
    assert alone.code == 1
    assert (fp32["verdict"], given["verdict"]) == ("stable", "nonfinite")
    assert given["first_divergence"]["batch"] == "padded"
    assert fp32["judged"]["batch_sizes"] == [1] and fp32["judged"]["padded"]
    assert (alone.info["best"]["id"], alone.info["best"]["faster"]) == (0, False)


def test_log_record_facts_card_and_report_say_what_was_judged(padded: Ran) -> None:
    judged = {
        "batch_sizes": [1, COUNT],
        "padded": True,
        "source_lengths": {"min": 5, "max": 5},
        "target_lengths": {"min": 1, "max": 6},
    }
    stable = [trial["judged"] for trial in padded.trials if trial["verdict"] == "stable"]
    assert stable == [judged] * 2
    # What is rejected never meets the validation set.
    rejected = [trial["judged"] for trial in padded.trials if trial["verdict"] != "stable"]
    assert rejected == [judged | {"target_lengths": {"min": 1, "max": 1}}] * 2
    assert padded.info["best"]["judged"] == judged
    model = padded.folder / "run/model"
    assert json.loads((model / "precision_search.json").read_text())["judged"] == judged
    assert f"- judged in {JUDGED_TEXT}" in (model / "README.md").read_text()
    assert JUDGED_TEXT in (padded.folder / "run" / REPORT_FILE).read_text()


def test_verify_says_which_batch_size_and_lengths_were_not_judged(padded: Ran) -> None:
    assert "judged" not in padded.verified(COUNT, "validation.txt")
    assert "judged" not in padded.verified(1, "validation.txt")
    other = padded.verified(4, "validation.txt")
    assert "batches of 4 were not judged: " in other
    assert "was judged in batches of 1 and 10" in other
    longer = padded.verified(COUNT, "mixed.txt")
    assert f"of {COUNT} sentences, 4 are longer than any that " in longer
    assert "(up to 7 tokens, judged up to 5)" in longer


def test_a_token_that_fp32_changes_with_padding_is_listed_and_the_plan_is_stable(tmp_path: Path) -> None:
    leaky = ran(tmp_path, 16, EQUAL, leaks=True)
    assert [trial["verdict"] for trial in leaky.trials] == ["stable", "stable"]
    listed = [tie for tie in leaky.info["near_ties"] if tie["set"] == "calibration"]
    assert [tie["batch"] for tie in listed] == ["padded"]
    where = f"line {listed[0]['sample'] + 1} of {tmp_path / 'calibration.txt'}, token {listed[0]['position'] + 1}"
    assert f"{where}: a near-tie of fp32, which generates another token with padding" in leaky.said
