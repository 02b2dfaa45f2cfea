"""The report: what its data says of a run, in words and numbers, and the page that holds it, without a browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search import api
from precision_search.config import Requirement
from precision_search.cost.ceiling import Ceiling
from precision_search.display.html import REPORT_FILE
from precision_search.display.html import overview as facts
from precision_search.display.html.content import bits, make_page
from precision_search.display.html.page import Page
from precision_search.display.html.render import SCRIPTS, STYLES, asset, json_for_script
from precision_search.errors import InputError, OutputExistsError
from precision_search.judging.trial import FlipRisk, Trial, TrialLatency
from precision_search.printable import printable
from precision_search.records import run_files
from precision_search.records.landmarks_json import LANDMARKS_FILE
from precision_search.records.nodes_json import NODES_FILE
from precision_search.records.pareto_table import pareto_table
from tests.cli_models import fails, invoke
from tests.conftest import ROOT
from tests.output_models import PINNED, fp32_trial, run_info, small_run
from tests.report_models import EVIL, EVIL_NAME, differing, hostile_run, nodes_of, write_report_run
from tests.search_models import latency, trial


def page_of(trials: tuple[Trial, ...], **info: Any) -> Page:
    table = pareto_table(trials, Requirement(0.98), pinned=PINNED, every=True)
    rows = sorted((*table.rows, *table.rejected), key=lambda row: row.trial.id)
    return make_page(run_info(**info), rows, nodes_of(trials))


def data_of(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


# The data


def test_every_judged_plan_is_on_the_page_once_with_its_numbers() -> None:
    page = page_of(small_run())

    assert [plan.id for plan in page.plans] == [trial.id for trial in small_run()]
    best = page.plans[3]
    assert (best.latency_ms, best.speedup, best.flip_risk, best.flip_risk_high) == (55.4321, 1.41, 1.234, 2.15)
    assert (best.chosen, best.on_front, best.kept) == (True, True, "both: Pow; enc: Add MatMul")
    assert [plan.id for plan in page.plans if plan.is_fp32] == [0]
    rejected = page.plans[6]
    assert (rejected.verdict, rejected.flip_risk) == ("mismatch", None)
    assert rejected.reason == "other tokens from token 3 of sample 2; no node stands out"


def test_the_line_of_the_fastest_never_falls_and_leaves_out_what_could_not_be_chosen() -> None:
    """Rejected, too few validation samples kept, perhaps no faster than fp32, slower but calmer, without latency."""
    uncertain = dataclasses.replace(latency(60.0, 1.5), speedup_low=0.9, speedup_high=2.1)
    trials = (
        fp32_trial(),
        trial(1, verdict="mismatch", latency=latency(30.0, 2.6)),
        trial(2, validation_match=0.97, latency=latency(40.0, 1.95)),
        trial(3, latency=uncertain),
        trial(4, latency=latency(55.0, 1.42), flip_risk=FlipRisk(3.0, 2.0, 5.0)),
        trial(5, latency=latency(55.5, 1.41), flip_risk=FlipRisk(1.0, 0.5, 2.0)),
        trial(6, latency=None),
        trial(7, latency=latency(50.0, 1.56)),
    )

    assert page_of(trials).fastest == (1.0, 1.0, 1.0, 1.0, 1.42, 1.42, 1.42, 1.56)
    assert [plan.id for plan in page_of(trials[:6]).plans if plan.chosen] == [5]
    assert page_of((trial(0, latency=None), trial(1))).fastest == (None, 10.0)


def test_a_plan_that_was_never_timed_is_drawn_where_the_cut_expected_it() -> None:
    unknown = {"latency": None, "flip_risk": None, "verdict": "mismatch"}
    trials = (fp32_trial(), trial(1, expected_ms=50.0, **unknown), trial(2, **unknown))

    places = [(plan.place, plan.x_ms) for plan in page_of(trials).plans]

    assert places == [("estimated", 78.3), ("expected", 50.0), (None, None)]


def test_measured_and_estimated_times_never_share_the_axis() -> None:
    measured = TrialLatency(4.0, 3.9, 4.2, 2.5, "measured", None, 2.4, 2.6)
    trials = (
        dataclasses.replace(fp32_trial(), latency=dataclasses.replace(measured, speedup=1.0)),
        trial(1, latency=measured),
        trial(2, latency=latency(5.0)),
        trial(3, latency=None, expected_ms=6.0),
    )

    page = page_of(trials)

    assert (page.latency_source, page.latency_title) == ("measured", "latency, ms, measured")
    assert [plan.place for plan in page.plans] == ["measured", "measured", None, None]
    assert page.plans[2].source == "estimated"


def test_the_axis_names_the_profile_of_an_estimate() -> None:
    assert page_of(small_run()).latency_title == "latency, ms, estimated for t4"
    assert page_of((fp32_trial(),)).latency_source == "estimated"
    assert page_of(()).latency_title == "latency, not known"


@given(st.sets(st.integers(0, 40)), st.integers(0, 41))
def test_a_set_of_nodes_survives_its_packing(chosen: set[int], count: int) -> None:
    bit = {f"node{number}": number for number in range(count)}

    packed = base64.b64decode(bits([f"node{number}" for number in chosen], bit))

    found = {number for number in range(count) if packed[number // 8] >> number % 8 & 1}
    assert found == {number for number in chosen if number < count}


def test_a_plan_says_which_nodes_it_keeps_and_why() -> None:
    kept = small_run()[3].plan.nodes
    trials = (fp32_trial(), dataclasses.replace(small_run()[3], id=1, kept_for={"noise": kept[:1]}))

    page = page_of(trials, strategy="nodes")

    plan = page.plans[1]
    packed = base64.b64decode(plan.nodes)
    assert {n.key for i, n in enumerate(page.nodes) if packed[i // 8] >> i % 8 & 1} == set(kept)
    assert set(plan.kept_for) == {"noise"}
    explained = [page_of(trials, strategy=name).plans for name in ("nodes", "op-types")]
    # The plan is of the landmark stage "ranges", whose nodes no search chose.
    assert [plan.explained for plans in explained for plan in plans] == [False] * 4
    other = (fp32_trial(), dataclasses.replace(trials[1], stage="cut"))
    assert page_of(other, strategy="nodes").plans[1].explained


@pytest.mark.parametrize(
    ("key", "group", "label", "layer"),
    [
        ("encoder.block.3.layer.0.SelfAttention.q/MatMul", "layer.0", "SelfAttention.q/MatMul", 3),
        ("decoder.block.23.layer.2/Add", "layer.2", "Add", 23),
        ("decoder.block.0.layer.2.DenseReluDense.wi_0/MatMul", "layer.2", "DenseReluDense.wi_0/MatMul", 0),
        ("decoder.layers.5.self_attn.q_proj/MatMul", "block", "self_attn.q_proj/MatMul", 5),
        ("encoder.final_layer_norm/Pow", "", "final_layer_norm/Pow", None),
        ("lm_head/MatMul", "", "lm_head/MatMul", None),
    ],
)
def test_a_node_has_a_row_and_a_column(key: str, group: str, label: str, layer: int | None) -> None:
    everything = fp32_trial()
    trials = (dataclasses.replace(everything, plan=dataclasses.replace(everything.plan, nodes=(key,))),)

    page = page_of(trials)

    assert [(role.group, role.label) for role in page.roles] == [(group, label)]
    assert [(node.role, node.layer) for node in page.nodes] == [(0, layer)]


def test_index_arithmetic_and_what_is_beyond_the_range_are_told_apart() -> None:
    page = page_of(small_run())

    assert {node.key for node in page.nodes if node.fixed} == set(PINNED)
    assert {node.op_type for node in page.nodes if node.beyond_range} == {"Pow"}
    assert page.limits is not None
    assert (page.limits.largest, page.limits.safe) == (65504.0, 32752.0)


# The words


def test_the_headline_says_how_fast_and_from_where() -> None:
    headline = facts.headline(run_info(), pareto_table(small_run(), Requirement(0.98)))

    assert headline.title == "1.41 times as fast as fp32, estimated for t4"
    found = {fact.label: (fact.value, fact.note) for fact in headline.facts}
    assert found["Speedup"] == ("1.41×", "estimated for t4")
    assert found["Validation"] == ("100%", "100 of 100 exact, 95% interval 96.3% to 100%")
    assert found["Test, unseen"][0] == "98.0%"
    assert found["Flip risk"] == ("1.2", "in 1,000 tokens, 90% interval 0.3 to 2.1")
    assert found["Size"] == ("17.1 MB", "fp32 34.4 MB")


def test_a_measured_speedup_comes_with_its_interval() -> None:
    found = TrialLatency(4.0, 3.9, 4.2, 2.5, "measured", None, 2.4, 2.6)
    headline = facts.headline(run_info(), pareto_table((fp32_trial(), trial(1, latency=found)), Requirement(0.98)))

    assert headline.title == "2.50 times as fast as fp32, measured"
    assert headline.facts[0].note == "measured, 95% interval 2.40 to 2.60"


@pytest.mark.parametrize(
    ("trials", "title", "reason"),
    [
        ((), "No plan was judged", "before its first plan"),
        ((fp32_trial(),), "No stable plan is faster than fp32", "No plan other than fp32 was judged."),
        (
            (fp32_trial(), trial(1, verdict="mismatch")),
            "No stable plan is faster than fp32",
            "other than fp32 is stable",
        ),
        (
            (fp32_trial(), trial(1, latency=latency(90.0, 0.9))),
            "No stable plan is faster than fp32",
            "but fp32 is what",
        ),
    ],
)
def test_a_run_without_a_faster_plan_says_so(trials: tuple[Trial, ...], title: str, reason: str) -> None:
    headline = facts.headline(run_info(best=None), pareto_table(trials, Requirement(0.98)))

    assert headline.title == title
    assert reason in headline.reason


def test_what_is_not_known_is_called_so() -> None:
    samples = dataclasses.replace(run_info().samples, validation=None, test=None)
    trials = (fp32_trial(), trial(1, flip_risk=None, validation_match=None))

    found = {
        f.label: f for f in facts.headline(run_info(samples=samples), pareto_table(trials, Requirement(0.98))).facts
    }

    assert (found["Flip risk"].value, found["Flip risk"].note) == ("unknown", "no validation set")
    assert found["Validation"].value == found["Test, unseen"].value == "not run"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "running", "stopped": None}, "This run is unfinished"),
        ({"status": "interrupted", "stopped": "interrupted"}, "was interrupted after 7 plans"),
        ({"stopped": "max_trials"}, "search.max_trials ended the search"),
        ({"stopped": "timeout"}, "search.timeout ended the search"),
    ],
)
def test_a_run_that_did_not_end_by_itself_says_so_at_the_top(tmp_path: Path, changes: Any, said: str) -> None:
    html = api.report(write_report_run(tmp_path / "run", **changes)).read_text()

    assert said in html[html.index('class="banner"') : html.index("<h1>")]


def test_a_finished_run_has_nothing_to_say_about_its_state() -> None:
    assert facts.state(run_info(), 7) == ()


def test_latencies_of_two_sources_say_it_each() -> None:
    rows = pareto_table(small_run(), Requirement(0.98)).rows
    one, mixed = (
        {cell.key: cell.text(rows[0]) for cell in facts.columns("latency", mixed=mixed)} for mixed in (False, True)
    )

    assert one["latency_ms"] == "55.4 [55.4, 55.4]"
    assert mixed["latency_ms"] == "55.4 [55.4, 55.4] estimated for t4"


# The page


def test_the_page_holds_the_table_the_sentences_and_the_provenance(tmp_path: Path) -> None:
    ceiling = Ceiling(1.95, "base", "estimated", "t4", 0.2, 51)
    html = api.report(write_report_run(tmp_path / "run", samples=[differing()], ceiling=ceiling)).read_text()

    assert len(re.findall(r"<tr data-id=", html)) == len(small_run())
    assert "at most 1.95x at batch 1024, 16/16 on T4, estimated; 20% of the time is launches; worth it from " in html
    assert html.index('data-id="3"') < html.index('data-id="4"') < html.index('data-id="1"')
    assert "ein <mark>Satz</mark>" in html
    assert "ein <mark>Garten</mark>" in html
    for text in ("t5-small", "ab" * 32, "34" * 32, "calibration.txt: 100 samples", "batch 1024", "near-ties of fp32"):
        assert text in html


def test_all_text_from_data_is_escaped(tmp_path: Path) -> None:
    html = api.report(hostile_run(tmp_path / "run")).read_text()
    own = html[: html.index('<script type="application/json"')]

    assert "<img" not in html.replace(asset("main.js"), "")
    assert "<script>alert" not in html
    assert "{{ 7 * 7 }}" in own
    plans = data_of(html)["plans"]
    assert [plan["stage"] for plan in plans].count(printable(EVIL)) == 2
    assert plans[-1]["reason"].endswith(EVIL.splitlines()[0])
    assert any(EVIL_NAME in node["key"] for node in data_of(html)["nodes"])
    # What a terminal obeys or a browser turns around is spelled out, in the page and in what its scripts show.
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e\u2066-\u2069]", own)
    assert r"\u202e \x1b[2J" in own
    shown = json.dumps(data_of(html), ensure_ascii=False)
    assert "\u202e" not in shown and r"\\u202e \\x1b[2J" in shown
    # Nothing but the two scripts, the data and the styles: a text that broke out would have added an element.
    assert len(re.findall("<script", own)) == 0


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_data_in_a_script_is_the_same_data_and_cannot_end_it(value: object) -> None:
    text = json_for_script([value, "</script><!-- ]]> \u2028"])

    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text)[0] == value


def test_the_policy_lets_these_scripts_run_and_nothing_else_load(tmp_path: Path) -> None:
    html = api.report(write_report_run(tmp_path / "run")).read_text()
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert found is not None
    policy = found[1].replace("&#39;", "'")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)

    assert policy.startswith("default-src 'none'; ")
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert not re.search(r'<(script|link|img|iframe)[^>]*(src|href)="(?!data:)', html.replace(scripts[0], ""))


def test_the_page_says_nothing_about_the_machine(tmp_path: Path) -> None:
    directory = write_report_run(tmp_path / "run")
    config = (directory / run_files.CONFIG_FILE).read_text()
    assert str(ROOT) in config

    html = api.report(directory).read_text()

    assert str(ROOT) not in html
    assert str(tmp_path) not in html


def test_a_run_that_wrote_no_nodes_or_sentences_yet_has_a_report(tmp_path: Path) -> None:
    directory = write_report_run(tmp_path / "run", status="running", finished=None, stopped=None, best=None)
    for name in (NODES_FILE, LANDMARKS_FILE):
        (directory / name).unlink()

    html = api.report(directory).read_text()

    assert "has no nodes.json" in html
    assert "Nothing was generated" in html
    assert data_of(html)["nodes"] == []


@pytest.mark.parametrize("trials", [(), (fp32_trial(),)])
def test_a_run_of_few_plans_has_a_report(tmp_path: Path, trials: tuple[Trial, ...]) -> None:
    html = api.report(write_report_run(tmp_path / "run", trials, best=None)).read_text()

    assert len(data_of(html)["plans"]) == len(trials)
    assert "No landmark was rejected." in html


def test_half_a_character_is_shown_as_a_question_mark(tmp_path: Path) -> None:
    directory = write_report_run(tmp_path / "run", samples=[differing(source="half \ud83d here")])

    assert "half ? here" in api.report(directory).read_text()


# The file


def test_a_report_replaces_its_own_and_no_other_file(tmp_path: Path) -> None:
    directory = write_report_run(tmp_path / "run")
    other = tmp_path / "mine.html"

    assert api.report(directory) == directory / REPORT_FILE
    assert api.report(directory) == directory / REPORT_FILE
    assert api.report(directory, other) == other
    assert other.read_bytes() == (directory / REPORT_FILE).read_bytes()
    other.write_text("precious")
    with pytest.raises(OutputExistsError, match=r"mine\.html already exists"):
        api.report(directory, other)
    assert other.read_text() == "precious"


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    directory = write_report_run(tmp_path / "run")
    (directory / NODES_FILE).write_text('{"schema_version": 1}')

    with pytest.raises(InputError, match=r"nodes\.json is not the record of a run's nodes"):
        api.report(directory)
    assert not (directory / REPORT_FILE).exists()


def test_the_command_prints_the_path(tmp_path: Path) -> None:
    directory = write_report_run(tmp_path / "run")

    assert invoke("report", directory).stdout == f"{directory / REPORT_FILE}\n"
    assert invoke("report", directory, "--out", tmp_path / "a.html").stdout == f"{tmp_path / 'a.html'}\n"
    assert "already exists" in fails(invoke("report", directory, "--out", tmp_path / "a.html"), 2)
    assert "is not a run directory" in fails(invoke("report", tmp_path / "nowhere"), 2)


def test_the_parts_of_the_page_are_in_the_package() -> None:
    names = {path.name for path in (resources.files("precision_search.display.html") / "assets").iterdir()}

    assert names == {*SCRIPTS, *STYLES, "report.html"}


def test_the_wheel_holds_the_parts_of_the_page(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))

    names = set(ZipFile(wheel).namelist())
    assert {f"precision_search/display/html/assets/{name}" for name in (*SCRIPTS, *STYLES, "report.html")} <= names


def test_without_plotly_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_report_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    message = fails(invoke("report", run, "--out", tmp_path / "report.html"), 3)
    assert message.startswith("error: the report needs plotly\n  why: ")
    assert "fix: pip install plotly, then: precision-search report RUN" in message
    assert not (tmp_path / "report.html").exists()
