"""Exercises: the check behind each stub tells it from its solution.

An exercise is four cells in this order: the question `exercise-1` (of the first one it may stand
under the heading), code `stub-1` that runs as it is, code `check-1` that prints one line, "Right…"
or "Not yet: …", and `solution-1`, folded text whose code replaces the stub.
"""

import re
import symtable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_interrupt import Reader

NOTEBOOKS = {
    path.stem: nbformat.read(path, 4)
    for path in sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
}


# By notebook: what stands in for that which only a long training gives.
STAND_INS: dict[str, str] = {
    "01_growing_with_gradients": """
states = cut = losses = seeds = None  # A check's own names, too.
nca, healed = nca_helpers.pretrained("🦎", "persistent"), [jnp.stack(8 * [first])]
held_out_key, longest = jax.random.key(1), 6
""",
    "02_growing_with_pgpe": """
pgpe_state = stay_state = first_state
evolved = nca_helpers.pretrained("🦎", "evolved")
""",
}


def exercises(notebook):
    """Stub, check and solution of each exercise, as sources, by its number."""
    cells = {cell.id: cell.source for cell in notebook.cells}
    of_stubs, of_checks, of_solutions = (
        [name for name in cells if re.fullmatch(rf"{part}-\d+", name)]
        for part in ("stub", "check", "solution")
    )
    numbers = [name.removeprefix("stub-") for name in of_stubs]
    assert of_checks == [f"check-{number}" for number in numbers]
    assert of_solutions == [f"solution-{number}" for number in numbers]
    folded = re.compile(r"<details>.*?```python\n(.*?)```.*</details>", re.DOTALL)
    codes = (folded.fullmatch(cells[name])[1] for name in of_solutions)
    return {
        number: (cells[f"stub-{number}"], cells[f"check-{number}"], code)
        for number, code in zip(numbers, codes, strict=True)
    }


def names(source):
    """The global names that some code makes, and those that it mentions."""
    without_magics = re.sub(r"(?m)^(\s*)%.*", r"\1pass", source)
    top = symtable.symtable(without_magics, "cell", "exec")
    tables = [top]
    for table in tables:
        tables += table.get_children()
    made = {
        name.get_name() for name in top.get_symbols() if name.is_assigned() or name.is_imported()
    }
    used = [name for table in tables for name in table.get_symbols() if name.is_referenced()]
    return made, {name.get_name() for name in used if name.is_global()}


def prepared(notebook, wanted, stand_in):
    """The cells that make the names that `wanted` mentions, and theirs, in order."""
    made_here, mentioned = map(set.union, names(stand_in), names(wanted))
    mentioned -= made_here
    chosen = [stand_in]
    for cell in reversed(notebook.cells):
        if cell.cell_type == "code" and not re.fullmatch(r"(stub|check)-\d+", cell.id):
            made, more = names(cell.source)
            if made & mentioned:
                chosen.insert(0, cell.source)
                mentioned |= more
    return chosen


def verdicts(notebook, folder, stand_in=""):
    """What each check says of the stub, and of the solution, by the exercise's number."""
    found = exercises(notebook)
    reader = Reader(folder, preset="quick")
    try:
        for source in prepared(notebook, "\n".join(sum(found.values(), ())), stand_in):
            reader.run(source)
        said = {}
        for number, (stub, check, solution) in found.items():
            given = reader.run(stub) + reader.run(check)
            said[number] = given, reader.run(solution) + reader.run(check)
        return said
    finally:
        reader.close()


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if exercises(NOTEBOOKS[name])])
def test_solutions_are_right_and_stubs_are_not(name, tmp_path):
    said = verdicts(NOTEBOOKS[name], tmp_path, STAND_INS.get(name, ""))
    for number, (of_stub, of_solution) in said.items():
        assert re.fullmatch(r"Not yet: .+\n", of_stub), f"stub {number}: {of_stub}"
        assert re.search(r"(?m)^Right", of_solution), f"solution {number}: {of_solution}"


def test_a_check_sees_the_cells_that_it_needs_and_no_more(tmp_path):
    """Of a small notebook with one solution that is right and one that is wrong."""
    folded = "<details><summary>Solution</summary>\n\n```python\n{}\n```\n\n</details>"
    check = "print('Right' if answer == three else f'Not yet: {answer} is not {three}')"
    cells = [
        new_code_cell("import math\nlog = math.log2", id="imports"),
        new_code_cell("raise SystemExit  # Not needed.", id="elsewhere"),
        new_code_cell("eight = 7  # After a long training it is 8.", id="loop"),
        new_code_cell("three = log(eight)", id="three"),
    ]
    for number, answer in enumerate(("1 + 2", "2 + 2"), 1):
        cells += [
            new_code_cell("answer = ...", id=f"stub-{number}"),
            new_code_cell(check, id=f"check-{number}"),
            new_markdown_cell(folded.format(f"answer = {answer}"), id=f"solution-{number}"),
        ]
    of_stub = "Not yet: Ellipsis is not 3.0\n"
    stand_in = "eight = 8\nthree = log(eight)"
    assert verdicts(new_notebook(cells=cells), tmp_path, stand_in) == {
        "1": (of_stub, "Right\n"),
        "2": (of_stub, "Not yet: 4 is not 3.0\n"),
    }
