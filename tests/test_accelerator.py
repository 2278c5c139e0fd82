"""`make accelerator` runs without one, at a tiny size, so that nothing is debugged on one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "accelerator.py"


@pytest.fixture(scope="module")
def accelerator():
    spec = importlib.util.spec_from_file_location("accelerator", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PIECES = [
    ("a", "this project", "train_step_seconds"),
    ("b", "this project", "generation_seconds"),
    ("b", "EvoJAX notebook", "generation_seconds"),
    ("f", "scan", "gradient_step_seconds"),
    ("f", "replay", "gradient_step_seconds"),
    ("f", "Pallas", "rollout_step_seconds"),
    ("c", "notebook 01", "held_out_log10_loss"),
    ("d", "pictures", "share"),
]


# In a process of its own, for the contestants set environment variables and a mesh.
MEASURE = """
import accelerator, json, sys, time, traceback
answers, sys.stdout = sys.stdout, sys.stderr
for part, name in json.loads(sys.argv[1]):
    try:
        rows = list(accelerator.PARTS[part][name].rows(True, time.monotonic() + 60))
    except Exception:
        rows = traceback.format_exc()
    print(json.dumps(rows), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def measured():
    pieces = json.dumps([piece[:2] for piece in PIECES])
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, pieces],
        capture_output=True,
        text=True,
        check=True,
        cwd=SCRIPT.parent,
    )
    rows = map(json.loads, found.stdout.splitlines())
    return dict(zip([piece[:2] for piece in PIECES], rows, strict=True))


@pytest.mark.parametrize("part, name, number", PIECES)
def test_each_part_measures_something(measured, part, name, number):
    rows = measured[part, name]
    assert isinstance(rows, list), rows
    assert np.isfinite(float(rows[-1][number]))


def test_what_fails_does_not_stop_what_follows_and_what_is_done_is_not_done_again(
    accelerator, monkeypatch, tmp_path, capsys
):
    roofline = accelerator.PARTS["e"]["roofline"]
    works = {
        "lacking": roofline._replace(needs="no_such_package"),
        "unknown to the process that does it": roofline,
        "roofline": roofline,
    }
    monkeypatch.setattr(accelerator, "PARTS", {"e": works})
    monkeypatch.setattr(accelerator, "find_device", lambda: ("cpu", "some device"))
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--tiny", "--out", f"{tmp_path}/out.json"])
    accelerator.main()
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["some device"]["e"]
    lacking, failed, done = (entry["status"] for entry in found.values())
    assert "no_such_package is not installed" in lacking
    assert failed.startswith("failed: KeyError")
    assert done == "done" and np.isfinite(found["roofline"]["rows"][2]["measured_over_model"])
    assert "measured_over_model" in capsys.readouterr().out
    del works["unknown to the process that does it"]
    accelerator.main()
    assert "e roofline: at most" not in capsys.readouterr().out


def test_a_part_is_stopped_at_its_budget_and_its_rows_stay(accelerator):
    assert list(accelerator.run("e", "roofline", True, 0.1))[-1] == {"status": "stopped after 0 s"}


def test_the_budgets_fit_into_nine_minutes(accelerator):
    budgets = [work.seconds for works in accelerator.PARTS.values() for work in works.values()]
    assert sum(budgets) <= accelerator.SECONDS <= 9 * 60


def test_without_an_accelerator_it_says_what_it_needs_and_how_to_try_it():
    found = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "needs a GPU or a TPU" in found.stderr and "--tiny" in found.stderr
