"""What each of the means brings by which a rollout and its gradient are fast on a CPU.

    python benchmarks/levers.py

The gradient of the CAX notebook's train step, 72², batch 8, 16 steps, with one thing changed at a
time; medians of interleaved rounds, each arm in a process of its own. Prints a table.
"""

import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count())

import jax.numpy as jnp
import numpy as np
from flax import nnx
from here import to_nca

import nca_helpers
from nca_helpers import model

rollout = importlib.import_module(
    "nca_helpers.rollout"
)  # The module; the package has its function.

NUM_STEPS = 16
ROUNDS = 7


def gradient(problem: dict, run: Callable = nca_helpers.rollout) -> Callable:
    """Returns a function that computes the gradient of a batch's loss."""
    nca, target = to_nca(problem), jnp.asarray(problem["target"])
    states = jnp.asarray(problem["states"][:8]).at[0].set(problem["first"])
    graph, weights = nnx.split(nca)

    @jax.jit
    def value_and_gradient(weights, key):
        def loss(weights):
            after = run(nnx.merge(graph, weights), states, key, NUM_STEPS)
            return jnp.mean(jnp.square(after[..., :4] - target))

        return jax.value_and_grad(loss)(weights)

    return lambda: jax.block_until_ready(value_and_gradient(weights, jax.random.key(0)))


def with_settings(**changes) -> Callable:
    """Returns an arm with other settings of the rollout module."""

    def arm(problem):
        for name, value in changes.items():
            setattr(rollout, name, value)
        return gradient(problem)

    return arm


def one_device(problem):
    jax.config.update("jax_num_cpu_devices", 1)
    return gradient(problem)


def sobel_by_autodiff(problem):
    model._sobel = model._sobel.fun
    return gradient(problem)


def bfloat16(problem):
    def network(nca, seen):
        def layer(linear, cells):
            kernel = linear.kernel[...].astype(jnp.bfloat16)
            product = jnp.dot(
                cells.astype(jnp.bfloat16), kernel, preferred_element_type=jnp.float32
            )
            return product + linear.bias[...]

        return layer(nca.update, nnx.relu(layer(nca.hidden, seen)))

    rollout._network = network
    return gradient(problem)


def no_random_numbers(problem):
    def chessboard(key, t, index, settings, state):
        rows, columns = np.indices(state.shape[:2])
        return (rows + columns + t) % 2 == 0

    rollout._fire = chessboard
    return gradient(problem)


def plain_scan(problem):
    """The batch in one piece, the gradient by autodiff, each step computed again in it."""

    def run(nca, states, key, num_steps):
        graph, weights = nnx.split(nca)

        @jax.checkpoint
        def advance(states, t):
            return nnx.merge(graph, weights)(states, jax.random.fold_in(key, t)), None

        return jax.lax.scan(advance, states, jnp.arange(num_steps))[0]

    return gradient(problem, run)


ARMS = {
    "as it is": gradient,
    "one CPU device": one_device,
    "no windows": with_settings(_WINDOW_TWELFTHS=(12,)),
    "network for all cells": with_settings(_SMALLEST_HIDDEN=10**9),
    "network for all cells, no windows": with_settings(
        _SMALLEST_HIDDEN=10**9, _WINDOW_TWELFTHS=(12,)
    ),
    "128 cells at a time": with_settings(_BLOCK=128),
    "2,048 cells at a time": with_settings(_BLOCK=2_048),
    "Sobel filters' gradient by autodiff": sobel_by_autodiff,
    "bfloat16 products": bfloat16,
    "a chessboard for random numbers": no_random_numbers,
    "plain scan, checkpointed": plain_scan,
}


def __getattr__(name: str) -> Callable:
    """Returns an arm by its number, as a worker asks for it."""
    if name.startswith("arm_"):
        return list(ARMS.values())[int(name.removeprefix("arm_"))]
    raise AttributeError(name)


def main() -> None:
    from speed import Contestant, machine, problem

    print("|", " | ".join(machine().values()), "|")
    print("| | every cell alive, ms a CA step | grown lizards |\n|---|---|---|")
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for workload in ("train_alive", "train_grown"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "problem.npz"
            np.savez(path, **problem(workload))
            arms = [Contestant("levers", f"arm_{i}", path) for i in range(len(ARMS))]
            for arm in arms:
                arm.tell("run")
            seconds = [[arm.tell("run")["seconds"] for arm in arms] for _ in range(ROUNDS)]
            for name, times in zip(ARMS, zip(*seconds, strict=True), strict=True):
                found[name].append(1e3 * median(times) / NUM_STEPS)
            for arm in arms:
                arm.process.terminate()
    for name, (alive, grown) in found.items():
        print(f"| {name} | {alive:.1f} | {grown:.1f} |")


if __name__ == "__main__":
    main()
