"""Measures: what becomes of an automaton, and whether a picture is what it should be.

rows = robustness(nca, target, {"left half": wound}, jax.random.key(0), wound_step=96)
"""

import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jax import Array

from nca_helpers.checks import check_finite, check_integer, require
from nca_helpers.model import NCA, living_mask, seed_state
from nca_helpers.rollouts import rollout

# A rollout whose log10 loss is at most this has kept, or found again, its shape.
SURVIVAL_LOG10_LOSS = -2.5
# A whole body that stands this many cells beside its place is whole all the same.
NEARBY_CELLS = 2


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
        recovery; `survived`, the share of rollouts whose own log10 loss is at most -2.5;
        `survived_nearby`, the share for which it is so with the target moved by up to two cells
        along each axis; and the share of all that `died` (nothing lives), `overgrew` (more than
        twice the target lives) or turned `nan`.
    """
    target = np.asarray(target)
    is_target = target.ndim == 3 and target.shape[-1] == 4
    require(is_target, "target", "an array (height, width, 4)", target)
    check_finite("target", target)
    wound_step = check_integer("wound_step", wound_step, 0)
    check_integer("recovery_steps", recovery_steps, 0)
    check_integer("num_rollouts", num_rollouts, 1)
    height, width, _ = target.shape
    grow_key, wound_key, recover_key = jax.random.split(key, 3)
    seed = seed_state(height, width, nca.channels)
    seeds = jnp.broadcast_to(seed, (num_rollouts, *seed.shape))
    grown = rollout(nca, seeds, grow_key, wound_step)
    target_size = int(living_mask(jnp.asarray(target), nca.alive_threshold).sum())
    room = np.pad(target, [(NEARBY_CELLS, NEARBY_CELLS)] * 2 + [(0, 0)])
    starts = itertools.product(range(2 * NEARBY_CELLS + 1), repeat=2)
    moved = [room[row : row + height, column : column + width] for row, column in starts]
    rows = []
    for name, wound in wounds.items():
        states = np.asarray(rollout(nca, wound(grown, wound_key), recover_key, recovery_steps))
        living = np.asarray(living_mask(states, nca.alive_threshold)).sum((1, 2))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            pictures = states[..., :4]
            near = [np.mean(np.square(pictures - place), axis=(1, 2, 3)) for place in moved]
            losses = near[len(near) // 2]
            is_number = np.isfinite(states).all(axis=(1, 2, 3)) & np.isfinite(losses)
            losses, nearest = np.where(is_number, [losses, np.min(near, axis=0)], np.nan)
            numbers = {
                "log10_loss": np.log10(losses.mean()),
                "survived": np.mean(np.log10(losses) <= SURVIVAL_LOG10_LOSS),
                "survived_nearby": np.mean(np.log10(nearest) <= SURVIVAL_LOG10_LOSS),
                "died": np.mean((living == 0) & is_number),
                "overgrew": np.mean((living > 2 * target_size) & is_number),
                "nan": np.mean(~is_number),
            }
        row = {"wound": name, "wound_step": wound_step}
        rows.append(row | {what: float(number) for what, number in numbers.items()})
    return rows


def blur_like(loss: float, target: Array) -> float:
    """Returns a loss in pixels: the Gaussian blur of the target that costs as much, 0 to 5.

    `loss` is the mean squared difference over cells and RGBA, `target` is `(height, width, 4)`.
    """
    blurs = np.linspace(0, 5, 101)
    costs = [float(np.mean(np.square(_blurred(target, blur) - target))) for blur in blurs]
    costs, first = np.unique(costs, return_index=True)  # The narrowest blurs change nothing.
    return float(np.interp(loss, costs, blurs[first]))


def impostors(target: Array) -> dict[str, np.ndarray]:
    """Returns what is like a target in one way and is not it, by name, `(height, width, 4)` each.

    A blob has the right place, size and colours on average; a measure that takes it for the target
    measures those. Whoever asks what a picture is nearest to should offer these as well.
    """
    target = np.asarray(target)
    places = np.indices(target.shape[:2]).reshape(2, -1).T
    alpha = target[..., 3].ravel()
    away = places - np.average(places, 0, alpha)
    inverse = np.linalg.inv(np.cov(places.T, aweights=alpha))
    # Over an ellipse the variance along an axis is a quarter of its half-length squared.
    inside = (np.einsum("ni,ij,nj->n", away, inverse, away) <= 4).reshape(*target.shape[:2], 1)
    return {
        "an ellipse": inside * target.mean((0, 1), where=inside),
        "turned by 90°": np.rot90(target),
        "turned by 180°": np.rot90(target, 2),
        "mirrored": target[:, ::-1],
        "blurred by 2 px": _blurred(target, 2),
        "nothing": 0 * target,
    }


def _blurred(target: Array, blur: float) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(np.asarray(target), (blur, blur, 0), mode="constant")
