"""Evolution over devices: a population's fitness, and a whole generation.

    @jax.jit
    def generation(state):
        scores = population_fitness(fitness, pgpe.ask(state), pgpe.keys(state))
        return pgpe.tell(state, scores), scores

The same lines serve one core, eight, a GPU and a pod. What crosses between the devices is the
fitness: four bytes a member. For that every device draws the noise of the whole population again
when it is told. In `spread_generation` one device alone draws each pair's noise, and the gradients
cross as well, eight bytes a parameter.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from nca_helpers.checks import require
from nca_helpers.devices import find_mesh, move, spread
from nca_helpers.pgpe import PGPE, PGPEState

# Of one flat vector of parameters, (n,), and one key; it may close over arrays.
Score = Callable[[Array, Array], Array]


def population_fitness(
    fitness: Score, population: Array, keys: Array, mesh: Mesh | None = None
) -> Array:
    """Scores every member of a population.

    Call it inside `jax.jit`, for outside it compiles on every call. A member's score does not
    depend on how many devices there are. On a CPU each device takes its members one after the
    other, so that a core keeps a whole member in its cache; on a GPU or TPU they run together.

    Args:
        fitness: `fitness(vector, key)` scores one flat vector of parameters, shape ().
        population: (population_size, n). A size that the number of devices does not divide is
            filled up with copies of the last member, whose scores are dropped.
        keys: One key for each member, (population_size,), or (population_size, 2) of the old kind.
        mesh: The devices, in any shape, over all of whose axes the members are spread. None takes
            the mesh in force (`jax.set_mesh`), else all devices of all processes.

    Returns:
        (population_size,) scores, on every device. Inside a caller's `jax.shard_map` each device
        scores the members it holds and keeps their scores.
    """
    return _spread_members("fitness", fitness, population, keys, mesh)


def population_residuals(
    residuals: Score, population: Array, keys: Array, mesh: Mesh | None = None
) -> Array:
    """Has every member tell what it lacks, (population_size, m), for `GaussNewton`.

    `residuals(vector, key)` returns many numbers for one flat vector, shape (m,); all else is as
    for `population_fitness`.
    """
    return _spread_members("residuals", residuals, population, keys, mesh)


def spread_generation(
    pgpe: PGPE, fitness: Score, state: PGPEState, mesh: Mesh | None = None
) -> tuple[PGPEState, Array]:
    """Asks, scores and tells, each device its own pairs from their keys alone.

    Returns what `scores = population_fitness(fitness, pgpe.ask(state), pgpe.keys(state), mesh)` and
    `pgpe.tell(state, scores)` give, up to rounding: the next state, and the scores. Devices that
    the number of pairs does not divide by are given the last pair once more, which does not count.
    Call it inside `jax.jit`, for outside it compiles on every call.
    """
    _check("fitness", fitness, jax.eval_shape(pgpe.ask, state), jax.eval_shape(pgpe.keys, state))
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


def _spread_members(name: str, function: Score, population, keys, mesh) -> Array:
    _check(name, function, population, keys)
    mesh = find_mesh((population, keys), mesh, inside_jit=True)
    members = move((population, keys), mesh)
    results, _ = spread(lambda _, members, __: (_score(function, *members), ()), mesh, members, ())
    return results


def _check(name: str, function: Score, population, keys) -> None:
    shape = jnp.shape(population)
    is_matrix = len(shape) == 2 and 0 not in shape
    require(is_matrix, "population", "an array (population_size, n)", population)
    are_as_many = jnp.shape(keys)[:1] == shape[:1]
    require(are_as_many, "keys", f"one for each of {shape[0]} members", keys)
    score = jax.eval_shape(lambda vectors, keys: function(vectors[0], keys[0]), population, keys)
    ndim = ("fitness", "residuals").index(name)
    wanted = ("one number, of shape ()", "a vector of numbers, of shape (m,)")[ndim]
    is_as_wanted = getattr(score, "ndim", None) == ndim
    require(is_as_wanted, name, f"a function that returns {wanted}", score)


def _score(function: Score, population, keys) -> Array:
    if jax.default_backend() != "cpu":
        return jax.vmap(function)(population, keys)
    return jax.lax.map(lambda member: function(*member), (population, keys))
