"""Runs a notebook's own cells, so that what is measured is what a reader runs."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

# Cells of notebook 01 that only show something.
SHOWN = ("disease", "look-at", "masks", "diagram", "plain-loop", "cut")


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
    # Without nbformat, which a machine with an accelerator may lack.
    cells = json.loads((NOTEBOOKS / notebook).read_text(encoding="utf-8"))["cells"]
    if unknown := {last, *after, *without} - {cell["id"] for cell in cells}:
        raise LookupError(f"{notebook} has no cells {', '.join(sorted(unknown))}")
    for cell in cells:
        name = cell["id"]
        if cell["cell_type"] == "code" and name not in ("install", *without):
            with contextlib.redirect_stdout(io.StringIO()):
                exec("".join(cell["source"]), names)
        after.get(name, lambda names: None)(names)
        if name == last:
            break
    return names
