"""A population's scores against a plain loop, on any number of devices, and what crosses them."""

import functools
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nca_helpers import population as population_module
from nca_helpers.emoji import load_emoji
from nca_helpers.model import NCA, seed_state
from nca_helpers.pgpe import PGPE
from nca_helpers.population import population_fitness, spread_generation
from nca_helpers.rollouts import rollout

NUM_PARAMS = 5
OPTIMUM = np.linspace(-1, 1, NUM_PARAMS, dtype=np.float32)
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
SIZE, CHANNELS, HIDDEN, STEPS = 5, 5, 6, 4


def simple_fitness(vector, key, optimum=OPTIMUM):
    return -jnp.mean((vector - optimum) ** 2) + 0.1 * jax.random.normal(key)


def make_population(size: int, num_params: int = NUM_PARAMS) -> np.ndarray:
    return np.random.default_rng(size).normal(size=(size, num_params)).astype(np.float32)


def make_keys(size: int, make_key=jax.random.key):
    return jax.random.split(make_key(size), size)


def plain_loop(fitness, population, keys) -> np.ndarray:
    fitness = jax.jit(fitness)
    return np.array([fitness(vector, key) for vector, key in zip(population, keys, strict=True)])


@functools.cache
def make_nca():
    """An automaton that grows from the first step, as (its structure, its vector, the way back)."""
    weights = reference.random_weights(CHANNELS, HIDDEN, seed=0, scale=0.25)
    nca = NCA(channels=CHANNELS, hidden=HIDDEN, rngs=nnx.Rngs(0))
    graph, params = nnx.split(reference.set_weights(nca, weights))
    return graph, *ravel_pytree(params)


def nca_population(size: int) -> np.ndarray:
    vector = np.asarray(make_nca()[1])
    return vector + 0.05 * make_population(size, vector.size)


def make_nca_fitness(run):
    """The fitness of a rollout, `run(nca, state, key)`, from one cell to a small emoji."""
    graph, _, unravel = make_nca()
    target = jnp.asarray(load_emoji("🦎", size=SIZE))

    def fitness(vector, key):
        nca = nnx.merge(graph, unravel(vector))
        state = run(nca, seed_state(SIZE, SIZE, CHANNELS), key)
        return -jnp.mean((state[..., :4] - target) ** 2)

    return fitness


def loop_over_nca(nca, state, key):
    for t in range(STEPS):
        state = nca(state, jax.random.fold_in(key, t))
    return state


@functools.cache
def rollout_fitness():
    return make_nca_fitness(lambda nca, state, key: rollout(nca, state, key, STEPS))


# The scores


def scan(population, keys):
    """The scores of the second of two generations, which other keys precede."""

    def generation(_, keys):
        return None, population_fitness(simple_fitness, population, keys)

    return jax.lax.scan(generation, None, jnp.stack([keys[::-1], keys]))[1][1]


def eager(population, keys):
    return population_fitness(simple_fitness, population, keys)


WAYS = {"eager": eager, "jit": jax.jit(eager), "scan": scan, "jitted scan": jax.jit(scan)}


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize("way", WAYS)
def test_scores_are_those_of_a_plain_loop(way, make_key):
    population, keys = make_population(6), make_keys(6, make_key)
    scores = WAYS[way](population, keys)
    assert scores.shape == (6,)
    assert scores.dtype == jnp.float32
    expected = plain_loop(simple_fitness, population, keys)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores, expected, **TOLERANCE)


def test_rollouts_are_those_of_a_plain_loop_over_the_automaton():
    population, keys = nca_population(3), make_keys(3)
    scores = jax.jit(functools.partial(population_fitness, rollout_fitness()))(population, keys)
    expected = plain_loop(make_nca_fitness(loop_over_nca), population, keys)
    assert np.ptp(expected) > 1e-4
    np.testing.assert_allclose(scores, expected, **TOLERANCE)


