"""The run that the tutorial shows, as far as its numbers come from it: inputs from which they are exact anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import ROOT

PAGE = Path("docs/tutorial/demo.md")
KEPT = Path(__file__).with_name("demo_run")
"""A run directory without what takes megabytes or is not printed on the page."""

FILES = ("run.json", "trials.jsonl")
_RUN = Path("artifacts/runs/first")


def keep(folder: Path) -> None:
    """Keeps the run that the page made in `folder`."""
    KEPT.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copy(folder / _RUN / name, KEPT)
    config = (folder / _RUN / "config.toml").read_text()
    (KEPT / "config.toml").write_text(config.replace(str(folder.resolve()), "/home/me").replace(str(ROOT), "/home/me"))
