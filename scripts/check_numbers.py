"""Compares the numbers in the notebooks' text, solutions included, with what shows them.

    python scripts/check_numbers.py --outputs         with the outputs that are committed
    python scripts/check_numbers.py 01 02             with a fresh run of these notebooks
    python scripts/check_numbers.py 01 --save         and the notebook keeps the run's outputs

`notebooks/numbers.toml` binds the numbers to what shows them, and tells how to read it. The code of
the folded solutions, expressions, and runs under another regime have no outputs in the notebook:
what they printed when the notebook was saved is in `notebooks/numbers.json`.
"""

import argparse
import copy
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import nbformat
from execute_notebook import execute
from nbformat import NotebookNode

from nca_helpers.files import replace_file

ROOT = Path(__file__).resolve().parents[1]
FOLDER, RUNS = ROOT / "notebooks", ROOT / "out" / "numbers"
TABLE, SAVED = FOLDER / "numbers.toml", FOLDER / "numbers.json"

WORDS = "none one two three four five six seven eight nine ten".split()
WORDS = {word: number for number, word in enumerate(WORDS)}
WORDS |= {"once": 1, "twice": 2, "twelve": 12, "sixteen": 16, "twenty": 20, "thirty": 30}
WORDS |= {"half": 0.5, "a quarter": 0.25, "a fifth": 0.2, "a tenth": 0.1}
NUMBER = r"[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|:\d\d)?(?:e[-+]\d+)?"
NUMBER = rf"(?<![\w.])(?:{NUMBER}|\b(?i:{'|'.join(WORDS)})\b)(?!\.?\d|,\d{{3}})"
EXERCISE = re.compile(r"^\*\*(\d+)\. (?:(?!^\*\*\d+\. ).)*", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
FAILED = "The solution failed:"


class Mismatch(NamedTuple):
    """A number that is not what shows it; None where the words are not there."""

    cell: str
    words: str
    said: str | None
    found: str | None


def pattern(template: str) -> re.Pattern:
    """`{}` is a number, `#` one that does not count, `…` is anything, spaces are any spaces."""
    known = {"{}": f"({NUMBER})", "#": NUMBER, "…": ".*?"}
    parts = re.split(r"(\{\}|#|…|\s+)", template)
    text = "".join(known.get(part, re.escape(part.strip()) or r"\s+") for part in parts if part)
    return re.compile(text, re.DOTALL)


def decimal(number: str) -> Decimal:
    """A number as it is written; 1:30 counts as one and a half."""
    number = str(WORDS.get(number.lower(), number)).replace("−", "-").replace(",", "")
    minutes, *seconds = number.split(":")
    return Decimal(minutes) + sum(Decimal(each) / 60 for each in seconds)


def agree(said: str, real: Decimal, within: float = 0) -> bool:
    """Whether the number is the real one as far as its digits go, or within this share of it."""
    value = decimal(said)
    is_share = said.lower() in WORDS and value % 1  # A half is no rounded number.
    half = 0 if is_share else Decimal(5).scaleb(value.as_tuple().exponent - 1)
    return abs(value - real) <= max(half, abs(real) * Decimal(str(within)))


def compare(
    rows_of: dict[str, list], said_in: dict[str, str], shown_by: dict[str, str], is_fresh: bool
) -> Iterator[Mismatch]:
    """Yields each number of a notebook that is not what shows it.

    Args:
        rows_of: its table: rows of (words, what shows them, its words, options) by text cell.
        said_in: the text of each cell and exercise.
        shown_by: what each cell, solution and expression printed.
        is_fresh: whether that is another run than the text speaks of.
    """
    for cell, rows in rows_of.items():
        for words, source, template, *options in rows:
            options = options[0] if options else {}
            within = max(options.get("about", 0), options.get("varies", 0) if is_fresh else 0)
            if source == "value":
                source, template = template, " ".join(["{}"] * pattern(words).groups)
            said = pattern(words).search(said_in.get(cell, ""))
            found = pattern(template).search(shown_by.get(source, ""))
            if said is None or found is None:
                yield Mismatch(cell, words, said and said[0], found and found[0])
                continue
            numbers = [decimal(each) for each in found.groups()]
            if "is" in options:
                names = {name: float(x) for name, x in zip("abcdef", numbers, strict=False)}
                numbers = [Decimal(eval(options["is"], names))]
            for each, real in zip(said.groups(), numbers, strict=True):
                if not agree(each, real, within):
                    yield Mismatch(cell, said[0], each, f"{real:.6g}")


def texts(notebook: NotebookNode) -> dict[str, str]:
    """The text of each markdown cell, and of each exercise with its solution."""
    cells = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "markdown"}
    parts = [text for name, text in cells.items() if name.startswith(("exercise", "solution"))]
    exercises = EXERCISE.finditer("\n\n".join(parts))
    return cells | {f"exercise {found[1]}": found[0] for found in exercises}


