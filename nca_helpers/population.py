"""Evolution over devices: a population's fitness, and a whole generation.

    @jax.jit
    def generation(state):
        scores = population_fitness(fitness, pgpe.ask(state), pgpe.keys(state))
        return pgpe.tell(state, scores), scores

The same lines serve one core, eight, a GPU and a pod. What crosses between the devices is the
fitness: four bytes a member. For that every device draws the noise of the whole population again
when it is told. `spread_generation` is the same generation with each pair's noise drawn by one
device alone; there the gradients cross as well, eight bytes a parameter.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from nca_helpers.checks import require
from nca_helpers.devices import find_mesh, move, spread
from nca_helpers.pgpe import PGPE, PGPEState


def population_fitness(
    fitness: Callable[[Array, Array], Array],
    population: Array,
    keys: Array,
    mesh: Mesh | None = None,
) -> Array:
    """Scores every member of a population.

    Call it inside `jax.jit`, for outside it compiles on every call. A member's score does not
    depend on how many devices there are. On a CPU each device takes its members one after the
    other, so that a core keeps a whole member in its cache; on a GPU or TPU they run together.

    Args:
        fitness: `fitness(vector, key)` scores one flat vector of parameters, shape (); it may
            close over arrays.
        population: (population_size, n). A size that the number of devices does not divide is
            filled up with copies of the last member, whose scores are dropped.
        keys: One key for each member, (population_size,), or (population_size, 2) of the old kind.
        mesh: The devices, in any shape, over all of whose axes the members are spread. None takes
            the mesh in force (`jax.set_mesh`), else all devices of all processes.

    Returns:
        (population_size,) scores, on every device. Inside a caller's `jax.shard_map` each device
        scores the members it holds and keeps their scores.

    Raises:
        ValueError: The population is no matrix or is empty, the keys are not as many, the mesh is
            no mesh or not the one in force, or the fitness is not one number.
    """
    _check(fitness, population, keys)
    return _spread_members(fitness, population, keys, mesh)


def population_residuals(
    residuals: Callable[[Array, Array], Array],
    population: Array,
    keys: Array,
    mesh: Mesh | None = None,
) -> Array:
    """Has every member of a population tell what it lacks: `population_fitness` for `GaussNewton`.

    Args:
        residuals: `residuals(vector, key)` returns many numbers for one flat vector, shape (m,).
        population: As for `population_fitness`.
        keys: As for `population_fitness`.
        mesh: As for `population_fitness`.

    Returns:
        (population_size, m), on every device.

    Raises:
        ValueError: As `population_fitness`, or the residuals are no vector.
    """
    _check(residuals, population, keys, is_vector=True)
    return _spread_members(residuals, population, keys, mesh)


def spread_generation(
    pgpe: PGPE,
    fitness: Callable[[Array, Array], Array],
    state: PGPEState,
    mesh: Mesh | None = None,
) -> tuple[PGPEState, Array]:
    """Asks, scores and tells, each device its own pairs from their keys alone.

    The same generation as `pgpe.tell(state, population_fitness(fitness, pgpe.ask(state),
    pgpe.keys(state)))`, up to rounding. There each device draws the noise of all pairs and
    receives the fitness, 4 bytes a member. Here it draws that of its own pairs
    alone, and the sum of all devices' gradients crosses as well, 8 bytes a parameter.

    Call it inside `jax.jit`, for outside it compiles on every call.

    Args:
        pgpe: The settings.
        fitness: As for `population_fitness`.
        state: As from `pgpe.init`.
        mesh: As for `population_fitness`. Devices that the number of pairs does not divide by are
            given the last pair once more, which does not count.

    Returns:
        The next generation's state, and the fitness, (population_size,); both on every device.

    Raises:
        ValueError: The mesh is no mesh or not the one in force, or the fitness is not one number.
    """
    _check(fitness, jax.eval_shape(pgpe.ask, state), jax.eval_shape(pgpe.keys, state))
    mesh = find_mesh(state, mesh, inside_jit=True)
    state = move(state, mesh)
    num_pairs = pgpe.population_size // 2

    def score(pairs, _, state):
        drawn = jnp.minimum(pairs, num_pairs - 1)
        keys = pgpe.keys(state).reshape(num_pairs, 2)[drawn].reshape(-1)
        return _score(fitness, pgpe.ask(state, drawn), keys).reshape(-1, 2), ()

    def gradients(pairs, _, shared):
        state, scores = shared
        return pgpe.gradients(state, scores, pairs), ()

    pairs = jnp.arange(num_pairs)
    fitness_of_pairs, _ = spread(score, mesh, pairs, state)
    scores = pgpe.scores(fitness_of_pairs.reshape(-1))
    sums, _ = spread(gradients, mesh, pairs, (state, scores), total=True)
    return pgpe.step(state, *sums), fitness_of_pairs.reshape(-1)


def _spread_members(function, population, keys, mesh) -> Array:
    mesh = find_mesh((population, keys), mesh, inside_jit=True)
    members = move((population, keys), mesh)
    results, _ = spread(lambda _, members, __: (_score(function, *members), ()), mesh, members, ())
    return results


def _check(fitness, population, keys, is_vector=False) -> None:
    shape, given_keys = jnp.shape(population), jnp.shape(keys)
    is_matrix = len(shape) == 2 and 0 not in shape
    require(is_matrix, "population", "an array (population_size, n)", population)
    require(given_keys[:1] == shape[:1], "keys", f"one for each of {shape[0]} members", keys)
    score = jax.eval_shape(lambda vectors, keys: fitness(vectors[0], keys[0]), population, keys)
    is_as_wanted = getattr(score, "ndim", None) == int(is_vector)
    name, wanted = (
        ("residuals", "a vector of numbers, of shape (m,)")
        if is_vector
        else ("fitness", "one number, of shape ()")
    )
    require(is_as_wanted, name, f"a function that returns {wanted}", score)


def _score(fitness, population, keys) -> Array:
    if jax.default_backend() != "cpu":
        return jax.vmap(fitness)(population, keys)
    return jax.lax.map(lambda member: fitness(*member), (population, keys))
