"""A reader's stop button, and a kernel that dies: the loops go on from where they were."""

import json
import os
import queue
import re
import signal
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_client.manager import start_new_kernel

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
sys.path.insert(0, str(NOTEBOOKS.parent / "benchmarks"))
from notebook_cells import SHOWN  # noqa: E402

NOTEBOOK = NOTEBOOKS / "01_growing_with_gradients.ipynb"
RESUME = ("resume = False", "resume = True")
BESIDE = ("by-hand", "pgpe-loop", "direction")  # Cells of notebook 02 that its loop does not need.
PATIENCE = 300  # seconds; a slow machine compiles for long


class Reader:
    """Runs cells in a kernel, and may interrupt one as soon as it has printed a progress line."""

    def __init__(self, folder, preset="laptop"):
        environment = os.environ | {"NCA_PRESET": preset, "NCA_REGIME": "persistent"}
        self.manager, self.client = start_new_kernel(cwd=str(folder), env=environment)

    def run(self, source, interrupt_after=None):
        request = self.client.execute(source)
        text = ""
        # JAX's callback of the garbage collector may swallow the signal, and says so: press again.
        presses = [interrupt_after, "Exception ignored in"] if interrupt_after else []
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"no sign of life; printed so far: {text}") from None
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                text += content["text"]
                if presses and re.search(presses[0], text):
                    self.manager.interrupt_kernel()
                    presses.pop(0)
            if message["msg_type"] == "error":
                raise AssertionError("\n".join(content["traceback"]))
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                return text

    def run_cells(self, cells):
        """Runs the cells up to the loop and returns the loop's source."""
        for name, source in cells.items():
            if name == "loop":
                return source
            self.run(source)
        raise AssertionError("the notebook has no cell with the id loop")

    def kill_when(self, source, condition):
        """Runs a cell and kills its kernel as soon as a condition holds."""
        self.client.execute(source)
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < PATIENCE
            time.sleep(0.01)
        self.manager.signal_kernel(signal.SIGKILL)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def code_cells(path, **replacements):
    """The sources of the code cells that do more than show, with some of their text replaced."""
    cells = nbformat.read(path, 4).cells
    sources = {cell.id: cell.source for cell in cells if cell.cell_type == "code"}
    for name in (*SHOWN, *BESIDE):
        sources.pop(name, None)
    for name, (old, new) in replacements.items():
        assert old in sources[name], f"{old} is not in the cell {name}"
        sources[name] = sources[name].replace(old, new)
    return sources


@pytest.fixture
def reader(tmp_path):
    reader = Reader(tmp_path)
    yield reader
    reader.close()


def test_an_interrupted_loop_keeps_what_it_learnt_and_goes_on(reader):
    cells = code_cells(NOTEBOOK)
    reader.run_cells(cells)
    first = reader.run(cells["loop"], interrupt_after=r"step \d+/2000")
    assert "stopped after step" in first and "Interrupted" in first
    learnt = "print(progress.step, float(abs(nca.update.kernel[...]).sum()))"
    steps, weight = map(float, reader.run(learnt).split())
    assert 0 < steps < 2000 and weight > 0
    saved = reader.run("print(nca_helpers.restore_run(run_folder, run(), **settings())[1])")
    assert int(saved) == steps

    reader.run(cells["imports"])  # Once more, as happens: nothing is lost by that.
    second = reader.run(cells["loop"], interrupt_after=rf"step {int(steps) + 1}")
    assert f"step {int(steps) + 1}/2000" in second
    more_steps, other_weight = map(float, reader.run(learnt).split())
    assert more_steps > steps and other_weight != weight


def saved_step(folder):
    """The step of the run that is saved there; -1 without one."""
    for path in folder.glob("out/*/run.npz"):
        with np.load(path) as run:
            return json.loads(str(run["about"]))["step"]
    return -1


@pytest.mark.parametrize(
    ("name", "length", "unit", "result"),
    [
        ("01_growing_with_gradients", ("train_steps=4", "train_steps=60"), "step", "pool"),
        ("02_growing_with_pgpe", ("generations=4", "generations=20"), "generation", "curve"),
    ],
)
def test_a_killed_run_continues_to_the_same_end(tmp_path, name, length, unit, result):
    path = NOTEBOOKS / f"{name}.ipynb"
    edits = {"config": length, "loop": ("> 120", "> 0")}  # Long enough, and saved at every turn.
    fresh, resumed = code_cells(path, **edits), code_cells(path, **edits, **{"continue": RESUME})
    end = f"import numpy as np; print(*run()['losses'], np.sum({result}, dtype='float64').hex())"

    def run_whole(cells, folder):
        reader = Reader(folder, preset="quick")
        try:
            loop = reader.run_cells(cells)
            began = reader.run("print(progress.step)")
            return int(began), reader.run(loop), reader.run(end)
        finally:
            reader.close()

    began, _, uninterrupted = run_whole(fresh, tmp_path)
    assert began == 0

    folder = tmp_path / "killed"
    folder.mkdir()
    reader = Reader(folder, preset="quick")
    reader.kill_when(reader.run_cells(fresh), lambda: saved_step(folder) >= 5)
    reader.close()
    began, text, continued = run_whole(resumed, folder)
    total = int(length[1].partition("=")[2])
    assert 0 < began < total and f"{unit} {total}/{total}" in text
    assert continued == uninterrupted
