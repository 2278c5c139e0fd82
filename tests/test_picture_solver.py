"""The solver that takes pictures, against NumPy on linear least squares."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

from picture_solver import PictureSolver


def problem(n=24, m=60, key=0):
    rng = np.random.default_rng(key)
    J = rng.standard_normal((m, n)) * rng.uniform(0.1, 3, n)
    return J, rng.standard_normal(m)


@pytest.mark.parametrize("stdev", [0.3, "vector"])
def test_one_generation_solves_linear_least_squares(stdev):
    J, t = problem()
    x0 = np.linspace(-1, 1, 24)
    stdev = np.linspace(0.1, 1, 24) if stdev == "vector" else stdev
    solver = PictureSolver(population_size=25, damping=1e-6, damping_range=(0.0, 1.0), memory=0.0)
    s = solver.init(x0, jax.random.key(1), init_stdev=stdev)
    s = solver.tell(s, solver.ask(s) @ jnp.asarray(J.T, jnp.float32) - t)
    np.testing.assert_allclose(s.centre, np.linalg.lstsq(J, t)[0], atol=2e-3)


def test_a_damped_step_is_levenberg_marquardts():
    J, t = problem()
    x0 = np.linspace(-1, 1, 24)
    stdev = np.linspace(0.1, 1, 24)
    solver = PictureSolver(population_size=25, damping=0.3, memory=0.0)
    s = solver.init(x0, jax.random.key(1), init_stdev=stdev)
    s = solver.tell(s, solver.ask(s) @ jnp.asarray(J.T, jnp.float32) - t)
    Js = J * stdev
    A = Js.T @ Js
    want = x0 - stdev * np.linalg.solve(
        A + 0.3 * np.trace(A) / 24 * np.eye(24), Js.T @ (J @ x0 - t)
    )
    np.testing.assert_allclose(s.centre, want, atol=1e-3)


def test_few_directions_with_memory_reach_the_solution():
    J, t = problem()
    solver = PictureSolver(population_size=13, damping=0.03, memory=0.5)
    s = solver.init(np.zeros(24), jax.random.key(1), init_stdev=0.1)
    for _ in range(300):
        s = solver.tell(s, solver.ask(s) @ jnp.asarray(J.T, jnp.float32) - t)
    lowest = np.linalg.lstsq(J, t)[1][0]
    assert np.sum((J @ s.centre - t) ** 2) < 1.001 * lowest < 0.9 * np.sum(t**2)


def test_memory_averages_over_noisy_targets():
    J, t = problem()
    rng = np.random.default_rng(3)
    end = {}
    for memory in (0.0, 0.98):
        solver = PictureSolver(population_size=25, damping=1e-4, memory=memory)
        s = solver.init(np.zeros(24), jax.random.key(1), init_stdev=0.1)
        far = []
        for g in range(120):
            s = solver.tell(
                s, solver.ask(s) @ jnp.asarray(J.T, jnp.float32) - (t + rng.standard_normal(60))
            )
            if g > 60:
                far.append(np.linalg.norm(s.centre - np.linalg.lstsq(J, t)[0]))
        end[memory] = np.mean(far)
    assert end[0.98] < end[0.0] / 3


def test_noise_is_orthogonal_and_as_large_as_asked():
    solver = PictureSolver(population_size=1057)
    s = solver.init(np.zeros(1056), jax.random.key(0), init_stdev=0.5)
    noise = np.asarray(solver.ask(s))[1:]
    np.testing.assert_allclose(noise @ noise.T, 0.25 * 1056 * np.eye(1056), atol=0.05)
    assert np.abs(noise).max() < 0.5 * 1.5


def test_nan_candidates_do_not_count_and_a_nan_centre_stops_the_step():
    J, t = problem()
    solver = PictureSolver(population_size=25, damping=1e-3, memory=0.5)
    s = solver.init(np.ones(24), jax.random.key(1), init_stdev=0.1)
    r = solver.ask(s) @ jnp.asarray(J.T, jnp.float32) - t
    for bad in (3, 0):
        after = solver.tell(s, r.at[bad, 5].set(jnp.nan))
        assert np.isfinite(np.asarray(after.centre)).all()
    np.testing.assert_array_equal(after.centre, s.centre)


def test_trying_steps_takes_the_best_and_stays_where_none_is_better():
    J, t = problem()
    Jj = jnp.asarray(J.T, jnp.float32)
    solver = PictureSolver(population_size=25, damping=0.1, memory=0.0)
    s = solver.init(np.ones(24), jax.random.key(1), init_stdev=0.1)
    r = solver.ask(s) @ Jj - t
    after = solver.tell(s, r, lambda c, key: jnp.sum((c @ Jj - t) ** 2, 1))
    assert after.damping == pytest.approx(0.02)
    np.testing.assert_allclose(
        after.centre, solver.tell(s._replace(damping=jnp.float32(0.02)), r).centre, atol=1e-5
    )
    stay = solver.tell(s, r, lambda c, key: -jnp.sum((c @ Jj - t) ** 2, 1))
    np.testing.assert_array_equal(stay.centre, s.centre)
    assert stay.damping == pytest.approx(1.0)
