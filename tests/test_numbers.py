"""The numbers in the notebooks' text are those of their outputs."""

import importlib
import itertools
import json
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = tomllib.loads((ROOT / "notebooks" / "numbers.toml").read_text(encoding="utf-8"))
SAVED = ROOT / "notebooks" / "numbers.json"


@pytest.fixture(scope="module")
def check():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("check_numbers")


@pytest.fixture(params=TABLE)
def case(check, request):
    """A notebook's table, its text, and what its outputs and the saved run show."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", 4)
    saved = json.loads(SAVED.read_text(encoding="utf-8")).get(request.param, {})
    shown_by = check.outputs(notebook) | saved
    # What only a fresh run shows, and none was saved yet, scripts/check_numbers.py compares.
    rows_of = {
        cell: [row for row in rows if row[2 if row[1] == "value" else 1] in shown_by]
        for cell, rows in TABLE[request.param].items()
    }
    return rows_of, check.texts(notebook), shown_by


def test_numbers_are_those_that_the_outputs_show(check, case):
    assert not list(check.compare(*case, is_fresh=False))


def test_another_digit_is_a_mismatch(check, case):
    """In every number of the table, and in the words around it."""
    rows_of, said_in, shown_by = case
    for cell, rows in rows_of.items():
        for row in rows:
            if list(check.compare({cell: [row]}, said_in, shown_by, is_fresh=False)):
                continue  # Told by the test above.
            found = check.pattern(row[0]).search(said_in[cell])
            for group in range(1, found.re.groups + 1):
                number, (start, end) = found[group], found.span(group)
                # Not by one: where the outputs stand on a half, both neighbours are right.
                wrong = re.sub(r"\d(?=\D*$)", lambda last: str((int(last[0]) + 4) % 10), number)
                wrong = "77" if wrong == number else wrong
                text = said_in[cell][:start] + wrong + said_in[cell][end:]
                with_it = check.compare({cell: [row]}, {cell: text}, shown_by, is_fresh=False)
                assert list(with_it), f"{cell}: {found[0]!r} could be {wrong}"
            changed = said_in[cell].replace(found[0], "")
            assert list(check.compare({cell: [row]}, {cell: changed}, shown_by, is_fresh=False))


@pytest.mark.parametrize(
    ("said", "shown", "is_right"),
    [
        *[("−4.1", "-4.08", True), ("−4.1", "-4.16", False), ("−4.08", "-4.09", False)],
        *[("1,056", "1056", True), ("1,056", "1057", False), ("1e-7", "8.4e-08", True)],
        *[("two", "1.83", True), ("two", "1.4", False), ("a quarter", "0.25", True)],
        *[("a quarter", "0.26", False), ("7", "6:39", True), ("6", "6:39", False)],
        *[("−1.5", "-1.45", True), ("−1.4", "-1.45", True), ("12", "12.4", True)],
    ],
)
def test_a_number_is_right_as_far_as_its_digits_go(check, said, shown, is_right):
    assert check.agree(said, check.decimal(shown)) is is_right


@pytest.mark.parametrize(
    ("template", "text", "numbers"),
    [
        ("is {} after {} steps", "it is −3.1 after\n96  steps.", ("−3.1", "96")),
        ("at {} of … and {}", "at 0.114 of an empty\ngrid's, and twenty.", ("0.114", "twenty")),
        ("# ({}, #", "of 12 (1,056, 3)", ("1,056",)),
        ("{} steps", "after 8,192 steps", ("8,192",)),
        ("is {}", "that is -2.5e-08.", ("-2.5e-08",)),
        ("left half …{}%", "left half -4.41  survived 100%\n", ("100",)),
        ("is {} steps", "is 2.5.3 steps", None),
    ],
)
def test_templates_find_numbers(check, template, text, numbers):
    found = check.pattern(template).search(text)
    assert (found and found.groups()) == numbers


EXERCISES = """## Exercises

**1. Add.** What is it?

```python
print(f"{number + 1:.2f}")
number = 0
```

It is 3.54.

**2. Divide.** And what is that?

```python
print("first", 1 / 0)
```

**3. Once more.**

```python
print(number)
```

It is 2.54."""
ROWS = {
    "text": [
        ["about {} metres", "code", "code says {}"],
        ["about # metres, or {}", "value", "number ** 2"],
        ["{} of them", "growing: regime", "regime: {}"],
    ],
    "exercise 1": [["It is {}.", "exercise 1", "{}"]],
    "exercise 3": [["It is {}.", "exercise 3", "{}"]],
}


def test_a_fresh_run_is_compared_and_saved(check, tmp_path, monkeypatch, capsys):
    """A small notebook with one number that is wrong and one solution that fails."""
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    regime = "import os; print('regime:', 7 if os.environ.get('NCA_REGIME') else 5)"
    cells = [
        code("import numpy as np; number = 2.54; print('code says', number)", id="code"),
        code(regime, id="regime"),
        text("It is about 2.5 metres, or 6.46, seven of them.", id="text"),
        text(EXERCISES, id="exercises"),
    ]
    table = "\n".join(
        ["[some]", *(f"{json.dumps(cell)} = {json.dumps(rows)}" for cell, rows in ROWS.items())]
    )
    (tmp_path / "numbers.toml").write_text(table)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "some.ipynb")
    for name, value in {"FOLDER": "", "RUNS": "out", "TABLE": "numbers.toml"}.items():
        monkeypatch.setattr(check, name, tmp_path / value)
    monkeypatch.setattr(check, "SAVED", tmp_path / "numbers.json")
    monkeypatch.setattr(sys, "argv", ["check_numbers.py", "--save"])

    with pytest.raises(SystemExit, match="2 numbers"):
        check.main()
    said = capsys.readouterr().out
    assert "exercise 2: The solution failed: division by zero" in said
    assert "some, text: 'about 2.5 metres, or 6.46': says 6.46, is 6.4516" in said
    saved = json.loads((tmp_path / "numbers.json").read_text())["some"]
    assert saved == {
        "exercise 1": "3.54",
        "exercise 3": "2.54",
        "number ** 2": "6.4516",
        "growing: regime": "regime: 7",
    }
    kept = nbformat.read(tmp_path / "some.ipynb", 4)
    assert [cell.id for cell in kept.cells] == [cell.id for cell in cells]
    monkeypatch.setattr(sys, "argv", ["check_numbers.py", "--outputs"])
    with pytest.raises(SystemExit, match="1 number"):
        check.main()
    (tmp_path / "numbers.json").write_text("{}")
    with pytest.raises(SystemExit, match="4 numbers"):
        check.main()


def test_every_row_is_read_from_cells_that_are_there(check):
    for name, rows_of in TABLE.items():
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
        texts, ids = check.texts(notebook), {cell.id for cell in notebook.cells}
        assert set(rows_of) <= set(texts)
        for row in itertools.chain(*rows_of.values()):
            source = row[1].split(": ")[-1]
            assert source == "value" or source in ids or source in texts, row
            if source != "value" and "is" not in (row[3] if row[3:] else {}):
                assert check.pattern(row[0]).groups == check.pattern(row[2]).groups, row
