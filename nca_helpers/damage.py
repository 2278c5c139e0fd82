"""Wounds: what an automaton is made to survive, in training and in tests.

    wounded = halve(state, "left")
    wounded = random_circles(states, jax.random.key(0))

A wound empties cells: all their channels become zero. Each takes a state and returns one of the
same shape, in a `jit` too.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nca_helpers.checks import check_number, check_state, require


def circle(state: Array, centre: tuple[float, float] | Array, radius: float | Array) -> Array:
    """Empties the cells within `radius` of `centre`, a row and a column; all in cells."""
    check_state(state)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(centre))
    shape = (len(centre),) if isinstance(centre, tuple | list) else jnp.shape(centre)
    is_place = shape == (2,) and (traced or bool(np.all(np.isfinite(centre))))
    require(is_place, "centre", "a finite row and column, in cells", centre)
    check_number("radius", radius, 0)
    height, width = state.shape[-3:-1]
    # One type for all, or JAX's strict settings refuse them and jax_enable_x64 computes in another.
    rows, columns = jnp.mgrid[:height, :width].astype(jnp.float32)
    row, column, limit = (jnp.asarray(x, jnp.float32) for x in (centre[0], centre[1], radius**2))
    inside = (rows - row) ** 2 + (columns - column) ** 2 <= limit
    return jnp.where(inside[..., None], 0.0, state)


def random_circles(state: Array, key: Array) -> Array:
    """Empties one random circle of each sample, as in Mordvintsev et al., Distill 2020.

    The centre lies within half of the half-width around the middle, the radius between 0.1 and
    0.4 of half the width.
    """
    check_state(state)
    *batch, height, width, _ = state.shape
    centre_key, radius_key = jax.random.split(key)
    half = jnp.array([[height, width]], jnp.float32) / 2
    count = math.prod(batch)
    centres = half * (1 + jax.random.uniform(centre_key, (count, 2), jnp.float32, -0.5, 0.5))
    radii = width / 2 * jax.random.uniform(radius_key, (count,), jnp.float32, 0.1, 0.4)
    samples = state.reshape(-1, *state.shape[-3:])
    return jax.vmap(circle)(samples, centres, radii).reshape(state.shape)


def halve(state: Array, side: str = "left") -> Array:
    """Empties one half of the grid: the `side` "left", "right", "top" or "bottom"."""
    check_state(state)
    row, column = (length // 2 for length in state.shape[-3:-1])
    halves = {
        "left": np.s_[..., :column, :],
        "right": np.s_[..., column:, :],
        "top": np.s_[..., :row, :, :],
        "bottom": np.s_[..., row:, :, :],
    }
    require(side in [*halves], "side", f"one of {', '.join(halves)}", side)
    return jnp.asarray(state).at[halves[side]].set(0.0)


def hole(state: Array, radius: float | Array) -> Array:
    """Empties a circle in the middle of the grid, where the seed was; the radius is in cells."""
    check_state(state)
    height, width = state.shape[-3:-1]
    return circle(state, (height // 2, width // 2), radius)
