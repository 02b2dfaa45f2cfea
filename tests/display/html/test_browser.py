"""The report in a real browser: it opens in silence, asks for nothing, and its parts do what they promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from precision_search import api
from precision_search.judging.trial import Trial, TrialLatency
from tests.browser import DESKTOP, PHONE, Opened, Windows, launch, require_browser
from tests.output_models import fp32_trial, run_info, small_run
from tests.report_models import EVIL, EVIL_NAME, hostile_run, huge_run, nodes_of, write_report_run
from tests.search_models import trial

pytestmark = pytest.mark.slow

POINTS = """document.getElementById("pareto").data.filter(t => t.meta === "plans").flatMap(t => t.customdata)"""
DRAWN = """document.querySelectorAll("#pareto .scatterlayer .points path.point").length"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""What the browser still has to tell the page (it scrolled, it turned dark), the page has heard after that."""
ROWS = "#plans tbody tr"


@pytest.fixture(scope="module")
def windows() -> Iterator[Windows]:
    require_browser()
    with launch() as browser:
        yield Windows(browser)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return api.report(write_report_run(tmp_path_factory.mktemp("report") / "run"))


@pytest.fixture
def opened(windows: Windows, report: Path) -> Iterator[Opened]:
    with windows.open(report) as found:
        yield found
        assert found.problems == []
        assert found.requests == []


def ids(opened: Opened) -> list[int]:
    """The plans that the table shows, from the top."""
    found: list[int] = opened.run(
        "[...document.querySelectorAll('#plans tbody tr')].filter(r => !r.hidden).map(r => +r.dataset.id)"
    )
    return found


def place_of(opened: Opened, plan: int) -> tuple[float, float]:
    """Where a plan's point is drawn in the window, in pixels."""
    opened.page.locator("#pareto").scroll_into_view_if_needed()
    x, y = opened.run(
        """(id) => {
          const box = document.getElementById("pareto");
          const trace = box.data.find((t) => t.meta === "plans" && t.customdata.includes(id));
          const layout = box._fullLayout;
          const [x, y] = [layout[trace.xaxis.replace("x", "xaxis")], layout[trace.yaxis.replace("y", "yaxis")]];
          const index = trace.customdata.indexOf(id);
          const { left, top } = box.getBoundingClientRect();
          return [left + x._offset + x.d2p(trace.x[index]), top + y._offset + y.d2p(trace.y[index])];
        }""",
        plan,
    )
    return x, y


def hover(opened: Opened, plan: int) -> None:
    """Moves the pointer over a plan's point, once the window has come to rest, and waits for what it says."""
    place_of(opened, plan)
    opened.run(TWO_FRAMES)
    x, y = place_of(opened, plan)
    opened.page.mouse.move(x - 3, y - 3)
    opened.page.mouse.move(x, y, steps=3)
    opened.page.wait_for_selector("#tip:not([hidden])")


def click(opened: Opened, plan: int) -> None:
    x, y = place_of(opened, plan)
    opened.page.mouse.move(x, y)
    opened.page.mouse.click(x, y)


# Points


def test_every_judged_plan_is_one_point(opened: Opened) -> None:
    assert sorted(opened.run(POINTS)) == [trial.id for trial in small_run()]
    assert opened.run(DRAWN) == len(small_run())


UNKNOWN: dict[str, Any] = {"latency": None, "flip_risk": None, "validation_match": None}
NO_VALIDATION = dataclasses.replace(run_info().samples, validation=None, test=None)
MEASURED = TrialLatency(4.0, 3.9, 4.2, 2.5, "measured", None, 2.4, 2.6)


