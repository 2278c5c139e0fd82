"""What importing the package does, what it offers, and how its modules lean on each other."""

import ast
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nca_helpers

PACKAGE = Path(nca_helpers.__file__).parent
README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
# A module imports only what stands above it in this table.
TABLE = README.partition("| module | what it is |\n")[2].partition("\n\n")[0]
ORDER = re.findall(r"^\| `(\w+)` \|", TABLE, re.MULTILINE)
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
NAMES = [
    "NCA",
    "perceive",
    "living_mask",
    "seed_state",
    "rollout",
    "rollout_frames",
    "population_fitness",
    "load_emoji",
    "load_image",
    "to_rgb",
    "save_video",
    "show_video",
    "save_nca",
    "load_nca",
    "pretrained",
    "pretrained_meta",
    "save_run",
    "restore_run",
    "player_html",
    "save_player",
    "show_player",
]

PROBE = """
import importlib, json, os, sys
import flax.nnx, optax, jax
from jax._src import xla_bridge

settings, environment = dict(jax.config.values), dict(os.environ)
for module in sys.argv[1:]:
    importlib.import_module(module)
print(json.dumps({
    "started": xla_bridge.backends_are_initialized(),
    "changed": [name for name in settings if jax.config.values[name] != settings[name]],
    "environment": environment != dict(os.environ),
    "evojax": [name for name in sys.modules if name.split(".")[0] == "evojax"],
}))
"""


def after_importing(*modules: str) -> dict:
    """The state of a fresh interpreter after it has imported the modules."""
    ran = subprocess.run(
        [sys.executable, "-c", PROBE, *modules],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_import_starts_no_backend_and_changes_no_setting():
    every_module = [f"nca_helpers.{name}" for name in MODULES]
    for modules in (["nca_helpers"], every_module):
        seen = after_importing(*modules)
        assert seen == {"started": False, "changed": [], "environment": False, "evojax": []}


@pytest.mark.parametrize("name", NAMES)
def test_the_package_offers(name):
    assert callable(getattr(nca_helpers, name))
    assert name in nca_helpers.__all__


def test_everything_offered_exists():
    assert len(set(nca_helpers.__all__)) == len(nca_helpers.__all__)
    for name in nca_helpers.__all__:
        assert getattr(nca_helpers, name) is not None


def imported_modules(source: str) -> set[str]:
    """The modules of the package that a module of it imports, anywhere in its code.

    A name taken from the package itself counts as one, for whoever takes it leans on everything.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            base = f"nca_helpers.{module}".rstrip(".") if node.level else module
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == "nca_helpers":
                found.add(rest[0] if rest else first)
    return found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import jax", set()),
        ("import nca_helpers", {"nca_helpers"}),
        ("import nca_helpers.model as m", {"model"}),
        ("from nca_helpers import model, NCA", {"model", "NCA"}),
        ("from nca_helpers.model import NCA", {"model"}),
        ("from . import rollout", {"rollout"}),
        ("def f():\n    from .rollout import rollout", {"rollout"}),
    ],
)
def test_imports_are_found(line, found):
    assert imported_modules(line) == found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it(module):
    assert module in ORDER, f"{module}.py has no place in the package"
    imported = imported_modules((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    assert imported <= set(ORDER[: ORDER.index(module)])


def test_the_readme_lists_every_module_once():
    assert sorted(ORDER) == MODULES


def test_the_package_has_no_subpackages():
    assert not [module.name for module in pkgutil.iter_modules([str(PACKAGE)]) if module.ispkg]


def test_what_is_installed_has_every_file_of_the_package():
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["nca_helpers"]
    packed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {path for path in PACKAGE.rglob("*") if path.is_file()}
    code = {path for path in files if path.suffix in (".py", ".pyc")}
    assert files - code == packed