def test_the_fitness_may_close_over_arrays():
    population, keys = make_population(4), make_keys(4)

    @jax.jit
    def score(optimum):  # one array that is traced, one that is not
        weights = jnp.arange(NUM_PARAMS)

        def fitness(vector, key):
            return simple_fitness(vector, key, optimum) + weights @ vector

        return population_fitness(fitness, population, keys)

    for optimum in (OPTIMUM, OPTIMUM + 1):
        expected = plain_loop(functools.partial(simple_fitness, optimum=optimum), population, keys)
        expected += population @ np.arange(NUM_PARAMS)
        np.testing.assert_allclose(score(optimum), expected, **TOLERANCE)


def test_runs_side_by_side_under_vmap():
    populations = np.stack([make_population(4), make_population(4) + 1])
    keys = jnp.stack([make_keys(4), make_keys(4)])
    scores = jax.jit(jax.vmap(eager))(populations, keys)
    for i in range(2):
        expected = plain_loop(simple_fitness, populations[i], keys[i])
        np.testing.assert_allclose(scores[i], expected, **TOLERANCE)


def trace(population, keys):
    return jax.make_jaxpr(lambda *arguments: eager(*arguments))(population, keys)


def test_members_together_as_on_a_gpu_score_the_same(monkeypatch):
    population, keys = make_population(6), make_keys(6)
    assert "scan[" in str(trace(population, keys))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program = trace(population, keys)
    monkeypatch.undo()
    assert "scan[" not in str(program)
    (scores,) = jax.core.eval_jaxpr(program.jaxpr, program.consts, population, keys)
    np.testing.assert_allclose(scores, plain_loop(simple_fitness, population, keys), **TOLERANCE)


def test_what_is_not_finite_passes_through():
    population, keys = make_population(5), make_keys(5)
    population[[1, 3], 0] = np.nan, np.inf
    scores = np.asarray(jax.jit(eager)(population, keys))
    assert np.isnan(scores[1])
    assert scores[3] == -np.inf
    finite = [0, 2, 4]
    expected = plain_loop(simple_fitness, population[finite], keys[np.array(finite)])
    np.testing.assert_allclose(scores[finite], expected, **TOLERANCE)


def test_the_example_of_the_module_runs():
    pgpe = PGPE(population_size=4, optimizer=optax.sgd(0.1))
    names = {
        "jax": jax,
        "fitness": simple_fitness,
        "pgpe": pgpe,
        "population_fitness": population_fitness,
    }
    example = re.search(r"\n\n((?:    .*\n)+)\n", population_module.__doc__)[1]
    exec(textwrap.dedent(example), names)
    state = pgpe.init(OPTIMUM, jax.random.key(0), init_stdev=0.1)
    after, scores = names["generation"](state)
    assert after.generation == 1
    expected = plain_loop(simple_fitness, pgpe.ask(state), pgpe.keys(state))
    np.testing.assert_allclose(scores, expected, **TOLERANCE)


# Bad input


@pytest.mark.parametrize("shape", [(5,), (), (2, 3, 5), (0, 5), (4, 0)])
def test_a_population_of_another_shape_is_refused(shape):
    population, keys = np.zeros(shape, np.float32), np.zeros((4, 2), np.uint32)
    call = functools.partial(population_fitness, simple_fitness, population, keys)
    reference.refuses(call, "population must", str(shape) if shape else "array(0.")


@pytest.mark.parametrize("shape", [(3, 2), (5, 2), (0, 2), ()])
def test_keys_that_are_not_as_many_are_refused(shape):
    population, keys = make_population(4), np.zeros(shape, np.uint32)
    call = functools.partial(population_fitness, simple_fitness, population, keys)
    reference.refuses(call, "keys must", "4 members", str(shape) if shape else "array(0")


def test_one_key_for_all_is_refused():
    call = functools.partial(population_fitness, simple_fitness, make_population(4))
    reference.refuses(lambda: call(jax.random.key(0)), "keys must", "4 members", "()")


@pytest.mark.parametrize(
    ("fitness", "given"),
    [
        (lambda vector, key: vector, "(5,)"),
        (lambda vector, key: vector[:1], "(1,)"),
        (lambda vector, key: (vector[0], vector[1]), "float32"),
        (lambda vector, key: None, "None"),
    ],
    ids=["vector", "vector of one", "two numbers", "nothing"],
)
def test_a_fitness_that_is_not_one_number_is_refused(fitness, given):
    population, keys = jnp.asarray(make_population(4)), make_keys(4)
    reference.refuses(lambda: population_fitness(fitness, population, keys), "fitness must", given)