@pytest.mark.parametrize(
    ("trials", "changes"),
    [
        ((), {"best": None}),
        ((fp32_trial(),), {"best": None}),
        (
            (
                fp32_trial(),
                *(trial(n, verdict=v, **UNKNOWN) for n, v in ((1, "mismatch"), (2, "nonfinite"), (3, "error"))),
            ),
            {},
        ),
        (
            (dataclasses.replace(fp32_trial(), flip_risk=None), trial(1, flip_risk=None, validation_match=None)),
            {"samples": NO_VALIDATION},
        ),
        ((dataclasses.replace(fp32_trial(), latency=None), trial(1, latency=None), trial(2, **UNKNOWN)), {}),
        ((dataclasses.replace(fp32_trial(), latency=MEASURED), trial(1, latency=MEASURED), trial(2)), {}),
        (small_run()[:3], {"status": "interrupted", "stopped": "interrupted", "best": None}),
    ],
    ids=["no plan", "only fp32", "all rejected", "no validation", "no latency", "measured", "interrupted"],
)
def test_odd_runs_open_too(
    windows: Windows, tmp_path: Path, trials: tuple[Trial, ...], changes: dict[str, Any]
) -> None:
    report = api.report(write_report_run(tmp_path / "run", trials, **changes))

    with windows.open(report) as opened:
        if trials:
            assert sorted(opened.run(POINTS)) == [trial.id for trial in trials]
            assert opened.run(DRAWN) == len(trials)
        assert ids(opened) == [] or sorted(ids(opened)) == [trial.id for trial in trials]
        assert (opened.problems, opened.requests) == ([], [])


def test_points_without_flip_risk_or_latency_lie_in_bands_of_their_own(windows: Windows, tmp_path: Path) -> None:
    trials = (fp32_trial(), trial(1), trial(2, verdict="mismatch", expected_ms=9.0, **UNKNOWN), trial(3, latency=None))
    with windows.open(api.report(write_report_run(tmp_path / "run", trials))) as opened:
        axes = opened.run(
            """Object.fromEntries(document.getElementById("pareto").data.filter(t => t.meta === "plans")
               .flatMap(t => t.customdata.map(id => [id, t.xaxis + t.yaxis])))"""
        )
        assert axes == {"0": "xy", "1": "xy", "2": "xy2", "3": "x2y"}
        assert "rejected: mismatch" in opened.run("document.getElementById('pareto').textContent")


def test_two_thousand_plans_over_24_layers_open(windows: Windows, tmp_path: Path) -> None:
    trials, nodes = huge_run()
    report = api.report(write_report_run(tmp_path / "run", trials, nodes=nodes))

    with windows.open(report) as opened:
        assert len(opened.run(POINTS)) == len(trials) == opened.run(DRAWN)
        assert opened.run(OVERFLOW) == 0
        assert (opened.problems, opened.requests) == ([], [])


def test_flip_risks_of_all_sizes_are_told_apart_and_0_is_drawn(windows: Windows, tmp_path: Path) -> None:
    risks = [0.05, 0.2, 1.0, 2.0, 80.0]
    others = (
        trial(n, flip_risk=dataclasses.replace(small_run()[3].flip_risk, value=r, low=0.0, high=1.2 * r))  # type: ignore[type-var]
        for n, r in enumerate(risks, start=1)
    )
    with windows.open(api.report(write_report_run(tmp_path / "run", (fp32_trial(), *others)))) as opened:
        heights = [place_of(opened, number)[1] for number in range(6)]
        assert heights == sorted(heights, reverse=True)
        assert heights[0] - heights[3] > 60
        assert "log scale above 0.1" in opened.run("document.getElementById('pareto').textContent")


# The pointer


def test_a_pointer_over_a_point_shows_the_plan(opened: Opened) -> None:
    hover(opened, 3)

    tip = opened.page.inner_text("#tip")
    for text in (
        "Plan 3, chosen",
        "ranges",
        "both: Pow; enc: Add MatMul",
        "55.4 [55.4, 55.4]",
        "1.41×",
        "1.2 [0.3, 2.1]",
        "17.1",
        "204",
    ):
        assert text in tip
    assert "latency, ms, estimated for t4" in tip


def test_a_click_on_a_point_filters_the_table_until_it_is_cleared(opened: Opened) -> None:
    assert opened.page.is_hidden("#clear")

    click(opened, 4)

    assert ids(opened) == [4]
    assert "Plan 4" in opened.page.inner_text("#details h3")
    assert opened.texts("#count") == ["1 of 7 shown"]
    opened.page.click("#clear")
    assert len(ids(opened)) == 7
    assert "Plan 3, chosen" in opened.page.inner_text("#details h3")


def test_a_rejected_plan_can_be_clicked_and_says_why(opened: Opened) -> None:
    click(opened, 1)

    assert ids(opened) == [1]
    assert "first damaged node encoder.block.1" in opened.page.inner_text("#details")


# The table


