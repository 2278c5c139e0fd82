"""Space: a population's fitness, its members spread over the devices that exist.

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
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

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
        mesh: The devices, in any shape, over all of whose axes the members are spread; None
            takes all devices of all processes.

    Returns:
        (population_size,) scores, on every device. Inside a caller's `jax.shard_map` each device
        scores the members it holds and keeps their scores.

    Raises:
        ValueError: The population is no matrix or is empty, the keys are not as many, the mesh is
            no mesh, or the fitness is not one number.
    """
    size = _check(fitness, population, keys, mesh)
    if jax.sharding.get_abstract_mesh().manual_axes:  # Already spread, by a caller's shard_map.
        return _score(fitness, population, keys)
    mesh = _as_mesh(mesh)
    fill = -size % mesh.size
    population, keys = (_fill_up(array, fill) for array in (population, keys))
    members = P(mesh.axis_names)

    def score(population, keys):  # Gathered here, or the compiler would spread what follows too.
        share = _score(fitness, population, keys)
        return jax.lax.all_gather(share, mesh.axis_names, tiled=True)

    spread = jax.shard_map(
        score, mesh=mesh, in_specs=(members, members), out_specs=P(), check_vma=False
    )
    return spread(population, keys)[:size]


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
        ValueError: The mesh is no mesh, or the fitness is not one number.
    """
    size = pgpe.population_size
    _check(fitness, jax.eval_shape(pgpe.ask, state), jax.eval_shape(pgpe.keys, state), mesh)
    mesh = _as_mesh(mesh)
    share = -(-(size // 2) // mesh.size)

    def generation(state):
        pairs = jax.lax.axis_index(mesh.axis_names) * share + jnp.arange(share)
        drawn = jnp.minimum(pairs, size // 2 - 1)
        keys = pgpe.keys(state).reshape(-1, 2)[drawn].reshape(-1)
        scores = _score(fitness, pgpe.ask(state, drawn), keys)
        scores = jax.lax.all_gather(scores, mesh.axis_names, tiled=True)[:size]
        gradients = pgpe.gradients(state, pgpe.scores(scores), pairs)
        return pgpe.step(state, *jax.lax.psum(gradients, mesh.axis_names)), scores

    return jax.shard_map(generation, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)(state)


def _as_mesh(mesh: Mesh | None) -> Mesh:
    if mesh is None:
        return Mesh(np.array(jax.devices()), ("device",))
    return Mesh(mesh.devices, mesh.axis_names)  # Those of jax.make_mesh have explicit axes.


def _check(fitness, population, keys, mesh) -> int:
    shape, given_keys = jnp.shape(population), jnp.shape(keys)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"population must have shape (population_size, n), got {shape}")
    if given_keys[:1] != shape[:1]:
        raise ValueError(f"keys must be one for each of {shape[0]} members, got {given_keys}")
    if not isinstance(mesh, Mesh | None):
        raise ValueError(f"mesh must be a jax.sharding.Mesh, or None for all devices, got {mesh!r}")
    score = jax.eval_shape(lambda vectors, keys: fitness(vectors[0], keys[0]), population, keys)
    if getattr(score, "shape", None) != ():
        raise ValueError(f"fitness must return one number, of shape (), got {score}")
    return shape[0]


def _fill_up(array: Array, count: int) -> Array:
    if not count:
        return array
    # Indexed, not concatenated: the compiler would cut the pieces up among the devices.
    return array[np.minimum(np.arange(len(array) + count), len(array) - 1)]


def _score(fitness, population, keys) -> Array:
    if jax.default_backend() != "cpu":
        return jax.vmap(fitness)(population, keys)
    return jax.lax.map(lambda member: fitness(*member), (population, keys))
