"""Rules that every stored notebook keeps; the notebooks are run by `make notebooks`."""

import ast
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import notebooks as book  # noqa: E402

NOTEBOOKS = book.paths()
MAX_CELL_LINES = 25
MAX_CODE_LINES = 400
MAX_BYTES = 1_500_000
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
# Folders of some machine, addresses of objects in memory.
MACHINE = re.compile(r"(?<![\w.])/(home|root|Users|tmp|work|var/folders)/|\bat 0x[0-9a-f]{6,}")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[tuple[int, nbformat.NotebookNode]]:
    return [(i, cell) for i, cell in enumerate(read(path).cells) if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def output_text(output: nbformat.NotebookNode) -> str:
    """Return what a reader sees of an output as text."""
    data = {k: v for k, v in output.get("data", {}).items() if k not in PICTURES}
    return json.dumps([output.get("text", ""), data])


pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def test_valid_and_in_the_table_of_contents(path):
    nbformat.validate(read(path))
    name = path.relative_to(ROOT).with_suffix("").as_posix()
    assert name in (ROOT / "_toc.yml").read_text()


def test_stored_the_common_way(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    assert "version" not in notebook.metadata.language_info
    assert path.stat().st_size <= MAX_BYTES


def test_starts_with_the_install_cell_and_the_title(path):
    first, second = read(path).cells[:2]
    expected = book.first_cell()
    assert (first.source, first.metadata) == (expected.source, expected.metadata)
    assert second.cell_type == "markdown"
    assert second.source.startswith("# ")


def test_cells_are_short(path):
    lengths = {i: len(cell.source.splitlines()) for i, cell in code_cells(path)}
    assert {i: n for i, n in lengths.items() if n > MAX_CELL_LINES} == {}
    assert sum(lengths.values()) <= MAX_CODE_LINES


def test_run_from_top_to_bottom(path):
    counts = [cell.execution_count for _, cell in code_cells(path) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_are_clean(path):
    wrong = []
    for i, cell in code_cells(path):
        for output in cell.outputs:
            if output.output_type == "error":
                wrong.append(f"cell {i}: {output.ename}")
            elif output.get("name") == "stderr":
                wrong.append(f"cell {i}: stderr")
            elif found := MACHINE.search(output_text(output)):
                wrong.append(f"cell {i}: {found.group()}")
    assert wrong == []


def test_pictures_have_alternative_text(path):
    silent = []
    for i, cell in code_cells(path):
        pictures = [o for o in cell.outputs if set(PICTURES) & set(o.get("data", {}))]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if pictures and len(alt.split()) < 4:
            silent.append(f"cell {i}: {alt!r}")
    assert silent == []


def test_claims_are_asserted(path):
    sources = [re.sub(r"(?m)^([ \t]*)%.*", r"\1pass", cell.source) for _, cell in code_cells(path)]
    asserts = [n for s in sources for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Assert)]
    assert len(asserts) >= 3


def test_glued_numbers_are_printed_as_they_were_formatted(path):
    # The builder evaluates what it finds: 1,500 would be a pair, and 0.80 would lose its zero.
    for _, cell in code_cells(path):
        for output in cell.outputs:
            if "scrapbook" in output.get("metadata", {}):
                (stored,) = output.data.values()
                assert isinstance(ast.literal_eval(stored), str), output.metadata.scrapbook.name
