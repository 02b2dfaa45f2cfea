"""The package itself: light to import, and its public names."""

from __future__ import annotations

import ast
import pkgutil
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


def test_no_module_hides_a_public_function() -> None:
    """Python binds the name of each imported submodule in its package, over whatever had it before."""
    modules = {module.name for module in pkgutil.iter_modules(precision_search.__path__)}
    code = (
        "import importlib, pkgutil, types, precision_search as package\n"
        "for module in pkgutil.walk_packages(package.__path__, 'precision_search.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "public = {name: getattr(package, name) for name in package.__all__}\n"
        "print(*(name for name, value in public.items() if isinstance(value, types.ModuleType)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert modules & set(precision_search.__all__) == {"api"}
    assert done.stdout.split() == ["api"]


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "precision_search", "pareto", "nowhere"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere is not a run directory\n  why: ")


def test_modules_have_at_most_400_lines_and_functions_50() -> None:
    """CONTRIBUTING says so: what is longer is two things."""
    too_long = []
    for path in sorted((ROOT / "precision_search").rglob("*.py")):
        tree = ast.parse(source := path.read_text())
        if (lines := source.count("\n")) > 400:
            too_long.append(f"{path.name}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (lines := node.end_lineno - node.lineno + 1) > 50:
                    too_long.append(f"{path.name}, {node.name}: {lines} lines")

    assert too_long == []
