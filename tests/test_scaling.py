"""Notebook 03's program over several processes: the same result, and what a lost process does."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import nbformat
import numpy as np
import optax
import pytest

from nca_helpers import restore_run
from nca_helpers.pgpe import PGPE

ROOT = Path(__file__).parent.parent
GENERATIONS = 20
PROBLEM = {
    "emoji": "🦎",
    "size": 8,
    "padding": 1,
    "hidden": 8,
    "loss_steps": [4, 6, 8],
    "population_size": 16,
}
NUM_WEIGHTS = (3 * 16 + 17) * 8 + 16
PATIENCE = 120  # seconds; a slow machine starts and compiles for long
RUNNING = 100_000  # generations that no test waits for


def program() -> str:
    """What the cells of the notebook write."""
    notebook = nbformat.read(ROOT / "notebooks" / "03_scaling_on_tpu.ipynb", 4)
    parts = (cell.source.partition("\n") for cell in notebook.cells)
    return "".join(
        body for magic, _, body in parts if re.match("%%writefile.* out/evolve.py", magic)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evolve")
    (folder / "evolve.py").write_text(program(), encoding="utf-8")
    (folder / "problem.json").write_text(json.dumps(PROBLEM), encoding="utf-8")
    return folder


class Cluster:
    """Processes that were started together, and that do not outlive their test."""

    def __init__(self, folder, run, count, devices, generations=GENERATIONS):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            coordinator = f"localhost:{free.getsockname()[1]}"
        self.outputs = [folder / f"{run}_{process}.txt" for process in range(count)]
        self.processes = []
        for process, output in enumerate(self.outputs):
            command = [sys.executable, "evolve.py", "problem.json", run]
            command += ["--generations", str(generations)]
            if count > 1:
                command += ["--coordinator", coordinator, "--processes", str(count)]
                command += ["--process", str(process)]
            environment = {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
            }
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=folder, env=os.environ | environment, stdout=file, stderr=file
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, process=0):
        return self.outputs[process].read_text(encoding="utf-8")

    def wait_until_saved(self):
        start = time.monotonic()
        while "saved" not in self.said():
            assert time.monotonic() - start < PATIENCE, self.said()
            assert self.processes[0].poll() is None, self.said()
            time.sleep(0.05)

    def end(self):
        for number, process in enumerate(self.processes):
            assert process.wait(PATIENCE) == 0, self.said(number)
        return self


def centre_and_step(folder, run):
    zeros = np.zeros(NUM_WEIGHTS, np.float32)
    state = PGPE(population_size=16, optimizer=optax.adam(5e-3)).init(
        zeros, jax.random.key(0), init_stdev=0.02
    )
    restored, step = restore_run(folder / run, state)
    return np.asarray(restored.centre), step


@pytest.fixture(scope="module")
def alone(folder):
    """The centre after a run of one process with one device."""
    with Cluster(folder, "alone", 1, devices=1) as cluster:
        cluster.end()
    centre, step = centre_and_step(folder, "alone")
    assert step == GENERATIONS
    return centre


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (1, 4)])
def test_processes_and_devices_do_not_change_the_result(folder, alone, count, devices):
    run = f"{count}_times_{devices}"
    with Cluster(folder, run, count, devices) as cluster:
        cluster.end()
        said = [cluster.said(process) for process in range(count)]
    assert all(f"{count * devices} devices, of which {devices} here" in text for text in said)
    centre, step = centre_and_step(folder, run)
    assert step == GENERATIONS
    np.testing.assert_allclose(centre, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_stops_the_others_and_the_run_goes_on(folder, alone, victim):
    run = f"killed_{victim}"
    with Cluster(folder, run, 2, devices=2, generations=RUNNING) as cluster:
        cluster.wait_until_saved()
        cluster.processes[victim].send_signal(signal.SIGKILL)
        code, said = cluster.processes[1 - victim].wait(60), cluster.said(1 - victim)
        assert code != 0
        # JAX's own watch may notice before the sum does; it then ends the process and says so.
        if "This most likely indicates that another task died" not in said:
            assert f"process {1 - victim}: stops, another process is gone" in said, said
            assert "Start all of them again" in said

    _, saved = centre_and_step(folder, run)
    later = max(2 * GENERATIONS, GENERATIONS * (saved // GENERATIONS + 1))
    with Cluster(folder, run, 2, devices=2, generations=later) as cluster:
        assert f"begins after generation {saved}" in cluster.end().said()
    whole = f"whole_{later}"
    if not (folder / whole).exists():  # Both victims, as a rule, need the same.
        with Cluster(folder, whole, 1, devices=1, generations=later) as cluster:
            cluster.end()
    centre, step = centre_and_step(folder, run)
    assert step == later
    assert np.abs(centre - alone).max() > 1e-4
    np.testing.assert_allclose(centre, centre_and_step(folder, whole)[0], atol=1e-5)


def test_a_process_that_hangs_ends_the_others(folder):
    with Cluster(folder, "hung", 2, devices=1, generations=RUNNING) as cluster:
        cluster.wait_until_saved()
        cluster.processes[1].send_signal(signal.SIGSTOP)
        assert cluster.processes[0].wait(PATIENCE) != 0
        assert re.search("heartbeat|another (process is gone|task died)", cluster.said(), re.I)


def test_a_run_of_another_problem_is_refused(folder, alone):
    (folder / "other.json").write_text(json.dumps(PROBLEM | {"emoji": "🦋"}), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "evolve.py", "other.json", "alone"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ran.returncode != 0
    assert "holds another run: emoji is '🦎' there, '🦋' here" in ran.stderr
