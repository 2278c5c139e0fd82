"""The script that executes notebooks, when they do not come to their end."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "execute_notebook.py"
ENDS = {
    "killed": ("import os\nos.kill(os.getpid(), 9)", "its kernel died, killed perhaps because"),
    "failed": ("1 / 0", "a cell failed; see"),
}


def run(source: Path, target: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, source, target]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("end", ENDS)
def test_what_ends_a_notebook_is_said_in_a_sentence(end, tmp_path):
    code, message = ENDS[end]
    cells = [nbformat.v4.new_code_cell(source) for source in ("print('here')", code, "print(2)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    ran = run(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    assert ran.returncode == 1 and message in ran.stderr
    assert "nbclient" not in ran.stderr and "here" in ran.stdout
    if end == "killed":
        assert ran.stderr.count("\n") == 1
    first, *_, last = nbformat.read(tmp_path / "b.ipynb", 4).cells
    assert first.outputs[0].text == "here\n" and last.outputs == []


@pytest.mark.parametrize("content", [None, "lizard"])
def test_what_is_no_notebook_is_said_in_a_sentence(content, tmp_path):
    if content:
        (tmp_path / "a.ipynb").write_text(content)
    ran = run(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1
    assert "a.ipynb: it cannot be read or written" in ran.stderr
