"""What the tests of the command line share: calling it, reading its errors, and a run directory made at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from precision_search.cli.commands import cli
from precision_search.config import load_config, to_toml
from precision_search.judging.trial import Trial
from precision_search.records import run_files
from precision_search.records.nodes_json import NODES_FILE
from precision_search.records.run_json import Best, Match
from precision_search.records.trials import TrialLog
from tests.conftest import ROOT
from tests.output_models import run_info, run_nodes
from tests.search_models import latency, trial

DEMO = ROOT / "configs/demo.toml"
FASTER = (trial(0, low_nodes=0, stage="fp32", latency=latency(2.0, 1.0)), trial(1, latency=latency(1.0, 2.0)))
"""fp32 and a plan that is twice as fast."""


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="precision-search")


def fails(result: Result, code: int) -> str:
    """What a failed command says: on stderr only, and without a traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def raiser(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


def write_run(directory: Path, trials: Sequence[Trial] = FASTER, **info: Any) -> Path:
    """A complete run whose winner keeps 98% of the test samples; `info` replaces fields of its record."""
    directory.mkdir(parents=True)
    best = Best(1, "the fastest", faster=True, test_match=Match.of(196, 200), validation_match=Match.of(100, 100))
    run_files.write_run_info(directory, run_info(**({"best": best} | info)))
    run_files.write_text_atomically(directory / run_files.CONFIG_FILE, to_toml(load_config(DEMO)))
    run_files.write_json_atomically(directory / NODES_FILE, run_nodes())
    log = TrialLog(directory / run_files.TRIALS_FILE)
    for judged in trials:
        log.append(judged)
    return directory
