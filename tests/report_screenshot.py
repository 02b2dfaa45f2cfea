"""Screenshots of a report in Debian's Chromium: `python -m tests.report_screenshot RUN` writes those in `docs/images`.

RUN is the run directory of a finished run, the demo's for those in the docs; its report is written anew. With a second
argument, a directory, the whole pages go there, to be looked at. Needs the package `playwright` and the program
`chromium`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from precision_search import api
from tests.browser import PHONE, Windows, launch
from tests.conftest import ROOT

IMAGES = ROOT / "docs/images"
SHOTS: tuple[tuple[str, tuple[int, int], Literal["light", "dark"]], ...] = (
    ("report.png", (1280, 1000), "light"),
    ("report-dark.png", (1280, 1000), "dark"),
    ("report-phone.png", PHONE, "light"),
)


def take(run: Path, images: Path, *, whole: bool) -> None:
    """Writes images of the report of `run` to the directory `images`: the first window, or the whole page."""
    report = api.report(run)
    with launch() as browser:
        for name, size, scheme in SHOTS:
            with Windows(browser).open(report, size=size, scheme=scheme) as opened:
                opened.page.wait_for_selector("#progress .main-svg")
                opened.page.screenshot(path=images / name, full_page=whole)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else IMAGES, whole=len(sys.argv) > 2)
