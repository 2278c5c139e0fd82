"""The cell: what it perceives, which cells live, and the rule that every cell follows.

    nca = NCA(rngs=nnx.Rngs(0))
    state = seed_state(72, 72)
    state = nca(state, jax.random.key(0))

The rule is that of Mordvintsev et al., "Growing Neural Cellular Automata", Distill 2020
(https://distill.pub/2020/growing-ca). A state is `(..., height, width, channels)`: RGB
premultiplied by alpha, alpha, and hidden channels.
"""

import math
import numbers
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike

from nca_helpers.checks import check_integer, check_key, check_number, check_state, require

ALIVE_THRESHOLD = 0.1
FIRE_RATE = 0.5

Number = float | Array  # One number; an array may be traced.


def seed_state(height: int, width: int, channels: int = 16) -> Array:
    """Returns the first state: one living cell in the middle of an empty grid.

    That is `(height, width, channels)` zeros, with 1.0 in alpha and every hidden channel of the
    cell at `[height // 2, width // 2]`. A cell has at least 4 channels (RGBA).
    """
    check_integer("height", height, 1)
    check_integer("width", width, 1)
    check_integer("channels", channels, 4)
    empty = jnp.zeros((height, width, channels), jnp.float32)
    return empty.at[height // 2, width // 2, 3:].set(1.0)


def living_mask(state: Array, threshold: float = ALIVE_THRESHOLD) -> Array:
    """Returns which cells live, `(..., height, width)` booleans.

    Those live that have a mature cell, one with an alpha strictly above the threshold, in their
    3×3 neighbourhood. Outside the grid nothing is alive.
    """
    check_state(state)
    return widen(mature(state, threshold))


def mature(state: Array, threshold: float = ALIVE_THRESHOLD) -> Array:
    """Returns which cells have an alpha strictly above the threshold, or one that is NaN.

    A NaN that counted as dead would be emptied, and an explosion look like a death.
    """
    return ~(state[..., 3] <= threshold)


def widen(mask: Array) -> Array:
    """Returns the cells of a `(..., height, width)` mask and their neighbours, 3×3 around each."""
    padded = jnp.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)])
    rows = padded[..., :-2, :] | padded[..., 1:-1, :] | padded[..., 2:, :]
    return rows[..., :-2] | rows[..., 1:-1] | rows[..., 2:]


