"""Whether an installed wheel works outside the checkout: what strings name (modules, package data) is found there too.

Builds a wheel, unpacks it into a folder, and runs `doctor`, a run of the tiny checkpoint and `report` with that folder
on the path and the checkout not on it. Prints what is wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.golden import tiny
from tests.golden.commands import ROOT, Place
from tests.golden.runs import tiny_place

_WHERE = """
import json, sys, sysconfig
from importlib import metadata
from pathlib import Path

import precision_search

home = Path(precision_search.__file__).parent
print(json.dumps({
    "home": str(home),
    "data": sorted(str(path.relative_to(home)) for path in home.rglob("*")
                   if path.is_file() and path.suffix not in (".py", ".pyc")),
    "commands": [f"{entry.name} = {entry.value}" for entry in metadata.entry_points(group="console_scripts")
                 if entry.name == "precision-search"],
    "version": metadata.version("precision-search"),
}))
"""

_ENTRY = """
import sys
from importlib import metadata

[entry] = {entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "precision-search"}
sys.argv = ["precision-search", "--version"]
entry.load()()
"""

DATA = (("profiles", ".toml", 5), ("assets", ".html", 1), ("assets", ".css", 2), ("assets", ".js", 8))
"""Package data: the folder it lies in, its suffix, and how many files there are at least."""


def check() -> int:
    """The exit code: 0 where all of it works."""
    with tempfile.TemporaryDirectory(prefix="golden-wheel-") as folder:
        work = Path(folder).resolve()
        problems = list(_problems(work))
    for problem in problems:
        print(problem)
    print("the wheel does not work" if problems else "the wheel works", file=sys.stderr)
    return 1 if problems else 0


def _problems(work: Path) -> Iterator[str]:
    package = _installed(work)
    outside = work / "outside"
    outside.mkdir()
    place = tiny_place(outside, package)
    where = json.loads(place.python(_WHERE).out)
    if not Path(where["home"]).is_relative_to(package):
        yield f"precision_search is imported from {where['home']}, not from the wheel in {package}"
        return
    for folder, suffix, least in DATA:
        found = [name for name in where["data"] if Path(name).parent.name == folder and name.endswith(suffix)]
        if len(found) < least:
            yield f"the wheel holds {len(found)} files {folder}/*{suffix}, {least} are needed"
    yield from _missing(where["data"])
    try:
        yield from _commands(place)
    except RuntimeError as error:
        yield str(error)


def _missing(data: list[str]) -> Iterator[str]:
    """Package data of the checkout that the wheel lacks."""
    home = ROOT / "precision_search"
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.is_file() and path.suffix not in (".py", ".pyc") and name not in data:
            yield f"the wheel lacks {name}"


def _commands(place: Place) -> Iterator[str]:
    version = place.python(_ENTRY).out.strip()
    if not version.startswith("precision-search "):
        yield f"the entry point prints {version!r}"
    report = json.loads(place.command("doctor", "--format", "json").out)
    if not report:
        yield "doctor says nothing"
    tiny.write_config(place.folder / "tiny.toml", "./tiny-t5", "nodes", 5)
    place.command("run", "tiny.toml", "--out", "run", "--set", "latency.profile=a100")
    page = place.folder / "run/report.html"
    page.unlink()
    place.command("report", "run")
    if not page.is_file() or "<style>" not in page.read_text(encoding="utf-8"):
        yield "report wrote no page"
    for name in ("encoder", "decoder", "decoder_with_past"):
        if not (place.folder / f"run/model/{name}_model.onnx").is_file():
            yield f"the run published no {name}"


def _installed(work: Path) -> Path:
    """A folder with the wheel of the checkout, unpacked as pip does it; what it needs comes from this environment."""
    wheels, package = work / "wheels", work / "package"
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps")
    _pip("wheel", *quiet, "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT))
    [wheel] = wheels.glob("*.whl")
    _pip("install", *quiet, "--no-index", "--target", str(package), str(wheel))
    return package


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip {arguments[0]} failed:\n{done.stderr[-2000:]}")
