"""What people see while a command works: only on stderr, live on a terminal, lines elsewhere, nothing if quiet."""

from __future__ import annotations

import io
import re
import threading

import pytest
from rich.console import Console

from precision_search.display.live_line import make_console
from precision_search.display.reporters import PlainReporter, QuietReporter, RichReporter, make_reporter, trial_line
from precision_search.judging.trial import Divergence, FlipRisk, SearchReporter, SearchState
from tests.search_models import trial


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def live(clock: Clock, *, verbose: bool = False) -> tuple[RichReporter, Terminal]:
    stream = Terminal()
    console = Console(file=stream, force_terminal=True, width=200, legacy_windows=False)
    return RichReporter(console, verbose=verbose, clock=clock), stream


def shown(stream: Terminal) -> str:
    """The last drawing of the live line."""
    return visible(stream.getvalue()).rstrip("\r").replace("\r", "\n").rpartition("\n")[2]


def tell_everything(reporter: SearchReporter) -> None:
    reporter.stage("reading [model]")
    reporter.note("a note")
    reporter.warn("a warning")
    reporter.trial(trial(3), SearchState(12.34, trial(3)))
    reporter.stage("writing")
    reporter.close()


@pytest.mark.parametrize(
    ("quiet", "stream", "term", "kind"),
    [
        (True, Terminal(), "xterm", QuietReporter),
        (False, Terminal(), "xterm", RichReporter),
        (False, Terminal(), "dumb", PlainReporter),
        (False, io.StringIO(), "xterm", PlainReporter),
    ],
)
def test_the_stream_decides_how_progress_is_shown(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, stream: io.StringIO, term: str, kind: type
) -> None:
    monkeypatch.setenv("TERM", term)

    assert type(make_reporter(quiet=quiet, stream=stream)) is kind


def test_progress_goes_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    tell_everything(make_reporter())

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "writing" in captured.err


def test_plain_progress_is_one_line_a_message_without_escape_codes() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = PlainReporter(stream, clock=clock)
    clock.now += 2.5

    tell_everything(reporter)

    assert stream.getvalue().splitlines() == [
        "[2.5 s] reading [model]",
        "a note",
        "warning: a warning",
        f"{trial_line(trial(3))}, 12.3 screens/s",
        "[2.5 s] writing",
    ]


def test_a_log_says_once_a_minute_how_far_a_long_stage_is() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = PlainReporter(stream, clock=clock)
    reporter.stage("generating")
    for done in range(0, 121, 10):
        reporter.progress(done, 120, "samples")
        clock.now += 10.0

    assert stream.getvalue().splitlines() == [
        "[0.0 s] generating",
        "[60.0 s] generating: 60 of 120 samples, ~1:00 left",
        "[120.0 s] generating: 120 of 120 samples",
    ]


def test_the_live_line_shows_how_much_of_a_stage_is_done_and_its_end_how_long_it_took() -> None:
    clock = Clock()
    reporter, stream = live(clock)
    reporter.stage("generating")
    reporter.progress(0, 100, "samples")
    clock.now += 3.0
    reporter.progress(60, 100, "samples")
    reporter.note("a note")
    assert shown(stream) == "generating: 60 of 100 samples, ~0:02 left (3.0 s)"

    reporter.close()

    lines = [line.strip() for line in visible(stream.getvalue()).replace("\r", "\n").splitlines() if line.strip()]
    assert lines[-1] == "generating (3.0 s)"


def test_quiet_leaves_warnings() -> None:
    stream = io.StringIO()

    tell_everything(QuietReporter(stream))

    assert stream.getvalue() == "warning: a warning\n"


def test_a_terminal_keeps_stages_and_messages_and_loses_the_live_line() -> None:
    clock = Clock()
    reporter, stream = live(clock)

    tell_everything(reporter)

    text = visible(stream.getvalue())
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    assert "a note" in lines
    assert "warning: a warning" in lines
    assert "reading [model]: 4 plans, stage joined, 12.3 screens/s, best 10.00x est. (0.0 s)" in lines
    assert lines[-1] == "writing (0.0 s)"
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_a_terminal_lists_judged_plans_only_if_verbose() -> None:
    for verbose in (False, True):
        reporter, stream = live(Clock(), verbose=verbose)
        tell_everything(reporter)
        assert (trial_line(trial(3)) in visible(stream.getvalue())) == verbose


def test_no_thread_outlives_close_and_closing_twice_is_fine() -> None:
    reporter, _ = live(Clock())
    before = set(threading.enumerate())
    reporter.stage("working")
    assert set(threading.enumerate()) > before

    reporter.close()
    reporter.close()

    assert set(threading.enumerate()) == before


def test_messages_after_close_are_still_shown_and_start_no_thread() -> None:
    reporter, stream = live(Clock())
    reporter.close()
    before = threading.active_count()

    reporter.stage("late stage")
    reporter.warn("late warning")

    assert "late stage" in stream.getvalue()
    assert "late warning" in stream.getvalue()
    assert threading.active_count() == before


def test_a_rejected_plan_says_where_and_why() -> None:
    divergence = Divergence(sample=4, position=2, node="encoder.block.0/Pow", relative_error=0.5)

    line = trial_line(trial(5, verdict="mismatch", exact_match=0.26, first_divergence=divergence, flip_risk=None))

    expected = "other tokens from token 3 of sample 5; first damaged node encoder.block.0/Pow (relative error 0.5)"
    assert line == f"plan 5 (joined): rejected, {expected}, 0.50 s"


def test_a_large_flip_risk_reads_as_in_the_table() -> None:
    assert ", flip risk 1000, " in trial_line(trial(5, flip_risk=FlipRisk(1000.0, 1000.0, 1000.0)))
    assert ", flip risk 0.24, " in trial_line(trial(5, flip_risk=FlipRisk(0.2371, 0.1, 0.5)))


def test_an_error_is_told_in_one_line() -> None:
    line = trial_line(trial(6, verdict="error", message="no memory\n  why: 2 GB", flip_risk=None, latency=None))

    assert line == "plan 6 (joined): rejected, could not be judged: no memory, 0.50 s"


@pytest.mark.parametrize("kind", ["quiet", "plain", "live"])
def test_what_models_say_is_spelled_out(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    hostile = "a \x1b]0;title\x07 \x1b[2J \x9b31m \u202e [bold]b[/bold]"
    stream = Terminal() if kind == "live" else io.StringIO()
    reporter = (
        RichReporter(make_console(stream), verbose=True)
        if kind == "live"
        else make_reporter(quiet=kind == "quiet", verbose=True, stream=stream)
    )

    reporter.stage(hostile)
    reporter.note(hostile)
    reporter.warn(hostile)
    reporter.progress(1, 2, hostile)
    reporter.trial(trial(3, stage=hostile))
    reporter.close()

    text = stream.getvalue()
    assert "warning: a \\x1b]0;title\\x07 \\x1b[2J \\x9b31m \\u202e [bold]b[/bold]" in visible(text).replace("\n", "")
    for raw in ("\x1b]", "\x1b[2J ", "\x07", "\x9b", "\u202e"):
        assert raw not in text
