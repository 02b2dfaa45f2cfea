"""Screenshots of a report in Debian's Chromium: `python -m tests.report_screenshot RUN` writes those in `docs/images`.

RUN is the run directory of a finished run of the demo; its report is written anew. Needs `playwright` (the package; no
browser of its own) and the Debian package `chromium`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from precision_search import api
from tests.browser import open_report
from tests.conftest import ROOT

IMAGES = ROOT / "docs/images"
DESKTOP, PHONE = (1280, 1000), (390, 844)
SHOTS = (
    ("report.png", DESKTOP, "light"),
    ("report-dark.png", DESKTOP, "dark"),
    ("report-phone.png", PHONE, "light"),
)


def take(run: Path, images: Path, *, whole: bool = False) -> None:
    """Writes the images of the report of `run` to `images`: what a window shows, or the whole page."""
    report = api.report(run).resolve()
    for name, size, scheme in SHOTS:
        with open_report(report, size=size, scheme=scheme) as opened:
            opened.page.wait_for_selector("#progress .main-svg")
            opened.page.screenshot(path=images / name, full_page=whole)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else IMAGES, whole=len(sys.argv) > 2)
