"""What the folder holds in which a page's blocks run. Most pages speak of the demo under names of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tests import checkpoints
from tests.conftest import DEMO_DATA, DEMO_MODEL, ROOT
from tests.docs_pages.blocks import blocks
from tests.tiny_model import write_tiny_config

SETS = ("calibration", "validation", "test")


def stage(page: Path, folder: Path, exports: Path) -> None:
    """Prepares `folder` for the page (its path in the repository); exports are kept in `exports`."""
    checkpoints.open_once(DEMO_MODEL, exports)  # before two pages in two workers export it
    (folder / ".cache").mkdir()
    (folder / ".cache/precision-search").symlink_to(exports.resolve())
    if str(page) in STAGES:
        STAGES[str(page)](folder, exports)


def _checkout(folder: Path, exports: Path) -> None:
    """What a checkout of this repository has."""
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "artifacts/runs").mkdir(parents=True)
    (folder / "artifacts/models").symlink_to(ROOT / "artifacts/models")


def _sentences(folder: Path) -> None:
    for name in SETS:
        shutil.copy(DEMO_DATA / f"{name}.txt", folder)


def _checkpoint(folder: Path, exports: Path) -> None:
    """A checkpoint and sentences, in three sets and all in one file."""
    shutil.copytree(DEMO_MODEL, folder / "my-t5")
    _sentences(folder)
    (folder / "sentences.txt").write_text("".join((folder / f"{name}.txt").read_text() for name in SETS))


def _own_checkpoint(folder: Path, exports: Path) -> None:
    """A checkpoint, sentences, and the page's config for its first plans, among which is the one that is chosen."""
    _checkpoint(folder, exports)
    (folder / "my.toml").write_text(f"{_config()}\n[search]\nmax_trials = 6\n")


def _config() -> str:
    """The config of the page on checkpoints."""
    page = blocks((ROOT / "docs/how-to/own-checkpoint.md").read_text())
    return next(block.text for block in page if block.language == "toml")


def _gate(folder: Path, exports: Path) -> None:
    """A checkpoint and sentences, the config of their search and the blocklist that it found."""
    _checkpoint(folder, exports)
    (folder / "my.toml").write_text(_config())
    (folder / "nothing.json").write_text('{"dtype": "float16"}')
    shutil.copy(Path(__file__).with_name("demo_blocklist.json"), folder / "blocklist.json")


def _onnx(folder: Path, exports: Path) -> None:
    """The three graphs of another exporter, which names nodes its own way, and sentences."""
    checkpoints.trace(DEMO_MODEL, folder / "my-onnx", exports)
    for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        if (DEMO_MODEL / name).is_file():
            shutil.copy(DEMO_MODEL / name, folder / "my-onnx")
    _sentences(folder)


def _fp32_model(folder: Path, exports: Path) -> None:
    """A run whose model is fp32."""
    bundle = checkpoints.open_once(DEMO_MODEL, exports)
    (folder / "RUN").mkdir()
    (folder / "RUN/model").symlink_to(bundle.path)


def _readme(folder: Path, exports: Path) -> None:
    """The model of a run, and a config of one's own."""
    _fp32_model(folder, exports)
    write_tiny_config(folder, max_trials=4).rename(folder / "my.toml")


STAGES: Mapping[str, Callable[[Path, Path], None]] = {
    "README.md": _readme,
    "docs/tutorial/demo.md": _checkout,
    "docs/how-to/own-checkpoint.md": _own_checkpoint,
    "docs/how-to/own-onnx.md": _onnx,
    "docs/how-to/ci-gate.md": _gate,
    "docs/how-to/generator.md": _fp32_model,
}
