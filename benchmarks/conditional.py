"""CAX's conditional notebook on the emoji and in the time of notebook 04: many in one rule.

    python benchmarks/conditional.py                     in .venv-bench, which `make bench` makes
    python benchmarks/conditional.py --seconds 400 --small

Trains the system of CAX's examples/41_growing_conditional_nca.ipynb, whose cells all read a one-hot
vector in every step, with that notebook's settings, on the targets and the grid of notebook 04 at
`laptop`. Prints the log10(loss) of 20 held-out rollouts of each emoji, after as many steps as there
are in training and after twice as many. Compiling does not count. `--small` gives the network the
channels and hidden units of notebook 04.
"""

import argparse
import os
import time

os.environ["NCA_PRESET"] = "laptop"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cax.core import ComplexSystem
from cax.core.perceive import ConvPerceive
from cax.core.update import NCAUpdate
from cax.nn.pool import Pool
from flax import nnx
from notebook_cells import run_cells
from speed import machine
from with_cax import FILTERS

NUM_STEPS, BATCH, POOL, LEARNING_RATE = 64, 8, 1_024, 1e-3
COUNT = 20
UPDATE = nnx.All(nnx.Param, nnx.PathContains("update"))


class Conditional(ComplexSystem):
    """The notebook's system."""

    def __init__(self, channels: int, hidden: int, wishes: int):
        """Takes how many emoji there are beside the sizes of a cell and of the network."""
        rngs, seen = nnx.Rngs(42), 3 * channels
        self.perceive = ConvPerceive(
            channel_size=channels, perception_size=seen, feature_group_count=channels, rngs=rngs
        )
        self.perceive.conv.kernel[...] = jnp.tile(jnp.float32(FILTERS), channels)[:, :, None]
        self.update = NCAUpdate(
            channel_size=channels,
            perception_size=seen + wishes,
            hidden_layer_sizes=(hidden,),
            cell_dropout_rate=0.5,
            zeros_init=True,
            rngs=rngs,
        )

    def _step(self, state, input=None):
        everywhere = jnp.broadcast_to(input, (*state.shape[:-1], input.shape[-1]))
        return self.update(state, self.perceive(state), everywhere)


def run(system, states, wishes, num_steps, **how):
    """Rolls out a batch, each sample with its own wish and its own coins."""
    axes = nnx.StateAxes({nnx.RngState: 0, ...: None})

    def one(system, state, wish):
        return system(state, wish, num_steps=num_steps, **how)

    one = nnx.split_rngs(splits=len(states))(nnx.vmap(one, in_axes=(axes, 0, 0)))
    return one(system, states, wishes)


def pixel_loss(states, targets):
    """(..., height, width, channels) -> (...): RGBA is last in CAX."""
    return jnp.square(states[..., -4:] - targets).mean((-3, -2, -1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=360, help="of training")
    parser.add_argument("--small", action="store_true", help="16 channels and 128 hidden units")
    arguments = parser.parse_args()
    given = run_cells("04_beyond_one_lizard.ipynb", "targets", {})
    emojis, targets = given["emojis"], given["targets"]
    channels, hidden = (16, 128) if arguments.small else (32, 256)
    system, wishes = Conditional(channels, hidden, len(emojis)), jnp.eye(len(emojis))
    middle = [side // 2 for side in targets.shape[1:3]]
    first = jnp.zeros((*targets.shape[1:3], channels)).at[(*middle, -1)].set(1.0)

    schedule = optax.linear_schedule(LEARNING_RATE, 0.1 * LEARNING_RATE, 50_000)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    optimizer = nnx.Optimizer(system, adam, wrt=UPDATE)
    which = jax.random.randint(jax.random.key(0), (POOL,), 0, len(emojis))
    pool = Pool.create({"state": jnp.repeat(first[None], POOL, axis=0), "which": which})

    def loss_function(system, states, which, key):
        _, trajectories = run(system, states, wishes[which], NUM_STEPS, return_states=True)
        ends = jax.random.randint(key, (BATCH,), NUM_STEPS // 2, NUM_STEPS)
        states = trajectories[jnp.arange(BATCH), ends]
        return pixel_loss(states, targets[which]).mean(), states

    @nnx.jit
    def train_step(system, optimizer, pool, key):
        sample_key, new_key, loss_key = jax.random.split(key, 3)
        places, batch = pool.sample(sample_key, batch_size=BATCH)
        order = jnp.argsort(pixel_loss(batch["state"], targets[batch["which"]]), descending=True)
        states = batch["state"][order].at[0].set(first)
        new = jax.random.randint(new_key, (), 0, len(emojis))
        which = batch["which"][order].at[0].set(new)
        gradient_of = nnx.value_and_grad(
            loss_function, argnums=nnx.DiffState(0, UPDATE), has_aux=True
        )
        (loss, states), gradient = gradient_of(system, states, which, loss_key)
        optimizer.update(system, gradient)
        return loss, pool.update(places[order], {"state": states, "which": which})

    print(machine()["cpu"], machine()["versions"], sep="; ")
    start, step = None, 0
    while start is None or time.perf_counter() - start < arguments.seconds:
        loss, pool = train_step(
            system, optimizer, pool, jax.random.fold_in(jax.random.key(1), step)
        )
        loss, step = float(loss), step + 1
        start = start or time.perf_counter()  # From the end of the first, which compiles.
        if step % 100 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step}  log10(loss) {np.log10(loss):.2f}  {seconds:.0f} s", flush=True)

    count = sum(weight.size for weight in jax.tree.leaves(nnx.state(system, UPDATE)))
    print(f"{channels} channels, {hidden} hidden units, {count:,} weights, {step} train steps")
    states = jnp.repeat(first[None], COUNT * len(emojis), axis=0)
    asked = np.repeat(np.arange(len(emojis)), COUNT)
    for multiple in (1, 2):
        after = run(system, states, wishes[asked], multiple * NUM_STEPS)
        losses = pixel_loss(after, targets[asked]).reshape(-1, COUNT).mean(axis=1)
        found = (f"{each} {loss:.2f}" for each, loss in zip(emojis, np.log10(losses), strict=True))
        print(f"after {multiple * NUM_STEPS} steps ", *found)


if __name__ == "__main__":
    main()
