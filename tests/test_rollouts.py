"""Every form of a rollout against a plain Python loop, and that loop against NumPy float64."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from jax.flatten_util import ravel_pytree

from nca_helpers import rollout_cpu
from nca_helpers.model import NCA
from nca_helpers.rollouts import rollout, rollout_frames

CHANNELS, HIDDEN = 5, 64  # So wide that a CPU runs the network only where it has to.
SCALE = 0.1  # Of the weights: what lives neither dies out nor fills the grid at once.
GRID = (7, 6, CHANNELS)
WIDE_GRID = (26, 23, CHANNELS)  # where a rollout may leave out what is empty
KEY = np.array([0, 3], np.uint32)
WEIGHTS = reference.random_weights(CHANNELS, HIDDEN, seed=0, scale=SCALE)
OPTIONS = {"angle": 0.4, "step_size": 0.9}
STEPS, MAX_STEPS = 4, 6
COUNTS = np.array([4, 0, 6])


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """Compiling is what takes these tests their time, and running takes them none."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def windows_of_every_size():
    """These grids are smaller than what a window pays for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout_cpu, "SMALLEST_WINDOW", 1)
        yield


def make_nca(weights=WEIGHTS, **options) -> NCA:
    nca = NCA(channels=CHANNELS, hidden=HIDDEN, rngs=nnx.Rngs(0), **options)
    return reference.set_weights(nca, weights)


def make_state(*batch: int, grid=GRID, seed: int = 6, dirt: float = 0.0) -> jax.Array:
    """Empty grids with a patch of living cells, each sample's in another place.

    The other cells are dead and hold nothing but `dirt` times a random number.
    """
    state = dirt * reference.random_state((*batch, *grid), seed, alive=0.0)
    patches = reference.random_state((*batch, 3, 3, CHANNELS), seed + 1, alive=0.5)
    corners = np.random.default_rng(seed).integers(0, (grid[0] - 2, grid[1] - 2), (*batch, 2))
    for index in np.ndindex(*batch):
        top, left = corners[index]
        state[(*index, slice(top, top + 3), slice(left, left + 3))] = patches[index]
    return jnp.asarray(state, jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def one_step(graph, params, state, key, options):
    return nnx.merge(graph, params)(state, key, **options)


def plain_loop(nca, state, num_steps, key=KEY, **options) -> list[jax.Array]:
    """The states of a Python loop over `nca(...)`, which is compiled to save the tests' time."""
    graph, params = nnx.split(nca)
    frames = [state]
    for t in range(num_steps):
        step_key = jax.random.fold_in(key, t)
        frames.append(one_step(graph, params, frames[-1], step_key, options))
    return frames


def plain_last(nca, state, num_steps, **options) -> jax.Array:
    """Where the plain loop stands after `num_steps`, one number or one for each sample."""
    frames = plain_loop(nca, state, int(np.max(num_steps)), **options)
    if np.ndim(num_steps) == 0:
        return frames[num_steps]
    return jnp.stack([frames[count][sample] for sample, count in enumerate(num_steps)])


def assert_equal_states(actual, expected) -> None:
    """Equal but for the order of float32 sums."""
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


# Values


@pytest.mark.parametrize("batch", [(), (3, 2)])
@pytest.mark.parametrize(
    ("num_steps", "options"),
    [
        (STEPS, {}),
        (0, {}),
        (1, {}),
        (np.int64(STEPS), {}),
        (jnp.int32, {}),
        (STEPS, {"max_steps": MAX_STEPS}),
        (MAX_STEPS, {"max_steps": MAX_STEPS}),
    ],
    ids=str,
)
def test_one_number_of_steps(num_steps, options, batch):
    if num_steps is jnp.int32:  # no array may exist before the tests run
        num_steps = jnp.int32(STEPS)
    nca, state = make_nca(), make_state(*batch)
    last = rollout(nca, state, KEY, num_steps, **options, **OPTIONS)
    assert_equal_states(last, plain_last(nca, state, int(num_steps), **OPTIONS))


@pytest.mark.parametrize("num_steps", [COUNTS, COUNTS[::-1], np.zeros(3, int), [1, 2, 3]], ids=str)
def test_one_number_of_steps_for_each_sample(num_steps):
    nca, state = make_nca(), make_state(3)
    expected = plain_last(nca, state, num_steps, **OPTIONS)
    for given in (num_steps, jnp.asarray(num_steps)):
        for options in ({}, {"max_steps": MAX_STEPS}):
            last = rollout(nca, state, KEY, given, **options, **OPTIONS)
            assert_equal_states(last, expected)


