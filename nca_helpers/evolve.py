"""A program: evolves an emoji on all devices of all processes, started once on every host.

    python -m nca_helpers.evolve problem.json run --generations 1000

`problem.json` holds the arguments of `make_fitness`, and `population_size`. The folder of the run
is where process 0 is. A run that is there goes on, on any number of processes and devices: each
generation's state is the same on all of them. Notebook 03 explains the parts.
"""

import argparse
import faulthandler
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental.multihost_utils import broadcast_one_to_all, reached_preemption_sync_point
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from nca_helpers.emoji import load_emoji
from nca_helpers.model import NCA, seed_state
from nca_helpers.pgpe import PGPE, PGPEState
from nca_helpers.population import population_fitness, spread_generation
from nca_helpers.rollouts import rollout
from nca_helpers.run import restore_run, save_run

SAVED_EVERY = 10  # generations


def make_fitness(
    size: int,
    padding: int,
    hidden: int,
    loss_steps: list[int],
    emoji: str,
    grow: Callable = rollout,
) -> tuple[Callable, np.ndarray]:
    """Returns a fitness, the more the better, and a first vector of weights for it.

    Args:
        size: of the emoji, in pixels.
        padding: empty cells around it.
        hidden: size of the hidden layer.
        loss_steps: after which steps the loss is taken; the fitness is minus the sum.
        emoji: what is to grow.
        grow: in place of `rollout`.
    """
    target = np.asarray(load_emoji(emoji, size, padding))
    first = np.asarray(seed_state(*target.shape[:2]))
    graph, weights = nnx.split(NCA(hidden=hidden, rngs=nnx.Rngs(0)))
    centre, unravel = ravel_pytree(weights)

    def fitness(vector, key):
        nca, state, loss = nnx.merge(graph, unravel(vector)), first, 0.0
        for i, (start, end) in enumerate(itertools.pairwise((0, *loss_steps))):
            state = grow(nca, state, jax.random.fold_in(key, i), end - start)
            loss += jnp.mean(jnp.square(state[..., :4] - target))
        return -loss

    return fitness, np.asarray(centre)


def make_solver(population_size: int) -> PGPE:
    """Returns notebook 02's PGPE with plainer settings."""
    return PGPE(population_size=population_size, optimizer=optax.adam(5e-3))


def make_generation(
    exchange: str, fitness: Callable, pgpe: PGPE, mesh: Mesh | None = None
) -> Callable[[PGPEState], tuple[PGPEState, jax.Array]]:
    """Returns a function from one state to the next, and its scores; no mesh is all devices."""

    def by_fitness(state):
        scores = population_fitness(fitness, pgpe.ask(state), pgpe.keys(state), mesh)
        return pgpe.tell(state, scores), scores

    def by_gradients(state):
        return spread_generation(pgpe, fitness, state, mesh)

    return {"fitness": by_fitness, "gradients": by_gradients}[exchange]


def collectives(compiled: jax.stages.Compiled) -> Iterator[str]:
    """What a program sends between devices, from its own text: operations and their bytes."""
    operations = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    for types, name in re.findall(rf" = (.+?) ({operations})(?:-start)?\(", compiled.as_text()):
        shapes = re.findall(r"[fsu]32\[([\d,]*)\]", types)
        size = sum(4 * math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes)
        yield f"{name} {size:,} B"


def start_here(
    problem: str | os.PathLike,
    run: str | os.PathLike,
    *options: str,
    processes: int = 1,
    devices: int = 1,
) -> list[subprocess.Popen]:
    """Starts the program on this machine, once for each process of a small cluster.

    Args:
        problem: as on the command line.
        run: as on the command line.
        options: further words of it.
        processes: how many.
        devices: of each process, emulated ones on a CPU.

    Returns:
        The processes; what each says comes out of its `stdout`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "nca_helpers.evolve", str(problem), str(run), *options]
    cluster = ["--coordinator", coordinator, "--processes", str(processes), "--process"]
    return [
        subprocess.Popen(
            command + ([*cluster, str(process)] if processes > 1 else []),
            env=child_environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        for process in range(processes)
    ]


def child_environment(devices: int) -> dict[str, str]:
    """Returns the environment of a Python process that finds this package and so many devices."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }


