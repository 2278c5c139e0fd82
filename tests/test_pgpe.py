"""PGPE against EvoJAX's class, NumPy in float64, and what its docstrings promise."""

import functools
import os
import runpy
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nca_helpers.pgpe import PGPE, pair_keys

clipup = runpy.run_path(Path(__file__).parents[1] / "benchmarks" / "clipup.py")["clipup"]

OPTIMUM = np.array([1.0, -2.0, 0.5, 3.0, -0.5], np.float32)
START = np.array([0.3, -1.1, 0.9, 2.0, 0.1], np.float32)
SGD, ADAM, CLIPUP = optax.sgd(0.5), optax.adam(0.02), clipup(0.05)


def make_pgpe(**settings):
    defaults = {"population_size": 16, "optimizer": SGD, "stdev_learning_rate": 0.05}
    return PGPE(**(defaults | settings))


def start(pgpe, seed=0, init_stdev=0.1):
    return pgpe.init(START, jax.random.key(seed), init_stdev=init_stdev)


def quadratic(population):
    return -jnp.sum((population - OPTIMUM) ** 2, axis=-1)


def noisy_fitness(member, key):
    return quadratic(member) + 0.01 * jax.random.normal(key)


@functools.partial(jax.jit, static_argnums=0)
def generation(pgpe, state):
    fitness = jax.vmap(noisy_fitness)(pgpe.ask(state), pgpe.keys(state))
    return pgpe.tell(state, fitness)


def noise_of(population):
    """The noise that a population was made with, from nothing but the population."""
    population = np.asarray(population, np.float64)
    return (population[0::2] - population[1::2]) / 2


def assert_states_equal(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


# The algorithm


@pytest.mark.parametrize("ranking", [True, False])
def test_matches_evojax_class(ranking):
    from evojax.algo import PGPE as EvoJAXPGPE

    pgpe = make_pgpe(ranking=ranking)
    state = start(pgpe)
    solver = EvoJAXPGPE(
        pop_size=16,
        param_size=START.size,
        init_params=START,
        center_learning_rate=0.5,
        stdev_learning_rate=0.05,
        init_stdev=0.1,
        solution_ranking=ranking,
    )
    for _ in range(30):
        population = pgpe.ask(state)
        solver._scaled_noises = jnp.asarray(noise_of(population), jnp.float32)
        members = jnp.stack([solver._scaled_noises, -solver._scaled_noises], axis=1)
        solver.tell(quadratic(solver.best_params + members.reshape(population.shape)))
        state = pgpe.tell(state, quadratic(population))
        np.testing.assert_allclose(state.centre, solver.best_params, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.stdev, solver._stdev, rtol=1e-5)
    assert np.abs(state.centre - START).max() > 0.05
    assert np.abs(state.stdev - 0.1).max() > 1e-4


@pytest.mark.parametrize("ranking", [True, False])
def test_formulas_are_those_of_evojax(ranking):
    """Scores, gradients and the stdev's step, each from the same numbers; with ties, too."""
    from evojax.algo.pgpe import compute_reinforce_update, process_scores, update_stdev

    pgpe = make_pgpe(population_size=200, ranking=ranking, stdev_max_change=0.01)
    state = start(pgpe, init_stdev=np.linspace(0.05, 0.3, START.size))
    fitness = np.random.default_rng(0).normal(size=200).astype(np.float32)
    fitness[50:100] = fitness[:50]
    scores = pgpe.scores(fitness)
    np.testing.assert_allclose(scores, process_scores(fitness, ranking), rtol=1e-6, atol=1e-7)

    gradients = pgpe.gradients(state, scores)
    expected = compute_reinforce_update(scores, pgpe.noise(state), state.stdev)
    for found, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-8)
        assert np.abs(theirs).min() > 1e-6

    steep = np.array([-1e3, -0.01, 0.0, 0.01, 1e3], np.float32)
    found = pgpe.step(state, gradients[0], steep).stdev
    expected = update_stdev(state.stdev, 0.05, steep, 0.01)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose((found / state.stdev)[jnp.array([0, 4])], [0.99, 1.01], rtol=1e-6)