@pytest.mark.parametrize("mesh", [8, "cpu", [0, 1]])
def test_what_is_no_mesh_is_refused(mesh):
    call = functools.partial(population_fitness, simple_fitness, make_population(4), make_keys(4))
    reference.refuses(lambda: call(mesh=mesh), "mesh must be a jax.sharding.Mesh", str(mesh))


# A generation, each device its own pairs


def both_ways(pgpe, state, fitness=simple_fitness, mesh=None):
    scores = population_fitness(fitness, pgpe.ask(state), pgpe.keys(state), mesh)
    return (pgpe.tell(state, scores), scores), spread_generation(pgpe, fitness, state, mesh)


@pytest.mark.parametrize("ranking", [True, False])
def test_a_spread_generation_is_ask_score_and_tell(ranking):
    pgpe = PGPE(population_size=10, optimizer=optax.sgd(0.5), ranking=ranking)
    state = pgpe.init(OPTIMUM + 0.3, jax.random.key(0), init_stdev=0.1)
    for _ in range(3):
        told, spread = jax.jit(functools.partial(both_ways, pgpe))(state)
        for expected, found in zip(jax.tree.leaves(told), jax.tree.leaves(spread), strict=True):
            np.testing.assert_allclose(found, expected, **TOLERANCE)
        assert np.abs(told[0].centre - state.centre).max() > 1e-4
        state = told[0]


def test_a_failed_member_counts_as_the_worst_in_a_spread_generation():
    def fitness(vector, key):
        return jnp.where(vector[0] > 0, jnp.nan, simple_fitness(vector, key))

    pgpe = PGPE(population_size=16, optimizer=optax.sgd(0.5))
    state = pgpe.init(jnp.zeros(NUM_PARAMS), jax.random.key(0), init_stdev=0.1)
    told, spread = both_ways(pgpe, state, fitness)
    assert np.isnan(spread[1]).sum() == np.isnan(told[1]).sum() > 0
    np.testing.assert_allclose(spread[0].centre, told[0].centre, **TOLERANCE)
    assert np.isfinite(spread[0].centre).all()


def test_bad_input_of_a_spread_generation_is_refused():
    pgpe = make_pgpe(4)
    state = start(pgpe, OPTIMUM)
    reference.refuses(
        lambda: spread_generation(pgpe, simple_fitness, state, "all"), "mesh must be", "'all'"
    )
    reference.refuses(
        lambda: spread_generation(pgpe, lambda vector, key: vector, state), "fitness must be"
    )


# Many devices: eight emulated ones, in one process that runs `on_eight_devices`


SIZES = (16, 13, 8, 3, 1)  # 13 fills up, 3 and 1 are fewer than the devices
COUNTS = (1, 2, 4, 8)
GENERATIONS = 20
NUM_DEVICES = {"1": 1, "2": 2, "4": 4, "devices 2, 3, 4": 3}  # the other meshes have all eight
MESHES = ("1", "2", "4", "8", "2 × 4", "devices 2, 3, 4", "backwards", "make_mesh")


def make_mesh(name: str) -> Mesh:
    devices = np.array(jax.devices())
    if "×" in name:
        return Mesh(devices.reshape([int(side) for side in name.split(" × ")]), ("host", "chip"))
    if name == "make_mesh":  # whose axes jax 0.9 made explicit
        return jax.make_mesh((4, 2), ("host", "chip"))
    chosen = {"devices 2, 3, 4": devices[2:5], "backwards": devices[::-1]}
    return Mesh(chosen[name] if name in chosen else devices[: int(name)], ("device",))


def collectives(compiled) -> list:
    """What a compiled program sends between devices: a sorted list of [operation, bytes].

    A device on its own gathers from itself, which sends nothing.
    """
    operation = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-[a-z]+|ragged-[a-z-]+"
    alone = re.escape("replica_groups={{0}}")
    pattern = rf" = (.+?) ({operation})(?:-start)?\((?!.*{alone})"
    return sorted(
        [name, num_bytes(result)] for result, name in re.findall(pattern, compiled.as_text())
    )


