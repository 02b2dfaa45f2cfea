"""Runs that are killed and go on, through the command line: nothing is judged twice, and the end is the same."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from precision_search import api
from precision_search.config import load_config
from precision_search.display.html import REPORT_FILE
from precision_search.judging.trial import NOTHING_KNOWN, SearchReporter, SearchState, Trial
from precision_search.model.bundle import open_bundle
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.layout import graph_file
from precision_search.precision.blocklist import plan_of_blocklist, read_blocklist
from precision_search.records import run_files
from precision_search.records.landmarks_json import LANDMARKS_FILE
from precision_search.records.optuna_journal import STUDY_FILE
from precision_search.records.run_directory import sole_writer
from precision_search.records.trials import read_trials
from precision_search.strategies import STRATEGIES
from precision_search.strategies.pareto import choose_winner
from tests.cli_models import fails, invoke
from tests.run.killed import KILLED, After, Call, arguments, interrupted
from tests.tiny_model import MIN_EXACT_MATCH, write_sentences, write_tiny_config, write_tiny_model

FEW_CHOICES = {
    "keep_fp32": ["encoder.*/(Add|Mul|Pow|Reciprocal|ReduceMean|Relu|Sqrt)(\\.1)?"],
    "force_low": ["(decoder|lm_head)(?!.*SelfAttention/(Div|Log|Mul)).*"],
}
"""Pins that leave 3 of the 21 choices, 8 plans, half of them stable: for strategies that see no structure."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")


def run(config: Path, out: Path, *more: str) -> str:
    """A session that nothing disturbs; gives what it says on stderr."""
    result = invoke(*arguments(config, out), *more)
    assert result.exit_code == 0, result.output
    return str(result.stderr)


def digests(trials: Sequence[Trial]) -> list[str]:
    return [trial.plan.plan.digest for trial in trials]


def assert_readable(config: Path, out: Path, *status: str) -> None:
    """Whatever moment a session was killed at, there is no run, or one that can be read, with the best plan so far.

    Its `status` is one of those given, or what a kill leaves.
    """
    if not out.exists():
        return
    assert invoke("pareto", out).exit_code == 0
    found = run_files.read_run(out)
    assert found.info.status in (status or ("running", "complete"))
    # A kill may come between a trial's line and the files that follow from it.
    best = [choose_winner(found.trials[:end], MIN_EXACT_MATCH).trial for end in (-1, None)]
    plans = [None if trial is None else trial.plan.plan for trial in best]
    stored = out / run_files.BLOCKLIST_FILE
    graphs = open_bundle(str(config.parent / "model"), config.parent / "cache").graphs
    assert (plan_of_blocklist(read_blocklist(stored), graphs) if stored.exists() else None) in plans


