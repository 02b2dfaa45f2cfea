"""Input made to break things, through the command line: bounded, one message, and nothing that a terminal obeys."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from precision_search.config import Requirement
from precision_search.judging.trial import Trial
from precision_search.model.layout import graph_file
from precision_search.precision import patterns
from precision_search.records.pareto_table import pareto_table, to_csv
from tests.checkpoints import word_tokenizer
from tests.cli.test_input import three_parts
from tests.cli_models import FASTER, fails, invoke, write_run
from tests.search_models import trial
from tests.test_printable import ANY_TEXT, is_harmless
from tests.tiny_model import WORDS, write_sentences, write_tiny_config, write_tiny_model

DEEP = "[" * 100_000
LONG = "9" * 5_000
BEYOND_FLOAT = "1" + "0" * 400
ESCAPES = "\x1b[2J\x9b31m\u202e"
SPELLED = r"\x1b[2J\x9b31m\u202e"
EIGHT_GIB = 8 << 30
NEVER_JUDGED = json.dumps(
    {"batch_sizes": [], "padded": True, **{f"{what}_lengths": {"min": 1, "max": 2} for what in ("source", "target")}}
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, a model and sentences; not to be changed."""
    return write_tiny_config(tmp_path_factory.mktemp("bounds")).parent


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be changed."""
    return shutil.copytree(tiny / "model", tmp_path / "model")


def refused(result: Result) -> str:
    message = fails(result, 2)
    three_parts(message[message.index("error: ") :])
    assert is_harmless(message)
    return message


def verify(model: Path, tiny: Path) -> Result:
    return invoke("verify", model, "--reference", tiny / "model", "--data", tiny / "test.txt", "--device", "cpu")


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


# Terminal and tables


def test_names_of_nodes_are_spelled_out_everywhere(tiny: Path, model: Path) -> None:
    for graph in ("encoder", "decoder", "decoder_with_past"):
        proto = onnx.load(model / graph_file(graph))
        for node in proto.graph.node:
            if node.op_type == "Softmax":
                node.name = f"{ESCAPES}/{node.name}"
        onnx.save(proto, model / graph_file(graph))

    text = invoke("inspect", model, "--data", tiny / "test.txt")
    document = invoke("inspect", model, "--format", "json")

    for result in (text, document):
        assert result.exit_code == 0, result.output
        assert is_harmless(result.output)
    assert SPELLED in text.stdout
    assert json.dumps(ESCAPES)[1:-1] in json.dumps(json.loads(document.stdout))


def test_sentences_and_messages_are_spelled_out(tiny: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text(f"{ESCAPES} a b\n")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {
        f"{word}{ESCAPES}" if number > 2 else word: number for word, number in tokenizer["model"]["vocab"].items()
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    other = write_tiny_model(tmp_path / "other", seed=5)
    shutil.copy(model / "tokenizer.json", other)
    options = ("--reference", model, "--data", tmp_path / "data.txt", "--device", "cpu", "--min-exact-match", "0")

    text = invoke("verify", other, *options)
    document = invoke("verify", other, *options, "--format", "json")

    for result in (text, document):
        assert result.exit_code == 0, result.output
        assert is_harmless(result.output)
    assert SPELLED in text.stdout
    assert json.dumps(ESCAPES)[1:-1] in json.dumps(json.loads(document.stdout))


def test_what_onnxruntime_says_of_a_node_that_fails_is_spelled_out_too(
    tiny: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.load(model / graph_file("encoder"))
    result = proto.graph.output[0].name
    producer = next(node for node in proto.graph.node if result in node.output)
    producer.output[0] = "before"
    # The shape of what `NonZero` gives is known when it runs.
    ones = numpy_helper.from_array(np.ones(3, np.int64))
    proto.graph.node.extend(
        [
            helper.make_node("Constant", [], ["ones"], value=ones),
            helper.make_node("NonZero", ["ones"], ["found"]),
            helper.make_node("Cast", ["found"], ["three"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["before", "three"], [result], name=f"{ESCAPES}/Add"),
        ]
    )
    onnx.save(proto, model / graph_file("encoder"))

    message = refused(invoke("inspect", model, "--data", tiny / "test.txt"))

    assert f"{SPELLED}/Add" in message
    assert is_harmless(capfd.readouterr().err)


def test_usage_errors_are_spelled_out() -> None:
    assert is_harmless(fails(invoke("doctor", f"a{ESCAPES}"), 2))
    assert is_harmless(fails(invoke("inspect", f"/nowhere/{ESCAPES}"), 2))


def hostile(stage: str, message: str = "") -> tuple[Trial, ...]:
    bad = trial(2, verdict="error", stage="all-low", message=message or stage)
    return (FASTER[0], replace(FASTER[1], stage=stage), bad)


@pytest.mark.parametrize("style", ["table", "md", "csv", "json"])
def test_what_stands_in_a_run_is_spelled_out(tmp_path: Path, style: str) -> None:
    run = write_run(tmp_path / "run", hostile(f"=1+1{ESCAPES}\x7f"))

    result = invoke("pareto", run, "--format", style)

    assert result.exit_code == 0, result.output
    assert is_harmless(result.output)
    if style == "csv":
        row = next(row for row in csv.DictReader(io.StringIO(result.stdout)) if row["chosen"] == "true")
        assert row["stage"] == rf"'=1+1{SPELLED}\x7f"
        assert row["speedup"] == "2.0"
    if style == "json":
        assert f"=1+1{ESCAPES}\x7f" in [row["stage"] for row in json.loads(result.stdout)["rows"]]


@given(ANY_TEXT | st.sampled_from("=+-@\t\r\n").flatmap(lambda first: ANY_TEXT.map(first.__add__)))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_spreadsheet_computes_no_cell_and_numbers_stay_numbers(text: str) -> None:
    header, *rows = list(csv.reader(io.StringIO(to_csv(pareto_table(hostile(text), Requirement(0.5)))), strict=True))
    for row in rows:
        for name, cell in zip(header, row, strict=True):
            assert is_harmless(cell)
            is_number = re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?|", cell) is not None
            assert is_number or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")), name


# Patterns


@pytest.mark.parametrize(
    "pattern", [r"(a+)+$", r"(\w+\.?)*!", "(a{1,9999}){1,9999}", "(" * 5000 + ")" * 5000, "(" * 99 + ")" * 99]
)
@pytest.mark.parametrize("where", ["blocklist", "keep_fp32", "force_low"])
def test_patterns_are_bounded(tiny: Path, tmp_path: Path, where: str, pattern: str) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"patterns": [pattern]}))
    given = (
        ("--blocklist", tmp_path / "plan.json")
        if where == "blocklist"
        else ("--set", f"search.{where}={json.dumps([pattern])}")
    )

    message = refused(invoke("run", tiny / "tiny.toml", *given, "--out", tmp_path / "out"))

    assert "pattern" in message
    assert len(message) < 1000


def test_a_pattern_that_takes_too_long_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    pattern = r"(\w{1,9}[./]?){1,1000}(?<!\w)"

    message = refused(
        invoke("run", tiny / "tiny.toml", "--set", f"search.keep_fp32=['{pattern}']", "--out", tmp_path / "out")
    )

    assert "it does not end within 0.1 seconds" in message


# JSON of others


@pytest.mark.parametrize("content", [DEEP, LONG, '{"a": ' + LONG, f'{{"schema_version": {BEYOND_FLOAT}}}', "{" + DEEP])
@pytest.mark.parametrize("name", ["run.json", "nodes.json", "landmarks.json", "trials.jsonl", "timings.jsonl"])
def test_a_run_of_nonsense(tmp_path: Path, name: str, content: str) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text(f"{content}\n")

    result = invoke("report", run)

    if result.exit_code == 2:
        assert name in refused(result)
    else:  # the report does without it
        assert (name, result.exit_code) in {("landmarks.json", 0), ("timings.jsonl", 0)}


def test_a_last_line_that_is_none_of_ours_is_no_half_written_plan(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "trials.jsonl").open("a") as log:
        log.write(DEEP)

    assert "line 3 of" in refused(invoke("pareto", run))


def test_a_name_with_a_slash_in_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    text = re.sub(r'"name": "[^"]*"', '"name": "a/b"', (run / "run.json").read_text())
    (run / "run.json").write_text(text)

    message = refused(invoke("pareto", run))

    assert "run.json is not the record of a run" in message
    assert "bare names, not 'a/b'" in message


@pytest.mark.parametrize(
    ("name", "pattern", "value", "why"),
    [
        ("run.json", r'(?<="value": )[\d.]+', "1e308", "a share of samples is 1e+308"),
        ("run.json", r'(?<="judged": )\d+', BEYOND_FLOAT, "run.counts.judged is Infinity"),
        ("run.json", r'(?<="judged": )\d+', LONG, "run.counts.judged is Infinity"),
        ("trials.jsonl", r'(?<="speedup":)[\d.]+', "0", "a speedup is 0.0"),
        ("trials.jsonl", r'(?<="exact_match":)[\d.]+', "-1", "a share of samples is -1"),
        ("trials.jsonl", r'(?<="validation_match":)[\d.]+', "7.5", "a share of samples is 7.5"),
        ("trials.jsonl", r'(?<="judged":)null', NEVER_JUDGED, "batches of no size"),
        ("nodes.json", r'(?<="range_safety": )[\d.]+', "0", "nodes.range_safety is 0.0"),
        ("nodes.json", r'(?<="samples": )\d+', "1" + "0" * 20, "nodes.samples is 1e+20"),
    ],
)
def test_numbers_of_a_run_that_cannot_be(tmp_path: Path, name: str, pattern: str, value: str, why: str) -> None:
    run = write_run(tmp_path / "run")
    text, count = re.subn(pattern, value, (run / name).read_text(), count=1)
    assert count == 1
    (run / name).write_text(text)

    message = refused(invoke("report", run))

    assert name in message
    assert why in message


@pytest.mark.parametrize("content", [DEEP, f'{{"num_layers": {LONG}}}'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_model_of_nonsense(tiny: Path, model: Path, name: str, content: str) -> None:
    (model / name).write_text(content)

    result = verify(model, tiny)

    if result.exit_code == 2:
        assert name in refused(result)
    else:  # an object without anything that is asked for says nothing
        assert "num_layers" in content
        assert name in ("generation_config.json", "tokenizer_config.json")


@pytest.mark.parametrize("content", [DEEP, f'{{"settings": {LONG}}}'])
def test_facts_and_blocklists_of_nonsense(tiny: Path, model: Path, tmp_path: Path, content: str) -> None:
    for path in (model / "precision_search.json", tmp_path / "plan.json"):
        path.write_text(content)

    assert "precision_search.json" in refused(verify(model, tiny))
    plan = ("--blocklist", tmp_path / "plan.json")
    assert "plan.json" in refused(invoke("run", tiny / "tiny.toml", *plan, "--out", tmp_path / "out"))


# Sizes


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "precision_search.json"),
        *("encoder_model.onnx", "decoder_model.onnx"),
    ],
)
def test_a_file_of_8_gib_is_not_read(tiny: Path, model: Path, name: str) -> None:
    with (model / name).open("a") as file:
        os.truncate(file.fileno(), EIGHT_GIB)

    assert f"it has {EIGHT_GIB} bytes, more than the" in refused(verify(model, tiny))


@pytest.mark.parametrize("name", ["spiece.model", "special_tokens_map.json"])
def test_what_transformers_would_read_is_bounded_too(tiny: Path, model: Path, name: str) -> None:
    (model / "tokenizer.json").unlink()
    (model / "spiece.model").write_bytes(b"a")
    with (model / name).open("a") as file:
        os.truncate(file.fileno(), EIGHT_GIB)

    message = refused(verify(model, tiny))

    assert name in message
    assert "more than the" in message


def test_extra_ids_are_bounded(tiny: Path, model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "spiece.model").write_bytes(b"a")
    (model / "tokenizer_config.json").write_text('{"extra_ids": 1000000000}')

    assert "asks for 1000000000 extra ids" in refused(verify(model, tiny))


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize(
    "step",
    [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},
        {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "aa"},
        {"type": "Replace", "pattern": {"String": ""}, "content": "a"},
    ],
)
def test_text_that_grows_with_every_replacement_is_refused(
    tiny: Path, model: Path, part: str, step: Mapping[str, Any]
) -> None:
    inner = {"type": "Sequence", f"{part}s": [step] * 20}
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer[part] = {"type": "Sequence", f"{part}s": [inner, inner]}
    tokenizer["added_tokens"] = [added_token("a", normalized=True)]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))

    message = refused(verify(model, tiny))

    assert "times as long" in message
    assert "40 times in a row" in message


def test_a_template_that_adds_more_than_memory_holds_is_refused(tiny: Path, model: Path) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}] * 20_000,
        "pair": [],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1] * 10_000, "tokens": ["</s>"] * 10_000}},
    }
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [template]}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))

    message = refused(verify(model, tiny))

    assert "adds up to 200000000 tokens to each text" in message


def added_token(text: str, *, normalized: bool) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    return {"id": len(WORDS) + 3, "content": text, "normalized": normalized, **flags}


def test_replacements_of_known_tokenizers_are_taken(model: Path, tiny: Path) -> None:
    steps = [("String", "``", '"'), ("String", "''", '"'), ("Regex", " {2,}", " ")]
    tokenizer = json.loads(word_tokenizer(*WORDS))
    tokenizer["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {kind: old}, "content": new} for kind, old, new in steps],
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))

    assert verify(model, tiny).exit_code == 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"num_layers": 10**9}, "`num_layers` is 1000000000, and 1000 is the most"),
        ({"num_decoder_layers": 10**6}, "`num_decoder_layers` is 1000000, and 1000 is the most"),
        ({"vocab_size": 10**12}, "`vocab_size` is 1000000000000, and 10000000 is the most"),
        ({"d_ff": 10**400}, "`d_ff` is inf, and 1000000 is the most"),
        ({"d_model": "7"}, "`d_model` is '7', not a positive whole number"),
        ({"d_model": -1}, "`d_model` is -1, not a positive whole number"),
    ],
)
def test_sizes_in_a_config_are_bounded(model: Path, settings: dict[str, object], why: str) -> None:
    change(model / "config.json", **settings)

    assert why in refused(invoke("inspect", model))


def test_new_tokens_in_a_generation_config_are_bounded(model: Path) -> None:
    change(model / "generation_config.json", max_new_tokens=10**12)

    assert "asks for 1e+12 tokens" in refused(invoke("inspect", model))


# Graphs

Edit = Callable[[onnx.ModelProto], None]


def without_outputs(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Relu", [proto.graph.node[0].output[0]], [], name=f"x{ESCAPES}"))


def calling(functions: int, calls: int, inner: Callable[[int], str]) -> Edit:
    """A last node that calls the last of so many functions, each of which calls another one so many times."""

    def edit(proto: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
        for number in range(functions):
            called = inner(number)
            names = ["x", *(f"t{call}" for call in range(calls - 1)), "y"]
            nodes = [
                helper.make_node(called, [one], [other], domain="f" if called.startswith("F") else "")
                for one, other in itertools.pairwise(names)
            ]
            proto.functions.append(helper.make_function("f", f"F{number}", ["x"], ["y"], nodes, opsets))
        proto.opset_import.append(opsets[1])
        last = proto.graph.node[-1]
        result, last.output[0] = last.output[0], "before"
        proto.graph.node.append(helper.make_node(f"F{functions - 1}", ["before"], [result], domain="f"))

    return edit


def untyped_mismatch(proto: onnx.ModelProto) -> None:
    """onnx_ir prints the traceback of a type inference that fails."""
    del proto.graph.value_info[:]
    product = next(node for node in proto.graph.node if node.op_type == "MatMul")
    weight = next(each for each in proto.graph.initializer if each.name == product.input[1])
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values[:-1], weight.name))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without_outputs, rf"the node 'x{SPELLED}' has no outputs"),
        (calling(40, 2, lambda number: f"F{number - 1}" if number else "Relu"), "nodes once its functions are inlined"),
        (calling(500, 1, lambda number: f"F{number - 1}" if number else "Relu"), "call each other more than 100 deep"),
        (calling(2, 1, lambda number: f"F{1 - number}"), "call each other more than 100 deep, or in a circle"),
        (untyped_mismatch, "shape inference failed"),
    ],
    ids=["no-outputs", "doubling", "chain", "circle", "mismatch"],
)
def test_graphs_that_unfold_or_cannot_be(
    model: Path, edit: Edit, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = model / graph_file("encoder")
    proto = onnx.load(path)
    edit(proto)
    onnx.save(proto, path)

    assert words in refused(invoke("inspect", model))
    assert "Traceback" not in capfd.readouterr().err


def test_parentheses_inside_each_other(tiny: Path, model: Path) -> None:
    path = model / graph_file("encoder")
    proto = onnx.load(path)
    deep = "(" * 20_000 + "N" + ")" * 20_000
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = deep
    proto.graph.node[0].name = deep
    value = helper.make_tensor_value_info(proto.graph.node[0].output[0], onnx.TensorProto.FLOAT, [deep, "9**9**9**9"])
    proto.graph.value_info.append(value)
    onnx.save(proto, path)

    for result in (invoke("inspect", model, "--data", tiny / "test.txt"), verify(model, tiny)):
        assert result.exit_code in (0, 1, 2), result.output
        assert "Traceback" not in result.output


# Data


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("data.csv", "german,english\nHallo,Hello\n", "its columns are `german`, `english`"),
        ("data.TSV", "german\tenglish\nHallo\tHello\n", "its columns are `german`, `english`"),
        ("data.csv", "german;english\nHallo;Hello\n", "separate the cells as the name says: .csv by commas"),
        ("data.jsonl", '{"german": "Hallo"}\n', "its columns are `german`"),
    ],
)
def test_a_table_is_read_by_column_or_refused(tiny: Path, tmp_path: Path, name: str, content: str, told: str) -> None:
    """Its header is no sentence, and nor is a row of it."""
    (tmp_path / name).write_text(content)
    option = ("--set", f"calibration.path={tmp_path / name}")

    message = refused(invoke("run", tiny / "tiny.toml", *option, "--out", tmp_path / "out"))

    assert f"{name} has not exactly one of input, text, source" in message
    assert told in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["data.json", "data.xlsx", "data.txt.gz"])
def test_a_table_is_no_list_of_sentences(tiny: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("german,english\nHallo,Hello\n")
    option = ("--set", f"calibration.path={tmp_path / name}")

    message = refused(invoke("run", tiny / "tiny.toml", *option, "--out", tmp_path / "out"))

    assert f"{name} is no list of sentences" in message
    assert ".jsonl" in message
    assert not (tmp_path / "out").exists()


def test_profiles_are_bounded(tiny: Path, tmp_path: Path) -> None:
    write_sentences(tmp_path / "big.toml", 1, 0)
    os.truncate(tmp_path / "big.toml", EIGHT_GIB)
    option = ("--set", f"latency.profile={tmp_path / 'big.toml'}")

    assert f"it has {EIGHT_GIB} bytes" in refused(invoke("run", tiny / "tiny.toml", *option, "--out", tmp_path / "out"))
