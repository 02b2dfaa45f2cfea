"""Fixtures that several modules share: the demo model, exported once a session, and what transformers says of it."""

from __future__ import annotations

import functools
import gc
import os
from pathlib import Path

import pytest

from precision_search.device import cuda
from precision_search.errors import EnvironmentProblemError
from precision_search.model.bundle import Bundle, oracle_tokens
from precision_search.model.samples import encode, load_samples
from precision_search.model.tokenizer import load_tokenizer
from tests.checkpoints import open_once
from tests.warm import fork_torch_workers

pytest_plugins = ("tests.every_error", "tests.longest_first")


ROOT = Path(__file__).parent.parent
DEMO_MODEL = ROOT / "artifacts/models/t5-debian-en-de"
DEMO_DATA = ROOT / "configs/demo"

HANGS_S = 600.0
"""Seconds after which what takes some tens on an idle machine is taken to hang; no test waits for less."""

GPU_VARIABLE = "PRECISION_SEARCH_GPU"
"""Set where there is a GPU to test on: then a test that finds none fails."""

Rows = tuple[tuple[int, ...], ...]


@functools.cache
def why_no_cuda() -> str | None:
    """Why CUDA does not start here, in one line; None where it does."""
    try:
        cuda.require(0)
    except EnvironmentProblemError as error:
        return " ".join(part for part in (error.what, error.why, f"Fix: {error.fix}" if error.fix else "") if part)
    return None


def pytest_configure() -> None:
    """No property fails because a machine is slow: neither its examples nor how long they take to make are timed.

    Garbage is collected less often, and torch imported once.
    """
    from hypothesis import HealthCheck, settings

    settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any-machine")
    # Torch, transformers and graphs are many objects; looking at the young ones every 700 took a fifth of all time.
    gc.set_threshold(20_000)
    fork_torch_workers()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` run on a real CUDA device only."""
    if item.get_closest_marker("gpu") is None or (reason := why_no_cuda()) is None:
        return
    if os.environ.get(GPU_VARIABLE):
        pytest.fail(f"{GPU_VARIABLE} is set, but: {reason}", pytrace=False)
    pytest.skip(f"needs a CUDA device. {reason}")


@pytest.fixture(scope="session")
def export_cache() -> Path:
    """Where exports are kept between test runs; they are named by content, so that a stale one is never taken."""
    return Path(os.environ.get("PRECISION_SEARCH_TEST_CACHE", ROOT / "build/test-cache"))


@pytest.fixture(scope="session")
def demo_bundle(export_cache: Path) -> Bundle:
    return open_once(DEMO_MODEL, export_cache)


@pytest.fixture(scope="session")
def demo_ids() -> Rows:
    tokenizer = load_tokenizer(DEMO_MODEL)
    return encode(load_samples(DEMO_DATA / "calibration.txt", "calibration"), tokenizer, "", None).ids


@pytest.fixture(scope="session")
def demo_oracle_tokens(demo_bundle: Bundle, demo_ids: Rows, export_cache: Path) -> list[list[int]]:
    return oracle_tokens(demo_bundle, demo_ids, export_cache)
