"""A small Sphinx extension that reads the library's docstrings as the plain text they are.

Docstrings hold formulas such as |R[m, n]| outside of backticks, and names in single or double ones.
In reStructuredText bars, stars and trailing underscores are markup; here they are characters, and
everything in backticks is code.
"""

import re
from typing import Any

from sphinx.application import Sphinx

# A piece of code in backticks, or a character that would be markup.
MARKUP = re.compile(r"(`+)(.+?)\1|(?<!\\)(?:\||\*|(?<=\w)_(?!\w))")


def escape(text: str) -> str:
    """Return the text with code in double backticks and other markup characters escaped."""
    return MARKUP.sub(lambda match: f"``{match[2]}``" if match[1] else "\\" + match[0], text)


def plain_text(
    app: Sphinx, what: str, name: str, target: object, options: Any, lines: list[str]
) -> None:
    """Escape, in place, the lines of one docstring before anything else reads them."""
    lines[:] = [escape(line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension, ahead of the one that reads the sections of docstrings."""
    app.connect("autodoc-process-docstring", plain_text, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
