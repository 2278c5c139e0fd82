"""How the cost of a train step and of a generation grows, over two decades of each size.

    python benchmarks/growth.py

Time against cells, steps, batch and population, every cell alive, medians of interleaved rounds and
the exponent of the power law fitted to them; and the memory of a gradient against its steps, as
`rollout` keeps it (the states, all else computed again) and as automatic differentiation of a plain
scan does, both as the compiler reports it. Writes benchmarks/growth.json and growth.png.
"""

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
from nca_helpers.files import replace_file

jax.set_mesh(use_every_core())

FOLDER = Path(__file__).resolve().parent
ROUNDS = 5

AXES = {
    "cells": (16, 28, 50, 90, 160),  # The side of the grid: 256 to 25,600 cells.
    "steps": (4, 13, 40, 130, 400),
    "batch": (2, 6, 20, 64, 200),
    "population": (2, 6, 20, 64, 200),
}
MEMORY_STEPS = (4, 13, 40, 130, 400)


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


def main() -> None:
    results = {"machine": machine(), "axes": {}, "memory_mb": {}}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, marker in zip(AXES, "osD^", strict=True):
        sizes = np.array(AXES[axis]) ** (2 if axis == "cells" else 1)
        seconds = times(axis)
        medians = [median(found) for found in seconds]
        exponent = float(np.polyfit(np.log(sizes), np.log(medians), 1)[0])
        print(f"{axis:<12} time ~ size^{exponent:.2f}", flush=True)
        results["axes"][axis] = {
            "sizes": sizes.tolist(),
            "seconds": seconds,
            "exponent": exponent,
        }
        left.plot(
            sizes / sizes[0],
            np.array(medians) / medians[0],
            marker + "-",
            label=f"{axis}, exponent {exponent:.2f}",
        )
    left.plot([1, 100], [1, 100], ":", color="gray", label="exponent 1")
    left.set(
        xscale="log",
        yscale="log",
        xlabel="size, in times of the smallest",
        ylabel="time, in times of the smallest",
    )
    left.legend()

    for num_steps in MEMORY_STEPS:
        results["memory_mb"][num_steps] = memory(num_steps)
        print(num_steps, "steps, MB:", results["memory_mb"][num_steps], flush=True)
    for name, marker in (("plain scan", "s-"), ("rollout", "o-")):
        right.plot(
            MEMORY_STEPS, [row[name] for row in results["memory_mb"].values()], marker, label=name
        )
    right.set(xscale="log", yscale="log", xlabel="steps", ylabel="memory of a gradient, MB")
    right.legend()
    figure.savefig(FOLDER / "growth.png", dpi=120)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    replace_file(FOLDER / "growth.json", text.encode())


if __name__ == "__main__":
    main()
