"""The site: `make docs` builds it into build/site, with warnings as errors. Nothing in it is fetched from elsewhere."""

from importlib.metadata import version as installed

project = "precision-search"
author = "the authors of precision-search"
version = release = installed("precision-search")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "index"

myst_heading_anchors = 3
# A link to a page or a file that is not there is a warning, and so an error.
nitpicky = True
# What is documented elsewhere: linking to it would need a network.
nitpick_ignore_regex = [("py:.*", r"(?!precision_search).*")]

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