def test_steps_inside_jit():
    nca, state = make_nca(), make_state()
    last = jax.jit(lambda state: rollout(nca, state, KEY, STEPS, **OPTIONS))(state)
    assert_equal_states(last, plain_last(nca, state, STEPS, **OPTIONS))


def test_traced_steps():
    nca, state = make_nca(), make_state(3)
    frames = plain_loop(nca, state, MAX_STEPS)
    run = jax.jit(lambda n: rollout(nca, state, KEY, n, max_steps=MAX_STEPS))
    for given, taken in ((STEPS, STEPS), (0, 0), (MAX_STEPS, MAX_STEPS), (9, MAX_STEPS)):
        assert_equal_states(run(given), frames[taken])
    for kind in (np.int8, np.uint8, np.int16, np.uint32):
        assert jax.eval_shape(run, kind(STEPS)).shape == state.shape


def test_dead_cells_that_hold_something_are_seen_as_by_the_plain_loop():
    """What dead cells hold, living ones see once; then it is gone."""
    nca, decided = make_nca(), 0
    for seed in range(20):
        dirty, clean = (make_state(3, 2, seed=seed, dirt=dirt) for dirt in (3.0, 0.0))
        expected = plain_last(nca, dirty, 3, **OPTIONS)
        assert_equal_states(rollout(nca, dirty, KEY, 3, **OPTIONS), expected)
        decided += not np.allclose(expected, plain_last(nca, clean, 3, **OPTIONS))
    assert decided > 10, "the dirt must matter"


def test_a_dead_grid_stays_dead():
    nca = make_nca(WEIGHTS._replace(update_bias=np.ones(CHANNELS)))
    dirt = np.array(make_state(3, 2, dirt=1.0))
    dirt[..., 3] = -1.0
    for state in (np.zeros_like(dirt), dirt):
        assert not np.asarray(rollout(nca, state, KEY, STEPS, **OPTIONS)).any()
        np.testing.assert_array_equal(rollout(nca, state, KEY, 0, **OPTIONS), state)


# Wide grids, mostly empty


