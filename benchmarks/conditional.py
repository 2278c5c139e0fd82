"""What a train step of CAX's conditional notebook takes, on the emoji and the grid of notebook 04.

    python benchmarks/conditional.py        in .venv-bench, which `make bench` makes

After examples/41_growing_conditional_nca.ipynb of CAX (https://github.com/maxencefaldor/cax): its
cells all read a one-hot vector in every step. Its sizes, its 64 steps, its batch of 8. Notebook
04's own train step beside it, both warmed up. Prints the seconds of each.
"""

import os
import time

os.environ["NCA_PRESET"] = "laptop"

import jax
import jax.numpy as jnp
import optax
from cax.core import ComplexSystem
from cax.core.perceive import ConvPerceive
from cax.core.update import NCAUpdate
from flax import nnx
from notebook_cells import run_cells
from speed import machine
from with_cax import FILTERS

CHANNELS, HIDDEN, NUM_STEPS, BATCH = 32, 256, 64, 8
UPDATE = nnx.All(nnx.Param, nnx.PathContains("update"))
AXES = nnx.StateAxes({nnx.RngState: 0, ...: None})


class Conditional(ComplexSystem):
    """The notebook's system."""

    def __init__(self, wishes: int):
        """Takes how many emoji there are."""
        rngs, seen = nnx.Rngs(42), 3 * CHANNELS
        self.perceive = ConvPerceive(
            channel_size=CHANNELS, perception_size=seen, feature_group_count=CHANNELS, rngs=rngs
        )
        self.perceive.conv.kernel[...] = jnp.tile(jnp.float32(FILTERS), CHANNELS)[:, :, None]
        self.update = NCAUpdate(
            channel_size=CHANNELS,
            perception_size=seen + wishes,
            hidden_layer_sizes=(HIDDEN,),
            cell_dropout_rate=0.5,
            zeros_init=True,
            rngs=rngs,
        )

    def _step(self, state, input=None):
        everywhere = jnp.broadcast_to(input, (*state.shape[:-1], input.shape[-1]))
        return self.update(state, self.perceive(state), everywhere)


def loss_function(system, states, wishes, targets, key):
    """The loss of a batch after a random number of steps, each sample a system of its own."""

    def run(system, state, wish):
        return system(state, wish, num_steps=NUM_STEPS, return_states=True)[1]

    run = nnx.split_rngs(splits=BATCH)(nnx.vmap(run, in_axes=(AXES, 0, 0)))
    ends = jax.random.randint(key, (BATCH,), NUM_STEPS // 2, NUM_STEPS)
    after = run(system, states, wishes)[jnp.arange(BATCH), ends]
    return jnp.mean(jnp.square(after[..., -4:] - targets))


@nnx.jit
def train_step(system, optimizer, states, wishes, targets, key):
    """One step of the optimiser; the pool, which costs next to nothing, is left out."""
    slope_of = nnx.value_and_grad(loss_function, argnums=nnx.DiffState(0, UPDATE))
    loss, slope = slope_of(system, states, wishes, targets, key)
    optimizer.update(system, slope)
    return loss


def main() -> None:
    given = run_cells("04_beyond_one_lizard.ipynb", "progress", {})
    targets = given["targets"]
    asked = jnp.arange(BATCH) % len(targets)
    first = jnp.zeros((*targets.shape[1:3], CHANNELS))
    first = first.at[first.shape[0] // 2, first.shape[1] // 2, -1].set(1.0)
    system = Conditional(len(targets))
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    optimizer = nnx.Optimizer(system, adam, wrt=UPDATE)
    states = jnp.repeat(first[None], BATCH, axis=0)
    wishes = jnp.eye(len(targets))[asked]

    def theirs(key):
        return train_step(system, optimizer, states, wishes, targets[asked], key)

    def ours(key):
        batch, _ = given["take"](1)
        return given["train_step"](given["nca"], given["optimizer"], batch, key)[0]

    print(machine()["cpu"], machine()["versions"], sep="; ")
    for name, step in (("notebook 04", ours), ("CAX, conditional", theirs)):
        for repeat in range(3):  # The first compiles.
            start = time.perf_counter()
            float(step(jax.random.key(repeat)))
            print(f"{name}, train step {repeat}: {time.perf_counter() - start:.2f} s", flush=True)


if __name__ == "__main__":
    main()
