"""Space: a population's fitness, its members spread over the devices that exist.

    @jax.jit
    def generation(state):
        scores = population_fitness(fitness, pgpe.ask(state), pgpe.keys(state))
        return pgpe.tell(state, scores), scores

The same lines serve one core, eight, a GPU and a pod. What crosses between the devices is the
fitness: four bytes a member.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P


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
    if mesh is None:
        mesh = Mesh(np.array(jax.devices()), ("device",))
    mesh = Mesh(mesh.devices, mesh.axis_names)  # Those of jax.make_mesh have explicit axes.
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