def test_noise_is_evojax_noise():
    """From the same key EvoJAX draws the same numbers; which key is each pair's, stands below."""
    from evojax.algo.pgpe import ask_func

    pgpe = make_pgpe()
    state = start(pgpe, init_stdev=np.linspace(0.05, 0.3, START.size))
    later = state._replace(generation=jnp.int32(7))
    for at in (state, later):
        run_key = jax.random.fold_in(jax.random.key(0), int(at.generation))
        noise_key, fitness_key = jax.random.split(run_key)
        for pair in range(8):
            key = jax.random.fold_in(noise_key, pair)
            _, expected, _ = ask_func(key, at.stdev, at.centre, 1, START.size)
            np.testing.assert_allclose(pgpe.noise(at)[pair], expected[0], rtol=1e-6)
        keys = jax.random.key_data(pgpe.keys(at))
        expected = jax.random.key_data(jax.random.fold_in(fitness_key, 3))
        np.testing.assert_array_equal(keys[6:8], [expected, expected])


def test_pair_order_is_evojax_order():
    from evojax.algo.pgpe import ask_func

    pgpe = make_pgpe()
    state = start(pgpe)
    _, noise, population = ask_func(jax.random.key(5), state.stdev, state.centre, 8, START.size)
    np.testing.assert_allclose(noise_of(population), noise, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(noise_of(pgpe.ask(state)), pgpe.noise(state), rtol=1e-4, atol=1e-6)


def reference_scores(fitness, ranking):
    if not ranking:
        return fitness
    better_than = (fitness[:, None] > fitness[None, :]).sum(axis=1)
    return better_than / (len(fitness) - 1) - 0.5


@pytest.mark.parametrize("ranking", [True, False])
def test_matches_float64_reference_with_adam(ranking):
    pgpe = make_pgpe(ranking=ranking, optimizer=ADAM, stdev_max_change=0.002)
    state = start(pgpe, init_stdev=np.linspace(0.05, 0.3, START.size))
    centre, stdev = START.astype(np.float64), np.linspace(0.05, 0.3, START.size)
    mean, square = np.zeros_like(centre), np.zeros_like(centre)
    change_is_limited = []
    for step in range(1, 16):
        population = pgpe.ask(state)
        fitness = np.random.default_rng(step).normal(size=16)
        state = pgpe.tell(state, fitness)

        noise, scores = noise_of(population), reference_scores(fitness, ranking)
        plus, minus = scores[0::2], scores[1::2]
        slope, height = np.zeros_like(centre), np.zeros_like(centre)
        for i in range(8):
            slope += noise[i] * (plus[i] - minus[i]) / 2 / 8
            surplus = (plus[i] + minus[i]) / 2 - scores.mean()
            height += surplus * (noise[i] ** 2 - stdev**2) / stdev / 8
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        centre += 0.02 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        free = stdev + 0.05 * height
        change_is_limited.append(np.abs(free / stdev - 1) > 0.002)
        stdev = np.clip(free, 0.998 * stdev, 1.002 * stdev)

        np.testing.assert_allclose(state.centre, centre, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.stdev, stdev, rtol=1e-5)
    assert 0.1 < np.mean(change_is_limited) < 0.9


@pytest.mark.parametrize(("optimizer", "ranking"), [(SGD, False), (ADAM, True), (CLIPUP, True)])
def test_climbs_towards_the_optimum(optimizer, ranking):
    pgpe = make_pgpe(optimizer=optimizer, ranking=ranking)
    state = start(pgpe)
    for _ in range(300):
        state = generation(pgpe, state)
    assert quadratic(START) < -2
    assert quadratic(state.centre) > -0.05


# The population


def test_population_is_antithetic_pairs_around_the_given_centre():
    pgpe = make_pgpe(population_size=2000)
    stdev = np.linspace(0.1, 0.5, START.size)
    state = start(pgpe, init_stdev=stdev)
    np.testing.assert_array_equal(state.centre, START)
    population = np.asarray(pgpe.ask(state))
    assert population.shape == (2000, START.size)
    assert population.dtype == np.float32
    middles = (population[0::2] + population[1::2]) / 2
    np.testing.assert_allclose(middles, np.tile(START, (1000, 1)), atol=1e-6)
    noise = noise_of(population)
    assert len(np.unique(noise, axis=0)) == 1000
    np.testing.assert_allclose(noise.std(axis=0), stdev, rtol=0.1)
    np.testing.assert_allclose(noise.mean(axis=0) / stdev, 0, atol=0.12)
    assert np.abs(np.corrcoef(noise.T) - np.eye(START.size)).max() < 0.15


def test_every_generation_draws_anew():
    pgpe = make_pgpe()
    state = start(pgpe)
    later = state._replace(generation=state.generation + 1)
    assert np.all(pgpe.ask(state) != pgpe.ask(later))
    assert np.all(pgpe.ask(state) != pgpe.ask(start(pgpe, seed=1)))


def test_a_share_of_the_pairs_is_that_share_of_the_population():
    pgpe = make_pgpe()
    state = start(pgpe)
    shares = [pgpe.ask(state, jnp.arange(i, i + 2)) for i in range(0, 8, 2)]
    np.testing.assert_allclose(np.concatenate(shares), pgpe.ask(state), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(pgpe.noise(state, [3]), pgpe.noise(state)[3:4], rtol=1e-6)


@pytest.mark.parametrize("ranking", [True, False])
def test_shares_of_the_gradients_add_up_to_those_of_float64(ranking):
    pgpe = make_pgpe(ranking=ranking)
    state = start(pgpe, init_stdev=np.linspace(0.05, 0.3, START.size))
    fitness = np.random.default_rng(0).normal(size=16)
    scores = pgpe.scores(fitness)
    shares = [pgpe.gradients(state, scores, jnp.arange(i, i + 3)) for i in (0, 3, 6)]  # 8 is none

    noise, stdev = noise_of(pgpe.ask(state)), np.asarray(state.stdev, np.float64)
    plus, minus = reference_scores(fitness, ranking).reshape(8, 2).T
    slope = np.mean((plus - minus)[:, None] / 2 * noise, axis=0)
    surplus = (plus + minus) / 2 - (plus + minus).mean() / 2
    height = np.mean(surplus[:, None] * (noise**2 - stdev**2) / stdev, axis=0)
    for found, expected in zip(np.sum(shares, axis=0), (slope, height), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert np.abs(expected).max() > 1e-3
    told = pgpe.step(state, *np.sum(shares, axis=0))
    np.testing.assert_allclose(told.centre, pgpe.tell(state, fitness).centre, rtol=1e-5)
    np.testing.assert_allclose(told.stdev, pgpe.tell(state, fitness).stdev, rtol=1e-5)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_pair_keys_share_the_fire_mask_inside_a_pair_only(make_key):
    keys = pair_keys(make_key(7), 12)
    assert keys.shape[0] == 12
    assert keys.dtype == make_key(7).dtype
    masks = np.asarray(jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (9, 9)))(keys))
    np.testing.assert_array_equal(masks[0::2], masks[1::2])
    assert len(np.unique(masks[0::2].reshape(6, -1), axis=0)) == 6


def test_fitness_keys_follow_the_pairs_and_the_generation():
    pgpe = make_pgpe()
    state = start(pgpe)
    first = np.asarray(jax.random.key_data(pgpe.keys(state)))
    second = np.asarray(jax.random.key_data(pgpe.keys(generation(pgpe, state))))
    np.testing.assert_array_equal(first[0::2], first[1::2])
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 16


def test_fitness_keys_are_not_the_keys_of_the_noise():
    from evojax.algo.pgpe import ask_func

    pgpe = make_pgpe()
    state = start(pgpe)
    drawn = ask_func(pgpe.keys(state)[0], state.stdev, state.centre, 1, START.size)[1]
    assert np.abs(drawn - noise_of(pgpe.ask(state))).min() > 1e-5


# The state


def test_scan_is_the_loop():
    pgpe = make_pgpe(optimizer=ADAM)
    state = start(pgpe)

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda s, _: (generation(pgpe, s), s.centre), state, length=25)

    last, centres = run(state)
    for centre in centres:
        np.testing.assert_allclose(centre, state.centre, rtol=1e-6, atol=1e-6)
        state = generation(pgpe, state)
    for scanned, looped in zip(jax.tree.leaves(last), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(scanned, looped, rtol=1e-5, atol=1e-6)
    assert last.generation == 25


def test_vmapped_runs_are_the_runs_alone():
    pgpe = make_pgpe(optimizer=CLIPUP)
    keys, stdevs = jax.random.split(jax.random.key(3), 3), jnp.array([0.05, 0.1, 0.2])
    init = jax.vmap(lambda key, stdev: pgpe.init(START, key, init_stdev=stdev))
    step = jax.jit(jax.vmap(functools.partial(generation, pgpe)))
    states = jax.jit(init)(keys, stdevs)
    for _ in range(5):
        states = step(states)
    for i in range(3):
        alone = pgpe.init(START, keys[i], init_stdev=stdevs[i])
        for _ in range(5):
            alone = generation(pgpe, alone)
        np.testing.assert_allclose(states.centre[i], alone.centre, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(states.stdev[i], alone.stdev, rtol=1e-5)


def test_traced_init_is_init():
    pgpe = make_pgpe()
    init = jax.jit(lambda params, key, stdev: pgpe.init(params, key, init_stdev=stdev))
    assert_states_equal(init(START, jax.random.key(0), 0.1), start(pgpe))


def test_both_kinds_of_key_are_the_same_run():
    pgpe = make_pgpe()
    old = pgpe.init(START, jax.random.PRNGKey(4), init_stdev=0.1)
    assert_states_equal(old, pgpe.init(START, jax.random.key(4), init_stdev=0.1))


def test_restored_state_continues_bit_for_bit(tmp_path):
    state = start(make_pgpe(optimizer=ADAM))
    treedef = jax.tree.structure(state)
    pgpe = make_pgpe(optimizer=ADAM)
    for step in range(20):
        if step == 9:
            np.savez(tmp_path / "run.npz", *jax.tree.leaves(state))
        state = generation(pgpe, state)

    with np.load(tmp_path / "run.npz", allow_pickle=False) as file:
        restored = jax.tree.unflatten(treedef, [file[name] for name in file.files])
    pgpe = make_pgpe(optimizer=ADAM)
    for _ in range(11):
        restored = generation(pgpe, restored)
    assert_states_equal(restored, state)


def run_for_ever(path):
    """The process that gets killed: writes its state after every generation."""
    pgpe = make_pgpe(optimizer=ADAM)
    state = start(pgpe)
    while True:
        state = generation(pgpe, state)
        with open(path + ".part", "wb") as file:
            np.savez(file, *jax.tree.leaves(state))
        os.replace(path + ".part", path)
        print(int(state.generation), flush=True)


def test_killed_run_continues_to_the_uninterrupted_result(tmp_path):
    path = str(tmp_path / "run.npz")
    code = f"import test_pgpe; test_pgpe.run_for_ever({path!r})"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])
    }
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        lines = [process.stdout.readline() for _ in range(5)]
        process.kill()
    assert lines[-1] == "5\n"
    assert process.returncode == -signal.SIGKILL

    pgpe = make_pgpe(optimizer=ADAM)
    state = start(pgpe)
    with np.load(path, allow_pickle=False) as file:
        leaves = [file[name] for name in file.files]
    restored = jax.tree.unflatten(jax.tree.structure(state), leaves)
    reached = int(restored.generation)
    assert reached >= 5
    for _ in range(5):
        restored = generation(pgpe, restored)
    for _ in range(reached + 5):
        state = generation(pgpe, state)
    assert_states_equal(restored, state)


