"""How Sphinx builds the site; see `make site`."""

import sys
from pathlib import Path

from docutils import nodes
from latex2mathml import converter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

project = "Fast Diffusion Model: does the claim hold?"
html_title = "Fast Diffusion Model"
author = copyright = "The authors of this reproducibility study, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_static_path, html_css_files = ["static"], ["site.css"]
html_js_files, html_favicon = [("site.js", {"defer": "defer"})], "static/icon.svg"
html_show_sphinx = False
html_copy_source = False
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
autodoc_typehints = "none"
html_math_renderer = "mathml"
# Other notebooks and pages are reached by links; numbers in a table's notebook output are not code of a language.
suppress_warnings = ["toc.not_included", "misc.highlighting_failure", "myst.header", "mystnb.unknown_mime_type"]


def mathml(tex: str, display: str) -> str:
    """A formula as MathML, which browsers draw without a program."""
    for name in ("lVert", "rVert"):
        tex = tex.replace(f"\\{name}", "\\|")
    return converter.convert(tex, display=display)


def inline(self, node):
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(self, node):
    self.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def levels(app, page, template, context, tree):
    """Say which level the headings of the navigation have: Sphinx calls them headings of none."""
    context["furo_navigation_tree"] = context["furo_navigation_tree"].replace(
        'role="heading"', 'role="heading" aria-level="2"'
    )


def setup(app):
    app.connect("html-page-context", levels, priority=900)  # after furo, whose tree it is
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
