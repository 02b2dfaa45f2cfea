"""A headless Chromium, and the servers that it looks at: for tests and screenshots of what people see in other tools.

Everything stays on this machine: servers listen on 127.0.0.1 at free ports and are stopped, and what a page asks of any
other host is refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_START_SECONDS = 60
"""How long a server may take to answer; on a busy machine Python itself takes seconds to start."""


def require_chromium() -> str:
    """Where Chromium is. Without it a test skips; in continuous integration it fails."""
    if found := shutil.which("chromium"):
        return found
    reason = "chromium is not installed (Debian's package has that name)"
    if os.environ.get("PRECISION_SEARCH_NO_SKIP"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def open_page(width: int = 1280, height: int = 900) -> Iterator[Page]:
    """An empty page in a Chromium of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require_chromium(), args=list(_FLAGS))
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.route("**/*", _only_here)
            yield page
        finally:
            browser.close()


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


def _wait(process: subprocess.Popen[bytes], port: int, command: Sequence[str]) -> None:
    end = time.monotonic() + _START_SECONDS
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
