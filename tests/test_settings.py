"""JAX as people set it: every setting gives what the default gives, or is refused by name."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx

import nca_helpers
from nca_helpers import NCA, PGPE, pair_keys, rollout, rollout_frames

CHANNELS, GRID = 5, (6, 5)
STATES = reference.random_state((2, *GRID, CHANNELS), seed=1).astype(np.float32)
LENGTHS = np.array([1, 3], np.int32)
CENTRE = np.array([0.3, -1.1, 0.9, 2.0, 0.1], np.float32)
# Settings that only refuse are set together: compiling all of this takes a while.
SETTINGS = {
    "x64": {"jax_enable_x64": True},
    "checks": {
        "jax_debug_nans": True,
        "jax_numpy_dtype_promotion": "strict",
        "jax_numpy_rank_promotion": "raise",
        "jax_check_tracer_leaks": True,
    },
    "other keys": {"jax_default_prng_impl": "rbg", "jax_enable_custom_prng": False},
    "transfer guard": {"jax_transfer_guard": "disallow"},
    "no jit": {"jax_disable_jit": True},
    "bfloat16": {"jax_default_matmul_precision": "bfloat16"},
}


def threefry(seed):
    return jax.random.key(seed, impl="threefry2x32")


@functools.cache
def given():
    """An automaton, states, a key and PGPE's state: what a call under a setting is given."""
    nca = NCA(channels=CHANNELS, hidden=64, rngs=nnx.Rngs(0))
    reference.set_weights(nca, reference.random_weights(CHANNELS, 64, seed=0, scale=0.1))
    pgpe = PGPE(population_size=8, optimizer=optax.sgd(0.5))
    return nca, jnp.asarray(STATES), threefry(3), pgpe, pgpe.init(CENTRE, threefry(0), init_stdev=1)


@functools.partial(jax.jit, static_argnums=0)
def steps(graph, weights, states, key):
    nca = nnx.merge(graph, weights)
    return nca(states, key), nca(states, key, angle=0.3, step_size=0.5, fire_rate=0.7)


def cells():
    nca, states, key, *_ = given()
    return steps(*nnx.split(nca), states, key)


@jax.jit
def wounded(states, key, column):
    found = [nca_helpers.circle(states, (2, column), 1.5), nca_helpers.halve(states, "top")]
    return found, nca_helpers.hole(states, 1), nca_helpers.random_circles(states, key)


def wounds():
    _, states, key, *_ = given()
    return wounded(states, key, jax.device_put(np.int32(3)))


def rolled():
    nca, _, key, *_ = given()
    return rollout(nca, STATES, key, LENGTHS, angle=0.3)


def frames():
    nca, states, key, *_ = given()
    return rollout_frames(nca, states, key, 2, step_size=0.5)


def gradient():
    nca, states, key, *_ = given()

    @nnx.jit
    def gradients(nca, states, lengths, angle):
        def loss(nca, states, angle):
            last = rollout(nca, states, key, lengths, max_steps=4, angle=angle)
            return jnp.mean(jnp.square(last[..., :4]))

        return nnx.grad(loss, argnums=(0, 1, 2))(nca, states, angle)

    return gradients(nca, states, *jax.device_put((LENGTHS, np.float32(0.3))))


def scored(pgpe, state):
    def fitness(vector, key):
        return -jnp.sum(vector**2) + jax.random.normal(key, (), jnp.float32)

    scores = nca_helpers.population_fitness(fitness, pgpe.ask(state), pgpe.keys(state))
    return scores, nca_helpers.spread_generation(pgpe, fitness, state)


def fitness():
    *_, pgpe, state = given()
    return jax.jit(scored, static_argnums=0)(pgpe, state)


def evolution():
    """Two generations, with a member that fails, and one that died."""
    *_, pgpe, _ = given()
    state = pgpe.init(CENTRE, threefry(0), init_stdev=0.1)
    for failed in (3, slice(None)):
        fitness = -np.square(np.asarray(pgpe.ask(state)) - 1).sum(-1)
        scores = pgpe.scores(fitness)
        fitness[failed] = np.nan
        state = pgpe.tell(state, jax.device_put(fitness))
    return state, scores, pgpe.scores(fitness), jax.random.key_data(pgpe.keys(state))


