"""The dry CUDA runtime as fixtures: built once, and what the demo model asks of it, recorded once for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from precision_search.cost.shapes import Point
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GraphName
from tests.conftest import DEMO_MODEL, ROOT
from tests.dry_cuda.build import UnavailableError, build
from tests.dry_cuda.host import DryCuda
from tests.dry_cuda.scenarios import PLANS, Case, Demo, Generated, Run, generate, run_plain

POINTS = (Point(1, 16, target=1, past=7), Point(8, 16, target=1, past=7))
CASES = tuple(Case(plan, batch) for plan in PLANS for batch in (1, 8))

PlainRuns = dict[tuple[str, GraphName, Point], Run]


@pytest.fixture(scope="session")
def dry_cuda() -> DryCuda:
    """The dry CUDA runtime; a machine that cannot build it skips, continuous integration fails."""
    try:
        return DryCuda(build(ROOT / "build/dry-cuda"))
    except UnavailableError as error:
        if os.environ.get("PRECISION_SEARCH_NO_SKIP"):
            pytest.fail(f"the dry CUDA runtime is not there: {error}")
        pytest.skip(f"no dry CUDA runtime: {error}")


@pytest.fixture(scope="session")
def demo(demo_bundle: Bundle, export_cache: Path) -> Demo:
    assert demo_bundle.path.is_dir()  # exported before any child asks for it
    return Demo(DEMO_MODEL, export_cache.resolve())


@pytest.fixture(scope="session")
def plain_runs(dry_cuda: DryCuda, demo: Demo) -> PlainRuns:
    return dry_cuda.call(run_plain, demo=demo, points=POINTS)


@pytest.fixture(scope="session")
def generated(dry_cuda: DryCuda, demo: Demo) -> dict[Case, Generated]:
    return dry_cuda.call(generate, demo=demo, cases=CASES)
