"""A rollout as one Pallas kernel, which keeps a sample's grid in fast memory for all of its steps.

For a GPU or TPU, where a scan writes the state to slow memory and reads it back in every step.
Never timed: no accelerator was at hand. In interpret mode it gives what `NCA.step` gives, which
tests/test_benchmarks.py checks; until it has been seen to pay, `rollout` does not use it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from nca_helpers import NCA


def pallas_rollout(nca: NCA, states: Array, fire: Array, *, interpret: bool = False) -> Array:
    """Takes as many steps as there are fire masks.

    Args:
        nca: The automaton.
        states: `(batch, height, width, channels)`.
        fire: `(batch, num_steps, height, width)`, 1.0 where a cell fires in a step, else 0.0.
        interpret: Runs the kernel as plain JAX, on any device.

    Returns:
        The last states, of the shape of `states`.
    """
    weights = (nca.hidden.kernel, nca.hidden.bias, nca.update.kernel, nca.update.bias)
    weights = [weight[...].reshape(-1, weight.shape[-1]) for weight in weights]

    def a_sample(array):
        block = (1, *array.shape[1:])
        return pl.BlockSpec(block, lambda i: (i, *(0 for _ in block[1:])))

    return pl.pallas_call(
        functools.partial(_kernel, threshold=nca.alive_threshold),
        grid=(len(states),),
        in_specs=[
            a_sample(states),
            a_sample(fire),
            *(pl.BlockSpec(weight.shape, lambda i: (0, 0)) for weight in weights),
        ],
        out_specs=a_sample(states),
        out_shape=jax.ShapeDtypeStruct(states.shape, states.dtype),
        interpret=interpret,
    )(states, fire, *weights)


def _kernel(state, fire, hidden_kernel, hidden_bias, update_kernel, update_bias, out, *, threshold):
    def advance(t, state):
        before = _most_around(state[..., 3:4]) > threshold
        seen = _perceive(state).reshape(-1, 3 * state.shape[-1])
        hidden = jnp.maximum(seen @ hidden_kernel[...] + hidden_bias[...], 0.0)
        update = (hidden @ update_kernel[...] + update_bias[...]).reshape(state.shape)
        state += update * fire[0, t][..., None]
        alive = before & (_most_around(state[..., 3:4]) > threshold)
        return jnp.where(alive, state, 0.0)

    out[0] = jax.lax.fori_loop(0, fire.shape[1], advance, state[0])


def _shifted(grid: Array, rows: int, columns: int, outside: float = 0.0) -> Array:
    height, width, _ = grid.shape
    padded = jnp.pad(grid, ((1, 1), (1, 1), (0, 0)), constant_values=outside)
    return padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]


def _most_around(alpha: Array) -> Array:
    around = [_shifted(alpha, y, x, -jnp.inf) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return functools.reduce(jnp.maximum, around)


def _perceive(state: Array) -> Array:
    along_x = along_y = 0.0
    for weight, i in ((1 / 8, -1), (2 / 8, 0), (1 / 8, 1)):
        along_x += weight * (_shifted(state, i, 1) - _shifted(state, i, -1))
        along_y += weight * (_shifted(state, 1, i) - _shifted(state, -1, i))
    return jnp.concatenate([state, along_x, along_y], axis=-1)
