"""How tests are dealt to the workers of `pytest -n 2`: in units that share fixtures, those that take longest first.

A unit is a file, since its tests share what its fixtures made; cases that share nothing are units of their own. What
takes long comes first, or one worker would end with it while the other is idle. The order is by a list of seconds: a
number that is out of date costs balance, never a result, and a file that the list lacks is taken to be short.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

_PAGE = "tests/docs_pages/test_pages.py::test_blocks_do_what_they_say"
_KILLED = "tests/run/test_resume.py::test_a_run_killed_again_and_again_ends_as_if_nothing_had_been"

ALONE = (_PAGE, _KILLED)
"""Tests whose cases share nothing."""

SECONDS: Mapping[str, int] = {
    f"{_PAGE}[docs/tutorial/demo.md]": 175,
    "tests/run/test_resume.py": 150,
    "tests/test_api.py": 115,
    "tests/test_full_disk.py": 90,
    "tests/model/test_bundle.py": 70,
    f"{_PAGE}[docs/how-to/ci-gate.md]": 70,
    "tests/display/html/test_browser.py": 60,
    "tests/display/test_terminal.py": 60,
    "tests/published/test_seq2seq.py": 50,
    "tests/benchmarks/test_search.py": 50,
    f"{_PAGE}[docs/how-to/own-checkpoint.md]": 45,
    "tests/dry_cuda/test_provider.py": 45,
    "tests/precision/test_emulate.py": 45,
    "tests/around/test_converters.py": 40,
    "tests/cli/test_bounds.py": 40,
    "tests/gpu/test_tokens.py": 40,
    "tests/run/test_variants.py": 40,
    "tests/around/test_optimum.py": 35,
    f"{_PAGE}[docs/how-to/own-onnx.md]": 35,
    "tests/judging/test_screen.py": 35,
    "tests/run/test_judged.py": 35,
    "tests/precision/test_switchable.py": 35,
    "tests/model/families/test_families.py": 30,
    "tests/run/test_older_run.py": 30,
    "tests/run/test_requirement.py": 30,
    "tests/dry_cuda/test_other_models.py": 30,
    "tests/gpu/test_run.py": 30,
    "tests/judging/test_judge.py": 30,
    "tests/judging/test_landmarks.py": 25,
    "tests/model/test_export_worker.py": 25,
    f"{_KILLED}[nodes]": 25,
    "tests/cli/test_signals.py": 25,
    "tests/around/test_browser.py": 20,
    "tests/cli/test_input.py": 20,
    "tests/dry_cuda/test_gpu_bodies.py": 20,
    "tests/model/test_snapshot.py": 20,
    "tests/run/test_prepare.py": 20,
    f"{_KILLED}[exhaustive]": 20,
    f"{_KILLED}[op-types]": 20,
    "tests/model/test_fuzz.py": 15,
    "tests/model/test_hub.py": 15,
    "tests/model/test_merged.py": 15,
    "tests/docs_pages/test_pages.py": 15,
    "tests/dry_cuda/test_calibrate.py": 15,
    "tests/dry_cuda/test_generator.py": 15,
    "tests/dry_cuda/test_runtime.py": 15,
    "tests/examples/test_search.py": 15,
    "tests/judging/test_latency.py": 15,
    f"{_KILLED}[random]": 15,
    "tests/test_library.py": 15,
    "tests/docs_pages/test_schemas.py": 10,
    "tests/examples/test_ci_gate.py": 10,
    "tests/gpu/test_generator.py": 10,
    "tests/precision/test_convert.py": 10,
    "tests/published/test_publish.py": 10,
    "tests/published/test_verify.py": 10,
    "tests/strategies/test_contract.py": 10,
}
"""What units take on one core that has nothing else to do, roughly."""


def unit_of(nodeid: str) -> str:
    """What a test of this id is dealt with: itself, or its file."""
    return nodeid if nodeid.startswith(ALONE) else nodeid.partition("::")[0]


def pytest_configure(config: pytest.Config) -> None:
    """Workers, which are started later, and their children take one thread for numpy and torch: there is one a core."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts what takes longest first; without workers the order makes no difference and stays."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: -SECONDS.get(unit_of(item.nodeid), 0))


@pytest.hookimpl(optionalhook=True)  # unknown where pytest-xdist is switched off
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deals units in the order of the items, whatever `--dist` says."""
    config.option.loadscopereorder = False
    scheduler = LoadFileScheduling(config, log)
    scheduler._split_scope = unit_of
    return scheduler
