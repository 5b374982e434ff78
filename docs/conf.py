"""Sphinx settings of the documentation site: `make docs` builds it in docs/_build and fails at a dead link or anchor."""

import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src/imagemill/__init__.py"
VERSION = re.findall(r'^__version__ = "(.+)"', PACKAGE.read_text(encoding="utf-8"), re.MULTILINE)[0]

project = "Imagemill"
copyright = "the authors of Imagemill, Apache-2.0"
version = release = VERSION
extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True
smartquotes = False  # Two hyphens begin a flag, they are no dash.

myst_heading_anchors = 4
"""Headings down to this level can be linked to, as on code hosting sites: `page.md#the-heading`."""
suppress_warnings = ["myst.header"]
"""Generated pages skip heading levels."""

html_theme = "furo"
html_title = f"Imagemill {VERSION}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
highlight_language = "text"
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