def test_the_table_opens_with_the_winner_first_and_the_rejected_last(opened: Opened) -> None:
    assert ids(opened) == [3, 4, 0, 5, 1, 2, 6]


def test_columns_sort_as_numbers_with_the_unknown_last(opened: Opened) -> None:
    for column, ascending in (
        ("id", [0, 1, 2, 3, 4, 5, 6]),
        ("latency_ms", [1, 2, 3, 4, 5, 0, 6]),
        ("flip_risk", [0, 4, 3, 5, 1, 2, 6]),
        ("casts", [0, 6, 4, 3, 5]),
    ):
        assert_sorts(opened, column, ascending)


def assert_sorts(opened: Opened, column: str, ascending: list[int]) -> None:
    """A click on the column sorts by it, another turns the order around."""
    header = opened.page.locator(f"#plans th:has(button[data-key={column}])")
    button = header.locator("button")
    known = [number for number in ascending if opened.run(f"planById.get({number}).{column} !== null")]

    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    first = ids(opened)
    values = opened.run(f"(ids) => ids.map((id) => planById.get(id).{column})", first)
    found = [value for value in values if value is not None]
    assert found == sorted(found)
    assert values == found + [None] * (7 - len(found))
    button.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    second = opened.run(f"(ids) => ids.map((id) => planById.get(id).{column})", ids(opened))
    assert second == found[::-1] + [None] * (7 - len(found))
    assert set(known) <= set(first)


def test_verdicts_and_text_filter_the_table(opened: Opened) -> None:
    opened.page.click("[data-verdict=stable].toggle")
    assert sorted(ids(opened)) == [1, 2, 6]
    opened.page.click("[data-verdict=mismatch].toggle")
    assert ids(opened) == [2]
    opened.page.click("[data-verdict=stable].toggle")
    opened.page.fill("#search", "DECODER")
    assert sorted(ids(opened)) == [4, 5]
    opened.page.fill("#search", "")
    assert opened.texts("#count") == ["5 of 7 shown"]


def test_the_blocks_follow_the_selected_plan(opened: Opened) -> None:
    def state(role: str) -> list[str]:
        found: list[str] = opened.run(
            """(role) => [...document.querySelectorAll(".blocks tbody tr")].filter(r => r.cells[0].title === role)
               .flatMap(r => [...r.cells].slice(1).map(c => c.className))""",
            role,
        )
        return found

    assert "plan 3" in opened.page.inner_text("#blocks-plan")
    assert state("encoder.block.*.x/MatMul") == ["is-fp32", "is-fp32"]
    assert state("decoder.block.*.x/MatMul.1") == ["is-low", "is-low"]
    assert state("encoder.block.*.layer.0.SelfAttention/Log") == ["is-fixed", "is-absent"]

    opened.page.click("#plans button:text-is('4')")

    assert len(ids(opened)) == 7
    assert "plan 4" in opened.page.inner_text("#blocks-plan")
    assert state("decoder.block.*.x/MatMul.1") == ["is-fp32", "is-fp32"]
    opened.page.click("#only-kept")
    assert state("decoder.block.*.x/Relu.1") == []


def test_a_cell_says_which_node_it_is_and_why(opened: Opened) -> None:
    opened.page.locator(".blocks td.is-fp32").first.hover()

    tip = opened.page.inner_text("#tip")
    assert "fp32" in tip
    assert "encoder.block.0.x/Add" in tip


def test_the_ranges_can_be_narrowed_to_an_op_type(opened: Opened) -> None:
    points = (
        """document.getElementById("ranges").data.filter(t => t.mode === "markers").flatMap(t => t.customdata).length"""
    )
    every = opened.run(points)

    assert every == len(nodes_of(small_run()).nodes)
    opened.page.select_option("#range-type", "Pow")
    assert 0 < opened.run(points) < every
    lines = opened.run("document.getElementById('ranges').layout.shapes.map(s => s.y0)")
    assert lines == [65504, 6.1e-05, 32752]
    opened.page.select_option("#range-what", "inside")
    assert opened.run(points) == 0
    assert "4 nodes without a point" in opened.page.inner_text("#ranges-legend")


