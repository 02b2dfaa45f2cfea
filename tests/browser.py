"""Debian's Chromium for tests and screenshots: headless, on files of ours or on servers of this machine alone.

Servers listen on 127.0.0.1 at free ports and are stopped, and what a page asks of any other host is refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.conftest import HANGS_S

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page, Route

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1280, 900), (390, 844)
"""Window sizes in CSS pixels."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open page and what went on in it.

    Attributes:
        page: the page.
        requests: addresses it asked for beside its own file.
        problems: what it wrote to the console, and errors.
        dialogs: what it asked the user.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def run(self, script: str, argument: object = None) -> Any:
        """The value of a JavaScript expression, or of a function of the argument."""
        return self.page.evaluate(script, argument)

    def texts(self, selector: str) -> list[str]:
        """The texts of all visible elements that fit."""
        found = self.page.locator(selector).filter(visible=True)
        return [text.strip() for text in found.all_inner_texts()]


def why_no_browser() -> str | None:
    """What is missing for a browser, None if nothing is."""
    if shutil.which("chromium") is None:
        return "needs the program chromium (apt-get install chromium)"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "needs the package playwright"
    return None


def require_browser() -> None:
    """Skips the test where there is no browser; fails it where nothing may be skipped."""
    if reason := why_no_browser():
        if os.environ.get("PRECISION_SEARCH_NO_SKIP"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@contextlib.contextmanager
def launch() -> Iterator[Browser]:
    """A browser with a profile of its own, which is gone at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS, timeout=HANGS_S * 1e3
        )
        try:
            yield browser
        finally:
            browser.close()


class Windows:
    """The windows of a browser, one of each kind, in which file after file is opened.

    A page's process lives on with its window and has compiled our pages' largest script then. Each file comes from an
    empty page, which leaves it nothing of the one before; what a page may store, ours does not use.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._pages: dict[tuple[tuple[int, int], bool], Page] = {}

    @contextlib.contextmanager
    def open(
        self,
        path: Path,
        *,
        size: tuple[int, int] = DESKTOP,
        scheme: Literal["light", "dark"] = "light",
        javascript: bool = True,
    ) -> Iterator[Opened]:
        """Opens a file in the window of that size; a narrow one is a phone's, with touch."""
        page = self._pages.get((size, javascript)) or self._new(size, javascript)
        page.emulate_media(color_scheme=scheme)
        page.mouse.move(0, 0)
        url = path.resolve().as_uri()
        opened = Opened(page)
        handlers: dict[Any, Callable[..., None]] = {
            "console": lambda message: opened.problems.append(f"{message.type}: {message.text}"),
            "pageerror": lambda error: opened.problems.append(str(error)),
            "request": lambda request: opened.requests.extend({request.url} - {url}),
            "dialog": lambda dialog: _dismiss(opened, dialog),
        }
        for event, handler in handlers.items():
            page.on(event, handler)
        try:
            page.goto(url)
            yield opened
        finally:
            for event, handler in handlers.items():
                page.remove_listener(event, handler)
            page.goto("about:blank")

    def _new(self, size: tuple[int, int], javascript: bool) -> Page:
        phone = size[0] < 500
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            java_script_enabled=javascript,
            has_touch=phone,
            is_mobile=phone,
        )
        context.set_default_timeout(HANGS_S * 1e3)
        self._pages[size, javascript] = context.new_page()
        return self._pages[size, javascript]


@contextlib.contextmanager
def open_page(width: int = 1280, height: int = 900) -> Iterator[Page]:
    """An empty page in a browser of its own, for servers of this machine."""
    require_browser()
    with launch() as browser:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(HANGS_S * 1e3)
        page.route("**/*", _only_here)
        yield page


@contextlib.contextmanager
def serving(tool: str, *arguments: str | Path) -> Iterator[str]:
    """A Python package's server command, run with `--port` and `--host`; gives its address while it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = str(Path(sys.executable).with_name(tool))
    command = [script, *map(str, arguments), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(process, port, command)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _dismiss(opened: Opened, dialog: Dialog) -> None:
    opened.dialogs.append(dialog.message)
    dialog.dismiss()


def _wait(process: subprocess.Popen[bytes], port: int, command: Sequence[str]) -> None:
    end = time.monotonic() + HANGS_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{' '.join(command)} does not answer")


def _only_here(route: Route) -> None:
    if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        route.continue_()
    else:
        route.abort()
