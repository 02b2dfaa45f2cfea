"""Fixtures that several modules share: the demo model, exported once a session, and what transformers says of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from precision_search.model.bundle import Bundle, open_bundle, oracle_tokens
from precision_search.model.calibration import encode, load_samples
from precision_search.model.tokenizer import load_tokenizer

ROOT = Path(__file__).parent.parent
DEMO_MODEL = ROOT / "artifacts/models/t5-debian-en-de"
DEMO_DATA = ROOT / "configs/demo"

Rows = tuple[tuple[int, ...], ...]


@pytest.fixture(scope="session")
def export_cache() -> Path:
    """Where exports are kept between test runs; they are named by content, so that a stale one is never taken."""
    return Path(os.environ.get("PRECISION_SEARCH_TEST_CACHE", ROOT / "build/test-cache"))


@pytest.fixture(scope="session")
def demo_bundle(export_cache: Path) -> Bundle:
    return open_bundle(str(DEMO_MODEL), export_cache)


@pytest.fixture(scope="session")
def demo_ids() -> Rows:
    tokenizer = load_tokenizer(DEMO_MODEL)
    return encode(load_samples(DEMO_DATA / "calibration.txt", "calibration"), tokenizer, "", None).ids


@pytest.fixture(scope="session")
def demo_oracle_tokens(demo_bundle: Bundle, demo_ids: Rows, export_cache: Path) -> list[list[int]]:
    return oracle_tokens(demo_bundle, demo_ids, export_cache)
