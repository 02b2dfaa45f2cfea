"""What the project offers is what its records show: its first sentence, its sample configs and its sample sentences."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest

import precision_search
from precision_search.config import load_config
from precision_search.cost.ceiling import WORTH_IT
from precision_search.cost.estimate import Workload
from precision_search.device.profile import load_profile
from precision_search.judging.ceiling import Pins, find_ceiling
from precision_search.judging.latency import EstimatedLatency
from precision_search.model.bundle import Bundle
from precision_search.model.variants import with_variants
from precision_search.strategies.space import never_low
from tests.cli_models import invoke
from tests.conftest import DEMO_DATA, ROOT
from tests.docs_pages.blocks import blocks

OFFER = (
    "Find the fastest fp16/fp32 version of your T5 that generates the same tokens as fp32 on every calibration "
    "sentence, and see how often it differs on new text."
)
TESTED = re.compile(
    r"^plan \d+: (\d+) of (\d+) test samples exact, [\d.]+% \(95% interval ([\d.]+)% to ([\d.]+)%\)$", re.MULTILINE
)
GIVEN = re.compile(r"(?:\b(?:generate|tokenizer)\(|-d '{\"texts\": )\[((?:\"[^\"]*\"(?:, )?)+)\]")
"""Where a page, an example or a request gives sentences to a model."""


def said(text: str) -> str:
    """A text as it reads, without emphasis and line ends."""
    return " ".join(text.replace("**", "").split())


def test_the_offer_is_the_same_wherever_someone_meets_it_first() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["description"] == OFFER
    assert said(precision_search.__doc__ or "").startswith(OFFER)
    assert OFFER in said(invoke("--help").stdout)
    for page in ("README.md", "docs/index.md"):
        assert OFFER in said((ROOT / page).read_text())


def test_how_often_the_demo_differs_is_what_its_run_found() -> None:
    """Of the test sentences, which chose nothing. That these lines are the run's is for `test_demo_run` to say."""
    readme = (ROOT / "README.md").read_text()
    (found,) = TESTED.finditer(readme)
    kept, count, low, high = map(Decimal, found.groups())
    share = 100 * (count - kept) / count

    rate = f"{count - kept} of {count} test sentences, {share:.1f}% (95% interval {100 - high}% to {100 - low}%)"
    assert f"The demo's differs on {rate}." in said(readme)
    tutorial = (ROOT / "docs/tutorial/demo.md").read_text()
    (there,) = TESTED.finditer(tutorial)
    assert f"{there[1]} of {there[2]} match." in said(tutorial)


def test_the_sample_config_asks_for_what_the_demo_can_gain(demo_bundle: Bundle, tmp_path: Path) -> None:
    """Below that a search of the demo ends with fp32 and exit code 1. Other pages run their samples."""
    (sample,) = (block.text for block in blocks((ROOT / "README.md").read_text()) if block.language == "toml")
    path = tmp_path / "my.toml"
    path.write_text(sample)
    config = load_config(path)
    workload = Workload(config.workload.batch, config.workload.source_length, config.workload.target_length)
    variants, dtype = with_variants(demo_bundle), config.search.dtype
    pins = {name: Pins(frozenset(never_low(variants.graphs_of(name), dtype))) for name in variants.variant_names}

    ceiling = find_ceiling(EstimatedLatency(variants, workload, load_profile(config.latency.profile)), dtype, pins)

    assert ceiling.speedup >= WORTH_IT
    assert ceiling.from_batch is not None and ceiling.from_batch <= workload.batch


@pytest.mark.parametrize("pattern", ["README.md", "docs/**/*.md", "examples/*.py"])
def test_sample_sentences_are_of_the_kind_that_the_demo_translates(pattern: str) -> None:
    """Lines of its own files: it knows package descriptions, and makes `Pi-Player.` of `Permission denied.`."""
    known = {line for path in DEMO_DATA.glob("*.txt") for line in path.read_text().splitlines()}
    given = [
        sentence
        for path in sorted(ROOT.glob(pattern))
        for found in GIVEN.finditer(path.read_text())
        for sentence in re.findall(r'"([^"]*)"', found[1])
    ]

    assert given
    assert set(given) <= known
