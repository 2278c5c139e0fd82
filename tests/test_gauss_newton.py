"""The solver that is told residuals, against NumPy's least squares, on any number of devices."""

import functools
import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nca_helpers import GaussNewton, population_residuals


def problem(n=24, m=60):
    random = np.random.default_rng(0)
    return random.normal(size=(m, n)) * random.uniform(0.1, 3, n), random.normal(size=m)


MATRIX, WANTED = problem()
BEST = np.linalg.lstsq(MATRIX, WANTED)[0]
START, STDEV = np.linspace(-1, 1, 24), np.linspace(0.1, 1, 24)


def residuals(vectors, wanted=WANTED):
    return vectors @ jnp.asarray(MATRIX.T, jnp.float32) - wanted


def evaluate(vectors, keys):
    return residuals(vectors)


def start(solver, centre=START, init_stdev=0.1):
    return solver.init(centre, jax.random.key(1), init_stdev=init_stdev)


@pytest.mark.parametrize("init_stdev", [0.3, STDEV])
def test_one_generation_solves_linear_least_squares(init_stdev):
    solver = GaussNewton(population_size=25, damping=1e-6, damping_range=(0.0, 1.0), forgetting=1.0)
    state = start(solver, init_stdev=init_stdev)
    state = solver.tell(state, residuals(solver.ask(state)))
    np.testing.assert_allclose(state.centre, BEST, atol=2e-3)


def test_a_damped_step_is_levenberg_marquardts():
    solver = GaussNewton(population_size=25, damping=0.3, forgetting=1.0)
    state = start(solver, init_stdev=STDEV)
    state = solver.tell(state, residuals(solver.ask(state)))
    scaled = MATRIX * STDEV
    squares = scaled.T @ scaled
    damped = squares + 0.3 * np.trace(squares) / 24 * np.eye(24)
    step = np.linalg.solve(damped, scaled.T @ (MATRIX @ START - WANTED))
    np.testing.assert_allclose(state.centre, START - STDEV * step, atol=1e-3)


def test_few_candidates_reach_the_solution_over_generations():
    solver = GaussNewton(population_size=13, damping=0.03, forgetting=0.5)
    state = start(solver, np.zeros(24))
    for _ in range(300):
        state = solver.tell(state, residuals(solver.ask(state)))
    lowest = np.linalg.lstsq(MATRIX, WANTED)[1][0]
    loss = np.sum((MATRIX @ state.centre - WANTED) ** 2)
    assert loss < 1.001 * lowest < 0.9 * np.sum(WANTED**2)


@pytest.mark.parametrize("as_schedule", [False, True])
def test_less_forgetting_averages_over_luck(as_schedule):
    far = {}
    for forgetting in (1.0, 0.02):
        forgets = optax.constant_schedule(forgetting) if as_schedule else forgetting
        solver = GaussNewton(population_size=25, damping=1e-4, forgetting=forgets)
        state, luck, distances = start(solver, np.zeros(24)), np.random.default_rng(3), []
        for _ in range(120):
            unlucky = WANTED + luck.normal(size=60)
            state = solver.tell(state, residuals(solver.ask(state), unlucky))
            distances.append(np.linalg.norm(state.centre - BEST))
        far[forgetting] = np.mean(distances[60:])
    assert far[0.02] < far[1.0] / 3


def test_the_noise_is_orthogonal_and_as_large_as_asked():
    solver = GaussNewton(population_size=1057)
    state = solver.init(np.zeros(1056), jax.random.key(0), init_stdev=0.5)
    noise = np.asarray(solver.ask(state))[1:]
    np.testing.assert_allclose(noise @ noise.T, 0.25 * 1056 * np.eye(1056), atol=0.05)
    assert np.abs(noise).max() < 0.5 * 1.5
    later = np.asarray(solver.ask(state._replace(generation=jnp.int32(1))))[1:]
    assert np.abs(np.corrcoef(noise[3], later)[0, 1:]).max() < 0.3


def test_keys_are_one_key_and_another_one_each_generation():
    solver = GaussNewton(population_size=25)
    state = start(solver)
    keys = jax.random.key_data(solver.keys(state))
    assert keys.shape == (25, 2) and (keys == keys[0]).all()
    later = jax.random.key_data(solver.keys(state._replace(generation=jnp.int32(1))))
    assert (keys[0] != later[0]).any()