def robustness():
    nca, _, key, *_ = given()
    wounds = {"circles": nca_helpers.random_circles}
    target, lengths = np.full((*GRID, 4), 0.5, np.float32), {"wound_step": 2, "recovery_steps": 2}
    (row,) = nca_helpers.robustness(nca, target, wounds, key, num_rollouts=1, **lengths)
    return {name: value for name, value in row.items() if name != "wound"}


def saved_nca(folder):
    nca_helpers.save_nca(folder / "nca.npz", given()[0])
    return nnx.state(nca_helpers.load_nca(folder / "nca.npz"))


def saved_run(folder):
    nca, *_, state = given()
    run = {"state": state, "weights": nnx.state(nca), "history": np.arange(3.0), "rate": 0.5}
    nca_helpers.save_run(folder, run, step=3)
    return nca_helpers.restore_run(folder, run)


CALLS = {
    "seed_state": lambda: nca_helpers.seed_state(5, 4, 6),
    "NCA": cells,
    "damage": wounds,
    "rollout": rolled,
    "rollout_frames": frames,
    "gradient": gradient,
    "population_fitness": fitness,
    "PGPE": evolution,
    "robustness": robustness,
    "to_rgb": lambda: nca_helpers.to_rgb(STATES),
    "load_emoji": lambda: nca_helpers.load_emoji("🦎", size=8),
    "load_nca": saved_nca,
    "restore_run": saved_run,
}
# Eager JAX makes arrays of a program's numbers, which the guard refuses; inside a jit it does not.
MAKE_ARRAYS = "seed_state PGPE robustness load_nca".split()
# What a setting has nothing to do with, or what takes long without a jit.
WITHOUT_KEYS = "seed_state to_rgb load_emoji restore_run".split()
LEFT_OUT = {
    "other keys": WITHOUT_KEYS,
    "bfloat16": [*WITHOUT_KEYS, "damage", "population_fitness", "PGPE", "load_nca", "robustness"],
    "no jit": ["gradient", "robustness"],
}


@contextlib.contextmanager
def setting(name):
    before = {option: getattr(jax.config, option) for option in SETTINGS[name]}
    try:
        for option, value in SETTINGS[name].items():
            jax.config.update(option, value)
        if "jax_debug_nans" in before:
            jax.clear_caches()  # What has been compiled before is not looked at.
        yield
    finally:
        for option, value in before.items():
            jax.config.update(option, value)


def called(call, folder):
    return call(folder) if call in (saved_nca, saved_run) else call()


@functools.cache
def by_default(call, folder):
    given()
    return jax.tree.map(np.asarray, called(call, folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("settings")


@pytest.mark.parametrize(
    ("name", "call"),
    [(name, call) for name in SETTINGS for call in CALLS if call not in LEFT_OUT.get(name, ())],
)
def test_a_setting_changes_nothing(name, call, folder):
    expected = by_default(CALLS[call], folder)
    is_refused = name == "transfer guard" and call in MAKE_ARRAYS
    refused = pytest.raises(Exception, match="Disallowed host-to-device transfer")
    with setting(name), refused if is_refused else contextlib.nullcontext():
        found = called(CALLS[call], folder)
    if is_refused:
        return
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_keys_of_another_default_give_the_plain_loop(make_key):
    nca, states, *_ = given()
    with setting("other keys"):
        key = make_key(0)
        expected = [states]
        for t in range(3):
            expected.append(nca(expected[-1], jax.random.fold_in(key, t)))
        np.testing.assert_allclose(rollout(nca, states, key, 3), expected[-1], atol=2e-6)
        found = rollout_frames(nca, states, key, 3)
        np.testing.assert_allclose(found, jnp.stack(expected), atol=2e-6)
        assert pair_keys(key, 8).dtype == key.dtype
        assert nca_helpers.random_circles(states, key).shape == states.shape


def test_numbers_of_float64_leave_a_state_as_it_is():
    nca, states, *_ = given()
    fire = np.ones(STATES.shape[:-1], bool)

    def step(number):
        run = jax.jit(lambda half: nca.step(states, fire, angle=half, step_size=half))
        return run(jnp.asarray(number))

    expected = step(0.5)
    with setting("x64"):
        found = step(np.float64(0.5))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
