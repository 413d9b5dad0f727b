"""Run the notebooks in place and store their outputs, free of all that differs by machine.

`make execute` runs them all, `make execute NOTEBOOKS="book/02_....ipynb"` some. Each runs in its
own kernel, in its own folder, in the preset that LOCALITY_PRESET names (laptop unless set). A
failing cell stops the whole and leaves that notebook as it was. What a notebook writes to stderr is
shown here and not stored; times, versions, machine paths and random widget names are not stored
either, so that a second run changes a file only where a result has changed.
"""

import argparse
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from notebooks import ROOT, paths, with_first_cell, write

CELL_TIMEOUT = 1800  # seconds; the GPU and paper presets train inside a cell
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def tidy(notebook: NotebookNode) -> list[str]:
    """Remove from `notebook`, in place, what differs by machine or run; return its stderr texts."""
    complaints = []
    notebook.metadata.kernelspec = KERNEL
    notebook.metadata.language_info = LANGUAGE
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        kept = []
        for output in cell.outputs:
            if output.get("name") == "stderr":
                complaints.append(f"cell {number}: {output.text.strip()}")
            else:
                kept.append(output)
        cell.outputs = kept
    return complaints


def drop_live_controls(notebook: NotebookNode) -> None:
    """Remove, in place, the widgets of cells that the page leaves out: they need a kernel."""
    shown = False
    for cell in notebook.cells:
        if {"remove-cell", "remove-output"} & set(cell.metadata.get("tags", [])):
            kept = [o for o in cell.get("outputs", []) if WIDGET_VIEW not in o.get("data", {})]
            if cell.cell_type == "code":
                cell.outputs = kept
        shown |= any(WIDGET_VIEW in o.get("data", {}) for o in cell.get("outputs", []))
    if not shown:
        notebook.metadata.pop("widgets", None)


def machine_paths(notebook: NotebookNode) -> list[str]:
    """Return the cells whose outputs name a folder of this machine."""
    folders = [str(ROOT), str(Path.home()), sys.prefix]
    found = []
    for number, cell in enumerate(notebook.cells):
        text = str(cell.get("outputs", ""))
        found += [f"cell {number} prints {folder}" for folder in folders if folder in text]
    return found


def rename_widgets(notebook: NotebookNode, stem: str) -> NotebookNode:
    """Return the notebook with widget models named by their order instead of at random."""
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    if not state:
        return notebook
    text = nbformat.writes(notebook)
    for number, model in enumerate(state):  # the order in which the kernel made them
        text = text.replace(model, f"{stem}-{number:04d}")
    return nbformat.reads(text, as_version=4)


def run(path: Path) -> None:
    """Execute one notebook and write it back."""
    notebook = with_first_cell(nbformat.read(path, as_version=4))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    client.execute()
    for complaint in tidy(notebook):
        print(f"    stderr of {complaint}", flush=True)
    drop_live_controls(notebook)
    if found := machine_paths(notebook):
        sys.exit(f"{path.name}: {'; '.join(found)}: not stored")
    write(rename_widgets(notebook, re.sub(r"\W", "-", path.stem)), path)


def main() -> None:
    """Execute the notebooks named on the command line, or all."""
    parser = argparse.ArgumentParser(description="Run the notebooks of the book in place.")
    parser.add_argument("notebooks", nargs="*", type=Path)
    chosen = parser.parse_args().notebooks or paths()
    for number, path in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {path.name} ...", end=" ", flush=True)
        start = time.perf_counter()
        try:
            run(path.resolve())
        except CellExecutionError as error:
            sys.exit(f"failed after {time.perf_counter() - start:.0f} s\n{error}")
        size = path.stat().st_size / 1e6
        print(f"{time.perf_counter() - start:.0f} s, {size:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
