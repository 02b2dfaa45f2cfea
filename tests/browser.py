"""Debian's Chromium for the tests: headless, given nothing but a file, and everything it does is recorded."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True, slots=True)
class Opened:
    """An open page and what went on in it: requests for anything but the file itself, console messages, dialogs."""

    page: Page
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


def chromium() -> str:
    """The browser's path; skips the test without one, or fails it where nothing may be skipped."""
    found = shutil.which("chromium")
    if found is None:
        why = "needs chromium (apt-get install chromium)"
        (pytest.fail if os.environ.get("PRECISION_SEARCH_NO_SKIP") else pytest.skip)(why)
    return found


@contextlib.contextmanager
def open_report(
    path: Path,
    *,
    size: tuple[int, int] = (1280, 900),
    scheme: Literal["light", "dark"] = "light",
    javascript: bool = True,
) -> Iterator[Opened]:
    """Opens a file in a window of `size` (CSS pixels); whatever else it asks for is refused and noted."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            java_script_enabled=javascript,
            has_touch=size[0] < 500,
            is_mobile=size[0] < 500,
        )
        opened = Opened(context.new_page())
        url = path.resolve().as_uri()

        def route(route: object) -> None: ...

        opened.page.on("console", lambda message: opened.problems.append(f"{message.type}: {message.text}"))
        opened.page.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.page.on("request", lambda request: request.url == url or opened.requests.append(request.url))
        opened.page.on("dialog", lambda dialog: (opened.dialogs.append(dialog.message), dialog.dismiss()))
        opened.page.goto(url)
        try:
            yield opened
        finally:
            browser.close()
