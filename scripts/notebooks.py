"""What scripts and tests know about the notebooks of the book: where they are, their first cell.

Every notebook starts with the same small cell, hidden on the page, that installs the library where
it is missing, so that the notebook also runs alone (the Colab button opens nothing else). The
address in it comes from _config.yml: `python scripts/notebooks.py` writes it into every notebook.
"""

from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
FIRST_CELL_ID = "install-locality"
FIRST_CELL = """\
# Only where the library is missing, as on Colab: install it from the book's repository.
import importlib.util

if importlib.util.find_spec("locality") is None:
    %pip install --quiet "locality @ git+{url}"
"""


def paths() -> list[Path]:
    """Return the notebooks of the book in reading order."""
    found = (ROOT / "book").rglob("*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def first_cell() -> NotebookNode:
    """Return the cell that every notebook starts with."""
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    source = FIRST_CELL.format(url=url).rstrip("\n")
    return nbformat.v4.new_code_cell(
        source, id=FIRST_CELL_ID, metadata={"tags": ["remove-cell"]}, execution_count=None
    )


def with_first_cell(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook with the current first cell, added or renewed."""
    old = [cell for cell in notebook.cells if cell.get("id") == FIRST_CELL_ID]
    cell = first_cell()
    if old and old[0].source == cell.source:
        cell = old[0]
    rest = [c for c in notebook.cells if c.get("id") != FIRST_CELL_ID]
    return NotebookNode({**notebook, "cells": [cell, *rest]})


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook the way all of them are stored: one space of indentation, sorted keys."""
    nbformat.validate(notebook)
    text = nbformat.writes(notebook)
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def main() -> None:
    """Renew the first cell of every notebook."""
    for path in paths():
        write(with_first_cell(nbformat.read(path, as_version=4)), path)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