def num_bytes(types: str) -> int:
    """The size of arrays as a program's text writes their types: `(f32[16,5]{1,0}, pred[])`."""
    return sum(
        int(bits or 8) // 8 * math.prod(int(length) for length in shape.split(",") if length)
        for bits, shape in re.findall(r"[a-z](\d*)\[([\d,]*)\]", types)
    )


def make_pgpe(size: int) -> PGPE:
    return PGPE(population_size=size, optimizer=optax.adam(0.05))


def make_generation(pgpe, fitness, mesh):
    def generation(state, _=None):
        scores = population_fitness(fitness, pgpe.ask(state), pgpe.keys(state), mesh)
        return pgpe.tell(state, scores), scores

    return generation


def start(pgpe, centre):
    return pgpe.init(centre, jax.random.key(3), init_stdev=0.05)


def score_on_every_mesh() -> tuple[dict, dict]:
    """The scores, and [traffic, how many members a device is given] of each program."""
    scores, programs = {}, {}
    for name in MESHES:
        for size in SIZES if name in ("8", "2 × 4") else SIZES[:2]:
            population, keys, mesh = make_population(size), make_keys(size), make_mesh(name)
            score = jax.jit(functools.partial(population_fitness, simple_fitness, mesh=mesh))
            compiled = score.lower(population, keys).compile()
            scores[f"{name} {size}"] = compiled(population, keys)
            share, _ = compiled.input_shardings[0][0].shard_shape(population.shape)
            programs[f"{name} {size}"] = [collectives(compiled), share]
    return scores, programs


def run_on_every_count() -> tuple[dict, dict]:
    """The centres after a run of rollouts, and the traffic of its program."""
    centres, traffic, pgpe = {}, {}, make_pgpe(16)
    state = start(pgpe, make_nca()[1])
    for count in COUNTS:
        generation = make_generation(pgpe, rollout_fitness(), make_mesh(str(count)))
        run = jax.jit(functools.partial(jax.lax.scan, generation, length=GENERATIONS))
        compiled = run.lower(state).compile()
        traffic[str(count)] = collectives(compiled)
        centres[str(count)] = compiled(state)[0].centre
    return centres, traffic


def spread_on_every_mesh() -> tuple[dict, dict]:
    """The same run with the gradients exchanged, and a generation whose pairs do not divide."""
    centres, traffic = {}, {}
    for name in ("1", "2", "4", "8", "2 × 4"):
        for size in (16, 10):
            pgpe, mesh = make_pgpe(size), make_mesh(name)
            spread = functools.partial(spread_generation, pgpe, rollout_fitness(), mesh=mesh)
            run = jax.jit(
                lambda state, spread=spread: jax.lax.scan(
                    lambda state, _: spread(state), state, length=GENERATIONS
                )
            )
            state = start(pgpe, make_nca()[1])
            compiled = run.lower(state).compile()
            traffic[f"{name} {size}"] = collectives(compiled)
            centres[f"{name} {size}"] = compiled(state)[0].centre
    return centres, traffic


def traffic_of_a_generation() -> dict:
    pgpe, mesh, found = make_pgpe(16), make_mesh("8"), {}
    state = start(pgpe, OPTIMUM)

    @jax.jit
    def score_and_tell(state, population, keys):
        scores = population_fitness(simple_fitness, population, keys, mesh)
        return pgpe.tell(state, scores), scores

    told = score_and_tell.lower(state, pgpe.ask(state), pgpe.keys(state)).compile()
    found["16 without ask"] = collectives(told)
    for name, size in (("2 × 4", 16), ("8", 12)):
        generation = jax.jit(make_generation(make_pgpe(size), simple_fitness, make_mesh(name)))
        found[f"{size} on {name}"] = collectives(generation.lower(state).compile())
    return found


def traffic_that_must_be_seen() -> list:
    """The collectives of a program that has some, to show that they are found."""
    mesh = make_mesh("8")

    def talk(x):
        x = jax.lax.psum(x, "device") + jax.lax.ppermute(x, "device", [(0, 1)])
        return jax.lax.all_gather(x, "device", tiled=True)

    talk = jax.shard_map(talk, mesh=mesh, in_specs=P("device"), out_specs=P(), check_vma=False)
    return collectives(jax.jit(talk).lower(jnp.zeros(32)).compile())


