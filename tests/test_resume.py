"""A training that is killed, again and again, ends exactly as one that is left alone."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

# Two small trainings, in the manner of the notebooks, that end with all of their state in a file.
SCRIPT = """
import os, resource, signal, sys, time
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from nca_helpers.model import NCA, seed_state
from nca_helpers.pgpe import PGPE
from nca_helpers.progress import Progress
from nca_helpers.rollouts import rollout
from nca_helpers.run import restore_run, save_run

out, doom = Path(sys.argv[1]), sys.argv[2]
first = seed_state(8, 8, 5)
target = jax.random.uniform(jax.random.key(9), (8, 8, 4))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def doomed_save(folder, run, **options):
    writing, written, replaced = (
        doom == f"{folder.name} {moment}" and options["step"] > 8
        for moment in ("writing", "written", "replaced")
    )
    replace = os.replace

    def replace_and_die(*paths):
        if replaced:
            replace(*paths)
        die()

    if writing:  # The kernel itself kills when the file has two kilobytes.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if written or replaced:
        os.replace = replace_and_die
    save_run(folder, run, **options)


def wait_for_the_end(folder, step):
    if doom == f"{folder.name} waiting" and step == 50:
        time.sleep(600)


def by_gradients(folder, total=60):
    nca = NCA(channels=5, hidden=8, rngs=nnx.Rngs(0))
    adam = optax.adam(optax.cosine_decay_schedule(2e-3, total))
    optimizer = nnx.Optimizer(nca, optax.chain(optax.clip_by_global_norm(1.0), adam), wrt=nnx.Param)
    pool = np.repeat(np.asarray(first)[None], 8, axis=0)
    progress, key = Progress(total, every=0), jax.random.key(0)

    @nnx.jit
    def train_step(nca, optimizer, batch, key):
        lengths = jax.random.randint(key, (len(batch),), 3, 6)

        def loss_function(nca):
            after = rollout(nca, batch, key, lengths, max_steps=5)
            return jnp.mean((after[..., :4] - target) ** 2), after

        (loss, after), gradients = nnx.value_and_grad(loss_function, has_aux=True)(nca)
        optimizer.update(nca, gradients)
        return loss, after

    def snapshot():
        state = {"nca": nnx.state(nca), "optimizer": nnx.state(optimizer)}
        return state | {"pool": pool, "losses": progress.losses}

    if found := restore_run(folder, snapshot(), seed=0):
        run, step = found
        nnx.update(nca, run["nca"])
        nnx.update(optimizer, run["optimizer"])
        pool = run["pool"]
        progress.restore(step, run["losses"])
        print("gradients continue at", step, flush=True)
    for step in progress:
        wait_for_the_end(folder, step)
        chosen = np.random.default_rng((0, step)).choice(len(pool), 2, replace=False)
        loss, after = train_step(nca, optimizer, pool[chosen], jax.random.fold_in(key, step))
        pool[chosen] = after
        progress.report(loss)
        if progress.step % 3 == 0:
            doomed_save(folder, snapshot(), step=progress.step, seed=0)
    return snapshot()


def by_evolution(folder, total=60):
    vector, unravel = jax.flatten_util.ravel_pytree(jnp.ones((4, 4)))
    pgpe = PGPE(population_size=8, optimizer=optax.adam(0.05))
    progress = Progress(total, every=0, unit="generation")

    @jax.jit
    def generation(state):
        draw = jax.vmap(lambda key: jax.random.uniform(key, (4, 4)))(pgpe.keys(state))
        members = jax.vmap(unravel)(pgpe.ask(state))
        fitness = -jnp.mean((members - draw) ** 2, axis=(1, 2))
        return pgpe.tell(state, fitness), -fitness.mean()

    def snapshot():
        return {"pgpe": state, "losses": progress.losses}

    state = pgpe.init(vector, jax.random.key(0), init_stdev=0.1)
    if found := restore_run(folder, snapshot(), seed=0):
        run, step = found
        state = run["pgpe"]
        progress.restore(step, run["losses"])
        print("evolution continues at", step, flush=True)
    for step in progress:
        wait_for_the_end(folder, step)
        state, loss = generation(state)
        progress.report(loss)
        if progress.step % 3 == 0:
            doomed_save(folder, snapshot(), step=progress.step, seed=0)
    return snapshot()


trained = by_gradients(out / "gradients"), by_evolution(out / "evolution")
leaves = {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(trained)[0]
}
np.savez(out / "trained.npz", **leaves)
"""

# In the middle of the writing, when the new file is whole, when it has taken the old one's place.
DOOMS = ["gradients writing", "gradients written", "gradients replaced", "evolution writing"]


@pytest.fixture
def start(tmp_path):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(ROOT),
    }
    started = []

    def start(out: Path, doom: str = "") -> subprocess.Popen:
        out.mkdir(exist_ok=True)
        command = [sys.executable, "-c", SCRIPT, str(out), doom]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen) -> tuple[int, str]:
    text, _ = process.communicate(timeout=300)
    return process.returncode, text


def kill_at_random(process: subprocess.Popen, unit: str) -> str:
    """Kills it up to half a second after a random step, which may be in the middle of a save.

    The process must be one that waits, or it could end before.
    """
    step = random.randint(1, 20)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(f"{unit} ") and int(line.split()[1].split("/")[0]) >= step:
            break
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    code, text = finish(process)
    assert code == -signal.SIGKILL, text
    return "".join(lines) + text


def test_a_run_killed_again_and_again_ends_like_one_left_alone(tmp_path, start):
    code, text = finish(start(tmp_path / "alone"))
    assert code == 0, text
    assert "continue" not in text

    killed = tmp_path / "killed"
    kill_at_random(start(killed, "gradients waiting"), "step")
    continued = []
    for doom in DOOMS:
        code, text = finish(start(killed, doom))
        assert code == -(signal.SIGXFSZ if "writing" in doom else signal.SIGKILL), text
        continued += re.findall(r"gradients continue at (\d+)", text)
    # Of a save that was cut short the one before was used, of those that were whole the last.
    written, replaced, evolution = map(int, continued[-3:])
    assert 6 <= written == replaced == evolution - 3
    text = kill_at_random(start(killed, "evolution waiting"), "generation")
    assert "gradients continue at 60" in text
    assert "evolution continues at" in text
    code, text = finish(start(killed))
    assert code == 0, text

    with (
        np.load(tmp_path / "alone" / "trained.npz") as alone,
        np.load(killed / "trained.npz") as again,
    ):
        assert list(alone) == list(again)
        for name in alone:
            assert alone[name].dtype == again[name].dtype
            assert alone[name].tobytes() == again[name].tobytes(), name
    for name in ("gradients", "evolution"):
        assert [path.name for path in (killed / name).iterdir()] == ["run.npz"]