def test_the_progress_shows_every_evaluation_and_the_best_so_far(opened: Opened) -> None:
    traces = opened.run("document.getElementById('progress').data.map(t => [t.meta ?? null, t.x, t.y])")
    by_name = {name: (x, y) for name, x, y in traces if name}

    assert by_name["stages"][0] == list(range(1, 8))
    assert by_name["fastest"][1] == [1, 1, 1, 1.41, 1.41, 1.41, 1.41]
    large = "document.getElementById('progress').data[1].marker.size"
    assert opened.run(large) == [7, 11, 7, 7]
    assert "large dot: the chosen plan" in opened.page.inner_text("#progress-legend")


# Where it is read


def test_dark_mode_colours_page_and_plots_also_when_it_changes(windows: Windows, report: Path) -> None:
    ink = "getComputedStyle(document.querySelector('#progress .xtick text')).fill"
    background = "getComputedStyle(document.body).backgroundColor"
    with windows.open(report, scheme="dark") as opened:
        dark = (opened.run(ink), opened.run(background))
        opened.page.emulate_media(color_scheme="light")
        opened.run(TWO_FRAMES)
        light = (opened.run(ink), opened.run(background))
    assert dark == ("rgb(230, 235, 241)", "rgb(16, 21, 27)")
    assert light == ("rgb(23, 32, 43)", "rgb(246, 247, 249)")


@pytest.mark.parametrize("size", [PHONE, (768, 1024), DESKTOP])
@pytest.mark.parametrize("hostile", [False, True])
def test_no_window_scrolls_sideways(
    windows: Windows, report: Path, tmp_path: Path, size: tuple[int, int], hostile: bool
) -> None:
    path = api.report(hostile_run(tmp_path / "run")) if hostile else report
    with windows.open(path, size=size) as opened:
        opened.run("document.querySelectorAll('details').forEach((found) => { found.open = true; })")
        assert opened.run(OVERFLOW) == 0


def test_a_finger_has_something_to_touch(windows: Windows, report: Path) -> None:
    with windows.open(report, size=PHONE) as opened:
        sizes = opened.run(
            """[...document.querySelectorAll("button, select, input, summary")].map(e => e.getBoundingClientRect())
               .filter(b => b.width).map(b => Math.min(b.width, b.height))"""
        )
        assert min(sizes) >= 40
        opened.page.tap("#plans tbody tr[data-id='4'] button")
        assert "Plan 4" in opened.page.inner_text("#details h3")
        assert (opened.problems, opened.requests) == ([], [])


def test_without_scripts_the_table_is_there(windows: Windows, report: Path) -> None:
    with windows.open(report, javascript=False) as opened:
        assert len(opened.texts(ROWS)) == len(small_run())
        assert opened.texts(".scripted") == []
        assert "Plots need JavaScript" in opened.page.inner_text("main")


def test_text_from_models_and_data_stays_text(windows: Windows, tmp_path: Path) -> None:
    report = api.report(hostile_run(tmp_path / "run"))
    with windows.open(report) as opened:
        page = opened.page
        for row in ("4", "7"):
            page.click(f"#plans tbody tr[data-id='{row}'] button")
            page.locator("#details details").evaluate_all("(found) => found.forEach((one) => { one.open = true; })")
        hover(opened, 4)
        for selector in ("#plans tbody tr[data-id='4'] .stage", "#tip", ".pair"):
            assert "<img src=x onerror=alert(2)>" in page.locator(selector).first.inner_text()
        assert f"stage {EVIL}".split("\u2028", maxsplit=1)[0] in page.inner_text("#details")
        assert EVIL_NAME in page.inner_text(".kicker")
        assert page.locator("body img").count() == 0
        assert (opened.dialogs, opened.problems, opened.requests) == ([], [], [])


def test_even_a_script_that_got_in_would_not_run(windows: Windows, report: Path, tmp_path: Path) -> None:
    """What the policy is for: the browser refuses scripts that are not the page's own, and all addresses."""
    broken = tmp_path / "broken.html"
    evil = "<script>alert(1)</script><img src='http://127.0.0.1:9/x.png' onerror='alert(2)'>"
    broken.write_text(report.read_text().replace("<main>", f"<main>{evil}", 1))
    with windows.open(broken) as opened:
        assert opened.dialogs == []
        assert len(opened.problems) >= 2
        assert sorted(opened.run(POINTS)) == list(range(7))
