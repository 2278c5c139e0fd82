"""What is installed: all that is imported, in a reader's install no more, and never another JAX."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DISTRIBUTIONS = packages_distributions()


def lines(path):
    found = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in found if line]


READERS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
EVERYTHING = lines(ROOT / "requirements.txt")


def name_of(requirement):
    """A distribution's name in the one form that all of its spellings have."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def imported(sources):
    """The distributions of other people that some Python sources import."""
    modules = set()
    for source in sources:
        for node in ast.walk(ast.parse(re.sub(r"(?m)^(\s*)%.*", r"\1pass", source))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module)
    # A module that nobody has published is the notebook's, the test's or Colab's own.
    names = {module.split(".")[0] for module in modules if module != "google.colab"}
    published = (DISTRIBUTIONS.get(name, []) for name in names - sys.stdlib_module_names)
    return {name_of(found[0]) for found in published if found} - {"nca-helpers"}


def test_a_reader_installs_what_package_and_notebooks_import_and_no_more():
    sources = [path.read_text("utf-8") for path in (ROOT / "nca_helpers").glob("*.py")]
    for path in NOTEBOOKS:
        sources += [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert imported(sources) == set(map(name_of, READERS))


def test_requirements_are_those_of_a_reader_and_of_the_tests():
    assert EVERYTHING[: len(READERS)] == READERS
    paths = [path for folder in ("tests", "scripts") for path in (ROOT / folder).glob("*.py")]
    paths += [ROOT / "benchmarks" / "notebook_cells.py"]
    missing = imported(path.read_text("utf-8") for path in paths) - set(map(name_of, EVERYTHING))
    assert not missing
    assert "nbmake" in map(name_of, EVERYTHING)


def test_ranges_leave_the_host_its_packages():
    assert all(re.fullmatch(r"[A-Za-z0-9-]+>=[\d.]+", requirement) for requirement in EVERYTHING)
    colab = dict(line.split("==") for line in lines(ROOT / ".ci" / "constraints-colab.txt"))
    for requirement in READERS:
        name, least = requirement.split(">=")
        installed = colab.get(name, least).split(".")
        assert tuple(map(int, installed)) >= tuple(map(int, least.split("."))), requirement


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_install_cell_installs_the_package(path):
    (cell,) = (cell for cell in nbformat.read(path, 4).cells if cell.id == "install")
    installs = re.findall(r"%pip install (.*)", cell.source)
    assert [re.sub(r"https://\S+", "URL", words) for words in installs] == [
        "--quiet --no-index --no-deps {wheels}",
        "--quiet git+URL",
    ]


@pytest.mark.parametrize("name", ["Makefile", ".ci/run", ".github/workflows/weekly.yml"])
def test_whoever_tests_installs_all_requirements(name):
    text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
    installs = re.findall(r"pip install .*", text)
    assert installs
    assert all(re.search(r"(-r|--requirement) requirements\.txt", line) for line in installs)
    assert all(re.search(r"(-e|--editable) \.$", line) for line in installs)
