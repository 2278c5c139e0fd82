"""How the cost of a train step, of a generation and of inference grows, over decades of each size.

    python benchmarks/growth.py                       all of it, 5 minutes on two cores
    python benchmarks/growth.py population inference  some of it; the rest stays as it is

Time against cells, steps and batch of a gradient, against a population and against the cells of a
grid in inference, every cell alive, medians of interleaved rounds and the exponent of the power law
fitted to the upper half of the sizes. And memory, as the compiler reports it: of a gradient against
its steps, as `rollout` keeps it (the states, all else computed again) and as automatic
differentiation of a plain scan does; of a generation against its population, for both exchanges of
notebook 03. Writes benchmarks/growth.json and growth.png.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from speed import machine

from nca_helpers import NCA, population_fitness, rollout, use_every_core
from nca_helpers.evolve import make_fitness, make_generation, make_solver
from nca_helpers.files import replace_file

jax.set_mesh(use_every_core())

FOLDER = Path(__file__).resolve().parent
ROUNDS = 5

AXES = {
    "cells": (16, 28, 50, 90, 160),  # The side of the grid: 256 to 25,600 cells.
    "steps": (4, 13, 40, 130, 400),
    "batch": (2, 6, 20, 64, 200),
    "population": (4, 16, 64, 256, 1_024, 4_096),
    "inference": (64, 128, 256, 512, 1_024, 2_048),  # The side again: up to 4,194,304 cells.
}
MEMORY_STEPS = (4, 13, 40, 130, 400)
POPULATIONS = (4_096, 65_536, 1_000_000)  # Compiled, and not run.


def living(*shape: int) -> jax.Array:
    """Returns states whose cells all live, for good with the weights of `steady`."""
    return jax.random.uniform(jax.random.key(0), (*shape, 16), minval=0.5)


def steady() -> NCA:
    """Returns an automaton that hardly changes anything."""
    nca = NCA(rngs=nnx.Rngs(0))
    nca.update.kernel[...] = 1e-4 * jax.random.normal(jax.random.key(1), (128, 16))
    return nca


def gradient(run: Callable) -> Callable:
    """Returns the gradient, of (nca, states), of what `run(nca, states)` ends with."""
    return nnx.jit(nnx.grad(lambda nca, states: jnp.mean(run(nca, states)[..., :4] ** 2)))


def work(axis: str, size: int) -> Callable[[], None]:
    """Returns a function that does the work of this size once."""
    nca, key = steady(), jax.random.key(2)
    if axis == "population":
        graph, weights = nnx.split(nca)
        vector, unravel = ravel_pytree(weights)
        first = living(24, 24)

        def fitness(vector, key):
            return -jnp.mean(rollout(nnx.merge(graph, unravel(vector)), first, key, 20)[..., :4])

        population = jnp.broadcast_to(vector, (size, len(vector)))
        keys = jax.random.split(key, size)
        score = jax.jit(lambda population, keys: population_fitness(fitness, population, keys))
        return lambda: score(population, keys).block_until_ready()
    if axis == "inference":
        states = living(size, size)
        run = jax.jit(lambda states: rollout(nca, states, key, 8))
        return lambda: run(states).block_until_ready()
    side = size if axis == "cells" else 24
    num_steps = size if axis == "steps" else 8
    states = living(size if axis == "batch" else 2, side, side)
    run = gradient(lambda nca, states: rollout(nca, states, key, num_steps))
    return lambda: jax.block_until_ready(run(nca, states))


def times(axis: str) -> list[list[float]]:
    """Returns the seconds of each size, of each round."""
    works = [work(axis, size) for size in AXES[axis]]
    for once in works:
        once()
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for once, found in zip(works, seconds, strict=True):
            start = time.perf_counter()
            once()
            found.append(time.perf_counter() - start)
    return seconds


def memory(num_steps: int) -> dict[str, float]:
    """Returns what the gradient of one sample of 72² needs beside its arguments, in MB."""
    key, states = jax.random.key(2), living(1, 72, 72)

    def scanned(nca, states):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_steps))
        return jax.lax.scan(lambda state, key: (nca(state, key), None), states, keys)[0]

    def rolled(nca, states):
        return rollout(nca, states, key, num_steps, max_steps=num_steps)

    graph, weights = nnx.split(steady())
    found = {}
    for name, run in (("rollout", rolled), ("plain scan", scanned)):
        function = jax.jit(jax.grad(lambda w, run=run: run(nnx.merge(graph, w), states).mean()))
        analysis = function.lower(weights).compile().memory_analysis()
        found[name] = analysis.temp_size_in_bytes / 1e6
    return found


def generation_memory(size: int) -> dict[str, float]:
    """Returns what a generation of the EvoJAX notebook's problem needs on this machine, in GB."""
    fitness, centre = make_fitness(40, 4, 128, [30, 60, 90], "🦎")
    solver = make_solver(size)
    state = jax.device_get(solver.init(centre, jax.random.key(0), init_stdev=0.02))
    found = {}
    for exchange in ("fitness", "gradients"):
        generation = jax.jit(make_generation(exchange, fitness, solver))
        analysis = generation.lower(state).compile().memory_analysis()
        # The compiler reports one device's.
        found[exchange] = jax.device_count() * analysis.temp_size_in_bytes / 1e9
    return found


def draw(results: dict) -> None:
    """Draws what was measured to benchmarks/growth.png."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for (axis, found), marker in zip(results["axes"].items(), "osD^v", strict=True):
        sizes, medians = np.array(found["sizes"]), np.median(found["seconds"], axis=1)
        label = f"{axis}, exponent {found['exponent']:.2f}"
        left.loglog(sizes / sizes[0], medians / medians[0], marker + "-", label=label)
    left.loglog([1, 1_024], [1, 1_024], ":", color="gray", label="exponent 1")
    left.set(xlabel="size, in times of the smallest", ylabel="time, in times of the smallest")
    left.legend()
    for name, marker in (("plain scan", "s-"), ("rollout", "o-")):
        memory = [row[name] for row in results["memory_mb"].values()]
        right.loglog(MEMORY_STEPS, memory, marker, label=name)
    right.set(xlabel="steps", ylabel="memory of a gradient, MB")
    right.legend()
    figure.savefig(FOLDER / "growth.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("axes", nargs="*", metavar="axis", help=f"some of {', '.join(AXES)}")
    chosen = parser.parse_args().axes or list(AXES)
    if unknown := set(chosen) - set(AXES):
        parser.error(f"{', '.join(sorted(unknown))} must be some of {', '.join(AXES)}")
    path = FOLDER / "growth.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"axes": {}}
    for axis in chosen:
        sizes = np.array(AXES[axis]) ** (2 if axis in ("cells", "inference") else 1)
        seconds = times(axis)
        upper = slice(len(sizes) // 2, None)
        logs = np.log(sizes), np.log(np.median(seconds, axis=1))
        exponent = float(np.polyfit(logs[0][upper], logs[1][upper], 1)[0])
        print(f"{axis:<12} time ~ size^{exponent:.2f}, {median(seconds[-1]):.2f} s", flush=True)
        results["axes"][axis] = {
            "machine": machine(("jax", "flax", "numpy")),
            "devices": jax.device_count(),
            "sizes": sizes.tolist(),
            "seconds": seconds,
            "exponent": exponent,
        }
    results["memory_mb"] = {num_steps: memory(num_steps) for num_steps in MEMORY_STEPS}
    results["generation_gb"] = {size: generation_memory(size) for size in POPULATIONS}
    print(results["memory_mb"], results["generation_gb"], sep="\n")
    draw(results)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, text.encode())


if __name__ == "__main__":
    main()
