"""What people see in a real terminal, from 60 to 200 columns: real runs of a tiny model in tmux."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from precision_search.errors import InternalError
from tests.cli_models import write_run
from tests.conftest import ROOT
from tests.output_models import small_run
from tests.terminal import PROMPT, Terminal, require_tmux
from tests.tiny_model import write_tiny_config

WIDTHS = (60, 80, 120, 200)
LIVE = re.compile(r"searching.*: \d+ plans.*, best ~?\d\.\d\dx est\., up to ~\d+:\d\d(:\d\d)? left( \(.+\))?")
DATA = ROOT / "tests/data/terminal"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def tmux() -> str:
    return require_tmux()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a config whose search goes on for minutes, one whose search ends soon, and a finished run."""
    folder = tmp_path_factory.mktemp("terminal")
    write_tiny_config(folder / "long", "op-types", max_trials=3000)
    write_tiny_config(folder / "short", "nodes", max_trials=5)
    write_run(folder / "run", small_run())
    return folder


@pytest.fixture
def terminal(work: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    with Terminal(work, getattr(request, "param", 80)) as opened:
        yield opened


@pytest.fixture
def fresh_terminal(work: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """For what depends on the signals of a terminal."""
    with Terminal(work, getattr(request, "param", 80), fresh=True) as opened:
        yield opened


def last_line(screen: str) -> str:
    return screen.rpartition("\n")[2]


def live_lines(screen: str) -> list[str]:
    return [line for line in screen.split("\n") if line.startswith("searching")]


def wait_for_live_line(terminal: Terminal) -> str:
    """The live line once it holds all that it can; what is left of another one would be a second line."""
    screen = terminal.wait(lambda screen: LIVE.fullmatch(last_line(screen)))
    assert len(live_lines(screen)) == 1
    return last_line(screen)


@pytest.mark.parametrize("fresh_terminal", WIDTHS, indirect=True)
def test_the_live_line_fits_and_control_c_leaves_a_usable_terminal(
    fresh_terminal: Terminal, work: Path, request: pytest.FixtureRequest
) -> None:
    width = request.node.callspec.params["fresh_terminal"]
    out = f"stopped-{width}"

    fresh_terminal.type(f"precision-search run long/tiny.toml --out {out}")
    line = wait_for_live_line(fresh_terminal)
    assert len(line) < width
    assert ("screens/s" in line) == (width >= 80)
    assert ("strategy op-types" in line) == (width >= 120)
    assert not fresh_terminal.cursor_is_visible()

    fresh_terminal.press("C-c")
    screen = fresh_terminal.wait(lambda screen: last_line(screen).rstrip() == PROMPT.rstrip())

    assert fresh_terminal.cursor_is_visible()
    assert " left" not in "\n".join(live_lines(screen))
    history = "\n".join(fresh_terminal.history())
    assert re.search(r"^searching.*: \d+ plans.*best ~?\d\.\d\dx est\.", history, re.MULTILINE)
    assert len(re.findall(r"^searching", history, re.MULTILINE)) == 1
    assert "^C" not in history
    resume = f"interrupted; go on with: precision-search run long/tiny.toml --out {out} --resume"
    assert fresh_terminal.history()[-2] == resume
    fresh_terminal.type("echo still $((20 + 3)) here")
    fresh_terminal.wait(lambda screen: "still 23 here" in screen)


def test_the_live_line_follows_the_width_and_leaves_nothing_behind(fresh_terminal: Terminal) -> None:
    fresh_terminal.type("precision-search run long/tiny.toml --out resized")
    wait_for_live_line(fresh_terminal)

    for width in (200, 60, 120, 61, 80):
        fresh_terminal.resize(width)
        screen = fresh_terminal.wait(
            lambda screen, width=width: (  # type: ignore[misc]
                LIVE.fullmatch(last_line(screen))
                and len(live_lines(screen)) == 1
                and len(last_line(screen)) < width
                and ("strategy" in last_line(screen)) == (width >= 120)
            )
        )
        assert last_line(screen)
    fresh_terminal.press("C-c")
    fresh_terminal.wait(lambda screen: last_line(screen).rstrip() == PROMPT.rstrip())

    history = "\n".join(fresh_terminal.history())
    assert " left" not in history
    assert len(re.findall("searching", history)) == 1


MESSAGES = """
import sys, time, warnings
from precision_search.display.reporters import make_reporter

reporter = make_reporter()
reporter.stage("working, with a detail that only a wide terminal has room for")
for number in range(60):
    reporter.warn(f"reported {number:03} " + "x" * 70)
    print(f"printed {number:03}", file=sys.stderr)
    warnings.warn_explicit(f"warned {number:03}", UserWarning, "file.py", number)
    time.sleep(0.02)
reporter.stage("ending")
reporter.close()
"""


def test_nothing_is_lost_when_messages_come_while_the_line_is_live(fresh_terminal: Terminal, work: Path) -> None:
    (work / "messages.py").write_text(MESSAGES)

    fresh_terminal.type("clear; python3=$(sed -n 's/^exec //p' $(command -v precision-search) | cut -d' ' -f1)")
    fresh_terminal.type('eval "$python3 messages.py"; echo ended=')
    for width in (70, 110, 66):
        fresh_terminal.resize(width)
    fresh_terminal.wait(lambda screen: "ended=" in screen.split("\n"))

    lines = fresh_terminal.history()
    for kind in ("reported", "printed", "warned"):
        found = [line for line in lines if re.search(rf"\b{kind} \d{{3}}", line)]
        assert [re.findall(rf"{kind} (\d{{3}})", line) for line in found] == [[f"{n:03}"] for n in range(60)]
    assert all(line.endswith("x" * 70) for line in lines if "reported 0" in line)
    assert [line for line in lines if line.startswith("working")] == [line for line in lines if "working" in line]
    assert len([line for line in lines if line.startswith("working")]) == 1


@pytest.mark.parametrize("terminal", [60, 80, 120, 200], indirect=True)
@pytest.mark.parametrize("command", ["pareto run", "doctor", "inspect short/model --data short/test.txt"])
def test_reports_are_laid_out_for_the_width(terminal: Terminal, command: str, request: pytest.FixtureRequest) -> None:
    width = request.node.callspec.params["terminal"]

    assert terminal.run(f"precision-search {command}") == 0

    lines = [line for line in terminal.history() if not line.startswith(PROMPT)]
    # A line that the terminal had to wrap is longer than it is wide; only a node's key may be.
    assert [line for line in lines if len(line) > width and len(line.split()[-1]) + 4 < width] == []
    assert not [line for line in lines if "…" in line]


@pytest.mark.parametrize("terminal", [60, 120], indirect=True)
def test_the_table_is_what_the_documentation_shows(terminal: Terminal, request: pytest.FixtureRequest) -> None:
    """If the table was changed on purpose, the file is what the test found."""
    width = request.node.callspec.params["terminal"]

    assert terminal.run("precision-search pareto run") == 0

    lines = terminal.screen().split("\n")[:-2]
    assert "\n".join(line.rstrip() for line in lines) + "\n" == (DATA / f"pareto-{width}.txt").read_text()


STYLE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_leaves_no_style_and_verbose_lists_the_plans(work: Path, no_color: bool) -> None:
    environment = {"NO_COLOR": "1"} if no_color else {}
    with Terminal(work, 120, fresh=False, **environment) as terminal:
        assert terminal.run(f"precision-search run -v short/tiny.toml --out styled-{no_color}") == 0
        styled, lines = terminal.styled(), terminal.history()

    assert (STYLE.search(styled) is None) == no_color
    # The first stage's line stood in the window's first row, of which tmux keeps what is erased.
    assert len([line for line in lines if line.startswith("generating the fp32 reference")]) == 3
    assert [line for line in lines if line.startswith("plan 0 (fp32): stable, 1.00x estimated")]
    assert [line for line in lines if line.startswith("plan 1 (all-low): rejected, ")]
    assert [line for line in lines if line.startswith("searching, strategy nodes: ")]
    assert [line for line in lines if line.startswith("> chosen: plan")]


def test_quiet_shows_data_and_warnings_only(terminal: Terminal) -> None:
    assert terminal.run("precision-search run short/tiny.toml --out quiet -q") == 0

    lines = terminal.screen().split("\n")
    table = next(number for number, line in enumerate(lines) if "latency ms" in line)
    warnings, rest = "".join(lines[:table]), lines[table:]
    assert warnings.startswith("warning: ")
    assert "warning: parity with transformers is skipped" in warnings
    assert "left" not in "\n".join(rest).partition("> chosen")[0]
    assert rest[-1] == PROMPT.rstrip()
    assert not [line for line in rest if line.startswith(("searching", "generating", "run:", "model:"))]


def test_files_get_plain_lines(work: Path, terminal: Terminal) -> None:
    assert terminal.run("precision-search run short/tiny.toml --out redirected 2> err.txt > out.txt") == 0

    messages, data = (work / "err.txt").read_text(), (work / "out.txt").read_text()
    assert "\x1b" not in messages + data
    assert "\r" not in messages + data
    assert re.search(r"^\[\d+\.\d s\] searching, strategy nodes$", messages, re.MULTILINE)
    assert re.search(r"^plan 0 \(fp32\): stable, .* screens/s$", messages, re.MULTILINE)
    assert "> chosen: plan" in data
    assert "searching" not in data


MEASURING = re.compile(r"\[\d+\.\d s\] measuring activation ranges")
ESTIMATING = re.compile(r"\[\d+\.\d s\] estimating what could be gained at most")


def test_pipes_get_plain_lines(work: Path, terminal: Terminal) -> None:
    inspect = "precision-search inspect short/model --data short/test.txt"
    assert terminal.run(f"{inspect} 2>&1 > data.txt | cat > messages.txt; {inspect} | cat > data.txt") == 0

    messages, data = (work / "messages.txt").read_text(), (work / "data.txt").read_text()
    assert "\x1b" not in messages + data
    measuring, estimating = messages.splitlines()
    assert MEASURING.fullmatch(measuring)
    assert ESTIMATING.fullmatch(estimating)
    assert data.startswith("model: t5")
    # The data went into a pipe, the progress still to the terminal.
    assert [line for line in terminal.history() if line.startswith("measuring activation ranges (")]


def test_a_dumb_terminal_gets_plain_lines(work: Path) -> None:
    with Terminal(work, 120, TERM="dumb") as terminal:
        terminal.type("precision-search inspect short/model --data short/test.txt; echo exit=$?=")
        terminal.wait(lambda screen: "exit=0=" in screen.split("\n"))

        assert STYLE.search(terminal.styled()) is None
        assert [line for line in terminal.history() if MEASURING.fullmatch(line)]


def test_an_internal_error_shows_its_traceback_only_if_verbose(work: Path) -> None:
    (work / "broken").mkdir()
    (work / "broken/sitecustomize.py").write_text(
        "import precision_search.config as c\ndef load(*a): raise ValueError('odd')\nc.load_config = load\n"
    )
    path = {"PYTHONPATH": f"{work / 'broken'}:{ROOT}"}
    with Terminal(work, 120, fresh=True, **path) as terminal:
        for flags, shown in (("run x.toml", False), ("-v run x.toml", True), ("run x.toml --verbose", True)):
            assert terminal.run(f"precision-search {flags}") == InternalError.exit_code
            screen = terminal.screen()
            assert "error: ValueError: odd" in screen
            assert ("Traceback (most recent call last)" in screen) == shown
