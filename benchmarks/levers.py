"""What each of the means brings by which a rollout and its gradient are fast on a CPU.

    python benchmarks/levers.py

The gradient of the CAX notebook's train step, 72², batch 8, 16 steps, with one thing changed at a
time; medians of interleaved rounds, each arm in a process of its own. Prints a table.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from here import to_nca
from jax.sharding import Mesh

import nca_helpers
from nca_helpers import rollout_cpu

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
    """Returns an arm with other settings of the fast rollout."""

    def arm(problem):
        for name, value in changes.items():
            setattr(rollout_cpu, name, value)
        return gradient(problem)

    return arm


def one_device(problem):
    jax.set_mesh(Mesh(np.array(jax.devices()[:1]), ("device",)))
    return gradient(problem)


def plain_loop(problem):
    """What an accelerator runs: the batch in one piece, its gradient by autodiff."""

    class Own(nca_helpers.NCA):
        """A rule of one's own, the same as NCA's."""

        def step(self, state, fire, **frame):
            return super().step(state, fire, **frame)

    def run(nca, states, key, num_steps):
        own = Own(rngs=nnx.Rngs(0))
        nnx.update(own, nnx.state(nca))
        return nca_helpers.rollout(own, states, key, num_steps)

    return gradient(problem, run)


ARMS = {
    "as it is": gradient,
    "one CPU device": one_device,
    "no windows": with_settings(WINDOW_TWELFTHS=(12,)),
    "network for all cells": with_settings(SMALLEST_HIDDEN=10**9),
    "network for all cells, no windows": with_settings(
        SMALLEST_HIDDEN=10**9, WINDOW_TWELFTHS=(12,)
    ),
    "128 cells at a time": with_settings(BLOCK=128),
    "2,048 cells at a time": with_settings(BLOCK=2_048),
    "the plain loop": plain_loop,
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
