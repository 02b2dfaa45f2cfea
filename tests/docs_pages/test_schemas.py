"""The JSON Schemas in the docs describe what is really written, and refuse what is not of that form."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from precision_search.device.state import DeviceState
from precision_search.records.timings import TimingLog, TimingRecord
from precision_search.runtime.timing import Comparison, Interval, Timing
from tests.cli_models import invoke
from tests.docs_pages.docstrings import attributes, summary
from tests.docs_pages.schemas import SCHEMAS, Json, Schema, schema_json, undescribed
from tests.tiny_model import write_tiny_config

BY_NAME = {schema.name: schema for schema in SCHEMAS}


def schema(name: str) -> Json:
    return schema_json(BY_NAME[name])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the commands leave and print for a tiny model, by the schema that describes it."""
    folder = tmp_path_factory.mktemp("schemas")
    config, run = write_tiny_config(folder, "nodes"), folder / "run"
    assert invoke("--quiet", "run", config, "--out", run).exit_code in (0, 1)
    model, data = folder / "model", folder / "test.txt"
    verify = ("verify", run / "model", "--reference", model, "--data", data, "--min-exact-match", "0")
    # A look that fails, so that there are differing sentences to describe.
    other = ("verify", run / "model", "--reference", model, "--data", data, "--prefix", "a ", "--min-exact-match", "0")
    printed: dict[str, list[tuple[str | Path, ...]]] = {
        "pareto": [("pareto", run)],
        "verify": [verify, other],
        "inspect": [("inspect", model), ("inspect", model, "--data", data)],
        "doctor": [("doctor",)],
    }
    found = {
        name: [json.loads(invoke("--quiet", *command, "--format", "json").stdout) for command in commands]
        for name, commands in printed.items()
    }
    for name, path in {
        "run": run / "run.json",
        "nodes": run / "nodes.json",
        "landmarks": run / "landmarks.json",
        "precision_search": run / "model/precision_search.json",
    }.items():
        if name in BY_NAME:
            found[name] = [json.loads(path.read_text())]
    found["blocklist"] = [json.loads((folder / "blocklist.json").read_text()) for folder in (run, run / "model")]
    found["trial"] = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    found["timing"] = timings(folder / "timings.jsonl")
    return found


def timings(path: Path) -> list[Any]:
    """What a run on a CUDA device leaves: one plan that was timed, one that did not fit."""
    times = Timing(1.0, 0.9, 1.1, (1.0, 0.9, 1.1, 1.0), (2.0,))
    comparison = Comparison(times, times, Interval(1.0, 0.9, 1.1), stable=True, narrow=False)
    log = TimingLog(path, 0)
    log.append(
        TimingRecord(0, comparison, DeviceState(name="T4", sm_clock_mhz=1590.0, slowed_by=()), DeviceState(), None)
    )
    log.append(TimingRecord(1, None, DeviceState(), DeviceState(), "it does not fit"))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_what_is_written_is_what_the_schemas_say(written: dict[str, list[Any]]) -> None:
    assert set(written) == set(BY_NAME)
    for name, values in written.items():
        assert values, name
        for value in values:
            Draft202012Validator(schema(name)).validate(value)


@pytest.mark.slow
def test_every_key_that_is_written_is_described(written: dict[str, list[Any]]) -> None:
    for name, values in written.items():
        keys = {key for value in values for key in value}
        assert keys <= set(schema(name)["properties"]), name
    verdicts = {trial["verdict"] for trial in written["trial"]}
    assert {"stable", "nonfinite"} <= verdicts or {"stable", "mismatch"} <= verdicts, "the files hold both kinds"


@pytest.mark.slow
def test_a_file_that_lacks_a_key_or_holds_another_type_fails(written: dict[str, list[Any]]) -> None:
    for name, values in written.items():
        described = schema(name)
        for key in described["properties"]:
            wrong = copy.deepcopy(values[0])
            wrong[key] = object
            with pytest.raises(ValidationError):
                Draft202012Validator(described).validate(wrong)
            if not BY_NAME[name].given:
                del wrong[key]
                with pytest.raises(ValidationError, match="required"):
                    Draft202012Validator(described).validate(wrong)


@pytest.mark.parametrize(
    "content",
    [
        {"dtype": "float32"},
        {"patterns": "encoder.*"},
        {"op_types": {"both": ["Pow"]}},
        {"nodes": {"encoder": [3]}},
        {"nodse": {}},
    ],
)
def test_a_wrong_blocklist_fails_the_schema_and_the_command(content: Json, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        Draft202012Validator(schema("blocklist")).validate(content)
    (tmp_path / "blocklist.json").write_text(json.dumps(content))
    config = write_tiny_config(tmp_path / "tiny")
    assert invoke("run", config, "--blocklist", tmp_path / "blocklist.json", "--out", tmp_path / "run").exit_code == 2


def test_a_blocklist_may_leave_out_what_it_does_not_need() -> None:
    Draft202012Validator(schema("blocklist")).validate({"op_types": {"encoder": ["Pow"]}})


@pytest.mark.parametrize("described", SCHEMAS, ids=lambda each: each.name)
def test_schemas_are_valid_and_say_what_every_key_means(described: Schema) -> None:
    content = schema_json(described)
    Draft202012Validator.check_schema(content)
    assert list(undescribed(content, described.name)) == []


def test_fields_are_described_by_their_docstrings() -> None:
    class First:
        """One.

        Attributes:
            alpha: the first,
                over two lines.
            beta, gamma: both.
        """

    class Second(First):
        """Two,
        over two lines.

        More.

        Attributes:
            beta: its own.

        Raises:
            OSError: never.
        """

    assert attributes(Second) == {"alpha": "the first, over two lines.", "beta": "its own.", "gamma": "both."}
    assert summary(Second) == "Two, over two lines.\n\nMore."
