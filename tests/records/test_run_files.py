"""Run files: what is written is read back, files appear whole or not at all, broken ones are refused by name."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from precision_search.config import Requirement
from precision_search.errors import EnvironmentProblemError, InputError, InternalError
from precision_search.precision.blocklist import Blocklist, blocklist_from_json
from precision_search.records.run_files import (
    RUN_FILE,
    TRIALS_FILE,
    read_run,
    write_blocklist,
    write_json_atomically,
    write_pareto_csv,
    write_run_info,
    write_text_atomically,
)
from precision_search.records.trials import TrialLog, trial_to_line
from tests.output_models import PINNED, run_info, small_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_run_info(tmp_path, run_info())
    log = TrialLog(tmp_path / TRIALS_FILE)
    for trial in small_run():
        log.append(trial)
    return tmp_path


def test_a_run_is_read_back(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert (run.info, run.trials, run.directory) == (run_info(), small_run(), run_dir)


def test_a_run_that_has_just_begun_is_read_back(tmp_path: Path) -> None:
    unknown = dict.fromkeys(["finished", "parity", "stopped", "screen", "peak_rss_bytes", "best"])
    info = run_info(status="running", near_ties=(), **unknown)
    write_run_info(tmp_path, info)
    (tmp_path / TRIALS_FILE).touch()
    assert read_run(tmp_path).info == info
    assert read_run(tmp_path).trials == ()


def test_the_keys_are_the_documented_ones(run_dir: Path) -> None:
    data = json.loads((run_dir / RUN_FILE).read_text())
    assert set(data) >= {
        *("schema_version", "tool_version", "status", "started", "finished", "seconds", "versions", "device", "model"),
        *("parity", "samples", "config_hash", "workload", "strategy", "seed", "counts", "stopped", "screen"),
        *("peak_rss_bytes", "near_ties", "best"),
    }
    assert set(data["versions"]) == {
        *("python", "onnx", "onnxruntime", "onnx_ir", "torch", "transformers", "numpy"),
    }
    assert set(data["device"]) == {
        *("kind", "name", "profile", "optimization_level", "use_tf32", "gemm_options"),
    }
    assert set(data["model"]) >= {"name", "content_hash", "has_checkpoint"}
    assert set(data["parity"]) == {"status", "samples", "differences"}
    assert set(data["parity"]["differences"][0]) == {
        *("sample", "position", "bundle_token", "checkpoint_token", "margin"),
    }
    assert set(data["samples"]) == {"calibration", "validation", "test"}
    assert set(data["samples"]["test"]) == {
        *("name", "count", "hash", "truncated", "prefix", "max_length"),
    }
    assert set(data["workload"]) == {"batch", "source_length", "target_length"}
    assert set(data["counts"]) == {"judged", "stable", "mismatch", "nonfinite", "error"}
    assert set(data["screen"]) == {"full_ms", "fp32_ms", "screens_per_second"}
    assert set(data["near_ties"][0]) == {"set", "sample", "position", "margin", "batch"}
    assert set(data["best"]) == {
        "id",
        "reason",
        "faster",
        "test_match",
        "validation_match",
        "requirements_met",
        "judged",
    }
    assert set(data["best"]["test_match"]) == {"value", "low", "high"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not the record of a run"),
        (b"\xff\xfe{", "is not the record of a run"),
        (b"[]", r"run is \[\]"),
        (b"{}", "lacks 'schema_version'"),
        (b'{"schema_version": 99}', "version of precision-search that wrote it"),
        (b"[" * 100_000, "is not the record of a run"),
    ],
)
def test_a_broken_record_is_named(run_dir: Path, content: bytes, message: str) -> None:
    (run_dir / RUN_FILE).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_run(run_dir)
    assert RUN_FILE in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "place"),
    [({"status": "done"}, "run.status"), ({"best": {"id": 3}}, "run.best lacks"), ({"seed": "0"}, "run.seed")],
)
def test_a_wrong_value_is_named(run_dir: Path, change: dict[str, Any], place: str) -> None:
    data = json.loads((run_dir / RUN_FILE).read_text())
    (run_dir / RUN_FILE).write_text(json.dumps(data | change))
    with pytest.raises(InputError, match=place):
        read_run(run_dir)


def test_what_is_no_run_directory_is_named(run_dir: Path) -> None:
    with pytest.raises(InputError, match="there is no run directory"):
        read_run(run_dir / "nothing")
    with pytest.raises(InputError, match="it is a file"):
        read_run(run_dir / RUN_FILE)
    (run_dir / TRIALS_FILE).write_text("{\n" + trial_to_line(small_run()[0]) + "\n")
    with pytest.raises(InputError, match="line 1 of"):
        read_run(run_dir)
    (run_dir / TRIALS_FILE).unlink()
    with pytest.raises(InputError, match=f"it has no {TRIALS_FILE}"):
        read_run(run_dir)
    (run_dir / RUN_FILE).unlink()
    with pytest.raises(InputError, match=f"it has no {RUN_FILE}"):
        read_run(run_dir)


def test_a_text_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for text in ("first\r\nline ü\n", "second\n", ""):
        write_text_atomically(path, text)
        assert path.read_bytes() == text.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    path = tmp_path / "x.txt"
    write_text_atomically(path, "old")
    monkeypatch.setattr(Path if failing == "replace" else os, failing, fail)
    with pytest.raises(EnvironmentProblemError, match="disk full") as caught:
        write_text_atomically(path, "new")
    assert caught.value.exit_code == 3
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_a_text_that_is_no_unicode_and_a_missing_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblemError, match="cannot write"):
        write_text_atomically(tmp_path / "x.txt", "\udcff")
    with pytest.raises(EnvironmentProblemError, match="cannot write"):
        write_text_atomically(tmp_path / "missing" / "x.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=r"run\.json"):
        write_run_info(tmp_path, run_info(seconds=float("nan")))
    with pytest.raises(InternalError, match="not JSON serializable"):
        write_json_atomically(tmp_path / "x.json", {"path": tmp_path})
    assert [path.name for path in tmp_path.iterdir()] == []


def test_the_blocklist_is_read_back(tmp_path: Path) -> None:
    blocklist = Blocklist("bfloat16", "base", {"encoder": ("Pow",), "decoder": ()}, ("a.*",), {"encoder": ("x",)})
    write_blocklist(tmp_path / "blocklist.json", blocklist)
    found = blocklist_from_json(json.loads((tmp_path / "blocklist.json").read_text()), "it")
    assert found.to_json() == blocklist.to_json()


def test_the_csv_holds_the_table(tmp_path: Path) -> None:
    write_pareto_csv(tmp_path / "pareto.csv", small_run(), Requirement(0.98), PINNED)
    with (tmp_path / "pareto.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["3", "4", "0", "5", "1", "2"]
    assert rows[0]["chosen"] == "true"
    assert {row["latency_source"] for row in rows} == {"estimated"}
    assert rows[3]["casts"] == ""
