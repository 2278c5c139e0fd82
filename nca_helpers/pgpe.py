"""Evolution: PGPE as pure functions over one state of arrays.

The algorithm is that of `evojax.algo.PGPE`, built from the same pure parts. What it mends:

- The optimiser is any of optax's. EvoJAX hands its Adam the generation divided by 1,000 as the
  step count, which spoils the bias correction (https://github.com/google/evojax/issues/25).
- The first centre must be given. EvoJAX's default, all zeros, leaves the first layer of a
  two-layer network without a gradient.
- The first stdev is any real number or a vector; there, all but a Python float raises
  AttributeError.
- A fitness of NaN counts as the worst; there, it ranks as the best.
- The state can be saved, restored, changed, scanned and vmapped; there, `save_state()` returns
  None and the next `tell` undoes a centre set through `best_params`.
- Each pair's noise has a key of its own, so that a device can draw its own members alone.

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
import numbers
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree


class PGPEState(NamedTuple):
    """All that a run has to remember; every leaf is a plain array.

    Attributes:
        centre: mean of the search distribution, (n,): the solution.
        stdev: its standard deviation, (n,).
        optimizer_state: the optimiser's own state.
        key: data of a threefry key, (2,) uint32, the same in every generation.
        generation: how often `tell` has been called, () int32.
    """

    centre: jax.Array
    stdev: jax.Array
    optimizer_state: optax.OptState
    key: jax.Array
    generation: jax.Array


@dataclass(frozen=True, kw_only=True)
class PGPE:
    """Policy gradients with parameter-based exploration, maximising a fitness.

    The object holds settings alone; its methods are pure and work inside `jit`, `vmap` and `scan`.
    Source: Sehnke et al., "Policy gradients with parameter-based exploration for control", ICANN
    2008, as in EvoJAX 0.2.17, whose class also gives the defaults.

    Attributes:
        population_size: an even number of at least 4: antithetic pairs, compared with each other.
        optimizer: moves the centre; optax descends, so it is given the negative gradient.
        stdev_learning_rate: learning rate of the stdev; 0 keeps it.
        stdev_max_change: the largest change of a stdev in one generation, as a fraction of it.
        ranking: replace the fitness by its rank, from -0.5 (worst) to 0.5 (best).
        num_params: the length that `init_params` must have; None accepts any.

    Raises:
        ValueError: if a setting is out of range.
    """

    population_size: int
    optimizer: optax.GradientTransformation
    stdev_learning_rate: float = 0.1
    stdev_max_change: float = 0.2
    ranking: bool = True
    num_params: int | None = None

    def __post_init__(self):
        _check_population_size(self.population_size)
        is_optax = isinstance(self.optimizer, optax.GradientTransformation)
        _require(is_optax, "optimizer", self.optimizer, "an optax.GradientTransformation")
        rate, change = self.stdev_learning_rate, self.stdev_max_change
        _require(_is_within(rate, 0), "stdev_learning_rate", rate, "a finite number, 0 or more")
        _require(_is_within(change, 0, 1), "stdev_max_change", change, "from 0 to below 1")

    def init(self, init_params: Any, key: jax.Array, *, init_stdev: Any) -> PGPEState:
        """Starts a run.

        Args:
            init_params: the first centre, (n,), as from `jax.flatten_util.ravel_pytree`.
            key: a threefry key, as from `jax.random.key` or `jax.random.PRNGKey`.
            init_stdev: the first standard deviation, above 0: one for all parameters, or (n,).

        Returns:
            The state of generation 0.

        Raises:
            ValueError: if an argument has the wrong shape or is not finite, or the optimiser's
                learning rate is not finite or below 0. Traced values are taken as they are.
        """
        centre = _as_float32("init_params", init_params)
        is_vector = centre.ndim == 1 and centre.size > 0
        _require(is_vector, "init_params", centre.shape, "one flat vector, of shape (n,)")
        length = centre.size if self.num_params is None else self.num_params
        _require(centre.size == length, "init_params", centre.size, f"of length {length}")
        _require(_holds(jnp.isfinite(centre)), "init_params", init_params, "finite")

        stdev, shapes = _as_float32("init_stdev", init_stdev), ((), centre.shape)
        _require(stdev.shape in shapes, "init_stdev", stdev.shape, f"of a shape in {shapes}")
        is_positive = _holds(jnp.isfinite(stdev) & (stdev > 0))
        _require(is_positive, "init_stdev", init_stdev, "finite and above 0")

        self._check_optimizer(centre)
        return PGPEState(
            centre=centre,
            stdev=jnp.full_like(centre, stdev),
            optimizer_state=self.optimizer.init(centre),
            key=_key_data(key),
            generation=jnp.zeros((), jnp.int32),
        )

    @functools.partial(jax.jit, static_argnums=0)
    def ask(self, state: PGPEState, pairs: jax.Array | None = None) -> jax.Array:
        """Draws the population: members 2i and 2i + 1 are the centre plus and minus noise i.

        Args:
            state: as from `init` or `tell`.
            pairs: indices of the pairs to draw, (p,): one device's share; None draws all.

        Returns:
            (population_size, n), or (2p, n).
        """
        noise = self.noise(state, pairs)
        members = jnp.stack([state.centre + noise, state.centre - noise], axis=1)
        return members.reshape(-1, state.centre.size)

    @functools.partial(jax.jit, static_argnums=0)
    def keys(self, state: PGPEState) -> jax.Array:
        """The generation's keys for the fitness, (population_size,); see `pair_keys`."""
        return pair_keys(_generation_keys(state)[1], self.population_size)

    @functools.partial(jax.jit, static_argnums=0)
    def tell(self, state: PGPEState, fitness: jax.Array) -> PGPEState:
        """Moves the centre and the stdev towards the fitter members.

        Args:
            state: the one that `ask` was given.
            fitness: (population_size,), more is better; what is not finite counts as the worst.

        Returns:
            The next generation's state.

        Raises:
            ValueError: if the fitness has another shape.
        """
        gradients = _evojax_pgpe().compute_reinforce_update(
            self.scores(fitness), self.noise(state), state.stdev
        )
        return self.step(state, *gradients)

    def scores(self, fitness: jax.Array) -> jax.Array:
        """The fitness as `tell` weighs it, (population_size,), ranked if so set.

        Failed members, whose fitness is not finite, share one score: a pair of them pulls to
        neither side, and where all have failed, nothing does.
        """
        fitness, shape = _as_float32("fitness", fitness), (self.population_size,)
        _require(fitness.shape == shape, "fitness", fitness.shape, f"of shape {shape}")
        failed = ~jnp.isfinite(fitness)
        lowest = jnp.min(fitness, where=~failed, initial=jnp.inf)
        worst = -jnp.inf if self.ranking else jnp.where(failed.all(), 0.0, lowest)
        scores = _evojax_pgpe().process_scores(jnp.where(failed, worst, fitness), self.ranking)
        scores = scores.astype(jnp.float32)
        return jnp.where(failed, jnp.mean(scores, where=failed), scores)

    def noise(self, state: PGPEState, pairs: jax.Array | None = None) -> jax.Array:
        """What `ask` adds to the centre and takes from it: (population_size // 2, n), or (p, n)."""
        pairs = jnp.arange(self.population_size // 2) if pairs is None else jnp.asarray(pairs)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(_generation_keys(state)[0], pairs)
        num_params = state.centre.size

        def draw(key):
            return _evojax_pgpe().ask_func(key, state.stdev, state.centre, 1, num_params)[1]

        return jax.vmap(draw)(keys).reshape(-1, num_params).astype(jnp.float32)

    def gradients(
        self, state: PGPEState, scores: jax.Array, pairs: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What some pairs add to the gradients that `tell` climbs: summed over all, they are those.

        Args:
            state: the one that `ask` was given.
            scores: of the whole population, as `scores` returns them.
            pairs: indices of the pairs, (p,): one device's share. Others add zeros.

        Returns:
            The shares in the gradients of the centre and of the stdev, each (n,).
        """
        plus, minus = scores.reshape(-1, 2).T
        is_pair = pairs < len(plus)
        pull = jnp.where(is_pair, (plus - minus)[pairs] / 2, 0.0)
        spread = jnp.where(is_pair, (plus + minus)[pairs] / 2 - scores.mean(), 0.0)
        noise = self.noise(state, pairs)
        centre_gradient = pull @ noise
        stdev_gradient = spread @ (noise**2 - state.stdev**2) / state.stdev
        return centre_gradient / len(plus), stdev_gradient / len(plus)

    def step(
        self, state: PGPEState, centre_gradient: jax.Array, stdev_gradient: jax.Array
    ) -> PGPEState:
        """The end of `tell`: climbs gradients of shape (n,), wherever they were summed."""
        updates, optimizer_state = self.optimizer.update(
            -centre_gradient, state.optimizer_state, state.centre
        )
        return state._replace(
            centre=optax.apply_updates(state.centre, updates),
            stdev=_evojax_pgpe().update_stdev(
                state.stdev, self.stdev_learning_rate, stdev_gradient, self.stdev_max_change
            ),
            optimizer_state=optimizer_state,
            generation=state.generation + 1,
        )

    def _check_optimizer(self, centre: jax.Array) -> None:
        # optax takes any learning rate; what a gradient of ones becomes tells a bad one.
        zeros = jnp.zeros_like(centre)
        step, _ = self.optimizer.update(zeros + 1, self.optimizer.init(zeros), zeros)
        is_descent = _holds(jnp.isfinite(step)) and _holds(jnp.any(step <= 0))
        accepted = "a descent with a finite learning rate, 0 or more (down a gradient of ones)"
        _require(is_descent, "optimizer", step, accepted)


def pair_keys(key: jax.Array, population_size: int) -> jax.Array:
    """Keys for a population's fitness, equal inside each antithetic pair, in the order of `ask`.

    The same fire masks in a pair let its difference speak of the parameters alone; other masks in
    every pair keep the gradient from being that of one lucky mask.

    Args:
        key: a key, another one for each generation; `PGPE.keys` sees to that.
        population_size: an even number of at least 4.

    Returns:
        (population_size,) keys of the kind given; keys 2i and 2i + 1 are equal.

    Raises:
        ValueError: if the population size is not such a number.
    """
    _check_population_size(population_size)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(population_size) // 2)


def clipup(
    learning_rate: float, momentum: float = 0.9, max_speed: float | None = None
) -> optax.GradientTransformation:
    """ClipUp: normalised gradients, momentum, and a limit to the speed.

    All parameters count as one vector. A gradient of zero adds nothing, where EvoJAX's ClipUp
    divides by its length. Source: Toklu, Liskowski & Srivastava, "ClipUp: a simple and powerful
    optimizer for distribution-based policy evolution", PPSN 2020, arXiv:2008.02387.

    Args:
        learning_rate: the length that every gradient is scaled to.
        momentum: the fraction of the velocity that is kept.
        max_speed: the largest length of an update; None is twice the learning rate.

    Raises:
        ValueError: if an argument is out of range.
    """
    accepted = "a finite number above 0"
    is_rate = _is_within(learning_rate, 0) and learning_rate > 0
    _require(is_rate, "learning_rate", learning_rate, accepted)
    _require(_is_within(momentum, 0, 1), "momentum", momentum, "from 0 to below 1")
    max_speed = 2 * learning_rate if max_speed is None else max_speed
    _require(_is_within(max_speed, 0) and max_speed > 0, "max_speed", max_speed, accepted)

    def init(params):
        return optax.TraceState(trace=jax.tree.map(jnp.zeros_like, params))

    def update(gradient, state, params=None):
        gradient, unravel = ravel_pytree(gradient)
        length = jnp.linalg.norm(gradient)
        velocity = momentum * ravel_pytree(state.trace)[0]
        velocity -= learning_rate * gradient / jnp.where(length > 0, length, 1.0)
        velocity /= jnp.maximum(1.0, jnp.linalg.norm(velocity) / max_speed)
        updates = unravel(velocity)
        return updates, optax.TraceState(trace=updates)

    return optax.GradientTransformation(init, update)


def _evojax_pgpe() -> ModuleType:
    # Loaded on use: EvoJAX brings in far more than PGPE.
    from evojax.algo import pgpe

    return pgpe


def _generation_keys(state: PGPEState) -> jax.Array:
    """Two keys of this generation: one for the noise, one for the fitness."""
    key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
    return jax.random.split(jax.random.fold_in(key, state.generation))


def _key_data(key: jax.Array) -> jax.Array:
    try:
        data = jax.random.key_data(key)
    except TypeError:
        data = None
    is_threefry = data is not None and data.shape == (2,) and data.dtype == jnp.uint32
    _require(is_threefry, "key", key, "one threefry key, as from jax.random.key(0)")
    return data


def _as_float32(name: str, value: Any) -> jax.Array:
    try:
        return jnp.array(value, jnp.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers; got {value!r}.") from error


def _holds(condition: jax.Array) -> bool:
    """Whether the condition holds everywhere, as far as it can be seen before the run."""
    return isinstance(condition, jax.core.Tracer) or bool(np.all(condition))


def _is_within(value: Any, low: float, high: float = math.inf) -> bool:
    return isinstance(value, numbers.Real) and low <= value < high


def _check_population_size(size: Any) -> None:
    is_even = isinstance(size, numbers.Integral) and size >= 4 and size % 2 == 0
    _require(is_even, "population_size", size, "an even number of at least 4")


def _require(condition: bool, name: str, given: Any, accepted: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {accepted}; got {given!r}.")
