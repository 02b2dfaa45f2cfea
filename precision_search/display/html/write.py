"""Writing a report: reads the files of a run, and puts the page in its place whole or not at all."""

from __future__ import annotations

from pathlib import Path

from precision_search.config import Requirement, load_config
from precision_search.display.html.render import render
from precision_search.files import refuse_existing
from precision_search.records import run_files
from precision_search.records.landmarks_json import LANDMARKS_FILE, RunLandmarks, read_landmarks
from precision_search.records.nodes_json import NODES_FILE, RunNodes, read_nodes
from precision_search.records.pareto_table import pareto_table
from precision_search.records.run_files import Run

REPORT_FILE = "report.html"


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Writes the report of a run and gives its path.

    Args:
        run_dir: the run directory; the run may be unfinished.
        out: the file to write, which must not exist; None replaces `report.html` in the run directory.

    Raises:
        InputError: it is no run directory, or a file in it is broken.
        OutputExistsError: `out` exists.
        MissingPackageError: plotly is not installed.
        EnvironmentProblemError: the file cannot be written.
    """
    if out is not None:
        refuse_existing(out)
    path = run_dir / REPORT_FILE if out is None else out
    run = run_files.read_run(run_dir)
    requirement = load_config(run_dir / run_files.CONFIG_FILE).requirement
    run_files.write_text_atomically(path, report_html(run, requirement, _nodes(run_dir), _landmarks(run_dir)))
    return path


def report_html(run: Run, requirement: Requirement, nodes: RunNodes | None, landmarks: RunLandmarks | None) -> str:
    """The page of a run.

    Args:
        run: its record and its judged plans.
        requirement: what a winner must keep.
        nodes: what is known of its nodes, None where it did not record them.
        landmarks: what rejected landmarks make of sentences, None where that was not tried (yet).
    """
    choice = run_files.choice_of(run, requirement)
    table = pareto_table(run.trials, requirement, choice=choice, pinned=run.info.model.pinned, every=True)
    return render(run.info, table, nodes, landmarks)


def _nodes(run_dir: Path) -> RunNodes | None:
    return read_nodes(run_dir) if (run_dir / NODES_FILE).exists() else None


def _landmarks(run_dir: Path) -> RunLandmarks | None:
    return read_landmarks(run_dir) if (run_dir / LANDMARKS_FILE).exists() else None