def perceive(state: Array, angle: Number = 0.0) -> Array:
    """Returns what each cell sees, `(..., height, width, 3 * channels)`.

    That is the state, its gradient along x (to the right) and along y (downwards), by Sobel filters
    divided by 8, with zeros outside the grid. `angle`, in radians, turns the cell's frame:
    `x' = cos·gx - sin·gy` and `y' = sin·gx + cos·gy`.
    """
    check_state(state)
    check_number("angle", angle)
    padded = jnp.pad(state, [(0, 0)] * (state.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    # Shifted slices, because XLA's grouped convolution is far slower on a CPU.
    up, middle, down = padded[..., :-2, :, :], padded[..., 1:-1, :, :], padded[..., 2:, :, :]
    smooth, slope = (up + 2 * middle + down) / 8, (down - up) / 8
    along_x = smooth[..., 2:, :] - smooth[..., :-2, :]
    along_y = slope[..., :-2, :] + 2 * slope[..., 1:-1, :] + slope[..., 2:, :]
    # An upright frame, the common case, is not charged for the turn.
    if not (isinstance(angle, numbers.Real) and angle == 0):
        angle = jnp.asarray(angle, state.dtype)  # Else a float64 makes the state one.
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        along_x, along_y = cos * along_x - sin * along_y, sin * along_x + cos * along_y
    return jnp.concatenate([state, along_x, along_y], axis=-1)


class NCA(nnx.Module):
    """A neural cellular automaton: one small network that every cell runs.

    Calling it draws which cells fire and takes one `step`, which is the rule, and what to override
    to change it.

    Args:
        channels: Channels of a cell, at least 4 (RGBA).
        hidden: Width of the hidden layer.
        fire_rate: Probability that a cell fires in a step, in [0, 1].
        alive_threshold: Alpha above which a cell is mature, finite.
        rngs: Source of the initial weights.

    Attributes:
        hidden: Dense layer, perception `(3 * channels)` to `(hidden_size)`.
        update: Dense layer, `(hidden_size)` to `(channels)`; its kernel starts at zero, so that
            an untrained automaton does nothing.
    """

    def __init__(
        self,
        *,
        channels: int = 16,
        hidden: int = 128,
        fire_rate: float = FIRE_RATE,
        alive_threshold: float = ALIVE_THRESHOLD,
        rngs: nnx.Rngs,
    ):
        """Initialises the weights."""
        check_number("fire_rate", fire_rate, 0, 1)
        check_number("alive_threshold", alive_threshold)
        self.channels = check_integer("channels", channels, 4)
        self.hidden_size = check_integer("hidden", hidden, 1)
        self.fire_rate = float(fire_rate)
        self.alive_threshold = float(alive_threshold)
        self.hidden = nnx.Linear(3 * channels, hidden, rngs=rngs)
        self.update = nnx.Linear(hidden, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def step(
        self, state: Array, fire: Array, *, angle: Number = 0.0, step_size: Number = 1.0
    ) -> Array:
        """Returns the next state, after a step in which exactly the cells in `fire` update.

        A cell is emptied unless it lives both before and after the update.

        Args:
            state: `(..., height, width, channels)`.
            fire: `(..., height, width)` booleans.
            angle: Turns every cell's frame, in radians (see `perceive`).
            step_size: Multiplies the update.
        """
        check_settings(None, angle, step_size)
        check_state(state, self.channels)
        is_mask = jnp.shape(fire) == state.shape[:-1] and jnp.issubdtype(fire.dtype, bool)
        require(is_mask, "fire", f"booleans of shape {state.shape[:-1]}", fire)
        before = living_mask(state, self.alive_threshold)
        update = self.update(nnx.relu(self.hidden(perceive(state, angle))))
        step_size = jnp.asarray(step_size, state.dtype)
        state = state + jnp.where(fire[..., None], step_size * update, 0.0)
        alive = before & living_mask(state, self.alive_threshold)
        return jnp.where(alive[..., None], state, 0.0)

    def __call__(
        self,
        state: Array,
        key: Array,
        *,
        fire_rate: Number | None = None,
        angle: Number = 0.0,
        step_size: Number = 1.0,
    ) -> Array:
        """Returns the next state: a `step` in which each cell fires with probability `fire_rate`.

        `key` is a random key, for this step alone; `fire_rate`, in [0, 1], stands in place of the
        automaton's own. The rest is as of `step`.
        """
        check_state(state, self.channels)
        check_settings(fire_rate, angle, step_size)
        check_key("key", key)
        rate = self.fire_rate if fire_rate is None else fire_rate
        *batch, height, width, _ = state.shape
        samples = jnp.arange(math.prod(batch))
        fire = jax.vmap(lambda sample: fire_mask(key, sample, rate, (height, width)))(samples)
        return self.step(state, fire.reshape(state.shape[:-1]), angle=angle, step_size=step_size)


def fire_mask(key: Array, sample: Array, rate: float | Array, shape: tuple[int, int]) -> Array:
    """Draws which cells of one sample fire in one step, (height, width) booleans.

    It depends on the step's key and on the sample's place in its batch, not on how many samples
    there are or which device holds them.
    """
    # A draw in float64, as of a Python float under jax_enable_x64, is another draw.
    rate = jnp.asarray(rate, jnp.float32)
    return jax.random.bernoulli(jax.random.fold_in(key, sample), rate, shape)


def has_own_rule(nca: NCA) -> bool:
    """Returns whether the automaton steps in another way than `NCA`'s four weights alone say.

    So does one with a method overridden, other layers, or more variables than those weights.
    """
    overridden = any(
        name in vars(nca) or getattr(type(nca), name) is not getattr(NCA, name)
        for name in ("step", "__call__")
    )
    if overridden or type(nca.hidden) is not nnx.Linear or type(nca.update) is not nnx.Linear:
        return True
    variables = nnx.to_flat_state(nnx.state(nca))
    shapes = {"/".join(map(str, path)): jnp.shape(variable[...]) for path, variable in variables}
    return shapes != weight_shapes(nca.channels, nca.hidden_size)


def weight_shapes(channels: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the weights by name, in the order of a checkpoint and of the player."""
    return {
        "hidden/kernel": (3 * channels, hidden),
        "hidden/bias": (hidden,),
        "update/kernel": (hidden, channels),
        "update/bias": (channels,),
    }


def weights_of(nca: NCA) -> dict[str, np.ndarray]:
    """Returns the weights of an automaton, as `weight_shapes` names them."""
    return {name: np.asarray(_variable(nca, name)[...]) for name in weight_shapes(0, 0)}


def set_weights(nca: NCA, weights: Mapping[str, ArrayLike]) -> None:
    """Sets the weights of an automaton to those that `weights_of` returned, say."""
    for name in weight_shapes(0, 0):
        _variable(nca, name)[...] = jnp.asarray(weights[name])


def _variable(nca: NCA, name: str) -> nnx.Variable:
    return operator.attrgetter(name.replace("/", "."))(nca)


def check_settings(fire_rate: Any, angle: Any, step_size: Any) -> None:
    """Raises ValueError unless a step accepts these; None is the automaton's own fire rate."""
    check_number("fire_rate", 0 if fire_rate is None else fire_rate, 0, 1)
    check_number("angle", angle)
    check_number("step_size", step_size)