def make_score_inside(fitness, check_vma: bool):
    """Scores members that the caller has spread already, over four devices."""
    return jax.jit(
        jax.shard_map(
            functools.partial(population_fitness, fitness),
            mesh=make_mesh("4"),
            in_specs=P("device"),
            out_specs=P("device"),
            check_vma=check_vma,
        )
    )


def on_eight_devices(folder: str) -> None:
    assert len(jax.devices()) == 8
    by_default = jax.jit(eager)(make_population(13), make_keys(13))
    score = make_score_inside(simple_fitness, check_vma=True)
    grow = make_score_inside(rollout_fitness(), check_vma=False)
    grow = grow.lower(nca_population(8), make_keys(8)).compile()
    inside = {
        "simple": score(make_population(8), make_keys(8)),
        "rollout": grow(nca_population(8), make_keys(8)),
    }
    scores, programs = score_on_every_mesh()
    centres, traffic_of_runs = run_on_every_count()
    spread, traffic_of_spread = spread_on_every_mesh()
    seen = {
        "by default": [by_default.is_fully_replicated, len(by_default.sharding.device_set)],
        "traffic inside": collectives(grow),
        "traffic of runs": traffic_of_runs,
        "traffic of spread": traffic_of_spread,
        "traffic": traffic_of_a_generation(),
        "programs": programs,
        "must be seen": traffic_that_must_be_seen(),
    }
    Path(folder, "seen.json").write_text(json.dumps(seen), encoding="utf-8")
    scores["by default"] = by_default
    arrays = {"scores": scores, "centres": centres, "spread": spread, "inside": inside}
    for name, found in arrays.items():
        np.savez(Path(folder, f"{name}.npz"), **found)


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("eight")
    paths = [str(Path(__file__).parent), str(Path(population_module.__file__).parents[1])]
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import test_population; test_population.on_eight_devices({str(folder)!r})",
        ],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "8",
            "PYTHONPATH": os.pathsep.join(paths),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads((folder / "seen.json").read_text(encoding="utf-8"))
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            found[path.stem] = dict(arrays)
    return found


FREE_LOOP = """
import jax, jax.numpy as jnp, optax
from nca_helpers import {solver}, population_fitness, population_residuals, use_every_core

assert use_every_core().size == 2
solver = {solver}(population_size=8, **{settings})
def score(vector, _):
    pulled = lambda _, v: v + 0.001 * jnp.tanh(jnp.outer(v, v) @ v)
    lacks = jax.lax.fori_loop(0, 100, pulled, vector)
    return {score}
told = jax.jit(lambda members, keys: {told}(score, members, keys))
state = solver.init(jnp.ones(200), jax.random.key(0), init_stdev=0.1)
for _ in range(300):
    state = solver.tell(state, 2 * told(solver.ask(state), solver.keys(state)))
print(int(state.generation))
"""


