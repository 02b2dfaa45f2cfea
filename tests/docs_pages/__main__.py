"""`python -m tests.docs_pages` writes the pages that are made from the code; `--console` what commands print."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.conftest import ROOT
from tests.docs_pages.generated import generated


def main() -> None:
    """Writes what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs_pages", description=__doc__)
    parser.add_argument("--console", action="store_true", help="run the commands of pages and write what they print")
    parser.add_argument("pages", nargs="*", type=Path, help="with --console: these pages only")
    arguments = parser.parse_args()
    if arguments.console:
        from tests.docs_pages.console import rewrite

        for page in arguments.pages:
            rewrite(page.resolve())
        return
    for path, text in generated().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)


if __name__ == "__main__":
    main()