# Failed members


@pytest.mark.parametrize("ranking", [True, False])
@pytest.mark.parametrize("failure", [np.nan, -np.inf, np.inf])
def test_failed_member_is_the_worst(ranking, failure):
    pgpe = make_pgpe(ranking=ranking)
    state = start(pgpe)
    fitness = np.random.default_rng(0).normal(size=16)
    fitness[6] = failure
    scores = np.asarray(pgpe.scores(fitness))
    assert np.isfinite(scores).all()
    assert scores[6] == scores.min()

    worst = np.where(np.arange(16) == 6, np.delete(fitness, 6).min(), fitness)
    worst[6] -= 1 if ranking else 0
    assert_states_equal(pgpe.tell(state, fitness), pgpe.tell(state, worst))


def test_evojax_ranks_nan_best():
    from evojax.algo.pgpe import process_scores

    fitness = np.array([0.1, np.nan, 0.3, 0.2])
    assert process_scores(fitness, True).argmax() == 1
    assert PGPE(population_size=4, optimizer=optax.sgd(0.1)).scores(fitness).argmin() == 1


def test_failed_pair_pulls_to_neither_side():
    scores = make_pgpe().scores(np.r_[np.nan, np.nan, np.arange(14)])
    assert scores[0] == scores[1] == scores.min()


