"""Evolution that looks at pictures: a candidate is told what its pictures lack, not one number.

From the differences between the candidates' pictures and the centre's, one linear solve tells which
mix of all noises would paint what is missing: Gauss-Newton in the span of the population, averaged
over generations. No gradient of a rollout is used, only pictures of candidates.

Sources: Iglesias, Law & Stuart, "Ensemble Kalman methods for inverse problems", Inverse Problems
29, 2013; Kovachki & Stuart, "Ensemble Kalman inversion: a derivative-free technique for machine
learning tasks", Inverse Problems 35, 2019; Cartis & Roberts, "Scalable subspace methods for
derivative-free nonlinear least-squares optimization", Mathematical Programming 199, 2023.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Loss = Callable[[Array, Array], Array]


class PictureState(NamedTuple):
    """`centre` is the solution; `matrix @ (solution / stdev) = vector` what was told, averaged."""

    centre: Array
    stdev: Array
    matrix: Array
    vector: Array
    damping: Array
    key: Array
    generation: Array


@dataclass(frozen=True, kw_only=True)
class PictureSolver:
    """Least squares by evolution; settings alone, its methods are pure and work inside `jit`.

    Attributes:
        population_size: the centre and one candidate for each noise; n + 1, for n weights, is best.
        damping: the first; a share of the mean of the matrix's diagonal, added to that.
        memory: the part of the running means that a generation keeps, in [0, 1): a number or a
            function of the generation. More of it averages over more coin flips.
        factors: the dampings to try (see `tell`), times the last one, within `damping_range`.
    """

    population_size: int
    damping: float = 1e-2
    memory: float | Callable[[Array], Array] = 0.9
    factors: tuple[float, ...] = (0.2, 1.0, 5.0)
    damping_range: tuple[float, float] = (3e-5, 1e7)

    def init(self, init_params: Any, key: Array, *, init_stdev: Any) -> PictureState:
        """Starts at `init_params`, (n,), with noise of `init_stdev`, () or (n,), above 0."""
        centre, n = jnp.asarray(init_params, jnp.float32), len(init_params)
        if centre.ndim != 1 or not 2 <= self.population_size <= n + 1:
            raise ValueError(f"population_size must be from 2 to n + 1, got {self.population_size}")
        stdev = jnp.full_like(centre, init_stdev)
        means = jnp.zeros((n, n)), jnp.zeros(n), jnp.float32(self.damping)
        return PictureState(centre, stdev, *means, jax.random.key_data(key), jnp.int32(0))

    @functools.partial(jax.jit, static_argnums=0)
    def ask(self, state: PictureState) -> Array:
        """The population, (population_size, n): the centre, then one candidate for each noise."""
        noise = state.stdev * self._noise(state)
        return jnp.concatenate([state.centre[None], state.centre + noise])

    @functools.partial(jax.jit, static_argnums=0)
    def keys(self, state: PictureState) -> Array:
        """Equal keys for all candidates, (population_size,), others in each generation."""
        return jnp.broadcast_to(_keys(state)[1], self.population_size)

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def tell(self, state: PictureState, residuals: Array, loss: Loss | None = None) -> PictureState:
        """Moves the centre to where the squares of the residuals should be least.

        Args:
            state: as `ask` was given.
            residuals: (population_size, m), pictures less the target. One that is not finite does
                not count; the centre's stops the step.
            loss: `loss(centres, key) -> (len(centres),)` chooses between the centre and a step for
                each damping. None takes one step, and leaves the damping.
        """
        noise, place, n = self._noise(state), state.centre / state.stdev, state.centre.size
        usable = jnp.isfinite(residuals).all(axis=1)
        lacks = jnp.where(usable[0], residuals[0], 0.0)
        change = jnp.where((usable & usable[0])[1:, None], residuals[1:] - lacks, 0.0)
        slopes = noise.T @ (change @ lacks) / len(noise)
        matrix = noise.T @ ((change @ change.T) @ noise) / (n * len(noise))
        memory = self.memory(state.generation) if callable(self.memory) else self.memory
        vector = memory * state.vector + (1 - memory) * (matrix @ place - slopes)
        matrix = memory * state.matrix + (1 - memory) * matrix
        factors = jnp.array(self.factors if loss else (1.0,))
        dampings = jnp.clip(state.damping * factors, *self.damping_range)
        missing, mean = vector - matrix @ place, jnp.trace(matrix) / n

        def solve(damping):
            factor = jax.scipy.linalg.cho_factor(matrix + damping * mean * jnp.eye(n))
            step = state.centre + state.stdev * jax.scipy.linalg.cho_solve(factor, missing)
            return jnp.where(usable[0] & jnp.isfinite(step).all(), step, state.centre)

        # One choice is to stay, and to be more careful the next time.
        centres = jnp.stack([state.centre, *map(solve, dampings)])
        careful = jnp.minimum(10 * state.damping, self.damping_range[1])[None]
        dampings = jnp.concatenate([careful, dampings])
        best = jnp.nanargmin(loss(centres, _keys(state)[2])) if loss else 1
        state = state._replace(centre=centres[best], damping=dampings[best])
        return state._replace(matrix=matrix, vector=vector, generation=state.generation + 1)

    def _noise(self, state: PictureState) -> Array:
        """Orthogonal noises, each sqrt(n) long: a shuffled cosine transform, a cheap rotation."""
        n = state.centre.size
        rows, columns, signs = jax.random.split(_keys(state)[0], 3)
        rows = jax.random.permutation(rows, n)[: self.population_size - 1, None]
        # Whole numbers first: as a float the angle would lose its last digits.
        turns = rows * (2 * jax.random.permutation(columns, n) + 1) % (4 * n)
        waves = jnp.cos(turns * (math.pi / (2 * n))) * jnp.where(rows > 0, math.sqrt(2), 1.0)
        return waves * jax.random.rademacher(signs, (n,), jnp.float32)


def _keys(state: PictureState) -> Array:
    """Keys of this generation for the noise, the candidates' coins, and the steps' coins."""
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    return jax.random.split(jax.random.fold_in(key, state.generation), 3)
