"""Evolution that looks at pictures: a candidate is told what its picture lacks, not one number.

A fitness is one number for a whole picture. The picture itself, less the target, is thousands of
numbers, its *residuals*, and they say where it is wrong. From how the residuals change from
candidate to candidate one linear solve finds the mix of all noises that would paint what is
missing: a Gauss-Newton step. The rule is only ever run forwards, so it may be anything; but the
loss must be a sum of squares, and its residuals must change smoothly with the weights.

With as many candidates as weights and small noise this is close to Gauss-Newton by finite
differences in random directions. What evolution brings is what to do about luck: the averages over
generations, each with other coin flips.

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
import optax
from jax import Array

from nca_helpers.checks import check_integer, check_number, require
from nca_helpers.devices import keep_pace
from nca_helpers.pgpe import check_start, generation_keys

Evaluate = Callable[[Array, Array], Array]


class GaussNewtonState(NamedTuple):
    """All that a run has to remember; every leaf is a plain array.

    What the generations have told is one system of equations, averaged over them:
    `matrix @ (solution / stdev) = vector`.
    """

    centre: Array  # The solution, (n,).
    stdev: Array  # Of the noise, (n,); it stays.
    matrix: Array  # (n, n)
    vector: Array  # (n,)
    damping: Array  # Of the last step, ().
    key: Array  # Data of a threefry key, (2,) uint32, the same in every generation.
    generation: Array  # How often `tell` has been called, () int32.


@dataclass(frozen=True, kw_only=True)
class GaussNewton:
    """Least squares by evolution: `ask`, `keys` and `tell` as in `PGPE`, but told residuals.

    The object holds settings alone; its methods are pure and work inside `jit` and `scan`.
    """

    population_size: int  # The centre, and a candidate for each noise: at best one a weight.
    # The part of the averages that a generation replaces, in (0, 1]. Less of it averages over more
    # coin flips; more of it leaves behind sooner what was true of an earlier centre.
    forgetting: float | optax.Schedule = 0.1
    # The first damping (Levenberg-Marquardt's): a share of the mean of the matrix's diagonal, added
    # to that diagonal. The dampings tried in `tell` are the last one times the factors, in a range.
    damping: float = 1e-2
    factors: tuple[float, ...] = (0.2, 1.0, 5.0)
    damping_range: tuple[float, float] = (3e-5, 1e7)
    trials: int = 16  # Coin flips that each step is tried on.

    def __post_init__(self):
        check_integer("population_size", self.population_size, 2)
        check_integer("trials", self.trials, 1)
        check_number("damping", self.damping, 0)
        if not callable(self.forgetting):
            check_number("forgetting", self.forgetting, 0, 1)
        for name in ("factors", "damping_range"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # Hashable.

    def init(self, init_params: Any, key: Array, *, init_stdev: Any) -> GaussNewtonState:
        """Returns the state of generation 0.

        Args:
            init_params: the first centre, (n,), as from `jax.flatten_util.ravel_pytree`.
            key: one key of any kind; see `PGPE.init`.
            init_stdev: of the noise, above 0: one for all parameters, or (n,). Small, for the
                residuals should change nearly linearly over it.
        """
        centre, stdev, data = check_start(init_params, init_stdev, key)
        n, size = centre.size, self.population_size
        require(size <= n + 1, "population_size", f"at most {n + 1}, the weights and one", size)
        damping, generation = jnp.float32(self.damping), jnp.int32(0)
        means = jnp.zeros((n, n), jnp.float32), jnp.zeros(n, jnp.float32)
        return GaussNewtonState(centre, stdev, *means, damping, data, generation)

    @functools.partial(jax.jit, static_argnums=0)
    def ask(self, state: GaussNewtonState) -> Array:
        """Returns the population, (population_size, n): the centre, then one for each noise."""
        noise = state.stdev * self._noise(state)
        return jnp.concatenate([state.centre[None], state.centre + noise])

    @functools.partial(jax.jit, static_argnums=0)
    def keys(self, state: GaussNewtonState) -> Array:
        """Returns the generation's keys, (population_size,), all equal: the same coin flips.

        So what differs between two candidates is their weights' doing, not luck.
        """
        return jnp.broadcast_to(generation_keys(state, 3)[1], self.population_size)

    @keep_pace
    @functools.partial(jax.jit, static_argnums=(0, 3))
    def tell(
        self, state: GaussNewtonState, residuals: Array, evaluate: Evaluate | None = None
    ) -> GaussNewtonState:
        """Moves the centre to where the sum of the residuals' squares should be least.

        Args:
            state: the one that `ask` was given.
            residuals: (population_size, m): what a candidate's pictures are, less what they should
                be. A candidate with one that is not finite does not count; if it is the centre,
                nothing moves.
            evaluate: `evaluate(candidates, keys)` returns the residuals of any candidates, a row
                for each. With it the step is tried with several dampings, on coin flips that are
                new to it, against staying; without, one step is taken, with the first damping.
        """
        shape, size = jnp.shape(residuals), self.population_size
        is_matrix = len(shape) == 2 and shape[0] == size
        require(is_matrix, "residuals", f"of shape ({size}, m)", residuals)
        noise, place, n = self._noise(state), state.centre / state.stdev, state.centre.size
        usable = jnp.isfinite(residuals).all(axis=1)
        lacks = jnp.where(usable[0], residuals[0], 0.0)
        change = jnp.where((usable & usable[0])[1:, None], residuals[1:] - lacks, 0.0)
        # The normal equations, in units of the stdev; the noises are orthogonal.
        slopes = noise.T @ (change @ lacks) / len(noise)
        matrix = noise.T @ ((change @ change.T) @ noise) / (n * len(noise))
        new = self.forgetting(state.generation) if callable(self.forgetting) else self.forgetting
        vector = state.vector + new * (matrix @ place - slopes - state.vector)
        matrix = state.matrix + new * (matrix - state.matrix)
        missing, mean = vector - matrix @ place, jnp.trace(matrix) / n

        def solve(damping):
            factor = jax.scipy.linalg.cho_factor(matrix + damping * mean * jnp.eye(n))
            step = state.centre + state.stdev * jax.scipy.linalg.cho_solve(factor, missing)
            return jnp.where(usable[0] & jnp.isfinite(step).all(), step, state.centre)

        dampings = state.damping * jnp.array(self.factors if evaluate else (1.0,))
        dampings = jnp.clip(dampings, *self.damping_range)
        centres, best = jnp.stack([state.centre, *map(solve, dampings)]), 1
        if evaluate:
            keys = jax.random.split(generation_keys(state, 3)[2], self.trials)
            rows = jnp.repeat(centres, self.trials, axis=0)
            squares = jnp.square(evaluate(rows, jnp.tile(keys, len(centres))))
            loss = squares.mean(axis=1).reshape(-1, self.trials).mean(axis=1)
            best = jnp.argmin(jnp.where(jnp.isfinite(loss), loss, jnp.inf))
        # Who stays is more careful the next time.
        dampings = jnp.append(jnp.minimum(10 * state.damping, self.damping_range[1]), dampings)
        return state._replace(
            centre=centres[best],
            matrix=matrix,
            vector=vector,
            damping=dampings[best],
            generation=state.generation + 1,
        )

    def _noise(self, state: GaussNewtonState) -> Array:
        """Orthogonal noises, each sqrt(n) long: a shuffled cosine transform, a cheap rotation."""
        n = state.centre.size
        rows, columns, signs = jax.random.split(generation_keys(state, 3)[0], 3)
        rows = jax.random.permutation(rows, n)[: self.population_size - 1, None]
        # Whole numbers first: as a float the angle would lose its last digits.
        turns = rows * (2 * jax.random.permutation(columns, n) + 1) % (4 * n)
        waves = jnp.cos(turns * (math.pi / (2 * n))) * jnp.where(rows > 0, math.sqrt(2), 1.0)
        return waves * jax.random.rademacher(signs, (n,), jnp.float32)