@pytest.mark.parametrize("place", [(13, 11), (0, 0), (25, 22), (0, 22)], ids=str)
def test_growth_from_one_cell(place):
    """Life spreads by a cell a step, until it has reached every edge."""
    nca = make_nca(WEIGHTS._replace(update_bias=np.full(CHANNELS, 0.5)))
    state = np.zeros(WIDE_GRID, np.float32)
    state[(*place, slice(3, None))] = 1.0
    options = {**OPTIONS, "fire_rate": 1.0}
    frames = plain_loop(nca, state, 28, **options)
    everywhere = np.asarray(frames[-1]).any(-1)
    assert everywhere.any(0).all() and everywhere.any(1).all()
    for num_steps in (1, 2, 5, 11, 19, 28):
        last = rollout(nca, state, KEY, num_steps, **options)
        scale = np.abs(frames[num_steps]).max()
        np.testing.assert_allclose(last, frames[num_steps], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("offset", [(0, 3), (0, -3), (3, 0), (-3, 0)], ids=str)
def test_dead_cells_are_seen_even_where_nothing_lives(offset):
    """A dead cell, kept by nothing, sees another one and grows; that keeps a living cell alive.

    All of it stands three cells from the only mature cell, so no shortcut may leave it out.
    """
    hidden, update = np.zeros((3 * CHANNELS, HIDDEN)), np.zeros((HIDDEN, CHANNELS))
    for unit, (block, sign) in enumerate([(1, 1), (1, -1), (2, 1), (2, -1)]):
        hidden[block * CHANNELS + 4, unit] = sign  # how steep channel 4 is, in any direction
        update[unit, 3] = 1.0
    withers = np.array([0.0, 0.0, 0.0, -1.0, 0.0])
    nca = make_nca(reference.Weights(hidden, np.zeros(HIDDEN), update, withers))
    # Every place on a diagonal, so that the cells fall on both sides of any shortcut's seams.
    for row, column in zip(range(4, 20), range(4, 20), strict=True):
        state = np.zeros(WIDE_GRID, np.float32)
        state[row, column, 3] = 0.5
        state[row + offset[0], column + offset[1], 4] = 10.0
        options = {**OPTIONS, "fire_rate": 1.0}
        expected = plain_last(nca, state, 1, **options)
        assert np.asarray(expected).any()
        assert_equal_states(rollout(nca, state, KEY, 1, **options), expected)


# Against NumPy


def fire_masks(num_steps, shape, fire_rate) -> np.ndarray:
    """(num_steps, ..., h, w): who fires, read off an all-alive state that gains one."""
    silent = [np.zeros_like(array) for array in WEIGHTS[:-1]]
    nca = make_nca(reference.Weights(*silent, np.ones(CHANNELS)), fire_rate=fire_rate)
    ones = jnp.ones(shape)
    steps = [nca(ones, jax.random.fold_in(KEY, t))[..., 0] for t in range(num_steps)]
    return np.stack(steps) > 1.5


@pytest.mark.parametrize("fire_rate", [1.0, 0.5])
def test_rollout_equals_the_reference(fire_rate):
    state, num_steps = make_state(3, 2, dirt=1.0), 8
    fires = fire_masks(num_steps, state.shape, fire_rate)
    assert abs(fires.mean() - fire_rate) < 0.1
    start = np.asarray(state, np.float64)
    assert reference.margin(WEIGHTS, start, fires, **OPTIONS) > 1e-5
    expected = reference.rollout(WEIGHTS, start, fires, **OPTIONS)
    assert expected[-1].any() and (expected[-1] == 0).any()
    nca, options = make_nca(), {**OPTIONS, "fire_rate": fire_rate}
    atol = 1e-5 * max(1, np.abs(expected).max())
    frames = rollout_frames(nca, state, KEY, num_steps, **options)
    np.testing.assert_allclose(frames, expected, rtol=0, atol=atol)
    last = rollout(nca, state, KEY, num_steps, **options)
    np.testing.assert_allclose(last, expected[-1], rtol=0, atol=atol)


def test_gradient_of_a_rollout_equals_finite_differences_of_the_reference():
    state, num_steps = make_state(seed=3), 3
    fires = fire_masks(num_steps, state.shape, 0.5)
    target = make_target(state.shape).astype(np.float64)
    values = WEIGHTS._asdict() | OPTIONS | {"state": np.asarray(state, np.float64)}
    assert reference.margin(WEIGHTS, values["state"], fires, **OPTIONS) > 1e-4

    def reference_loss(**changed):
        now = values | changed
        weights = reference.Weights(*(now.pop(name) for name in WEIGHTS._fields))
        last = reference.rollout(weights, now.pop("state"), fires, **now)[-1]
        return ((last - target) ** 2).mean()

    (params, *others), _ = gradients_of(rolled(num_steps), state)
    layers = nnx.to_pure_dict(params)
    gradients = dict(zip(("state", "angle", "step_size"), others, strict=True))
    gradients |= {
        f"{layer}_{kind}": layers[layer][kind] for layer in layers for kind in layers[layer]
    }
    assert set(gradients) == set(values)
    for name, gradient in gradients.items():
        expected = reference.central_difference(
            lambda array, name=name: reference_loss(**{name: array}), np.asarray(values[name])
        )
        reference.assert_near(gradient, expected, 2e-5)


# Options


def test_fire_rate_of_the_call_overrides_that_of_the_nca():
    nca, state = make_nca(), make_state()
    for fire_rate in (0.0, 0.3, 1.0):
        options = {**OPTIONS, "fire_rate": fire_rate}
        last = rollout(nca, state, KEY, STEPS, **options)
        assert_equal_states(last, plain_last(nca, state, STEPS, **options))


def test_a_rollout_follows_the_nca_it_is_given():
    """Neither weights nor settings may be remembered from an earlier call of equal shapes."""
    state, nca = make_state(), make_nca()
    before = rollout(nca, state, KEY, STEPS, **OPTIONS)

    def follows(changed):
        last = rollout(changed, state, KEY, STEPS, **OPTIONS)
        assert_equal_states(last, plain_last(changed, state, STEPS, **OPTIONS))
        assert not np.allclose(last, before)

    follows(make_nca(fire_rate=0.9, alive_threshold=0.4))
    follows(reference.set_weights(nca, reference.random_weights(CHANNELS, HIDDEN, seed=1)))


def test_keys():
    nca, state = make_nca(), make_state()
    last = rollout(nca, state, KEY, STEPS, **OPTIONS)
    np.testing.assert_array_equal(last, rollout(nca, state, KEY, STEPS, **OPTIONS))
    assert not np.allclose(last, rollout(nca, state, KEY + 1, STEPS, **OPTIONS))


def test_numpy_states_are_taken_and_left_alone():
    nca, state = make_nca(), np.asarray(make_state())
    before = state.copy()
    last = rollout(nca, state.astype(np.float64), KEY, STEPS, **OPTIONS)
    assert last.dtype == jnp.float32
    np.testing.assert_array_equal(last, rollout(nca, state, KEY, STEPS, **OPTIONS))
    np.testing.assert_array_equal(state, before)


# Frames


@pytest.mark.parametrize("batch", [(), (3, 2)])
@pytest.mark.parametrize("num_steps", [0, STEPS])
def test_frames_equal_the_plain_loop(num_steps, batch):
    nca, state = make_nca(), make_state(*batch, dirt=1.0)
    frames = rollout_frames(nca, state, KEY, num_steps, **OPTIONS)
    assert frames.shape == (num_steps + 1, *state.shape)
    np.testing.assert_array_equal(frames[0], state)
    assert_equal_states(frames[-1], rollout(nca, state, KEY, num_steps, **OPTIONS))
    assert_equal_states(frames, jnp.stack(plain_loop(nca, state, num_steps, **OPTIONS)))


def test_frames_inside_jit():
    nca, state = make_nca(), make_state()
    frames = jax.jit(lambda state: rollout_frames(nca, state, KEY, STEPS, fire_rate=0.7))(state)
    assert_equal_states(frames, jnp.stack(plain_loop(nca, state, STEPS, fire_rate=0.7)))


# Gradients


def make_target(shape) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def loss(nca, state, angle, step_size, run):
    """Of the state that `run` ends in, which is returned beside it."""
    last = run(nca, state, angle=angle, step_size=step_size)
    return ((last - make_target(last.shape)) ** 2).mean(), last


def gradients_of(run, state):
    """With regard to weights, state, angle and step size; and the state that `run` ends in."""
    graph, params = nnx.split(make_nca())

    def loss_of(params, *arguments):
        return loss(nnx.merge(graph, params), *arguments, run=run)

    arguments = params, state, *map(jnp.float32, OPTIONS.values())
    return jax.grad(loss_of, argnums=(0, 1, 2, 3), has_aux=True)(*arguments)


def rolled(num_steps, **options):
    return functools.partial(rollout, key=KEY, num_steps=num_steps, **options)


def looped(num_steps):
    return functools.partial(plain_last, num_steps=num_steps)


def assert_trees_near(actual, expected, relative=1e-5):
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        reference.assert_near(one, other, relative)


@pytest.mark.parametrize("dirt", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", [STEPS, 1, 0])
def test_gradient_for_one_number_of_steps(num_steps, dirt):
    state = make_state(dirt=dirt)
    expected = gradients_of(looped(num_steps), state)
    assert_trees_near(gradients_of(rolled(num_steps), state), expected)


@pytest.mark.parametrize("dirt", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", [COUNTS, np.zeros(3, int)], ids=str)
def test_gradient_for_one_number_of_steps_for_each_sample(num_steps, dirt):
    """On a wide grid, where a rollout may leave out what is empty."""
    state = make_state(3, 2, grid=WIDE_GRID, dirt=dirt)
    expected = gradients_of(looped(num_steps), state)
    assert_trees_near(gradients_of(rolled(num_steps), state), expected)


def test_gradient_for_traced_numbers_of_steps():
    state = make_state(3, 2)
    traced = jax.jit(lambda n: gradients_of(rolled(n, max_steps=MAX_STEPS), state))
    for counts in (np.array([9, 0, 4]), np.zeros(3, int)):
        expected = gradients_of(looped(np.minimum(counts, MAX_STEPS)), state)
        assert_trees_near(traced(counts), expected)


def test_gradient_of_a_traced_number_of_steps_that_can_only_be_zero():
    state = make_state()
    traced = jax.eval_shape(lambda n: gradients_of(rolled(n, max_steps=0), state)[0][1], 0)
    assert traced.shape == state.shape


def test_gradient_by_nnx():
    arguments = make_nca(), make_state(), *map(jnp.float32, OPTIONS.values())
    gradient = functools.partial(nnx.grad, argnums=(0, 1, 2, 3), has_aux=True)
    rolled_, looped_ = (
        gradient(functools.partial(loss, run=run))(*arguments)
        for run in (rolled(STEPS), looped(STEPS))
    )
    assert_trees_near(rolled_, looped_)


def test_gradient_through_frames():
    def through_frames(nca, state, **options):
        return rollout_frames(nca, state, KEY, STEPS, **options)

    def through_loop(nca, state, **options):
        return jnp.stack(plain_loop(nca, state, STEPS, **options))

    state = make_state()
    assert_trees_near(gradients_of(through_frames, state), gradients_of(through_loop, state))


# Under transformations


def test_vmap_over_a_population():
    vectors, keys, state = [], jax.random.split(jax.random.key(0), 3), make_state()
    for seed in range(3):
        weights = reference.random_weights(CHANNELS, HIDDEN, seed, scale=SCALE)
        graph, params = nnx.split(make_nca(weights))
        vector, unravel = ravel_pytree(params)
        vectors.append(vector)

    def member(vector, key, run=rollout):
        return run(nnx.merge(graph, unravel(vector)), state, key=key, num_steps=STEPS)

    together = jax.vmap(member)(jnp.stack(vectors), keys)
    alone = [member(*each, run=plain_last) for each in zip(vectors, keys, strict=True)]
    assert_equal_states(together, jnp.stack(alone))


def test_vmap_over_num_steps():
    nca, state = make_nca(), make_state()
    together = jax.vmap(lambda n: rollout(nca, state, KEY, n, max_steps=MAX_STEPS))(COUNTS)
    frames = plain_loop(nca, state, MAX_STEPS)
    assert_equal_states(together, jnp.stack([frames[count] for count in COUNTS]))


def test_training_inside_scan():
    graph, params = nnx.split(make_nca())
    state, lengths = make_state(), np.array([2, 5, 0, 9])
    keys = jax.random.split(jax.random.key(0), len(lengths))

    def descend(params, key, run):
        def loss(params):
            last = run(nnx.merge(graph, params), state, key=key)
            return ((last - make_target(last.shape)) ** 2).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

    def body(params, each):
        key, n = each
        return descend(params, key, functools.partial(rollout, num_steps=n, max_steps=MAX_STEPS))

    learnt, losses = jax.jit(lambda: jax.lax.scan(body, params, (keys, lengths)))()
    expected_losses = []
    for key, n in zip(keys, lengths, strict=True):
        params, value = descend(params, key, looped(min(n, MAX_STEPS)))
        expected_losses.append(value)
    reference.assert_near(losses, np.stack(expected_losses), 1e-5)
    assert_trees_near(learnt, params)


def test_a_narrow_network_runs_for_all_cells():
    weights = reference.random_weights(CHANNELS, 7, seed=0, scale=0.25)
    nca = reference.set_weights(NCA(channels=CHANNELS, hidden=7, rngs=nnx.Rngs(0)), weights)
    graph, params = nnx.split(nca)
    state, target = make_state(2), make_target((2, *GRID))

    def loss(params, state, run):
        last = run(nnx.merge(graph, params), state, key=KEY, **OPTIONS)
        return ((last - target) ** 2).mean()

    found, expected = (
        jax.grad(loss, argnums=(0, 1))(params, state, run) for run in (rolled(STEPS), looped(STEPS))
    )
    assert_trees_near(found, expected)


def test_what_an_accelerator_runs(monkeypatch):
    """It may differ from what a CPU runs, but a CPU can run it."""
    state, asked = make_state(3, 2), []
    expected = gradients_of(looped(COUNTS), state)
    monkeypatch.setattr(jax, "default_backend", lambda: asked.append("gpu") or "gpu")
    # A bound of no other test, so that nothing traced for a CPU is used here, nor this there.
    run = rolled(COUNTS, max_steps=MAX_STEPS + 1)
    assert_trees_near(gradients_of(run, state), expected)
    assert asked


TWO_DEVICES = """
import jax

jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
import test_rollouts as here

assert jax.device_count() == 2
state = here.make_state(3, 2)
gradients = here.gradients_of(here.rolled(here.COUNTS), state)
np.savez("gradients.npz", *jax.tree.leaves(gradients))
lone = here.gradients_of(here.rolled(here.STEPS), here.make_state(1))
np.savez("lone.npz", *jax.tree.leaves(lone))
for device in jax.devices():
    there = jax.device_put(state, device)
    here.rollout(here.make_nca(), there, here.KEY, here.COUNTS)  # wherever the state lives
"""


def test_two_devices_share_a_batch(tmp_path):
    folder = Path(__file__).parent
    search = os.pathsep.join([str(folder), str(folder.parent)])
    ran = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    with np.load(tmp_path / "gradients.npz") as gradients:
        expected = gradients_of(looped(COUNTS), make_state(3, 2))
        assert_trees_near(list(gradients.values()), expected)
    with np.load(tmp_path / "lone.npz") as gradients:
        expected = gradients_of(looped(STEPS), make_state(1))
        assert_trees_near(list(gradients.values()), expected)


# Compilations


def test_one_compilation_serves_every_eager_call():
    shape = (2, 1, CHANNELS)  # of no other test, so that the first call must compile
    first, second = (np.full(shape, value, np.float32) for value in (0.5, 0.6))
    nca, other = make_nca(), make_nca(reference.random_weights(CHANNELS, HIDDEN, seed=2))
    with reference.compilations() as compiled:
        last = rollout(nca, first, KEY, 3)
    assert compiled, "the counter must see the first compilation"
    assert_equal_states(last, plain_last(nca, first, 3))
    with reference.compilations() as compiled:
        rollout(nca, first, KEY, 3)
        rollout(nca, second, KEY + 1, 3)
        rollout(other, second, KEY + 1, 3)
        for num_steps in (0, 1, 17, np.int64(5)):
            rollout(nca, first, KEY, num_steps)
    assert not compiled


def test_one_compilation_serves_every_number_for_each_sample():
    nca, state = make_nca(), make_state(3)
    rollout(nca, state, KEY, np.array([1, 2, 3]), **OPTIONS)
    with reference.compilations() as compiled:
        rollout(nca, state, KEY, np.array([1, 2, 3]), **OPTIONS)
        rollout(nca, state, KEY, np.array([9, 0, 20]), **OPTIONS)
    assert not compiled


def test_a_second_eager_call_of_frames_compiles_nothing():
    shape = (9, 4, CHANNELS)
    first, second = (np.full(shape, value, np.float32) for value in (0.5, 0.6))
    nca, other = make_nca(), make_nca(reference.random_weights(CHANNELS, HIDDEN, seed=2))
    with reference.compilations() as compiled:
        rollout_frames(nca, first, KEY, 3)
    assert compiled
    with reference.compilations() as compiled:
        rollout_frames(nca, first, KEY, 3)
        rollout_frames(other, second, KEY + 1, 3)
    assert not compiled


# Bad input


BAD_STEPS = [-1, 2.5, True, "4", None, np.float32(3), np.ones((2, 2), int)]
BOTH = pytest.mark.parametrize("roll", [rollout, rollout_frames])


@BOTH
@pytest.mark.parametrize("num_steps", BAD_STEPS, ids=repr)
def test_num_steps_that_is_no_count_is_refused(roll, num_steps):
    nca, state = make_nca(), np.zeros((2, *GRID), np.float32)
    shown = [] if np.ndim(num_steps) else [str(num_steps)]
    reference.refuses(lambda: roll(nca, state, KEY, num_steps), "num_steps", *shown)


@pytest.mark.parametrize(
    ("num_steps", "options", "given"),
    [
        (np.array([1, 2]), {}, "2"),
        (np.array([1, -2, 3]), {}, "-2"),
        (np.array([1.0, 2.0, 3.0]), {}, "float"),
        (np.array([True, True, False]), {}, "bool"),
        (np.array([[1], [2], [3]]), {}, "(3, 1)"),
        (np.array([1, 9, 3]), {"max_steps": 8}, "9"),
        (9, {"max_steps": 8}, "9"),
    ],
    ids=str,
)
def test_num_steps_that_does_not_fit_is_refused(num_steps, options, given):
    nca, state = make_nca(), np.zeros((3, *GRID), np.float32)
    reference.refuses(lambda: rollout(nca, state, KEY, num_steps, **options), "num_steps", given)


def test_one_number_for_each_sample_needs_a_batch():
    nca, state = make_nca(), np.zeros(GRID, np.float32)
    reference.refuses(
        lambda: rollout(nca, state, KEY, np.ones(GRID[0], int)), "num_steps", str(GRID)
    )


@pytest.mark.parametrize("max_steps", [-1, 2.5, True, "4"])
def test_max_steps_that_is_no_count_is_refused(max_steps):
    nca, state = make_nca(), np.zeros(GRID, np.float32)
    call = functools.partial(rollout, nca, state, KEY, 0, max_steps=max_steps)
    reference.refuses(call, "max_steps", str(max_steps))


def test_traced_num_steps_needs_max_steps():
    nca, state = make_nca(), np.zeros(GRID, np.float32)
    reference.refuses(
        lambda: jax.jit(lambda n: rollout(nca, state, KEY, n))(3), "max_steps", "num_steps"
    )


@pytest.mark.parametrize("num_steps", [2.5, np.array([1, 2])])
def test_traced_num_steps_of_another_kind_is_refused(num_steps):
    nca, state = make_nca(), np.zeros((3, *GRID), np.float32)
    call = jax.jit(lambda n: rollout(nca, state, KEY, n, max_steps=8))
    reference.refuses(
        lambda: call(num_steps), "num_steps", "float" if np.ndim(num_steps) == 0 else "2"
    )


def test_frames_refuse_a_traced_num_steps():
    nca, state = make_nca(), np.zeros(GRID, np.float32)
    call = jax.jit(lambda n: rollout_frames(nca, state, KEY, n))
    reference.refuses(lambda: call(3), "num_steps", "race")


@BOTH
@pytest.mark.parametrize("fire_rate", [1.5, -0.1, float("nan")])
def test_fire_rate_outside_zero_to_one_is_refused(roll, fire_rate):
    nca, state = make_nca(), np.zeros(GRID, np.float32)
    call = functools.partial(roll, nca, state, KEY, 2, fire_rate=fire_rate)
    reference.refuses(call, "fire_rate", str(fire_rate))


@BOTH
@pytest.mark.parametrize("shape", [(6, 7, CHANNELS + 1), (7, CHANNELS), ()])
@pytest.mark.parametrize("num_steps", [0, 3])
def test_a_state_of_another_shape_is_refused(roll, shape, num_steps):
    nca, state = make_nca(), np.zeros(shape, np.float32)
    shown = f"shape {shape}" if shape else "got"
    reference.refuses(lambda: roll(nca, state, KEY, num_steps), "state", shown)


@pytest.mark.parametrize("run", [rollout, rollout_frames])
def test_half_precision_is_refused(run):
    state = jnp.zeros((5, 5, CHANNELS), jnp.bfloat16)
    reference.refuses(lambda: run(make_nca(), state, KEY, 3), "state", "bfloat16", "float32")


@BOTH
@pytest.mark.parametrize("fire_rate", ["often", np.array([0.5, 0.5]), float("nan")])
def test_a_fire_rate_that_is_no_probability_is_refused(roll, fire_rate):
    state = np.zeros((5, 5, CHANNELS), np.float32)
    run = functools.partial(roll, make_nca(), state, KEY, 3, fire_rate=fire_rate)
    reference.refuses(run, "fire_rate", "[0, 1]")


@BOTH
@pytest.mark.parametrize("name", ["angle", "step_size"])
@pytest.mark.parametrize("value", [None, "x", True, float("nan"), np.arange(5.0)], ids=str)
def test_a_setting_that_is_no_number_is_refused(roll, name, value):
    state = np.zeros((5, 5, CHANNELS), np.float32)
    run = functools.partial(roll, make_nca(), state, KEY, 2, **{name: value})
    shown = "shape (5,)" if isinstance(value, np.ndarray) else f"got {value!r}"
    reference.refuses(run, f"{name} must be a finite number", shown)


@BOTH
@pytest.mark.parametrize("name", ["fire_rate", "angle", "step_size"])
def test_a_setting_for_each_column_is_refused_when_traced_too(roll, name):
    nca, state = make_nca(), np.zeros((5, 5, CHANNELS), np.float32)
    run = jax.jit(lambda value: roll(nca, state, KEY, 2, **{name: value}))
    reference.refuses(lambda: run(np.zeros(5, np.float32)), name, "float32, shape (5,)")


def test_an_angle_for_each_sample():
    nca, state, angles = make_nca(), make_state(), np.array([0.0, 0.7, -2.0], np.float32)
    turned = jax.vmap(lambda angle: rollout(nca, state, KEY, STEPS, angle=angle))(angles)
    for after, angle in zip(turned, angles, strict=True):
        assert_equal_states(after, plain_last(nca, state, STEPS, angle=angle))


def test_more_steps_than_can_be_counted_are_refused():
    state = np.zeros((5, 5, CHANNELS), np.float32)
    reference.refuses(lambda: rollout(make_nca(), state, KEY, 2**33), "num_steps", str(2**33))


# What the fast way might do in another way


@pytest.mark.parametrize("hidden", [HIDDEN, 7])
def test_gradient_where_more_cells_fire_than_are_taken_at_a_time(hidden):
    state = jnp.asarray(reference.random_state((2, *WIDE_GRID), seed=1, alive=0.6), jnp.float32)
    weights = reference.random_weights(CHANNELS, hidden, seed=0, scale=SCALE)
    nca = reference.set_weights(NCA(channels=CHANNELS, hidden=hidden, rngs=nnx.Rngs(0)), weights)
    graph, params = nnx.split(nca)

    def loss_of(params, state, run):
        last = run(nnx.merge(graph, params), state, fire_rate=1.0)
        return ((last - make_target(last.shape)) ** 2).mean()

    expected = jax.grad(loss_of, argnums=(0, 1))(params, state, looped(2))
    assert_trees_near(jax.grad(loss_of, argnums=(0, 1))(params, state, rolled(2)), expected)


@pytest.mark.parametrize("hidden", [HIDDEN, 7])
def test_what_explodes_does_so_as_in_the_plain_loop(hidden):
    """A cell whose alpha is NaN counts as mature, so that an explosion spreads and stays."""
    random = np.random.default_rng(0)
    weights = reference.random_weights(CHANNELS, hidden, seed=0)
    weights = weights._replace(update_kernel=np.abs(random.normal(size=(hidden, CHANNELS))) * 1e12)
    nca = reference.set_weights(NCA(channels=CHANNELS, hidden=hidden, rngs=nnx.Rngs(0)), weights)
    state = make_state(2, grid=WIDE_GRID)
    frames = np.stack(plain_loop(nca, state, 7))
    assert np.isfinite(frames[1]).all()
    assert np.isnan(frames[5]).any() and not np.isnan(frames[5]).all()
    assert np.isnan(frames[7]).sum() > np.isnan(frames[5]).sum()
    for num_steps in (1, 5, 7):
        last = np.asarray(rollout(nca, state, KEY, num_steps))
        np.testing.assert_array_equal(np.isnan(last), np.isnan(frames[num_steps]))


def angle_loss(run):
    def of(angle):
        last = run(make_nca(), make_state(2), angle=angle)
        return ((last - make_target(last.shape)) ** 2).mean()

    return of


def test_forward_mode_and_second_derivatives_outside_of_jit():
    angle = jnp.float32(0.4)
    rolled_, looped_ = angle_loss(rolled(STEPS)), angle_loss(looped(STEPS))
    found, expected = (jax.jvp(each, (angle,), (2 * angle,)) for each in (rolled_, looped_))
    assert_trees_near(found, expected)
    reference.assert_near(jax.hessian(rolled_)(angle), jax.hessian(looped_)(angle), 1e-4)


@pytest.mark.parametrize(
    "derive",
    [
        lambda function: jax.jacfwd(jax.jit(function)),
        lambda function: jax.hessian(jax.jit(function)),
        lambda function: jax.grad(jax.jit(jax.grad(function))),
    ],
    ids=["forward mode", "hessian", "reverse of reverse"],
)
def test_what_a_jit_inside_hides_is_refused_rather_than_wrong(derive):
    angle = jnp.float32(0.4)
    try:
        found = derive(angle_loss(rolled(STEPS)))(angle)
    except (TypeError, ValueError):
        return
    reference.assert_near(found, derive(angle_loss(looped(STEPS)))(angle), 1e-4)