def test_a_candidate_that_failed_does_not_count_and_a_failed_centre_stops_the_step():
    solver = GaussNewton(population_size=25, damping=1e-3, forgetting=0.5)
    state = start(solver)
    found = residuals(solver.ask(state))
    after = solver.tell(state, found.at[3, 5].set(jnp.nan))
    usual = solver.tell(state, found)
    assert np.isfinite(after.matrix).all() and np.abs(after.centre - state.centre).max() > 0.01
    # The equations are those without that candidate's direction.
    assert np.linalg.matrix_rank(np.asarray(after.matrix, float), tol=1e-4) == 23
    assert np.linalg.matrix_rank(np.asarray(usual.matrix, float), tol=1e-4) == 24
    after = solver.tell(state, found.at[0, 5].set(jnp.inf), evaluate)
    np.testing.assert_array_equal(after.centre, state.centre)


def test_of_the_steps_tried_the_best_is_taken_or_none():
    solver = GaussNewton(population_size=25, damping=0.1, forgetting=1.0)
    state = start(solver)
    found = residuals(solver.ask(state))
    after = solver.tell(state, found, evaluate)
    assert after.damping == pytest.approx(0.02)
    alone = solver.tell(state._replace(damping=jnp.float32(0.02)), found)
    np.testing.assert_allclose(after.centre, alone.centre, atol=1e-5)

    def misleading(vectors, keys):
        return 1 / (1e-3 + jnp.abs(residuals(vectors)))

    for judge in (misleading, lambda vectors, keys: jnp.nan * residuals(vectors)):
        after = solver.tell(state, found, judge)
        np.testing.assert_array_equal(after.centre, state.centre)
        assert after.damping == pytest.approx(1.0)


def test_steps_are_tried_on_coin_flips_that_no_candidate_had():
    seen = []

    def listen(vectors, keys):
        jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(keys))
        return residuals(vectors)

    solver = GaussNewton(population_size=25, trials=5)
    state = start(solver)
    jax.block_until_ready(solver.tell(state, residuals(solver.ask(state)), listen))
    jax.effects_barrier()
    (keys,) = seen
    assert keys.shape == (4 * 5, 2) and len(np.unique(keys, axis=0)) == 5
    assert (keys[:5] == keys[5:10]).all()
    assert not (keys == jax.random.key_data(solver.keys(state))[0]).all(axis=1).any()


PROGRAM = """
    import functools, json, sys
    import jax, jax.numpy as jnp, numpy as np
    from flax import nnx
    from jax.flatten_util import ravel_pytree
    from nca_helpers import NCA, GaussNewton, population_residuals, rollout, seed_state

    graph, weights = nnx.split(NCA(channels=5, hidden=3, rngs=nnx.Rngs(0)))
    centre, unravel = ravel_pytree(weights)

    def residuals(vector, key):
        grown = rollout(nnx.merge(graph, unravel(vector)), seed_state(6, 7, 5), key, 6)
        return (grown[..., :4] - 0.5).reshape(-1)

    evaluate = functools.partial(population_residuals, residuals)
    solver = GaussNewton(population_size=len(centre) + 1, trials=3)
    state = solver.init(centre, jax.random.key(0), init_stdev=0.01)

    @jax.jit
    def generation(state):
        found = evaluate(solver.ask(state), solver.keys(state))
        return solver.tell(state, found, evaluate), found

    for _ in range(3):
        state, found = generation(state)
    assert jax.device_count() == int(sys.argv[1])
    assert float(jnp.abs(state.centre - centre).max()) > 1e-3
    print(json.dumps([np.asarray(found).tolist(), np.asarray(state.centre).tolist()]))
"""


@functools.cache
def evolved_on(devices):
    environment = dict(os.environ, JAX_NUM_CPU_DEVICES=str(devices), XLA_FLAGS="")
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(devices)]
    return json.loads(subprocess.check_output(command, env=environment, timeout=300))


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_any_number_of_devices_evolves_the_same(devices):
    for one, many in zip(evolved_on(1), evolved_on(devices), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)


REFUSED = {
    "population_size must be an integer": dict(population_size=1),
    "trials must be an integer": dict(trials=0),
    "damping must be": dict(damping=-1.0),
    "forgetting must be": dict(forgetting=1.5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_settings_are_refused(message):
    with pytest.raises(ValueError, match=message):
        GaussNewton(**({"population_size": 25} | REFUSED[message]))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="population_size must be at most 25"):
        start(GaussNewton(population_size=26))
    solver = GaussNewton(population_size=25)
    with pytest.raises(ValueError, match="init_stdev must be finite, above 0"):
        start(solver, init_stdev=0.0)
    state = start(solver)
    for bad in (np.zeros(25), np.zeros((24, 60))):
        with pytest.raises(ValueError, match=r"residuals must be of shape \(25, m\)"):
            solver.tell(state, bad)
    with pytest.raises(ValueError, match="residuals must be a function that returns a vector"):
        population_residuals(lambda v, k: v.sum(), solver.ask(state), solver.keys(state))
