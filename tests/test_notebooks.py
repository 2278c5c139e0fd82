"""The committed notebooks: whole, run from top to bottom at a real preset, and at home."""

import ast
import itertools
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"image/png", "image/gif", "image/webp"}

pytestmark = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def outputs(path):
    return [output for cell in code_cells(path) for output in cell.outputs]


def printed(path):
    return "".join(output.text for output in outputs(path) if output.output_type == "stream")


def test_is_valid_with_named_cells(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    # Ids made by a program change whenever the notebook is made anew; ours are names.
    assert all(
        re.fullmatch(r"[a-z][a-z0-9-]*", id) and not re.fullmatch(r"[0-9a-f]{8}", id) for id in ids
    )
    assert notebook.metadata.kernelspec.name == "python3"


def test_was_run_once_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs(path) if output.output_type == "error"]


def test_outputs_are_from_a_real_preset(path):
    watermark = "".join(output.get("text", "") for output in code_cells(path)[-1].outputs)
    assert re.search(r"\b(laptop|paper)\b", watermark), watermark
    assert re.search(r"\d{4}-\d{2}-\d{2}", watermark)


def test_outputs_are_small_and_of_this_project_alone(path):
    assert path.stat().st_size < 1_000_000
    for output in outputs(path):
        kinds = {kind for kind in output.get("data", {}) if kind.startswith(("image/", "video/"))}
        assert kinds <= PICTURES
    assert not re.search(r"/(home|root|tmp|Users|work)/", printed(path))
    for cell in code_cells(path):
        streams = [output for output in cell.outputs if output.output_type == "stream"]
        assert len(streams) <= 2, "a stream in fragments: join it before committing"


def test_cells_are_short(path):
    cells = [cell.source for cell in code_cells(path)]
    lengths = [len(source.splitlines()) for source in cells]
    assert max(lengths) <= 40
    assert statistics.median(lengths) <= 10
    assert max(len(line) for source in cells for line in source.splitlines()) <= 100


def imported(tree):
    found = (node.names for node in ast.walk(tree) if isinstance(node, ast.Import))
    return {name.name for names in found for name in names}


def test_no_cell_needs_the_install_cell(path):
    """Where the package is there, a reader skips it."""
    cells = {cell.id: cell.source for cell in code_cells(path)}
    given = imported(ast.parse(re.sub(r"%pip .*", "pass", cells.pop("install"))))
    for source in cells.values():
        tree = ast.parse(re.sub(r"\A%%writefile .*", "", source))
        given -= imported(tree)
        assert not given & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_where_a_host_shows_no_widgets_the_text_says_what_to_edit(path):
    """There a widget is a line of text, as `Dropdown(description='Model', ...)`."""
    cells = nbformat.read(path, 4).cells
    given = next(cell.source for cell in cells if cell.id == "config")
    for text, cell in itertools.pairwise(cells):
        for name, widget in re.findall(r"(\w+) = ipywidgets\.(\w+)\(", cell.source):
            assert f"display({name})" in cell.source
            advice = text.source.split(f"`{widget}(…)`")[1]
            edited = re.search(r"`(\w+)(.*?)`", advice)
            assert f"\n{edited[1]} = " in given or (edited[1] == name and ".value = " in edited[2])


def test_preset_is_chosen_in_one_place(path):
    """No `if quick`: what differs between presets stands in the table of presets alone."""
    cells = [cell.source for cell in code_cells(path) if "%pip" not in cell.source]
    for source in cells:
        for node in ast.walk(ast.parse(re.sub(r"\A%%writefile .*", "", source))):
            if isinstance(node, ast.Compare):
                assert "quick" not in ast.unparse(node)
    assert sum('@param ["quick", "laptop", "paper"]' in source for source in cells) == 1


def test_badges_open_this_notebook(path):
    first = nbformat.read(path, 4).cells[0].source
    place = rf"[\w.-]+/[\w.-]+/blob/main/notebooks/{re.escape(path.name)}"
    assert re.search(rf"\(https://colab\.research\.google\.com/github/{place}\)", first)
    assert re.search(
        rf"\(https://kaggle\.com/kernels/welcome\?src=https://github\.com/{place}\)", first
    )


def test_readme_lists_it_with_its_badges(path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"(notebooks/{path.name})" in readme
    assert readme.count(f"/blob/main/notebooks/{path.name}") == 2


def test_address_is_the_one_of_pyproject(path):
    check = [sys.executable, ROOT / "scripts" / "set_address.py", "--check"]
    run = subprocess.run(check, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