@pytest.mark.parametrize("ranking", [True, False])
def test_population_of_failures_stays_where_it_is(ranking):
    pgpe = make_pgpe(ranking=ranking)
    state = start(pgpe)
    after = pgpe.tell(state, np.full(16, np.nan))
    np.testing.assert_array_equal(after.centre, state.centre)
    np.testing.assert_allclose(after.stdev, state.stdev, rtol=1e-6)


# ClipUp


def clipup_in_float64(gradients, learning_rate, momentum, max_speed):
    position, velocity = np.zeros(gradients.shape[1]), np.zeros(gradients.shape[1])
    for gradient in gradients.astype(np.float64):
        length = np.sqrt((gradient**2).sum())
        velocity = momentum * velocity + learning_rate * gradient / length
        speed = np.sqrt((velocity**2).sum())
        velocity = velocity if speed <= max_speed else velocity * max_speed / speed
        position = position - velocity
    return position


def descend(optimizer, gradients):
    position = jnp.zeros(gradients.shape[1])
    state, update = optimizer.init(position), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, position)
        position = optax.apply_updates(position, updates)
    return position


def drifting_gradients():
    generator = np.random.default_rng(1)
    scale = 10.0 ** generator.uniform(-3, 3, (40, 1))
    return ((generator.normal(size=(40, 7)) + np.linspace(-1, 2, 7)) * scale).astype(np.float32)


