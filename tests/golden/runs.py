"""The runs that golden files are made of: two of a tiny T5 and the demo, each from an empty cache.

In: an empty folder. Out: subjects of each run, and of what was made from it: a second plan's model, verifications, the
fp32 graphs, what `inspect` says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.golden import hashes, run_files, tiny
from tests.golden.commands import ROOT, Done, Place
from tests.golden.volatile import settled, settled_progress, settled_text

Subjects = Mapping[str, object]

_EXPORT = """
import sys
from precision_search import api

print(api.export_bundle(sys.argv[1], sys.argv[2]))
"""

DEMO_MODEL = "artifacts/models/t5-debian-en-de"
DEMO_CONFIG = "configs/demo.toml"


def tiny_nodes(folder: Path) -> Subjects:
    """The tiny checkpoint under the strategy `nodes`; with it what is made of a checkpoint."""
    place = tiny_place(folder)
    tiny.write_config(folder / "nodes.toml", "./tiny-t5", "nodes", 30)
    done = place.command("run", "nodes.toml", "--out", "run")
    exported = place.python(_EXPORT, "tiny-t5", "tiny-onnx")
    inspected = place.command("inspect", "tiny-t5", "--data", "calibration.txt", "--format", "json")
    return {
        **_checked(run_files.capture(place, "run", done, "tiny-nodes"), 8),
        "export_bundle": {
            "stdout": exported.out,
            "stderr": exported.err,
            "files": hashes.of_directory(folder / "tiny-onnx"),
        },
        "inspect": settled("tiny-nodes/inspect", json.loads(inspected.out)),
        "inspect-progress": settled_progress("tiny-nodes/progress", inspected.err),
        **_second_plan(place, "tiny-nodes", "tiny-t5"),
        **_verified(place, "tiny-nodes", "tiny-t5", "test.txt"),
    }


def tiny_op_types(folder: Path) -> Subjects:
    """The tiny model as ONNX graphs, without a checkpoint, under the strategy `op-types`."""
    place = tiny_place(folder)
    place.python(_EXPORT, "tiny-t5", "tiny-onnx")
    tiny.write_config(folder / "op-types.toml", "./tiny-onnx", "op-types", 20)
    done = place.command("run", "op-types.toml", "--out", "run")
    return {
        **_checked(run_files.capture(place, "run", done, "tiny-op-types"), 8),
        **_second_plan(place, "tiny-op-types", "tiny-onnx"),
    }


def demo(folder: Path) -> Subjects:
    """The demo run as `make demo` does it, and what the other commands say of its model."""
    place = Place(folder)
    for name in ("configs", DEMO_MODEL):
        shutil.copytree(ROOT / name, folder / name)
    done = place.command("run", DEMO_CONFIG, "--out", "run")
    text = place.command("inspect", DEMO_MODEL, "--data", "configs/demo/calibration.txt")
    dry = place.command("run", DEMO_CONFIG, "--dry-run")
    return {
        **_checked(run_files.capture(place, "run", done, "demo"), 8),
        "inspect-text": text.out.splitlines(),
        "inspect-progress": settled_progress("demo/progress", text.err),
        "inspect": settled("demo/inspect", json.loads(place.command("inspect", DEMO_MODEL, "--format", "json").out)),
        "dry-run": _without_folder(dry, folder),
        **_second_plan(place, "demo", DEMO_MODEL),
        **_verified(place, "demo", DEMO_MODEL, "configs/demo/test.txt"),
    }


def tiny_place(folder: Path, package: Path = ROOT) -> Place:
    """A folder with the tiny checkpoint and its samples."""
    tiny.write_checkpoint(folder / "tiny-t5")
    tiny.write_samples(folder)
    return Place(folder, package)


def _checked(subjects: Subjects, at_least: int) -> Subjects:
    """The subjects of a run; RuntimeError where it judged too little to say anything."""
    trials = subjects["trials"]
    assert isinstance(trials, list)
    if len(trials) < at_least or all(trial["verdict"] == "stable" for trial in trials):
        raise RuntimeError(
            f"judged {len(trials)} plans; it takes {at_least}, one of them rejected, to compare a search"
        )
    return subjects


def _second_plan(place: Place, label: str, reference: str) -> Subjects:
    """The first stable plan of the table that was not chosen, exported."""
    rows = json.loads(place.command("pareto", "run", "--format", "json").out)["rows"]
    second = next(row["id"] for row in rows if not row["chosen"] and row["verdict"] == "stable" and row["low_nodes"])
    done = place.command("export", "run", "--candidate", str(second), "--out", "second")
    found = run_files.model(place.folder / "second")
    return {
        "second": {"id": second, "of": reference, "stdout": done.out, "model": found["model"]},
        "second-card": settled_text(f"{label}/card", "\n".join(_lines(found["card"]))).splitlines(),
        "second-progress": settled_progress(f"{label}/progress", done.err),
    }


def _verified(place: Place, label: str, reference: str, data: str) -> Subjects:
    """What `verify` says of the winner and of the second plan."""
    arguments = ("--reference", reference, "--data", data, "--min-exact-match", "0", "--format", "json")
    winner, second = (place.command("verify", model, *arguments) for model in ("run/model", "second"))
    return {
        "verify": settled(f"{label}/verify", json.loads(winner.out)),
        "verify-second": settled(f"{label}/verify", json.loads(second.out)),
        "verify-progress": settled_progress(f"{label}/progress", winner.err),
    }


def _without_folder(done: Done, folder: Path) -> object:
    return {
        "stdout": done.out.replace(str(folder), "(folder)").splitlines(),
        "stderr": settled_progress("demo/progress", done.err),
    }


def _lines(value: object) -> list[str]:
    assert isinstance(value, list)
    return value