def main() -> None:
    """Joins the other processes, and begins or goes on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", help="JSON: the arguments of make_fitness, population_size")
    parser.add_argument("run", help="folder of the run; one that is there goes on")
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--exchange", default="gradients", choices=["fitness", "gradients"])
    parser.add_argument("--patience", type=float, default=600, help="seconds for a generation")
    parser.add_argument("--cluster", action="store_true", help="Cloud TPU, GKE, SLURM, Open MPI")
    parser.add_argument("--coordinator", help="address:port of process 0, where no cluster tells")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    options = parser.parse_args()
    if options.cluster or options.coordinator:
        check_own_name()
        jax.distributed.initialize(
            options.coordinator, options.processes, options.process, heartbeat_timeout_seconds=10
        )
    with open(options.problem, encoding="utf-8") as file:
        problem = json.load(file)
    pgpe = make_solver(problem.pop("population_size"))
    fitness, centre = make_fitness(**problem)
    state, done = pgpe.init(centre, jax.random.key(0), init_stdev=0.02), 0
    if jax.process_index() == 0:
        state, done = restore_run(options.run, state, **problem) or (state, done)
    if jax.process_count() > 1:
        state, done = broadcast_one_to_all((jax.device_get(state), np.int32(done)))
    evolve(pgpe, fitness, jax.device_get(state), int(done), options, problem)


def check_own_name() -> None:
    """Ends the program where a host cannot resolve its own name, which CPUs' processes need."""
    try:
        socket.getaddrinfo(name := socket.gethostname(), None)
    except OSError:
        sys.exit(
            f"This host cannot resolve its own name, {name}, by which the others are to reach it: "
            "put a line with its address and this name into /etc/hosts."
        )


def say(*words: Any) -> None:
    """Prints what this process has to say."""
    print(f"process {jax.process_index()}:", *words, flush=True)


def evolve(
    pgpe: PGPE,
    fitness: Callable,
    state: PGPEState,
    done: int,
    options: argparse.Namespace,
    problem: dict[str, Any],
) -> None:
    """Runs to the last generation; process 0 saves every ten, and where the run is stopped."""
    generation = jax.jit(make_generation(options.exchange, fitness, pgpe)).lower(state).compile()
    say(
        f"{jax.device_count()} devices, of which {jax.local_device_count()} here,",
        f"begins after generation {done};",
        *collectives(generation),
    )
    is_stopped = sigterm_watch()

    def save(why=""):
        if jax.process_index() == 0:
            save_run(options.run, state, step=done, **problem)
            say(f"{why}generation {done} is saved")

    stopped = False
    try:
        while done < options.generations and not stopped:
            # Whoever waits for longer is ended, for another process hangs; the one that hangs, too.
            faulthandler.dump_traceback_later(options.patience, exit=True)
            state, _ = jax.device_get(generation(state))
            done += 1
            stopped = is_stopped(done)
            if stopped or done % SAVED_EVERY == 0 or done == options.generations:
                save("stops at SIGTERM, " if stopped else "")
    except jax.errors.JaxRuntimeError as error:
        # Whoever is gone takes a share of every sum along: nobody can go on alone.
        say(f"stops, another process is gone ({str(error).splitlines()[0]:.90}).")
        save()
        say("Start all of them again: the run goes on from where it was saved.")
        os._exit(1)  # A usual exit would wait for the others.
    faulthandler.cancel_dump_traceback_later()
    say("stopped" if stopped else "done")
    sys.exit(128 + signal.SIGTERM if stopped else 0)


def sigterm_watch() -> Callable[[int], bool]:
    """Returns a function that tells after a generation whether SIGTERM has come, to anybody.

    Cloud TPU and SLURM send it some time before they take a machine away.
    """
    if jax.process_count() > 1:
        return reached_preemption_sync_point  # All processes agree on the generation.
    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    return lambda _: bool(came)


if __name__ == "__main__":
    main()