def assert_same_end(whole: Path, resumed: Path) -> None:
    before, after = (run_files.read_run(path) for path in (whole, resumed))
    assert len(set(digests(after.trials))) == len(after.trials)
    assert digests(after.trials) == digests(before.trials)
    for judged, again in zip(before.trials, after.trials, strict=True):
        assert (judged.id, judged.parent, judged.stage) == (again.id, again.parent, again.stage)
        assert (judged.verdict, judged.latency, judged.flip_risk) == (again.verdict, again.latency, again.flip_risk)
    assert after.info.status == "complete"
    assert after.info.best == before.info.best
    for name in (
        run_files.BLOCKLIST_FILE,
        LANDMARKS_FILE,
        *(f"{run_files.MODEL_DIRECTORY}/{graph_file(name)}" for name in GRAPH_NAMES),
    ):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(path.name for path in resumed.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in (resumed / "model").iterdir()) == sorted(
        path.name for path in (whole / "model").iterdir()
    )
    assert not list(resumed.parent.glob(".*"))
    trials_in_study = [line for line in (resumed / STUDY_FILE).read_text().splitlines() if '"op_code":4' in line]
    assert len(trials_in_study) == len(after.trials)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [strategy.name for strategy in STRATEGIES])
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_been(strategy: str, tmp_path: Path) -> None:
    blind = strategy in ("exhaustive", "random")
    config = write_tiny_config(tmp_path, strategy, max_trials=8 if blind else 12, **FEW_CHOICES if blind else {})
    run(config, tmp_path / "whole")
    count = len(read_trials(tmp_path / "whole" / run_files.TRIALS_FILE))
    assert count >= 8
    rng = random.Random(strategy)
    moments: list[Call | After] = [
        Call("precision_search.records.trials", "append", rng.randint(2, count // 2)),
        Call("os", "fsync", rng.randint(8, 30)),
        After(rng.uniform(1.0, 8.0)),
        Call("precision_search.published.publish", "write_model", rng.randint(1, 3)),
    ]
    out = tmp_path / "resumed"
    for number, moment in enumerate(moments):
        moment.session(config, out)
        assert_readable(config, out)
        log = out / run_files.TRIALS_FILE
        if number == 1:
            data = log.read_bytes()
            log.write_bytes(data + data[: rng.randint(1, data.index(b"\n") - 1)])
    run(config, out)
    assert_same_end(tmp_path / "whole", out)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config of few trials and a complete run of it in `run`."""
    folder = tmp_path_factory.mktemp("tiny")
    run(write_tiny_config(folder, max_trials=5), folder / "run")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        Call("precision_search.run.prepare", "measure_ranges"),
        Call("precision_search.records.run_files", "write_run_info", 1),
        Call("precision_search.records.run_files", "write_run_info", 2),
        Call("precision_search.records.run_files", "write_blocklist", 1),
        Call("os", "fsync", 3),
        Call("os", "fsync", 12),
        Call("precision_search.judging.judge", "convert", 2),
        Call("precision_search.published.publish", "check_published"),
        Call("precision_search.run.search", "replace_model"),
        Call("precision_search.run.search", "show_landmark"),
        Call("precision_search.run.search", "write_landmarks"),
        Call("precision_search.run.search", "write_report"),
        Call("precision_search.run.search", "pareto_table"),
    ],
    ids=lambda moment: f"{moment.module.rpartition('.')[2]}.{moment.name}-{moment.count}",
)
def test_a_kill_at_any_step_is_survived(tiny: Path, tmp_path: Path, moment: Call) -> None:
    config, out = tiny / "tiny.toml", tmp_path / "out"
    assert moment.session(config, out) == KILLED
    assert_readable(config, out)
    run(config, out)
    assert_same_end(tiny / "run", out)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_run_that_is_asked_to_end_says_how_to_go_on_and_keeps_what_it_judged(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    config, out = tiny / "tiny.toml", tmp_path / "out"
    said = interrupted(config, out, Call("precision_search.records.trials", "append", 3, getattr(signal, name)))
    assert said.splitlines()[-1] == f"interrupted; go on with: precision-search run {config} --out {out} --resume"
    assert_readable(config, out, "interrupted")
    assert len(run_files.read_run(out).trials) == 2
    assert (out / REPORT_FILE).is_file()
    run(config, out)
    assert_same_end(tiny / "run", out)


@pytest.mark.slow
def test_a_second_signal_leaves_no_half_file(tiny: Path, tmp_path: Path) -> None:
    config, out = tiny / "tiny.toml", tmp_path / "out"
    first = Call("precision_search.judging.judge", "convert", 2, signal.SIGHUP)
    second = Call("precision_search.run.search", "write_report", 1, signal.SIGTERM)
    said = interrupted(config, out, first, second)
    assert "the report was not written: interrupted" in said
    assert f"--out {out} --resume" in said.splitlines()[-1]
    assert_readable(config, out, "interrupted")
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    run(config, out)
    assert_same_end(tiny / "run", out)


@pytest.mark.slow
def test_an_old_model_is_there_until_the_new_one_is(tiny: Path, tmp_path: Path) -> None:
    config, out = tiny / "tiny.toml", tmp_path / "out"
    shutil.copytree(tiny / "run", out)
    # Between the two renames: `model` was moved out of the way, the new one is complete beside it.
    (out / "model").rename(out / ".model.old")
    shutil.copytree(out / ".model.old", out / ".model.new")
    (out / f".{run_files.RUN_FILE}.123.tmp").write_text("{")
    run(config, out)
    assert_same_end(tiny / "run", out)


@pytest.mark.slow
def test_a_killed_run_can_be_exported_and_says_that_it_is_unfinished(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert Call("precision_search.records.trials", "append", 5).session(tiny / "tiny.toml", out) == KILLED
    result = invoke("export", out, "--out", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert f"warning: {out} is unfinished" in result.stderr
    found = run_files.read_run(out)
    assert found.info.best is not None
    assert f"plan {found.info.best.id} is the best of the {len(found.trials)} plans judged so far" in result.stderr
    assert (tmp_path / "model" / graph_file("encoder")).is_file()
    finished = invoke("export", tiny / "run", "--out", tmp_path / "other")
    assert "unfinished" not in finished.stderr


# What is there after each plan


class Watcher(SearchReporter):
    """A reporter that looks into the run directory after each judged plan, as somebody else might."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.bests: list[int] = []

    def stage(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def close(self) -> None: ...

    def progress(self, done: int, total: int, what: str) -> None: ...

    def trial(self, trial: Trial, state: SearchState = NOTHING_KNOWN) -> None:
        found = run_files.read_run(self.out)
        assert found.trials[-1] == trial
        assert (found.info.status, found.info.counts.judged) == ("running", len(found.trials))
        assert found.info.screen is not None and found.info.screen.screens_per_second is not None
        best = choose_winner(found.trials, MIN_EXACT_MATCH)
        assert best.trial is not None and found.info.best is not None
        assert (found.info.best.id, found.info.best.reason) == (best.trial.id, best.reason)
        assert found.info.best.test_match is None
        self.bests.append(best.trial.id)
        blocklist = read_blocklist(self.out / run_files.BLOCKLIST_FILE)
        assert blocklist.to_json()["op_types"] == {k: list(v) for k, v in best.trial.plan.op_types.items()}
        chosen = [row.trial.id for row in api.pareto(self.out).rows if row.chosen or row.on_front]
        written = (self.out / run_files.PARETO_FILE).read_text().splitlines()[1:]
        shown = [line.split(",") for line in written]
        assert [int(line[0]) for line in shown if "true" in line[2:4]] == chosen


@pytest.mark.slow
def test_after_each_plan_the_directory_holds_the_best_so_far(tmp_path: Path) -> None:
    config = load_config(write_tiny_config(tmp_path, "op-types", max_trials=7))
    watcher = Watcher(tmp_path / "out")
    api.search(config, tmp_path / "out", reporter=watcher)
    assert len(watcher.bests) == len(read_trials(tmp_path / "out" / run_files.TRIALS_FILE))
    assert len(set(watcher.bests)) > 2


# What cannot go on


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(folder: Path, *more: str | Path) -> str:
    """What resuming says, when it is refused and leaves everything as it is."""
    before = content(folder / "run")
    message = fails(invoke("run", folder / "tiny.toml", "--out", folder / "run", "--resume", "--quiet", *more), 2)
    assert content(folder / "run") == before
    return message


@pytest.fixture
def changeable(tiny: Path, tmp_path: Path) -> Path:
    """The folder of `tiny` copied, to be changed."""
    shutil.copytree(tiny, tmp_path / "copy")
    folder = tmp_path / "copy"
    for path in (folder / "tiny.toml", folder / "run" / run_files.CONFIG_FILE):
        path.write_text(path.read_text().replace(str(tiny), str(folder)))
    return folder


@pytest.mark.slow
def test_another_model_is_refused(changeable: Path) -> None:
    shutil.rmtree(changeable / "model")
    write_tiny_model(changeable / "model", seed=1)
    message = refusal(changeable)
    assert "cannot go on" in message
    assert "the model changed since it began" in message
    assert "start a new run" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", ["calibration", "validation"])
def test_other_sentences_are_refused(changeable: Path, name: str) -> None:
    write_sentences(changeable / f"{name}.txt", 12, 77)
    assert f"the {name} file changed since it began" in refusal(changeable)


@pytest.mark.slow
@pytest.mark.parametrize("override", ["search.seed=5", "search.dtype=bfloat16", "calibration.batch_size=3"])
def test_another_config_is_refused(changeable: Path, override: str) -> None:
    message = refusal(changeable, "--set", override)
    assert f"the config changed since it began ({override.partition('=')[0]}: " in message
    assert run_files.CONFIG_FILE in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        (("versions", "onnxruntime"), "1.0", "the version of onnxruntime"),
        (("tool_version",), "0.0.1", "the version of precision-search"),
        (("device", "use_tf32"), True, "the device"),
    ],
)
def test_a_run_of_another_machine_or_version_is_refused(
    changeable: Path, keys: Sequence[str], value: object, what: str
) -> None:
    path = changeable / "run" / run_files.RUN_FILE
    record = json.loads(path.read_text())
    holder = record
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    path.write_text(json.dumps(record))
    assert f"{what} changed since it began" in refusal(changeable)


@pytest.mark.slow
def test_a_search_and_a_given_plan_are_not_one_run(changeable: Path) -> None:
    blocklist = changeable / "run" / run_files.BLOCKLIST_FILE
    assert "a search, or a given plan" in refusal(changeable, "--blocklist", blocklist)
    shutil.copy(blocklist, changeable / "mine.json")
    shutil.rmtree(changeable / "run")
    run(changeable / "tiny.toml", changeable / "run", "--blocklist", str(changeable / "mine.json"))
    assert "a search, or a given plan" in refusal(changeable)
    (changeable / "other.json").write_text('{"op_types": {"encoder": ["MatMul", "Pow"]}}')
    assert "the given plan changed since it began" in refusal(changeable, "--blocklist", changeable / "other.json")
    run(changeable / "tiny.toml", changeable / "run", "--blocklist", str(changeable / "mine.json"))


@pytest.mark.slow
def test_a_run_that_still_goes_on_is_left_alone(changeable: Path) -> None:
    with sole_writer(changeable / "run"):
        assert "still going on" in refusal(changeable)


@pytest.mark.parametrize("name", [run_files.CONFIG_FILE, run_files.RUN_FILE, run_files.TRIALS_FILE])
def test_a_directory_that_is_not_a_whole_run_is_not_resumed(tmp_path: Path, name: str) -> None:
    config = write_tiny_config(tmp_path)
    out = tmp_path / "run"
    out.mkdir()
    for each in (run_files.CONFIG_FILE, run_files.RUN_FILE, run_files.TRIALS_FILE):
        if each != name:
            (out / each).write_text("")
    message = fails(invoke("run", config, "--out", out, "--resume", "--quiet"), 2)
    assert f"it has no {name}" in message
    assert "another directory" in message


@pytest.mark.slow
def test_more_trials_other_threads_and_other_test_sentences_go_on(changeable: Path) -> None:
    write_sentences(changeable / "test.txt", 5, 78)
    run(changeable / "tiny.toml", changeable / "run", "--set", "search.max_trials=6", "--set", "device.threads=2")
    found = run_files.read_run(changeable / "run")
    assert len(found.trials) == 6
    assert found.info.samples.test is not None and found.info.samples.test.count == 5