@pytest.mark.parametrize("max_speed", [0.02, 0.07, 10.0])
def test_clipup_matches_float64_reference_and_evojax(max_speed):
    from evojax.algo.pgpe import clipup as evojax_clipup

    gradients = drifting_gradients()
    position = descend(clipup(0.03, 0.8, max_speed), gradients)
    reference = clipup_in_float64(gradients, 0.03, 0.8, max_speed)
    np.testing.assert_allclose(position, reference, rtol=1e-5, atol=1e-6)

    init, update, get_params = evojax_clipup(lambda i: 0.03, momentum=0.8, max_speed=max_speed)
    state, update = init(jnp.zeros(7)), jax.jit(update)
    for i, gradient in enumerate(gradients):
        state = update(i, gradient, state)
    np.testing.assert_allclose(position, get_params(state), rtol=1e-5, atol=1e-6)


def test_clipup_defaults_to_the_paper():
    gradients = drifting_gradients()
    reference = clipup_in_float64(gradients, 0.03, 0.9, 0.06)
    np.testing.assert_allclose(descend(clipup(0.03), gradients), reference, rtol=1e-5, atol=1e-6)


def test_clipup_survives_a_gradient_of_zero():
    gradients = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(descend(clipup(0.1), gradients), [-0.114, -0.152], rtol=1e-5)


