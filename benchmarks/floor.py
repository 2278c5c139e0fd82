"""The matrix products of the work alone: of a cell's network, and of its gradient.

As this project runs them: a sample's cells at a time, on as many CPU devices as there are cores.
Each product takes another's result, so that none can be left out.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nca_helpers import use_every_core

use_every_core()


def on_all_devices(advance: Callable, samples: int, cells: int, num_steps: int) -> Callable:
    """Returns a function that loops `advance` over the steps of each sample in turn."""
    keys = jax.random.split(jax.random.key(0), samples)

    def run(keys):
        def sample(key):
            seen, update = (jax.random.normal(key, (cells, width)) for width in (48, 16))
            return jax.lax.fori_loop(0, num_steps, advance, advance(0, (seen, update, None)))

        return jax.lax.map(sample, keys)

    devices = jax.local_devices()
    mesh = Mesh(np.array(devices[: math.gcd(samples, len(devices))]), ("device",))
    spread = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=P("device"), out_specs=P("device"), check_vma=False)
    )
    return lambda: jax.block_until_ready(spread(keys))


def weights(problem: dict) -> tuple[jax.Array, jax.Array]:
    """Returns both kernels, scaled so that numbers neither grow nor vanish."""
    kernels = (jnp.asarray(problem[f"{layer}/kernel"]) for layer in ("hidden", "update"))
    first, last = (kernel / jnp.linalg.norm(kernel, 2) for kernel in kernels)
    return first, last


def train(problem: dict) -> Callable:
    """Two products forwards and four backwards for each cell and step."""
    first, last = weights(problem)
    batch, height, width = int(problem["batch_size"]), *problem["states"].shape[1:3]

    def advance(_, carry):
        seen, update_cotangent, _ = carry
        hidden = seen @ first
        update = hidden @ last
        hidden_cotangent = update_cotangent @ last.T
        seen_cotangent = hidden_cotangent @ first.T
        return seen_cotangent, update, (hidden.T @ update_cotangent, seen.T @ hidden_cotangent)

    return on_all_devices(advance, batch, height * width, int(problem["lengths"][1]) - 1)


def generation(problem: dict) -> Callable:
    """Two products for each cell and step of a population."""
    first, last = weights(problem)
    height, width = problem["first"].shape[:2]

    def advance(_, carry):
        seen, _, _ = carry
        update = seen @ first @ last
        return seen.at[:, :16].set(update), update, None

    return on_all_devices(advance, int(problem["population_size"]), height * width, 89)
