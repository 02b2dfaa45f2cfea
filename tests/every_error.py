"""`pytest --every-error`: a whole run fails unless its tests made every error of the catalogue happen.

In: the log that `tests.error_log` writes in this process, in pytest's workers and in all Python processes that tests
start. Out: the places that nothing reached, in the summary. Those that need what a test machine has not stand here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.error_catalogue import ROOT, Site, sites
from tests.error_log.sitecustomize import VARIABLE, record

OPTION = "--every-error"
LOG = ROOT / "build/errors-made.txt"
REMEDY = "write tests for their text and exit code, or delete what cannot happen"

UNTESTED: Mapping[tuple[str, str], str] = {}
"""Module and text of errors that no test can make happen, and why."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help="Fail unless tests made every error of the catalogue happen.")


def pytest_configure(config: pytest.Config) -> None:
    """The first process asks all others, its workers among them, to write to one log."""
    if config.getoption(OPTION) and not hasattr(config, "workerinput"):
        LOG.parent.mkdir(exist_ok=True)
        LOG.write_bytes(b"")
        folder = str(Path(__file__).parent / "error_log")
        os.environ[VARIABLE] = str(LOG)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        record(LOG)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if config.getoption(OPTION) and not hasattr(config, "workerinput") and exitstatus == pytest.ExitCode.OK:
        problems = find_problems(LOG.read_text(), sites(), UNTESTED)
        config.stash[_PROBLEMS] = problems
        if problems:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if problems := config.stash.get(_PROBLEMS, []):
        terminalreporter.section("errors that no test made happen")
        terminalreporter.write_line("\n".join([*problems, REMEDY]))


_PROBLEMS = pytest.StashKey[list[str]]()


def find_problems(log: str, catalogue: tuple[Site, ...], untested: Mapping[tuple[str, str], str]) -> list[str]:
    """What of the catalogue is not in the log, and what is listed as untested without being so."""
    made = [[_place(place) for place in line.split("\t")] for line in log.splitlines()]
    missing = [site for site in catalogue if not any(_is_made(site, frames) for frames in made)]
    problems = [str(site) for site in missing if (site.module, site.what) not in untested]
    listed = {(site.module, site.what) for site in missing}
    return problems + [f"listed as untested, but it is tested or gone: {key}" for key in untested if key not in listed]


def _place(text: str) -> tuple[str, int]:
    path, _, line = text.rpartition(":")
    _, found, inside = path.rpartition("precision_search/")
    return (f"{found}{inside}", int(line))


def _is_made(site: Site, frames: list[tuple[str, int]]) -> bool:
    made, caller = frames
    return site.place.hold(*made) and (site.caller is None or site.caller.hold(*caller))


if __name__ == "__main__":
    print("\n".join(find_problems(LOG.read_text(), sites(), UNTESTED)))
