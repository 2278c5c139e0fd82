"""Time, fast, for a small network: the rollout of `NCA`'s own rule with the channels first.

Evolution runs thousands of small rules and asks for no gradient. The grid is one long line for each
channel, its rows one behind the other with an empty cell between: a neighbour is a shift of the
line, and a layer of the network one product for all cells. `rollout_cpu` calls this; the states are
those of the plain loop, up to the order of float32 sums.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from nca_helpers.model import NCA

# How many steps' coins are drawn at a time.
BLOCK = 4


def rollout_planes(
    nca: NCA, state: Array, draw: Callable[[Array], Array], length: Array, settings: dict[str, Any]
) -> Array:
    """Returns one sample's last state, `(height, width, channels)`.

    Args:
        nca: An automaton without a rule of its own.
        state: `(height, width, channels)`, float32.
        draw: `draw(t)` returns which cells fire in step `t`, `(height, width)` booleans.
        length: How many steps to take.
        settings: "angle" and "step_size", where they are not the defaults.
    """
    height, width, channels = state.shape
    row = width + 1
    inside = np.tile(np.arange(row) < width, height)
    near = [np.abs(np.subtract.outer(range(n), range(n))) <= 1 for n in (height, row)]
    near_rows, near_columns = (matrix.astype(np.float32) for matrix in near)
    kernel = nca.hidden.kernel[...].T * np.repeat([1, 1 / 8, 1 / 8], channels).astype(np.float32)
    bias, update_bias = nca.hidden.bias[...][:, None], nca.update.bias[...][:, None]
    update_kernel = settings.get("step_size", 1.0) * nca.update.kernel[...].T
    update_bias = settings.get("step_size", 1.0) * update_bias

    def living(planes):
        # Two products: a maximum over neighbours would be worked out again for every channel.
        mature = ~(planes[3] <= nca.alive_threshold) & inside
        mature = mature.reshape(height, row).astype(jnp.float32)
        return (near_rows @ (mature @ near_columns)).reshape(-1) > 0

    def perceive(planes):
        line = jnp.pad(planes, ((0, 0), (row + 1, row + 1)))

        def at(down, right):
            start = (1 + down) * row + 1 + right
            return line[:, start : start + height * row]

        falling, rising = at(1, 1) - at(-1, -1), at(-1, 1) - at(1, -1)
        along_x = falling + rising + 2 * (at(0, 1) - at(0, -1))
        along_y = falling - rising + 2 * (at(1, 0) - at(-1, 0))
        if "angle" in settings:
            cos, sin = jnp.cos(settings["angle"]), jnp.sin(settings["angle"])
            along_x, along_y = cos * along_x - sin * along_y, sin * along_x + cos * along_y
        return jnp.concatenate([planes, along_x, along_y])

    def step(planes, fire):
        update = update_kernel @ nnx.relu(kernel @ perceive(planes) + bias) + update_bias
        after = planes + jnp.where(fire, update, 0.0)
        return jnp.where(living(planes) & living(after) & inside, after, 0.0)

    def steps(block, planes):
        # Some steps' coins at once: inside of a step they would be drawn again for every channel.
        fires = jax.vmap(draw)(block * BLOCK + jnp.arange(BLOCK))
        fires = jnp.pad(fires, ((0, 0), (0, 0), (0, 1))).reshape(BLOCK, -1)
        left = jnp.minimum(length - block * BLOCK, BLOCK)
        return jax.lax.fori_loop(0, left, lambda i, planes: step(planes, fires[i]), planes)

    planes = jnp.pad(state, ((0, 0), (0, 1), (0, 0))).reshape(-1, channels).T
    planes = jax.lax.fori_loop(0, -(-length // BLOCK), steps, planes)
    return planes.T.reshape(height, row, channels)[:, :width]
