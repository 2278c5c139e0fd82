"""Evolution: PGPE as pure functions over one state of arrays.

The formulas are those of `evojax.algo.pgpe` (EvoJAX 0.2.17), and so are the defaults. What differs:

- The optimiser is any of optax's. EvoJAX hands its Adam the generation divided by 1,000 as the
  step count, which spoils the bias correction (https://github.com/google/evojax/issues/25).
- The first centre must be given: all zeros, EvoJAX's default, leave a first layer no gradient.
- A fitness of NaN counts as the worst; there, it ranks as the best.
- The state is arrays, to save, scan and vmap. Each pair's noise has its own key, so that a device
  can draw its own members alone.

Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from nca_helpers.pgpe import PGPE
    >>> def fitness(vector, key):  # a rollout would draw its fire masks from the key
    ...     return -jnp.sum((vector - 2.0) ** 2)
    >>> pgpe = PGPE(population_size=64, optimizer=optax.adam(0.05))
    >>> state = pgpe.init(jnp.ones(3), jax.random.key(0), init_stdev=0.1)
    >>> def generation(state, _):
    ...     scores = jax.vmap(fitness)(pgpe.ask(state), pgpe.keys(state))
    ...     return pgpe.tell(state, scores), scores.mean()
    >>> state, curve = jax.lax.scan(generation, state, length=100)
    >>> bool(jnp.allclose(state.centre, 2.0, atol=0.1))
    True
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from nca_helpers.checks import check_integer, check_key, check_number, require
from nca_helpers.devices import keep_pace


class PGPEState(NamedTuple):
    """All that a run has to remember; every leaf is a plain array."""

    centre: Array  # Mean of the search distribution, (n,): the solution.
    stdev: Array  # Its standard deviation, (n,).
    optimizer_state: optax.OptState
    key: Array  # Data of a threefry key, (2,) uint32, the same in every generation.
    generation: Array  # How often `tell` has been called, () int32.


@dataclass(frozen=True, kw_only=True)
class PGPE:
    """Policy gradients with parameter-based exploration, maximising a fitness.

    The object holds settings alone; its methods are pure and work inside `jit`, `vmap` and `scan`.
    Source: Sehnke et al., "Policy gradients with parameter-based exploration for control", ICANN
    2008.
    """

    population_size: int  # Even, at least 4: antithetic pairs, compared with each other.
    optimizer: optax.GradientTransformation  # Of the centre; it is given the negative gradient.
    stdev_learning_rate: float = 0.1  # 0 keeps the stdev.
    stdev_max_change: float = 0.2  # In one generation, as a fraction of the stdev; up to 0.99.
    ranking: bool = True  # Ranks, from -0.5 (worst) to 0.5 (best), in place of the fitness.

    def __post_init__(self):
        _check_population_size(self.population_size)
        is_optax = isinstance(self.optimizer, optax.GradientTransformation)
        require(is_optax, "optimizer", "an optax.GradientTransformation", self.optimizer)
        for name, most in (("stdev_learning_rate", math.inf), ("stdev_max_change", 0.99)):
            check_number(name, getattr(self, name), 0, most)
            object.__setattr__(self, name, float(getattr(self, name)))  # Hashable.

    def init(self, init_params: Any, key: Array, *, init_stdev: Any) -> PGPEState:
        """Returns the state of generation 0. Traced values are not checked.

        Args:
            init_params: the first centre, (n,), as from `jax.flatten_util.ravel_pytree`.
            key: one key of any kind. The run draws from threefry keys, the same on any number of
                devices; half of an rbg key is the threefry key of the same seed.
            init_stdev: the first standard deviation, above 0: one for all parameters, or (n,).
        """
        centre, stdev, data = check_start(init_params, init_stdev, key)
        # optax takes any learning rate; what a gradient of ones becomes tells a bad one.
        zeros = jnp.zeros_like(centre)
        step, _ = self.optimizer.update(zeros + 1, self.optimizer.init(zeros), zeros)
        is_descent = _holds(jnp.isfinite(step)) and _holds(jnp.any(step <= 0))
        accepted = "a descent with a finite learning rate, 0 or more (down a gradient of ones)"
        require(is_descent, "optimizer", accepted, step)
        optimizer_state, generation = self.optimizer.init(centre), jnp.zeros((), jnp.int32)
        return PGPEState(centre, stdev, optimizer_state, data, generation)

    @functools.partial(jax.jit, static_argnums=0)
    def ask(self, state: PGPEState, pairs: Array | None = None) -> Array:
        """Draws the population, (population_size, n): members 2i, 2i + 1 are centre ± noise i.

        `pairs` are the indices of those to draw, (p,): one device's share, (2p, n). None draws all.
        """
        noise, centre = self.noise(state, pairs), state.centre[None]
        return jnp.stack([centre + noise, centre - noise], axis=1).reshape(-1, state.centre.size)

    @functools.partial(jax.jit, static_argnums=0)
    def keys(self, state: PGPEState) -> Array:
        """The generation's keys for the fitness, (population_size,); see `pair_keys`."""
        return pair_keys(generation_keys(state)[1], self.population_size)

    @keep_pace
    @functools.partial(jax.jit, static_argnums=0)
    def tell(self, state: PGPEState, fitness: Array) -> PGPEState:
        """Returns the next generation's state: the centre nearer to the fitter members.

        `state` is what `ask` was given, `fitness` is (population_size,); more of it is better, what
        is not finite is worst.
        """
        return self.step(state, *self.gradients(state, self.scores(fitness)))

    def scores(self, fitness: Array) -> Array:
        """The fitness as `tell` weighs it, (population_size,), ranked if so set.

        Failed members, whose fitness is not finite, share one score: a pair of them pulls to
        neither side, and where all have failed, nothing does.
        """
        fitness, size = _as_float32("fitness", fitness), self.population_size
        require(fitness.shape == (size,), "fitness", f"of shape {(size,)}", fitness)
        failed = ~jnp.isfinite(fitness)
        if self.ranking:
            order = jnp.argsort(jnp.where(failed, -jnp.inf, fitness))
            ranks = jnp.zeros(size, jnp.float32).at[order].set(jnp.arange(size, dtype=jnp.float32))
            scores = ranks / (size - 1) - 0.5
        else:
            lowest = jnp.min(fitness, where=~failed, initial=jnp.inf)
            scores = jnp.where(failed, jnp.where(failed.all(), 0.0, lowest), fitness)
        # No mean over none of them: that is NaN, which `jax_debug_nans` would raise for.
        count = jnp.maximum(1.0, failed.sum(dtype=jnp.float32))
        return jnp.where(failed, jnp.sum(scores, where=failed) / count, scores)

    @functools.partial(jax.jit, static_argnums=0)
    def noise(self, state: PGPEState, pairs: Array | None = None) -> Array:
        """What `ask` adds to the centre and takes from it: (population_size // 2, n), or (p, n)."""
        pairs = jnp.arange(self.population_size // 2) if pairs is None else jnp.asarray(pairs)
        key = generation_keys(state)[0]

        def draw(pair):
            # A key is split off each pair's own, as EvoJAX's `ask` does: its numbers.
            key_of_pair = jax.random.split(jax.random.fold_in(key, pair))[1]
            return jax.random.normal(key_of_pair, state.centre.shape, jnp.float32) * state.stdev

        return jax.vmap(draw)(pairs)

    def gradients(
        self, state: PGPEState, scores: Array, pairs: Array | None = None
    ) -> tuple[Array, Array]:
        """What pairs add to the gradients of centre and stdev, (n,) each; `tell` climbs the sums.

        `scores` are those of the whole population, as `scores` returns them; `pairs` the indices of
        one device's share, (p,). None takes all; those beyond the last add 0.
        """
        plus, minus = scores.reshape(-1, 2).T
        weights = jnp.stack([(plus - minus) / 2, (plus + minus) / 2 - scores.mean()])
        if pairs is not None:
            weights = weights.at[:, pairs].get(mode="fill", fill_value=0)
        pull, spread = weights[..., None]
        noise, stdev = self.noise(state, pairs), state.stdev[None]
        # Summed up, not multiplied as matrices, which accelerators do in fewer digits.
        shares = pull * noise, spread * (noise**2 - stdev**2) / stdev
        return tuple(jnp.sum(share, axis=0) / len(plus) for share in shares)

    def step(self, state: PGPEState, centre_gradient: Array, stdev_gradient: Array) -> PGPEState:
        """The end of `tell`: climbs gradients of shape (n,), wherever they were summed."""
        updates, optimizer_state = self.optimizer.update(
            -centre_gradient, state.optimizer_state, state.centre
        )
        most = jnp.abs(state.stdev) * self.stdev_max_change
        stdev = state.stdev + self.stdev_learning_rate * stdev_gradient
        return state._replace(
            centre=optax.apply_updates(state.centre, updates),
            stdev=jnp.clip(stdev, state.stdev - most, state.stdev + most),
            optimizer_state=optimizer_state,
            generation=state.generation + 1,
        )


def pair_keys(key: Array, population_size: int) -> Array:
    """Keys for a population's fitness, (population_size,), in the order of `ask`.

    Keys 2i and 2i + 1 are equal: the same fire masks in a pair let its difference speak of the
    parameters alone; other masks in every pair keep the gradient from being that of one lucky mask.
    `key` is of any kind, another one for each generation; `PGPE.keys` sees to that.
    """
    _check_population_size(population_size)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(population_size) // 2)


def check_start(init_params: Any, init_stdev: Any, key: Any) -> tuple[Array, ...]:
    """Returns a run's first centre and stdev, (n,) each, and the data of its threefry key, (2,)."""
    centre = _as_float32("init_params", init_params)
    is_good = centre.ndim == 1 and centre.size and _holds(jnp.isfinite(centre))
    require(is_good, "init_params", "a vector (n,) of finite numbers", init_params)
    stdev = _as_float32("init_stdev", init_stdev)
    is_good = stdev.shape in ((), centre.shape) and _holds(jnp.isfinite(stdev) & (stdev > 0))
    require(is_good, "init_stdev", f"finite, above 0, one or {centre.size}", init_stdev)
    check_key("key", key)
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = jnp.asarray(jax.random.key_data(key) if is_typed else key)[:2]
    return centre, jnp.full_like(centre, stdev), data


def generation_keys(state: Any, count: int = 2) -> Array:
    """Keys of this generation: for the noise, for the fitness, and what else a solver draws."""
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    return jax.random.split(jax.random.fold_in(key, state.generation), count)


def _as_float32(name: str, value: Any) -> Array:
    try:
        if isinstance(value, np.ndarray):  # `jax_debug_nans` of JAX 0.7 refuses NaN in jnp.array.
            return jax.device_put(value.astype(np.float32))
        return jnp.array(value, jnp.float32)
    except (TypeError, ValueError):
        require(False, name, "an array of numbers", value)


def _holds(condition: Array) -> bool:
    """Whether the condition holds everywhere, as far as it can be seen before the run."""
    return isinstance(condition, jax.core.Tracer) or bool(np.all(condition))


def _check_population_size(size: Any) -> None:
    is_even = check_integer("population_size", size, minimum=4) % 2 == 0
    require(is_even, "population_size", "an even number of at least 4", size)
