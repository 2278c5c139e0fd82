"""Runs a notebook's own cells, so that what is measured is what a reader runs."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def run_cells(
    notebook: str, last: str, after: dict[str, Callable[[dict], Any]], without: tuple = ()
) -> dict[str, Any]:
    """Runs a notebook's code cells and returns the names they define.

    Args:
        notebook: Its file's name.
        last: Id of the last cell to run.
        after: `{cell id: function}`, called with the names when that cell has run.
        without: Ids of cells to leave out, beside `install`.

    Raises:
        LookupError: The notebook has no cell of such an id.
    """
    names: dict[str, Any] = {}
    cells = nbformat.read(NOTEBOOKS / notebook, as_version=4).cells
    if unknown := {last, *after, *without} - {cell.id for cell in cells}:
        raise LookupError(f"{notebook} has no cells {', '.join(sorted(unknown))}")
    for cell in cells:
        if cell.cell_type == "code" and cell.id not in ("install", *without):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(cell.source, names)
        after.get(cell.id, lambda names: None)(names)
        if cell.id == last:
            break
    return names
