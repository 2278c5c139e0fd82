"""Exercises: the check behind each stub tells it from its solution.

An exercise is a code cell `exercise-1` with the tag `exercise`: a stub that runs as it is. After
it come `exercise-1-check` (tag `check`), which prints one line that begins with "Right" or "Not
yet", and `exercise-1-solution` (tag `solution`), folded text whose code replaces the stub.
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_interrupt import Reader

NOTEBOOKS = {
    path.stem: nbformat.read(path, 4)
    for path in sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
}


def tagged(notebook, tag):
    return {cell.id: cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])}


def exercises(notebook):
    """Stub, check and solution of each exercise, as sources, by the stub's id."""
    stubs, checks, solutions = (tagged(notebook, tag) for tag in ("exercise", "check", "solution"))
    assert list(checks) == [f"{name}-check" for name in stubs]
    assert list(solutions) == [f"{name}-solution" for name in stubs]
    folded = re.compile(r"<details>.*?```python\n(.*?)```.*</details>", re.DOTALL)
    return {
        name: (
            stub.source,
            checks[f"{name}-check"].source,
            folded.search(solutions[f"{name}-solution"].source)[1],
        )
        for name, stub in stubs.items()
    }


def names(source):
    """The names that some code makes, and all that it mentions."""
    tree = ast.parse(re.sub(r"(?m)^(\s*)%.*", r"\1pass", source))
    made, mentioned = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            mentioned.add(node.id)
            made |= {node.id} if isinstance(node.ctx, ast.Store) else set()
        elif isinstance(node, ast.Import | ast.ImportFrom):
            made |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
    return made, mentioned


def prepared(notebook, wanted):
    """The cells that make the names that `wanted` mentions, and theirs, in order."""
    own = tagged(notebook, "exercise") | tagged(notebook, "check")
    chosen, mentioned = [], names(wanted)[1]
    for cell in reversed(notebook.cells):
        if cell.cell_type == "code" and cell.id not in own:
            made, more = names(cell.source)
            if made & mentioned:
                chosen.insert(0, cell.source)
                mentioned |= more
    return chosen


def verdicts(notebook, folder):
    """What each check says of the stub, and of the solution, by the stub's id."""
    found = exercises(notebook)
    reader = Reader(folder, preset="quick")
    try:
        for source in prepared(notebook, "\n".join(sum(found.values(), ()))):
            reader.run(source)
        said = {}
        for name, (stub, check, solution) in found.items():
            given = reader.run(stub) + reader.run(check)
            said[name] = given, reader.run(solution) + reader.run(check)
        return said
    finally:
        reader.close()


@pytest.mark.parametrize(
    "notebook", [name for name, cells in NOTEBOOKS.items() if tagged(cells, "exercise")]
)
def test_solutions_are_right_and_stubs_are_not(notebook, tmp_path):
    for name, (of_stub, of_solution) in verdicts(NOTEBOOKS[notebook], tmp_path).items():
        assert re.fullmatch(r"Not yet: .+\n", of_stub), f"{name}, the stub: {of_stub}"
        assert re.search(r"(?m)^Right", of_solution), f"{name}, its solution: {of_solution}"


def test_a_check_sees_the_cells_that_it_needs_and_no_more(tmp_path):
    """Of a small notebook with one solution that is right and one that is wrong."""
    folded = "<details><summary>Solution</summary>\n\n```python\n{}\n```\n\n</details>"
    check = "print('Right' if answer == three else f'Not yet: {answer} is not {three}')"
    cells = [
        new_code_cell("import math\nlog = math.log2", id="imports"),
        new_code_cell("raise SystemExit  # Not needed.", id="elsewhere"),
        new_code_cell("three = log(8)", id="three"),
    ]
    for number, answer in enumerate(("1 + 2", "2 + 2"), 1):
        name = f"exercise-{number}"
        cells += [
            new_code_cell("answer = ...", id=name, metadata={"tags": ["exercise"]}),
            new_code_cell(check, id=f"{name}-check", metadata={"tags": ["check"]}),
            new_markdown_cell(
                folded.format(f"answer = {answer}"),
                id=f"{name}-solution",
                metadata={"tags": ["solution"]},
            ),
        ]
    stub = "Not yet: Ellipsis is not 3.0\n"
    assert verdicts(new_notebook(cells=cells), tmp_path) == {
        "exercise-1": (stub, "Right\n"),
        "exercise-2": (stub, "Not yet: 4 is not 3.0\n"),
    }
