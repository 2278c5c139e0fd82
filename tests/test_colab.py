"""What the notebooks do on Colab alone, with a stand-in for its `google.colab`."""

import sys
import types
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
# The cell that downloads, and what is saved, in terms of the name.
NOTEBOOKS = {
    FOLDER / "01_growing_with_gradients.ipynb": ("download", "{name}"),
    FOLDER / "02_growing_with_pgpe.ipynb": ("download", "{name}_evolved"),
    FOLDER / "04_beyond_one_lizard.ipynb": ("download", "{name}_many"),
}


def source(notebook, cell_id):
    cells = nbformat.read(notebook, 4).cells
    (found,) = (cell.source for cell in cells if cell.id == cell_id)
    return found


def download(notebook, **names):
    """Runs what a notebook downloads with."""
    exec(source(notebook, NOTEBOOKS[notebook][0]), {"sys": sys} | names)


@pytest.fixture
def downloads(monkeypatch):
    """The paths that Colab's browser was asked to download."""
    found = []
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(download=found.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    return found


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_weights_video_and_page_are_downloaded(notebook, downloads, tmp_path):
    _, stem = NOTEBOOKS[notebook]
    endings = (".npz", ".gif", ".html")
    paths = [tmp_path / f"{stem.format(name='fox')}{ending}" for ending in endings]
    for path in paths:
        path.touch()
    download(notebook, out=tmp_path, name="fox")
    assert downloads == list(map(str, paths))
    for ending in endings:
        assert f'out / f"{stem}{ending}"' in source(notebook, "save"), "what was saved"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_elsewhere_nothing_is_downloaded(notebook):
    download(notebook)
