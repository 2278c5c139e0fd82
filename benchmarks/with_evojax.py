"""A generation as the EvoJAX notebook of Google's self-organising systems formulates it.

A flax.linen module of two 1×1 convolutions; a perception by one convolution over batch and channels
together; a scan over the steps, with the loss added by a condition; a vmap over the population.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from evojax.algo import PGPE
from flax import linen
from jax.flatten_util import ravel_pytree

# Of a larger population an accelerator's memory cannot hold all hidden layers.
MOST_AT_ONCE = 4_096

SOBEL = np.outer([1, 2, 1], [-1, 0, 1]) / 8
FILTERS = np.float32([np.diag([0, 1, 0]), SOBEL, SOBEL.T])[:, None]


class Cells(linen.Module):
    """The network of a cell."""

    hidden_size: int

    @linen.compact
    def __call__(self, seen):
        hidden = linen.relu(linen.Conv(self.hidden_size, (1, 1), name="hidden")(seen))
        return linen.Conv(16, (1, 1), name="update", kernel_init=linen.initializers.zeros)(hidden)


def to_params(weights: dict) -> dict:
    """Returns weights in the layout of this project's checkpoints as linen's."""
    return {
        "params": {
            name: {
                "kernel": jnp.asarray(weights[f"{name}/kernel"])[None, None],
                "bias": jnp.asarray(weights[f"{name}/bias"]),
            }
            for name in ("hidden", "update")
        }
    }


def living_mask(state):
    return linen.max_pool(state[..., 3:4], (3, 3), padding="SAME") > 0.1


def perceive(state):
    """Returns (batch, height, width, 48), the features block by block."""
    batch, height, width, channels = state.shape
    flat = jnp.moveaxis(state, -1, 1).reshape(-1, 1, height, width)
    seen = jax.lax.conv(flat, FILTERS, (1, 1), "SAME").reshape(batch, channels, 3, height, width)
    return seen.transpose(0, 3, 4, 2, 1).reshape(batch, height, width, -1)


def step(params, state, fire):
    """Takes a step in which the cells in `fire`, of (batch, height, width), update themselves."""
    before = living_mask(state)
    cells = Cells(len(params["params"]["hidden"]["bias"]))
    state += cells.apply(params, perceive(state)) * fire[..., None]
    return state * (before & living_mask(state))


def check(problem: dict) -> dict[str, np.ndarray]:
    """Returns the states after the given masks."""
    states, params = jnp.asarray(problem["states"]), to_params(problem)
    for fire in problem["masks"]:
        states = step(params, states, fire)
    return {"states": np.asarray(states)}


def generation(problem: dict) -> Callable:
    """A generation of EvoJAX's PGPE."""
    target, first = jnp.asarray(problem["target"]), jnp.asarray(problem["first"])[None]
    size = int(problem["population_size"])
    loss_steps = problem["loss_steps"]
    centre, unravel = ravel_pytree(to_params(problem))
    solver = PGPE(size, len(centre), init_params=centre, optimizer="adam", init_stdev=0.008, seed=1)

    def fitness(vector, key):
        params = unravel(vector)

        def advance(carry, i):
            loss, state, key = carry
            key, fire_key = jax.random.split(key)
            state = step(params, state, jax.random.uniform(fire_key, state.shape[:3]) <= 0.5)
            loss = jax.lax.cond(
                jnp.isin(i + 1, loss_steps),
                lambda: loss + jnp.mean(jnp.square(state[..., :4] - target)),
                lambda: loss,
            )
            return (loss, state, key), None

        (loss, _, _), _ = jax.lax.scan(advance, (0.0, first, key), jnp.arange(loss_steps[-1]))
        return -loss

    def score(population, keys):
        if size <= MOST_AT_ONCE:
            return jax.vmap(fitness)(population, keys)
        members = population, keys
        return jax.lax.map(lambda m: fitness(*m), members, batch_size=MOST_AT_ONCE)

    score = jax.jit(score)

    def once():
        keys = jax.random.split(jax.random.key(0), size)
        solver.tell(score(solver.ask(), keys))
        solver.best_params.block_until_ready()

    return once
