"""Wounds: what an automaton is made to survive, in training and in tests.

    wounded = halve(state, "left")
    wounded = random_circles(states, jax.random.key(0))

A wound empties cells: all their channels become zero. The wounds can be jitted; `robustness`
measures what an automaton makes of them.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nca_helpers.checks import check_integer, check_number, check_state
from nca_helpers.model import (
    NCA,
    living_mask,
    seed_state,
)
from nca_helpers.rollout import rollout

SIDES = ("left", "right", "top", "bottom")

# A rollout whose log10 loss is at most this has kept, or found again, its shape.
SURVIVAL_LOG10_LOSS = -2.5


def circle(state: Array, centre: tuple[float, float] | Array, radius: float | Array) -> Array:
    """Empties the cells within `radius` of `centre`.

    Args:
        state: `(..., height, width, channels)`.
        centre: Row and column, in cells.
        radius: In cells, at least 0.

    Returns:
        The wounded state, of the same shape.

    Raises:
        ValueError: `state` or `centre` has another shape, or `radius` is no number of at least 0.
    """
    check_state(state)
    _check_centre(centre)
    check_number("radius", radius, 0)
    height, width = state.shape[-3:-1]
    rows, columns = jnp.mgrid[:height, :width]
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    return jnp.where(inside[..., None], 0.0, state)


def random_circles(state: Array, key: Array) -> Array:
    """Empties one random circle of each sample, as in Mordvintsev et al., Distill 2020.

    The centre lies within half of the half-width around the middle, the radius between 0.1 and
    0.4 of half the width.

    Args:
        state: `(..., height, width, channels)`.
        key: Random key.

    Returns:
        The wounded state, of the same shape.

    Raises:
        ValueError: `state` has another shape or holds no floats.
    """
    check_state(state)
    *batch, height, width, _ = state.shape
    centre_key, radius_key = jax.random.split(key)
    half = jnp.array([height, width]) / 2
    count = math.prod(batch)
    centres = half * (1 + jax.random.uniform(centre_key, (count, 2), minval=-0.5, maxval=0.5))
    radii = width / 2 * jax.random.uniform(radius_key, (count,), minval=0.1, maxval=0.4)
    samples = state.reshape(-1, *state.shape[-3:])
    return jax.vmap(circle)(samples, centres, radii).reshape(state.shape)


def halve(state: Array, side: str = "left") -> Array:
    """Empties one half of the grid.

    Args:
        state: `(..., height, width, channels)`.
        side: The half to empty: "left", "right", "top" or "bottom".

    Returns:
        The wounded state, of the same shape.

    Raises:
        ValueError: `state` has another shape, or `side` is another word.
    """
    check_state(state)
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}, got {side!r}")
    height, width = state.shape[-3:-1]
    emptied = {
        "left": (slice(None), slice(None, width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "top": (slice(None, height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
    }[side]
    return jnp.asarray(state).at[(..., *emptied, slice(None))].set(0.0)


def hole(state: Array, radius: float | Array) -> Array:
    """Empties a circle in the middle of the grid, where the seed was.

    Args:
        state: `(..., height, width, channels)`.
        radius: In cells, at least 0.

    Returns:
        The wounded state, of the same shape.

    Raises:
        ValueError: `state` has another shape, or `radius` is no number of at least 0.
    """
    check_state(state)
    height, width = state.shape[-3:-1]
    return circle(state, (height // 2, width // 2), radius)


def robustness(
    nca: NCA,
    target: Array,
    wounds: Mapping[str, Callable[[Array, Array], Array]],
    key: Array,
    *,
    wound_step: int,
    recovery_steps: int = 500,
    num_rollouts: int = 20,
) -> list[dict]:
    """Measures what becomes of wounds: grows rollouts from the seed, wounds them, and waits.

    Args:
        nca: The automaton.
        target: `(height, width, 4)`, what it should look like.
        wounds: `{name: wound}`; `wound(states, key)` returns `(num_rollouts, height, width,
            channels)` states with something done to them.
        key: Random key.
        wound_step: The step, counted from the seed, after which the wound is inflicted.
        recovery_steps: How many more steps are waited for.
        num_rollouts: How many rollouts, each with coin flips of its own.

    Returns:
        For each wound a row: its `wound` and `wound_step`; `log10_loss` of the mean loss after the
        recovery; `survived`, the share of rollouts whose own log10 loss is at most -2.5; and
        the share of all that `died` (nothing lives), `overgrew` (more than twice the target
        lives) or turned `nan`.

    Raises:
        ValueError: `target` has another shape or is not finite, or a count is not an integer of
            at least 0, or 1 for `num_rollouts`. Nothing has been computed then.
    """
    target = np.asarray(target)
    if target.ndim != 3 or target.shape[-1] != 4:
        raise ValueError(f"target must have shape (height, width, 4), got {target.shape}")
    if bad := (~np.isfinite(target)).sum():
        raise ValueError(f"target must be finite, got NaN or infinity {bad} times")
    wound_step = check_integer("wound_step", wound_step, 0)
    check_integer("recovery_steps", recovery_steps, 0)
    check_integer("num_rollouts", num_rollouts, 1)
    height, width, _ = target.shape
    grow_key, wound_key, recover_key = jax.random.split(key, 3)
    seeds = jnp.broadcast_to(
        seed_state(height, width, nca.channels), (num_rollouts, height, width, nca.channels)
    )
    grown = rollout(nca, seeds, grow_key, wound_step)
    target_size = int(living_mask(jnp.asarray(target), nca.alive_threshold).sum())
    rows = []
    for name, wound in wounds.items():
        states = rollout(nca, wound(grown, wound_key), recover_key, recovery_steps)
        losses = np.mean(np.square(np.asarray(states[..., :4]) - target), axis=(1, 2, 3))
        living = np.asarray(living_mask(states, nca.alive_threshold)).sum((1, 2))
        with np.errstate(divide="ignore"):
            rows.append(
                {
                    "wound": name,
                    "wound_step": wound_step,
                    "log10_loss": float(np.log10(losses.mean())),
                    "survived": float(np.mean(np.log10(losses) <= SURVIVAL_LOG10_LOSS)),
                    "died": float(np.mean((living == 0) & np.isfinite(losses))),
                    "overgrew": float(np.mean(living > 2 * target_size)),
                    "nan": float(np.mean(~np.isfinite(losses))),
                }
            )
    return rows


def _check_centre(centre: tuple[float, float] | Array) -> None:
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(centre))
    if jnp.shape(centre) != (2,) or not (traced or np.all(np.isfinite(centre))):
        raise ValueError(f"centre must be a finite row and column, in cells, got {centre!r}")
