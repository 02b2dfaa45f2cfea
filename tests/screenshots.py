"""Looks at a run in other people's tools, as the docs show it; their pictures in docs/images are made here.

    python -m tests.screenshots RUN [dashboard] [netron]

RUN is a finished run of the demo. Pictures are 8-bit PNG files, since they are kept in the repository.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.browser import open_page, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = Path(__file__).parent.parent / "docs/images"
SHOWN_NODE = "encoder.block.1.layer.1.DenseReluDense.wo/MatMul"
"""The node of the demo that the picture of Netron shows: the product where fp16 overflows first."""


@contextmanager
def dashboard(run: Path) -> Iterator[tuple[Page, str]]:
    """A page, and the address of an optuna-dashboard that shows the study of a run."""
    study = run / "study.journal"
    with serving("optuna-dashboard", study, "--server", "wsgiref") as address, open_page() as page:
        yield page, f"{address}/dashboard"


@contextmanager
def netron(model: Path) -> Iterator[Page]:
    """A page in which Netron shows an ONNX file."""
    with serving("netron", model) as address, open_page() as page:
        page.goto(address)
        # It asks where one is to know whether to ask this; nobody answers here, so it asks.
        page.get_by_text("Accept").click()
        page.locator(".node").first.wait_for()
        yield page


def select_node(page: Page, key: str) -> str:
    """Finds a node by its key in Netron and selects it; gives what its sidebar then says."""
    query, sidebar = page.locator(".sidebar-find-query"), page.locator(".sidebar")
    while not query.count():  # it takes no keys before it has drawn the graph
        page.keyboard.press("Control+f")
        page.wait_for_timeout(500)
    query.fill(key)
    page.locator(".sidebar li").get_by_text(key, exact=True).first.click()
    page.keyboard.press("Enter")
    sidebar.get_by_text("Node Properties").wait_for()
    return str(sidebar.inner_text())


def _picture_of_the_dashboard(run: Path) -> bytes:
    with dashboard(run) as (page, address):
        page.goto(f"{address}/studies/0")
        page.get_by_text("Hyperparameter Importance").first.wait_for()
        page.wait_for_timeout(3000)  # the plots are drawn one by one, and nothing says when they are done
        return page.screenshot()


def _picture_of_netron(run: Path) -> bytes:
    with netron(run / "model/encoder_model.onnx") as page:
        page.set_viewport_size({"width": 1280, "height": 560})
        select_node(page, SHOWN_NODE)
        page.locator(".sidebar").get_by_text("+", exact=True).last.click()  # opens the longest text, why
        page.wait_for_timeout(1000)  # it moves to the node
        return page.screenshot()


PICTURES: Mapping[str, tuple[str, Callable[[Path], bytes]]] = {
    "dashboard": ("optuna-dashboard.png", _picture_of_the_dashboard),
    "netron": ("netron.png", _picture_of_netron),
}


def main() -> None:
    """Entry of the module."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("pictures", nargs="*", help=f"which to take: {', '.join(PICTURES)}; default: all")
    arguments = parser.parse_args()
    for name in arguments.pictures or PICTURES:
        file, take = PICTURES[name]
        picture = Image.open(io.BytesIO(take(arguments.run))).convert("RGB").quantize(128)
        picture.save(IMAGES / file, optimize=True)
        print(IMAGES / file)


if __name__ == "__main__":
    main()
