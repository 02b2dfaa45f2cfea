"""The site: `make docs` builds it into build/site, with warnings as errors. Nothing in it is fetched from elsewhere."""

import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "precision-search"
author = "the authors of precision-search"
version = release = installed("precision-search")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "index"

myst_heading_anchors = 3
# A link to a page or a file that is not there is a warning, and so an error.
nitpicky = True
# Types in signatures are plain text unless they are on the page: those of other projects would need a network.
nitpick_ignore_regex = [("py:.*", ".*")]

default_role = "code"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "precision-search"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    # The theme's own icon is drawn in the page; without this its footer would name services.
    "footer_icons": [],
}

_LINK_UP = re.compile(r"\[([^\]`]+)\]\(((?:\.\./)+[^)#:]*\.md)\)")


def setup(app: "Sphinx") -> None:
    """Makes links to Markdown outside this folder (CONTRIBUTING and its neighbours) work: MyST takes them for pages."""

    def as_file(app: "Sphinx", name: str, source: list[str]) -> None:
        folder = Path(app.srcdir, name).parent

        def link(match: re.Match[str]) -> str:
            is_page = (folder / match[2]).resolve().is_relative_to(app.srcdir)
            return match[0] if is_page else f"{{download}}`{match[1]} <{match[2]}>`"

        source[0] = _LINK_UP.sub(link, source[0])

    app.connect("source-read", as_file)