@pytest.mark.parametrize(
    ("solver", "settings", "told", "score"),
    [
        ("PGPE", "dict(optimizer=optax.sgd(0.1))", "population_fitness", "-jnp.sum(lacks**2)"),
        ("GaussNewton", "dict(forgetting=0.1)", "population_residuals", "lacks"),
    ],
)
def test_a_loop_that_looks_at_nothing_does_not_hang(solver, settings, told, score):
    """Without `keep_pace` XLA ends it after 40 seconds: too many programs wait for its threads."""
    source = FREE_LOOP.format(solver=solver, settings=settings, told=told, score=score)
    root = str(Path(population_module.__file__).parents[1])
    ours = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": root}
    ours["PJRT_NPROC"] = "2"  # XLA's threads, as on two cores: with more it would seldom hang.
    ran = subprocess.run(
        [sys.executable, "-c", source],
        env=os.environ | ours,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.stdout.endswith("300\n"), ran.stderr[:2000]


def expected_scores(size: int) -> np.ndarray:
    return plain_loop(simple_fitness, make_population(size), make_keys(size))


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_gives_the_scores_of_a_plain_loop(eight, name):
    for size in SIZES[:2]:
        np.testing.assert_allclose(
            eight["scores"][f"{name} {size}"], expected_scores(size), **TOLERANCE
        )


@pytest.mark.parametrize("name", ["8", "2 × 4"])
@pytest.mark.parametrize("size", SIZES)
def test_any_size_of_population_fits_the_devices(eight, name, size):
    scores = eight["scores"][f"{name} {size}"]
    assert scores.shape == (size,)
    np.testing.assert_allclose(scores, expected_scores(size), **TOLERANCE)


def test_every_device_that_exists_is_used_and_has_all_scores(eight):
    assert eight["by default"] == [True, 8]
    np.testing.assert_allclose(eight["scores"]["by default"], expected_scores(13), **TOLERANCE)


@functools.cache
def centre_of_a_plain_run(size: int = 16) -> np.ndarray:
    """The same run with each member scored by itself."""
    pgpe = make_pgpe(size)
    state = start(pgpe, make_nca()[1])
    for _ in range(GENERATIONS):
        scores = plain_loop(rollout_fitness(), pgpe.ask(state), pgpe.keys(state))
        state = pgpe.tell(state, scores)
    return np.asarray(state.centre)


@pytest.mark.parametrize("count", COUNTS)
def test_evolution_does_not_depend_on_the_number_of_devices(eight, count):
    centre = eight["centres"][str(count)]
    assert np.abs(centre - make_nca()[1]).max() > 0.1
    np.testing.assert_allclose(centre, eight["centres"]["1"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(centre, centre_of_a_plain_run(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [16, 10])
@pytest.mark.parametrize("name", ["1", "2", "4", "8", "2 × 4"])
def test_neither_does_a_spread_generation(eight, name, size):
    centre = eight["spread"][f"{name} {size}"]
    np.testing.assert_allclose(centre, eight["spread"][f"1 {size}"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(centre, centre_of_a_plain_run(size), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [16, 10])
@pytest.mark.parametrize("name", ["1", "2", "4", "8", "2 × 4"])
def test_fitness_and_two_gradients_cross_in_a_spread_generation(eight, name, size):
    num_devices = NUM_DEVICES.get(name, 8)
    members = 2 * num_devices * math.ceil(size / 2 / num_devices)
    gradients = 2 * 4 * make_nca()[1].size
    expected = [["all-gather", 4 * members], ["all-reduce", gradients]] if num_devices > 1 else []
    assert eight["traffic of spread"][f"{name} {size}"] == expected


def test_collectives_are_seen(eight):
    assert eight["must be seen"] == [
        ["all-gather", 32 * 4],
        ["all-reduce", 32 // 8 * 4],
        ["collective-permute", 32 // 8 * 4],
    ]


def traffic_of_scores(size: int, num_devices: int) -> list:
    """Four bytes for each member, those that fill the population up included."""
    members = math.ceil(size / num_devices) * num_devices
    return [["all-gather", 4 * members]] if num_devices > 1 else []


@pytest.mark.parametrize(
    ("program", "size"), [("16 without ask", 16), ("16 on 2 × 4", 16), ("12 on 8", 12)]
)
def test_only_the_fitness_crosses_in_a_generation(eight, program, size):
    assert eight["traffic"][program] == traffic_of_scores(size, 8)


@pytest.mark.parametrize("count", COUNTS)
def test_only_the_fitness_crosses_in_a_run_of_rollouts(eight, count):
    assert eight["traffic of runs"][str(count)] == traffic_of_scores(16, count)


@pytest.mark.parametrize("name", MESHES)
def test_each_device_is_given_its_own_members_alone(eight, name):
    num_devices = NUM_DEVICES.get(name, 8)
    for size in SIZES[:2]:
        traffic, share = eight["programs"][f"{name} {size}"]
        assert traffic == traffic_of_scores(size, num_devices)
        if size % num_devices == 0:
            assert share == size // num_devices


def test_inside_a_callers_shard_map_each_device_scores_what_it_holds(eight):
    keys, inside = make_keys(8), eight["inside"]
    expected = plain_loop(simple_fitness, make_population(8), keys)
    np.testing.assert_allclose(inside["simple"], expected, **TOLERANCE)
    expected = plain_loop(rollout_fitness(), nca_population(8), keys)
    np.testing.assert_allclose(inside["rollout"], expected, **TOLERANCE)
    assert eight["traffic inside"] == []
