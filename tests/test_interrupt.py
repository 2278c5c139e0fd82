"""A reader's stop button: what notebook 01 has learnt stays, and the loop goes on from there."""

import os
import queue
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "01_growing_with_gradients.ipynb"
PATIENCE = 300  # seconds; a slow machine compiles for long


class Reader:
    """Runs cells in a kernel, and may interrupt one as soon as it has printed a progress line."""

    def __init__(self, folder):
        environment = os.environ | {"NCA_PRESET": "laptop", "NCA_REGIME": "persistent"}
        self.manager, self.client = start_new_kernel(cwd=str(folder), env=environment)

    def run(self, source, interrupt_after=None):
        request = self.client.execute(source)
        text = ""
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
                if interrupt_after and re.search(interrupt_after, text):
                    self.manager.interrupt_kernel()
                    interrupt_after = None
            if message["msg_type"] == "error":
                raise AssertionError("\n".join(content["traceback"]))
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                return text

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def reader(tmp_path):
    reader = Reader(tmp_path)
    yield reader
    reader.close()


def test_an_interrupted_loop_keeps_what_it_learnt_and_goes_on(reader):
    notebook = nbformat.read(NOTEBOOK, 4)
    cells = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
    for name, source in cells.items():
        if name == "loop":
            break
        reader.run(source)
    first = reader.run(cells["loop"], interrupt_after=r"step \d+/2000")
    assert "stopped after step" in first and "Interrupted" in first
    learnt = "print(progress.step, float(abs(nca.update.kernel[...]).sum()))"
    steps, weight = map(float, reader.run(learnt).split())
    assert 0 < steps < 2000 and weight > 0

    second = reader.run(cells["loop"], interrupt_after=rf"step {int(steps) + 1}")
    assert f"step {int(steps) + 1}/2000" in second
    more_steps, other_weight = map(float, reader.run(learnt).split())
    assert more_steps > steps and other_weight != weight
