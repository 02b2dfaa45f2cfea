"""The package itself: light to import, and its public names."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

import precision_search
from precision_search import api
from precision_search.config import load_config
from tests.cli_models import invoke
from tests.conftest import ROOT


def test_help_and_the_package_import_nothing_heavy() -> None:
    """What makes `--help` immediate; milliseconds would depend on the machine."""
    code = (
        "import sys, precision_search.cli.commands\n"
        "try: precision_search.cli.commands.cli(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = set(done.stderr.split())
    assert "Usage:" in done.stdout
    assert "click" in loaded
    assert not loaded & {
        "torch",
        "transformers",
        "onnxruntime",
        "onnx",
        "onnx_ir",
        "numpy",
        "optuna",
        "rich",
        "plotly",
        "jinja2",
    }


def test_the_version_is_that_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert invoke("--version").stdout == f"precision-search {version}\n"
    assert precision_search.__version__ == version


def test_public_names_load_when_they_are_used() -> None:
    assert precision_search.load_config is load_config
    assert precision_search.api is api
    assert set(precision_search.__all__) <= set(dir(precision_search))
    assert all(hasattr(precision_search, name) for name in precision_search.__all__)
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = precision_search.nothing_of_that_name


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "precision_search", "pareto", "nowhere"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere is not a run directory\n  why: ")
