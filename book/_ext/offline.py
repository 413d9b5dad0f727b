"""A small Sphinx extension that keeps the pages free of requests to other servers and of faults.

It drops the scripts of sphinx-thebe, which Jupyter Book loads (twice) even where live code is off
and which would fetch a library from a public server; and it adds the book's own style sheet and the
script that lets Jupyter widgets typeset formulas with MathJax 3. It also removes identifiers that
sphinx-exercise gives to every exercise and solution alike: in HTML they must be unique.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

REPEATED = {"exercise-content", "solution-content"}


def drop_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Remove the scripts and styles of sphinx-thebe from one page."""

    def is_thebe(script: Any) -> bool:
        body = getattr(script, "attributes", {}).get("body") or ""
        return "thebe" in str(getattr(script, "filename", "") or "") or "THEBE_JS_URL" in body

    for key in ("script_files", "css_files"):
        context[key] = [entry for entry in context[key] if not is_thebe(entry)]


def drop_repeated_identifiers(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Remove the identifiers that every exercise of a page would share."""
    for section in doctree.findall(nodes.section):
        section["ids"] = [name for name in section["ids"] if name not in REPEATED]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_css_file("book.css", priority=900)
    app.add_js_file("widget-math.js", priority=600)
    app.connect("doctree-resolved", drop_repeated_identifiers)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