def test_clipup_takes_a_tree_as_one_vector():
    optimizer, gradient = clipup(0.1), {"a": jnp.array([[3.0]]), "b": jnp.array([4.0])}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose(updates["a"], [[-0.06]], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [-0.08], rtol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("population_size", value) for value in (0, 2, 7, -4, 8.0, "8", None)],
        *[("stdev_learning_rate", value) for value in (np.nan, np.inf, -0.1, "0.1", None)],
        *[("optimizer", value) for value in ("adam", None)],
        *[("stdev_max_change", value) for value in (np.nan, -0.1, 1.0)],
    ],
)
def test_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got "):
        make_pgpe(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("init_params", value) for value in (np.zeros((5, 1)), np.zeros(0), 1.0)],
        *[("init_params", value) for value in ([0, 0, 0, 0, np.nan], np.full(5, np.inf), {}, "a")],
        *[("init_stdev", value) for value in (0, -0.1, np.nan, np.inf, np.ones(4), None, "a")],
        ("init_stdev", np.array([1, 1, 0, 1, 1])),
        *[("key", value) for value in (0, np.zeros(2), None)],
    ],
)
def test_bad_start_is_refused_by_name(name, value):
    good = {"init_params": START, "key": jax.random.key(0), "init_stdev": 0.1}
    with pytest.raises(ValueError, match=rf"^{name} must be "):
        make_pgpe().init(**(good | {name: value}))


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_many_keys_are_refused(make_key):
    with pytest.raises(ValueError, match=r"^key must be one random key"):
        make_pgpe().init(START, jax.random.split(make_key(0)), init_stdev=0.1)


@pytest.mark.parametrize("rate", [np.nan, np.inf, -0.1])
@pytest.mark.parametrize("make_optimizer", [optax.sgd, optax.adam])
def test_bad_learning_rate_is_refused(make_optimizer, rate):
    with pytest.raises(ValueError, match=r"^optimizer must be .* learning rate"):
        start(make_pgpe(optimizer=make_optimizer(rate)))


def test_learning_rate_that_starts_at_zero_is_accepted():
    start(make_pgpe(optimizer=optax.adam(optax.linear_schedule(0.0, 0.1, 10))))


@pytest.mark.parametrize("init_stdev", [1, np.float32(0.1), jnp.array(0.1), [0.1] * 5])
def test_stdev_may_be_any_real_number(init_stdev):
    stdev = start(make_pgpe(), init_stdev=init_stdev).stdev
    np.testing.assert_array_equal(stdev, np.broadcast_to(np.float32(init_stdev), 5))


@pytest.mark.parametrize("shape", [(16, 1), (15,), (8, 2), ()])
def test_fitness_of_another_shape_is_refused(shape):
    pgpe = make_pgpe()
    with pytest.raises(ValueError, match=r"^fitness must be of shape \(16,\), got "):
        pgpe.tell(start(pgpe), np.zeros(shape))


@pytest.mark.parametrize(
    "arguments",
    [
        *[{"learning_rate": value} for value in (np.nan, np.inf, -1, 0, None)],
        *[{"learning_rate": 0.1, "momentum": value} for value in (np.nan, 1, -0.1)],
        *[{"learning_rate": 0.1, "max_speed": value} for value in (np.nan, np.inf, 0, -1)],
    ],
)
def test_bad_clipup_setting_is_refused_by_name(arguments):
    with pytest.raises(ValueError, match=f"^{list(arguments)[-1]} must be "):
        clipup(**arguments)


def test_bad_population_size_of_pair_keys_is_refused():
    with pytest.raises(ValueError, match=r"^population_size must be an even number"):
        pair_keys(jax.random.key(0), 5)


# The module


def test_docstring_example_runs():
    import doctest

    from nca_helpers import pgpe

    result = doctest.testmod(pgpe)
    assert result.attempted > 0
    assert result.failed == 0


def test_import_starts_no_backend_and_loads_no_evojax():
    code = """
        import sys
        import nca_helpers.pgpe
        assert not any(name.startswith("evojax") for name in sys.modules)
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "no_such_backend",
        "PYTHONPATH": ":".join(sys.path),
    }
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)
