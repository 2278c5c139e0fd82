"""`nca_helpers.evolve` over processes and devices, and what becomes of a run that loses them."""

import contextlib
import json
import re
import signal
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from nca_helpers import NCA, evolve, restore_run, rollout, save_run, seed_state, stopwatch

PROBLEM = {"emoji": "🦎", "size": 8, "padding": 1, "hidden": 8, "loss_steps": [4, 6, 8]}
PATIENCE = 120  # seconds; a slow machine starts and compiles for long
RUNNING = ("--generations", "100000")  # more than any test waits for


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evolve")
    text = json.dumps(PROBLEM | {"population_size": 16})
    (folder / "problem.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def centre_after():
    """Returns a function: the centre after so many generations in this process, uninterrupted."""
    fitness, centre = evolve.make_fitness(**PROBLEM)
    solver = evolve.make_solver(16)
    generation = jax.jit(evolve.make_generation("fitness", fitness, solver))
    states = [jax.device_get(solver.init(centre, jax.random.key(0), init_stdev=0.02))]

    def after(generations):
        while len(states) <= generations:
            states.append(jax.device_get(generation(states[-1])[0]))
        return states[generations].centre

    after.first = states[0]
    return after


@contextlib.contextmanager
def started(folder, run, *options, **shape):
    """Processes that do not outlive their test."""
    processes = evolve.start_here(folder / "problem.json", folder / run, *options, **shape)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def end(processes, code=0):
    """Waits for all; returns what each has said since."""
    said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [code] * len(said), said
    return said


def wait_until_saved(process):
    for line in process.stdout:
        if "is saved" in line:
            return
    raise AssertionError("it ended before it saved")


def check_saved(folder, run, centre_after, step=None):
    """The run that is there is that of one process that nobody disturbed."""
    state, saved = restore_run(folder / run, centre_after.first)
    assert step in (None, saved)
    assert saved == state.generation >= 10
    np.testing.assert_allclose(state.centre, centre_after(saved), rtol=0, atol=1e-6)
    return saved


def test_a_run_goes_on_with_other_processes_and_devices(folder, centre_after):
    begun = 0
    for processes, devices in ((2, 2), (1, 3), (4, 1)):
        generations = "--generations", str(begun + 10)
        shape = {"processes": processes, "devices": devices}
        with started(folder, "elastic", *generations, **shape) as cluster:
            said = end(cluster)
        total = f"{processes * devices} devices, of which {devices} here"
        assert all(f"{total}, begins after generation {begun};" in text for text in said)
        begun = check_saved(folder, "elastic", centre_after, begun + 10)
    assert np.abs(centre_after(30) - centre_after(0)).max() > 1e-2


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_first(folder, centre_after, processes):
    run = f"terminated_{processes}"
    with started(folder, run, *RUNNING, processes=processes, devices=2) as cluster:
        wait_until_saved(cluster[0])
        cluster[-1].send_signal(signal.SIGTERM)  # To one of them: the others are told.
        said = end(cluster, 128 + signal.SIGTERM)
    saved = check_saved(folder, run, centre_after)
    assert f"stops at SIGTERM, generation {saved} is saved" in said[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_stops_the_others(folder, centre_after, victim):
    run = f"killed_{victim}"
    with started(folder, run, *RUNNING, processes=2, devices=2) as cluster:
        wait_until_saved(cluster[0])
        cluster[victim].send_signal(signal.SIGKILL)
        (said,) = end([cluster[1 - victim]], 1) if victim == 0 else [None]
        said = said or cluster[0].communicate(timeout=PATIENCE)[0]
        assert cluster[1 - victim].returncode != 0
    # JAX's own watch may notice before the sum does; it then ends the process and says so.
    if "This most likely indicates that another task died" not in said:
        assert f"process {1 - victim}: stops, another process is gone" in said, said
        assert "Start all of them again" in said
    check_saved(folder, run, centre_after)


def test_a_frozen_process_ends_the_others(folder):
    with started(folder, "frozen", *RUNNING, processes=2) as cluster:
        wait_until_saved(cluster[0])
        cluster[1].send_signal(signal.SIGSTOP)
        said, _ = cluster[0].communicate(timeout=PATIENCE)
        assert cluster[0].returncode != 0
        assert re.search("heartbeat|another (process is gone|task died)", said, re.I)


HANGS = """
import os
from jax.experimental import multihost_utils

agree = multihost_utils.reached_preemption_sync_point

def hang_once(step):
    while step == 12 and os.sys.argv[-1] == "1":
        pass
    return agree(step)

multihost_utils.reached_preemption_sync_point = hang_once
"""


def test_a_process_that_hangs_in_python_ends_all(folder, monkeypatch):
    """Its heart goes on beating."""
    (folder / "hangs").mkdir()
    (folder / "hangs" / "sitecustomize.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", str(folder / "hangs"))
    patience = "--patience", "5"
    with started(folder, "hung", *RUNNING, *patience, processes=2) as cluster:
        said = [process.communicate(timeout=PATIENCE)[0] for process in cluster]
        codes = [process.returncode for process in cluster]
    assert all(codes), said
    # Whose clock runs out first is chance. The other ends by its own, or notices.
    told = r"Timeout \(0:00:05\)|heartbeat|another (process is gone|task died)"
    assert all(re.search(told, text, re.I) for text in said), said
    assert any("Timeout (0:00:05)" in text for text in said), said
    # The dump reads the stacks of threads that run; now and then that crashes, and ends it, too.
    assert codes[1] != 1 or "in hang_once" in said[1], "where it hangs"


def test_a_host_that_cannot_resolve_its_own_name_is_told(monkeypatch):
    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "gethostname", lambda: "nowhere")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("sys.argv", ["evolve", "p.json", "run", "--coordinator", "localhost:1"])
    with pytest.raises(SystemExit, match=r"cannot resolve its own name, nowhere, .* /etc/hosts"):
        evolve.main()


def test_a_run_of_another_problem_is_refused(folder, centre_after):
    save_run(folder / "other", centre_after.first, step=0, **PROBLEM | {"emoji": "🦋"})
    with started(folder, "other") as cluster:
        (said,) = end(cluster, 1)
    assert "holds another run: emoji is '🦋' there, '🦎' here" in said


@pytest.mark.parametrize("slower", [stopwatch.plain, stopwatch.convolution])
def test_the_slower_rollouts_grow_the_same(slower):
    nca, key = NCA(hidden=8, rngs=nnx.Rngs(0)), jax.random.key(0)
    nca.update.kernel[...] = 0.1 * jax.random.normal(jax.random.key(1), (8, 16))
    first = seed_state(9, 11)
    expected = rollout(nca, first, key, 6)
    assert jnp.abs(expected - first).max() > 0.1
    np.testing.assert_allclose(slower(nca, first, key, 6), expected, atol=1e-5)


def test_every_round_times_everything(folder, centre_after):
    save_run(folder / "young", centre_after.first, step=0)
    jobs = [
        {"exchange": exchange, "population_size": 4, "grow": grow}
        for exchange, grow in (("gradients", "plain"), ("told", "rollout"))
    ]
    work = {
        "two devices": [((0, 1), jobs[0])],
        "at once": [((0,), jobs[0]), ((1,), jobs[0])],
        ("update", 1): [((0,), jobs[1])],
    }
    seconds = stopwatch.measure(PROBLEM, str(folder / "young"), work, 3)
    assert list(seconds) == list(work)
    assert all(found.shape == (3,) and np.all(found > 0) for found in seconds.values())


def test_a_ratio_is_of_pairs_and_its_interval_a_bootstrap():
    random = np.random.default_rng(0)
    rounds = random.lognormal(0, 0.5, 40)  # What hits a whole round cancels out.
    assert stopwatch.ratio(1.5 * rounds, rounds) == pytest.approx((1.5, 1.5, 1.5))
    below = rounds * random.lognormal(0, 0.1, 40)
    middle, *ends = stopwatch.ratio(rounds, below)
    expected = scipy.stats.bootstrap(
        (rounds / below,), np.median, method="percentile", rng=1, n_resamples=5_000
    ).confidence_interval
    assert middle == np.median(rounds / below)
    np.testing.assert_allclose(ends, expected, atol=0.01)