def outputs(notebook: NotebookNode) -> dict[str, str]:
    """What each code cell's outputs say in words, titles of pictures included."""
    said = {}
    for cell in notebook.cells:
        parts = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            page = re.sub(r"<[^>]*>", " ", data.get("text/html", ""))
            parts += [output.get("text", ""), data.get("text/plain", ""), page]
        said[cell.id] = "\n".join(parts).strip()
    return said


def run(name: str, rows_of: dict[str, list]) -> tuple[NotebookNode, dict[str, str]]:
    """Runs a notebook, and once more for each regime that its table names.

    Returns:
        The notebook as it ran, and all that was shown.
    """
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    rows = [row for rows in rows_of.values() for row in rows]
    extra = {row[2]: f"print(*np.ravel({row[2]}))" for row in rows if row[1] == "value"}
    for exercise, text in texts(notebook).items():
        if exercise.startswith("exercise ") and (code := "\n".join(CODE.findall(text))):
            extra[exercise] = f"exec({code!r}, dict(globals()))"  # None spoils another's names.
    shown, ran = {}, {}
    for regime in ["", *dict.fromkeys(row[1].split(": ")[0] for row in rows if ": " in row[1])]:
        executed = ran[regime] = copy.deepcopy(notebook)
        os.environ.pop("NCA_REGIME", None)
        os.environ |= {"NCA_PRESET": "laptop"} | ({"NCA_REGIME": regime} if regime else {})
        for i, code in enumerate([] if regime else extra.values()):
            code = f"try:\n    {code}\nexcept Exception as error:\n    print({FAILED!r}, error)"
            executed.cells.append(nbformat.v4.new_code_cell(code, id=f"extra-{i}"))
        execute(executed, RUNS / f"{name}{regime and '_'}{regime}.ipynb", RUNS)
        found = outputs(executed)
        shown |= {f"{regime}: {cell}" if regime else cell: text for cell, text in found.items()}
    ran[""].cells = ran[""].cells[: len(notebook.cells)]
    return ran[""], shown | {key: shown.pop(f"extra-{i}") for i, key in enumerate(extra)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="01 for notebook 01; all if none is given")
    parser.add_argument("--outputs", action="store_true", help="run nothing")
    parser.add_argument("--save", action="store_true", help="keep the run's outputs")
    arguments = parser.parse_args()
    if arguments.outputs and arguments.save:
        parser.error("--outputs runs nothing that --save could keep")
    RUNS.mkdir(parents=True, exist_ok=True)
    saved = json.loads(SAVED.read_text(encoding="utf-8")) if SAVED.exists() else {}
    count = 0
    for name, rows_of in tomllib.loads(TABLE.read_text(encoding="utf-8")).items():
        if arguments.notebooks and not name.startswith(tuple(arguments.notebooks)):
            continue
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        if arguments.outputs:
            shown = outputs(notebook) | saved.get(name, {})
        else:
            notebook, shown = run(name, rows_of)
            failed = [f"{key}: {text}" for key, text in shown.items() if FAILED in text]
            print("\n".join(failed))
            count += len(failed)
            wanted = {
                row[2 if row[1] == "value" else 1] for rows in rows_of.values() for row in rows
            }
            saved[name] = {
                key: shown[key] for key in sorted(wanted - set(outputs(notebook))) if key in shown
            }
        if arguments.save:
            replace_file(FOLDER / f"{name}.ipynb", f"{nbformat.writes(notebook)}\n".encode())
            replace_file(SAVED, f"{json.dumps(saved, ensure_ascii=False, indent=1)}\n".encode())
        for found in compare(rows_of, texts(notebook), shown, is_fresh=not arguments.outputs):
            count += 1
            print(f"{name}, {found.cell}: {found.words!r}: says {found.said}, is {found.found}")
    sys.exit(f"{count} numbers are not what shows them." if count else None)


if __name__ == "__main__":
    main()
