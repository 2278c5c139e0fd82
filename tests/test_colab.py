"""What the notebooks do on Colab alone, with a stand-in for its `google.colab`."""

import sys
import types
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "01_growing_with_gradients.ipynb"


def source(notebook, cell_id):
    cells = nbformat.read(notebook, 4).cells
    (found,) = (cell.source for cell in cells if cell.id == cell_id)
    return found


@pytest.fixture
def downloads(monkeypatch):
    """The paths that Colab's browser was asked to download."""
    found = []
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(download=found.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    return found


def test_weights_video_and_page_are_downloaded(downloads):
    exec(source(NOTEBOOK, "download"), {"sys": sys, "out": Path("out"), "name": "fox"})
    endings = (".npz", ".gif", ".html")
    assert downloads == [f"out/fox{ending}" for ending in endings]
    for ending in endings:
        saved = f'out / f"{{name}}{ending}"'
        assert saved in source(NOTEBOOK, "save"), "the cell downloads what was saved"


def test_elsewhere_nothing_is_downloaded():
    exec(source(NOTEBOOK, "download"), {"sys": sys})
