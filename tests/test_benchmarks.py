"""The benchmarks measure equal work, and the README says what they measured."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from flax import nnx

from nca_helpers import NCA, seed_state
from nca_helpers.checkpoint import pretrained
from nca_helpers.model import weights_of

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def lively(rngs=0) -> NCA:
    nca = NCA(rngs=nnx.Rngs(rngs))
    nca.update.kernel[...] = 0.05 * jax.random.normal(jax.random.key(1), (128, 16))
    nca.update.bias[...] = 0.01 * jax.random.normal(jax.random.key(2), (16,))
    return nca


def test_the_pallas_kernel_takes_the_same_steps():
    from pallas_rollout import pallas_rollout

    nca = lively()
    states = jnp.stack([seed_state(9, 11), jax.random.uniform(jax.random.key(3), (9, 11, 16))])
    fire = jax.random.bernoulli(jax.random.key(4), 0.5, (2, 6, 9, 11))
    expected = states
    for t in range(6):
        expected = nca.step(expected, fire[:, t])
    found = pallas_rollout(nca, states, fire.astype(jnp.float32), interpret=True)
    assert jnp.abs(expected - states).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_evojax_formulation_takes_the_same_steps():
    import with_evojax

    nca, states = pretrained("🦎", "growing"), jnp.stack([seed_state(12, 12)] * 2)
    fire = jax.random.bernoulli(jax.random.key(4), 0.5, (6, 2, 12, 12))
    given = weights_of(nca) | {"states": np.asarray(states), "masks": np.asarray(fire)}
    found = with_evojax.check(given)
    expected = states
    for mask in fire:
        expected = nca.step(expected, mask)
    np.testing.assert_allclose(found["states"], expected, atol=1e-5)


def test_an_unknown_workload_is_refused_and_the_known_are_listed():
    command = [sys.executable, BENCHMARKS / "speed.py", "train_fast"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "train_fast" in found.stderr and "train_alive" in found.stderr


def test_the_readme_quotes_the_measured_ratios():
    results = json.loads((BENCHMARKS / "speed.json").read_text(encoding="utf-8"))["cpu"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    def quoted(ratio):
        return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"

    def ratios(task, rival):
        rows = (entry["contestants"].get(rival) for name, entry in results.items() if task in name)
        return [row["ratio"] for row in rows if row]

    def best(name, rivals, what):
        rows = results[name]["contestants"]
        return min(rows[rival][what] for rival in rivals if rival in rows)

    cax = ("with_cax", "with_cax:remat")
    (version,) = {
        found
        for entry in results.values()
        if "with_cax" in entry["contestants"]
        for found in re.findall(r"cax ([\d.]+)", entry["machine"]["versions"])
    }
    assert f"[CAX](https://github.com/maxencefaldor/cax) {version}" in readme
    columns = {
        rival: title
        for rival, title in {
            "with_cax": "CAX",
            "with_cax:remat": "CAX, remat",
            "with_evojax": "EvoJAX notebook",
            "with_evosax:Open_ES": "evosax Open-ES",
            "with_evosax:PGPE": "evosax PGPE",
            "with_torch": "PyTorch",
            "here:general": "channels last",
        }.items()
        if ratios("", rival)
    }
    assert f"| work | {' | '.join(columns.values())} |" in readme
    for name, entry in results.items():
        rivals = (ratios(name, rival) for rival in columns)
        row = " | ".join(quoted(*found) if found else "–" for found in rivals)
        assert f"| {entry['title']} | {row} |" in readme
    for task, title in (("train_", "train step"), ("generation_", "generation")):
        of_cax = [
            best(name, cax, "ratio")
            for name, entry in results.items()
            if task in name and "with_cax" in entry["contestants"]
        ]
        row = " | ".join(
            f"{quoted(min(found))} to {quoted(max(found))}" if found else "–"
            for found in (of_cax, ratios(task, "with_evojax"))
        )
        assert f"| time of a {title}, CAX {version} | {row} | 1 |" in readme
    theirs, ours = (f"{best('train_full', who, 'memory_gb'):.1f} GB" for who in (cax, ["here"]))
    (memory,) = (line for line in readme.splitlines() if line.startswith("| memory of a train"))
    assert f"compiled, CAX {version} | {theirs} | – | {ours} |" in memory


def test_notebook_03_shows_what_evolved_under_the_two_exchanges():
    import exchanges

    results = json.loads((BENCHMARKS / "exchanges.json").read_text(encoding="utf-8"))
    notebook = nbformat.read(ROOT / "notebooks" / "03_scaling_on_tpu.ipynb", 4)
    assert exchanges.table(results) in "".join(cell.source for cell in notebook.cells)


PROGRAMS = [
    path for name in ("benchmarks", "experiments", "scripts") for path in ROOT.glob(f"{name}/*.py")
]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_what_a_program_takes_from_the_package_is_there(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "nca_helpers":
            module = importlib.import_module(node.module)
            assert not [name.name for name in node.names if not hasattr(module, name.name)]
