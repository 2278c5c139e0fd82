"""The cell against a NumPy float64 reference, and the symmetries and edges of one step."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import scipy.ndimage
from flax import nnx
from hypothesis import given, settings
from jax.flatten_util import ravel_pytree

from nca_helpers.model import NCA, living_mask, perceive, seed_state

CHANNELS, HIDDEN = 6, 10
GRID = (8, 9, CHANNELS)  # of most tests: a step is compiled for each shape
KEY = np.array([0, 7], np.uint32)
WEIGHTS = reference.random_weights(CHANNELS, HIDDEN, seed=0)


def make_nca(weights=WEIGHTS, fire_rate=1.0, **options) -> NCA:
    nca = NCA(channels=CHANNELS, hidden=HIDDEN, fire_rate=fire_rate, rngs=nnx.Rngs(0), **options)
    return reference.set_weights(nca, weights)


def reading_nca(bias, **options) -> NCA:
    """Every cell that fires gains `bias`, whatever it sees: its steps show who fired."""
    silent = [np.zeros_like(array) for array in WEIGHTS]
    silent[-1] = np.asarray(bias, np.float64)
    return make_nca(reference.Weights(*silent), **options)


def fire_mask(shape, key, fire_rate=0.5, **options) -> np.ndarray:
    """The cells (..., h, w) that fire in a step of an all-alive state of `shape`."""
    nca = reading_nca(np.ones(CHANNELS))
    after = nca(jnp.ones(shape), key, fire_rate=fire_rate, **options)
    return np.asarray(after[..., 0]) > 1.5


def all_fire(state) -> np.ndarray:
    return np.ones(state.shape[:-1], bool)


# Perception and living mask


@pytest.mark.parametrize("shape", [(7, 9, 5), (2, 3, 4, 5, 4), (1, 1, 4), (1, 6, 4), (2, 1, 4)])
@pytest.mark.parametrize("angle", [0.0, 0.7, -2.0])
def test_perception_equals_the_reference(shape, angle):
    state = reference.random_state(shape, seed=1)
    perceived = perceive(jnp.asarray(state, jnp.float32), angle)
    assert perceived.dtype == jnp.float32
    np.testing.assert_allclose(perceived, reference.perceive(state, angle), rtol=0, atol=1e-6)


def test_perception_equals_scipys_sobel():
    state = reference.random_state((6, 8, 4), seed=2)
    _, x, y = np.split(np.asarray(perceive(jnp.asarray(state, jnp.float32), 0.0)), 3, axis=-1)
    for gradient, axis in ((x, 1), (y, 0)):
        expected = [scipy.ndimage.sobel(state[..., c], axis, mode="constant") / 8 for c in range(4)]
        np.testing.assert_allclose(gradient, np.stack(expected, -1), rtol=0, atol=1e-6)


def test_x_points_right_and_y_points_down():
    row, column = np.mgrid[:5, :5].astype(np.float32)
    state = np.stack([column, row, 0 * row, 0 * row], axis=-1)
    perceived = np.asarray(perceive(jnp.asarray(state), 0.0))[2, 2]
    np.testing.assert_allclose(perceived[4:], [1, 0, 0, 0, 0, 1, 0, 0], atol=1e-6)


def living(state) -> np.ndarray:
    mask = np.asarray(living_mask(jnp.asarray(state, jnp.float32), 0.1))
    return mask.astype(bool).reshape(state.shape[:-1])


@settings(max_examples=10, deadline=None)
@given(
    shape=st.sampled_from([(5, 7, 4), (1, 1, 4), (1, 5, 4), (2, 3, 6, 4, 4)]),
    seed=st.integers(0, 2**31),
    alive=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_living_mask_equals_the_reference(shape, seed, alive):
    state = reference.random_state(shape, seed, alive)
    np.testing.assert_array_equal(living(state), reference.living_mask(state))


def test_living_is_strictly_above_the_threshold():
    state = np.zeros((5, 5, 4), np.float32)
    state[2, 2, 3] = 0.1
    assert not living(state).any()
    state[2, 2, 3] = np.nextafter(np.float32(0.1), np.float32(1))
    assert living(state).sum() == 9


def test_living_mask_is_three_cells_wide_and_stops_at_the_edges():
    state = np.zeros((5, 6, 4), np.float32)
    state[0, 5, 3] = 1.0
    assert sorted(zip(*np.nonzero(living(state)), strict=True)) == [(0, 4), (0, 5), (1, 4), (1, 5)]


def test_nothing_lives_outside_the_grid():
    """Zero padding would be alive under a threshold below zero."""
    state = jnp.full((3, 3, 4), -1.0)
    assert not np.asarray(living_mask(state, -0.5)).any()


# One step


@pytest.mark.parametrize("shape", [GRID, (2, 3, *GRID), (1, 1, CHANNELS)])
@pytest.mark.parametrize(
    "options",
    [{}, {"angle": 0.7}, {"angle": -2.5, "step_size": 0.5}, {"step_size": 1.7}],
    ids=str,
)
def test_step_equals_the_reference(shape, options):
    state = reference.random_state(shape, seed=3, alive=0.1)
    fires = all_fire(state)
    assert reference.margin(WEIGHTS, state, fires[None], **options) > 1e-4
    after = make_nca()(jnp.asarray(state, jnp.float32), KEY, **options)
    expected = reference.step(WEIGHTS, state, fires, **options)
    assert after.dtype == jnp.float32
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-5)
    if state.size > 100:
        dead = (expected == 0).all(-1)
        assert dead.any() and not dead.all(), "both the living and the dead must be compared"


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    alive=st.sampled_from([0.05, 0.3, 1.0]),
    angle=st.floats(-4, 4, width=32),
    step_size=st.floats(0, 2, width=32),
)
def test_any_step_equals_the_reference(seed, alive, angle, step_size):
    options = {"angle": angle, "step_size": step_size}
    weights = reference.random_weights(CHANNELS, HIDDEN, seed)
    state = reference.random_state(GRID, seed + 1, alive)
    fires = all_fire(state)
    if reference.margin(weights, state, fires[None], **options) < 1e-4:
        return
    after = make_nca(weights)(jnp.asarray(state, jnp.float32), KEY, **options)
    expected = reference.step(weights, state, fires, **options)
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-5)


def test_step_equals_the_reference_where_only_some_cells_fire():
    state = reference.random_state((2, 3, *GRID), seed=4, alive=0.1)
    fires = fire_mask(state.shape, KEY)
    assert 0.3 < fires.mean() < 0.7
    assert reference.margin(WEIGHTS, state, fires[None]) > 1e-4
    after = make_nca(fire_rate=0.5)(jnp.asarray(state, jnp.float32), KEY)
    expected = reference.step(WEIGHTS, state, fires)
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-5)


def test_step_uses_the_threshold_of_its_nca():
    state = reference.random_state(GRID, seed=5, alive=0.1)
    fires = all_fire(state)
    assert reference.margin(WEIGHTS, state, fires[None], threshold=0.6) > 1e-4
    after = make_nca(alive_threshold=0.6)(jnp.asarray(state, jnp.float32), KEY)
    expected = reference.step(WEIGHTS, state, fires, threshold=0.6)
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-5)
    assert not np.allclose(expected, reference.step(WEIGHTS, state, fires))


def test_a_cell_lives_only_if_it_lived_before_and_lives_after():
    state = np.zeros(GRID, np.float32)
    state[4, 4, 3] = 1.0
    grows, withers = np.ones(CHANNELS), -np.ones(CHANNELS)
    grown = np.asarray(reading_nca(grows)(jnp.asarray(state), KEY))
    assert (grown[3:6, 3:6] >= 1).all() and np.count_nonzero(grown.any(-1)) == 9
    assert not np.asarray(reading_nca(withers)(jnp.asarray(state), KEY)).any()


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_gradient_of_a_step_equals_finite_differences_of_the_reference(angle):
    state = reference.random_state(GRID, seed=6, alive=0.1)
    target = np.random.default_rng(7).uniform(size=(*GRID[:2], 4))
    fires = fire_mask(state.shape, KEY)
    step_size = 0.8
    assert reference.margin(WEIGHTS, state, fires[None], angle=angle, step_size=step_size) > 1e-3

    def loss_of(after):
        return ((after[..., :4] - target) ** 2).mean()

    graph, params = nnx.split(make_nca(fire_rate=0.5))

    def loss(params, state, angle, step_size):
        nca = nnx.merge(graph, params)
        return loss_of(nca(state, KEY, angle=angle, step_size=step_size))

    gradients = jax.grad(loss, argnums=(0, 1, 2, 3))(
        params, jnp.asarray(state, jnp.float32), jnp.float32(angle), jnp.float32(step_size)
    )
    learnt, by_state, by_angle, by_step_size = gradients

    def reference_loss(weights=WEIGHTS, state=state, angle=angle, step_size=step_size):
        return loss_of(reference.step(weights, state, fires, angle, step_size))

    learnt = nnx.to_pure_dict(learnt)
    for name in WEIGHTS._fields:
        layer, kind = name.split("_")
        expected = reference.central_difference(
            lambda array, name=name: reference_loss(WEIGHTS._replace(**{name: array})),
            getattr(WEIGHTS, name),
        )
        assert np.abs(expected).max() > 0
        reference.assert_near(learnt[layer][kind], expected, 1e-5)
    for gradient, argument, value in (
        (by_state, "state", state),
        (by_angle, "angle", np.array(angle)),
        (by_step_size, "step_size", np.array(step_size)),
    ):
        expected = reference.central_difference(
            lambda array, argument=argument: reference_loss(**{argument: array}), value
        )
        reference.assert_near(gradient, expected, 2e-5)


# Who fires


def test_all_channels_of_a_cell_fire_together():
    bias = np.arange(1, CHANNELS + 1)
    nca = reading_nca(bias, fire_rate=0.5)
    gained = np.asarray(nca(jnp.ones(GRID), KEY)) - 1
    fires = gained[..., 0] > 0.5
    assert 0 < fires.sum() < fires.size
    np.testing.assert_array_equal(gained, fires[..., None] * bias)


@pytest.mark.parametrize("fire_rate", [0.1, 0.5, 0.8])
def test_cells_fire_at_the_fire_rate(fire_rate):
    fires = fire_mask((4, 64, 64, CHANNELS), KEY, fire_rate)
    deviation = np.sqrt(fire_rate * (1 - fire_rate) / np.array([fires.size, 4 * 64]))
    assert abs(fires.mean() - fire_rate) < 5 * deviation[0]
    for axis in (1, 2):  # no row and no column fires as one
        assert np.abs(fires.mean(axis=(0, axis)) - fire_rate).max() < 5 * deviation[1]


def test_fire_rate_of_the_call_overrides_that_of_the_nca():
    state = jnp.ones(GRID)
    rates = {}
    for own in (0.25, 1.0):
        nca = reading_nca(np.ones(CHANNELS), fire_rate=own)
        for called in (None, 0.0, 0.5, 1.0):
            after = np.asarray(nca(state, KEY, fire_rate=called))
            rates[own, called] = (after[..., 0] > 1.5).mean()
    assert rates[0.25, 0.0] == rates[1.0, 0.0] == 0
    assert rates[0.25, 1.0] == rates[1.0, 1.0] == rates[1.0, None] == 1
    assert 0.3 < rates[0.25, 0.5] == rates[1.0, 0.5] < 0.7
    assert 0.1 < rates[0.25, None] < 0.4


def test_keys_and_samples_draw_differently_and_the_same_key_draws_the_same():
    shape = (2, 3, *GRID)
    fires = fire_mask(shape, KEY)
    np.testing.assert_array_equal(fires, fire_mask(shape, KEY))
    np.testing.assert_array_equal(fires, fire_mask(shape, KEY, angle=1.0))
    samples = [*fires.reshape(6, -1), *fire_mask(shape, KEY + 1).reshape(6, -1)]
    for i, one in enumerate(samples):
        for other in samples[:i]:
            assert 0.2 < (one == other).mean() < 0.8  # 72 cells, so 5 deviations from a half


def test_new_and_old_style_keys_draw_the_same():
    new, old = (fire_mask(GRID, make(7)) for make in (jax.random.key, jax.random.PRNGKey))
    np.testing.assert_array_equal(new, old)


# What an untrained NCA does, and its parameters


def test_a_zero_initialised_update_leaves_living_cells_untouched():
    state = reference.random_state(GRID, seed=8, alive=0.1)
    nca = NCA(channels=CHANNELS, hidden=HIDDEN, rngs=nnx.Rngs(0))
    assert np.asarray(nca.hidden.kernel[...]).any()
    after = np.asarray(nca(jnp.asarray(state, jnp.float32), KEY))
    alive = reference.living_mask(state)
    assert alive.any() and not alive.all()
    np.testing.assert_array_equal(after, np.where(alive[..., None], state, 0))


@pytest.mark.parametrize("alpha", [0.0, 0.1, -1.0])
def test_a_dead_grid_stays_dead(alpha):
    state = np.random.default_rng(9).normal(size=GRID).astype(np.float32)
    state[..., 3] = alpha
    nca = make_nca(WEIGHTS._replace(update_bias=np.ones(CHANNELS)))
    assert not np.asarray(nca(jnp.asarray(state), KEY)).any()
    assert not np.asarray(nca(jnp.zeros_like(state), KEY)).any()


def test_cells_that_touch_no_living_cell_stay_exactly_zero():
    state = np.zeros(GRID, np.float32)
    state[3:5, 3:6] = reference.random_state((2, 3, CHANNELS), seed=10, alive=1.0)
    nca = make_nca(WEIGHTS._replace(update_bias=np.ones(CHANNELS)))
    after = np.array(nca(jnp.asarray(state), KEY))
    assert after[2:6, 2:7].any()
    after[2:6, 2:7] = 0
    assert not after.any()


def test_parameters():
    nca = NCA(rngs=nnx.Rngs(0))
    shapes = {
        (layer, kind): array.shape
        for layer, kinds in nnx.to_pure_dict(nnx.state(nca, nnx.Param)).items()
        for kind, array in kinds.items()
    }
    assert shapes == {
        ("hidden", "kernel"): (48, 128),
        ("hidden", "bias"): (128,),
        ("update", "kernel"): (128, 16),
        ("update", "bias"): (16,),
    }
    vector, _ = ravel_pytree(nnx.state(nca))  # everything an NCA holds can be learnt
    assert vector.shape == (8_336,) and vector.dtype == jnp.float32
    for zero in (nca.update.kernel, nca.update.bias, nca.hidden.bias):
        assert not np.asarray(zero[...]).any()
    assert (nca.channels, nca.hidden_size) == (16, 128)
    assert (nca.fire_rate, nca.alive_threshold) == (0.5, 0.1)


def test_rngs_decide_the_first_weights():
    first, same, other = (
        np.asarray(NCA(channels=4, hidden=3, rngs=nnx.Rngs(seed)).hidden.kernel[...])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).all()


# Symmetries


@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (2, 2)])
def test_translation_commutes_with_the_step(shift):
    state = np.zeros(GRID)
    state[2:4, 3:5] = reference.random_state((2, 2, CHANNELS), seed=11, alive=0.8)
    state = jnp.asarray(state, jnp.float32)
    nca = make_nca()
    step_then_move = jnp.roll(nca(state, KEY), shift, (0, 1))
    move_then_step = nca(jnp.roll(state, shift, (0, 1)), KEY)
    assert np.asarray(step_then_move).any()
    np.testing.assert_allclose(move_then_step, step_then_move, rtol=0, atol=1e-6)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_commute_with_the_step(turns):
    state = reference.random_state(GRID, seed=12, alive=0.1).astype(np.float32)
    nca = make_nca()
    step_then_turn = np.rot90(nca(jnp.asarray(state), KEY), turns)
    turned = jnp.asarray(np.rot90(state, turns).copy())
    turn_then_step = nca(turned, KEY, angle=turns * np.pi / 2)
    np.testing.assert_allclose(turn_then_step, step_then_turn, rtol=0, atol=1e-5)
    assert not np.allclose(nca(turned, KEY), step_then_turn, atol=1e-2)


def test_samples_do_not_touch_each_other():
    states = reference.random_state((2, 3, *GRID), seed=13, alive=0.2)
    states = jnp.asarray(states, jnp.float32)
    nca = make_nca()
    together = np.asarray(nca(states, KEY))
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(together[index], nca(states[index], KEY), rtol=0, atol=1e-5)


def test_step_takes_traced_angle_and_step_size():
    state = jnp.asarray(reference.random_state(GRID, seed=14), jnp.float32)
    nca = make_nca(fire_rate=0.5)
    traced = jax.jit(lambda angle, size: nca(state, KEY, angle=angle, step_size=size))(0.7, 0.5)
    np.testing.assert_allclose(traced, nca(state, KEY, angle=0.7, step_size=0.5), rtol=0, atol=1e-5)


# The seed


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), channels=st.sampled_from([4, 5, 16]))
def test_seed_state(height, width, channels):
    expected = np.zeros((height, width, channels), np.float32)
    expected[height // 2, width // 2, 3:] = 1
    seed = seed_state(height, width, channels)
    assert seed.dtype == jnp.float32
    np.testing.assert_array_equal(seed, expected)


def test_seed_state_has_sixteen_channels():
    assert seed_state(5, 7).shape == (5, 7, 16)


# Bad input


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("channels", 3),
        ("channels", 0),
        ("channels", 4.5),
        ("hidden", 0),
        ("hidden", -1),
        ("hidden", 2.5),
        ("fire_rate", 1.5),
        ("fire_rate", -0.1),
        ("fire_rate", float("nan")),
        ("fire_rate", None),
        ("alive_threshold", float("nan")),
        ("alive_threshold", None),
        ("alive_threshold", "0.1"),
    ],
)
def test_nca_refuses(argument, value):
    rngs = nnx.Rngs(0)
    reference.refuses(lambda: NCA(**{argument: value}, rngs=rngs), argument, str(value))


@pytest.mark.parametrize("fire_rate", [1.5, -0.1, float("nan")])
def test_step_refuses_a_fire_rate_outside_zero_to_one(fire_rate):
    nca, state = make_nca(), np.zeros((5, 7, CHANNELS), np.float32)
    reference.refuses(lambda: nca(state, KEY, fire_rate=fire_rate), "fire_rate", str(fire_rate))


NO_NUMBERS = [None, "x", True, 1j, float("nan"), np.inf, 1e39, [0.1], np.arange(4.0), np.array("x")]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=str)
def test_what_is_no_number_is_refused(value):
    nca, state = make_nca(), np.zeros((5, 7, CHANNELS), np.float32)
    shown = "shape (4,)" if np.ndim(value) and not isinstance(value, list) else f"got {value!r}"
    reference.refuses(lambda: perceive(state, value), "angle must be a finite number", shown)
    for name in ("angle", "step_size"):
        for step, chance in ((nca, KEY), (nca.step, np.ones((5, 7), bool))):
            call = functools.partial(step, state, chance, **{name: value})
            reference.refuses(call, f"{name} must be a finite number", shown)


@pytest.mark.parametrize("name", ["fire_rate", "angle", "step_size"])
@pytest.mark.parametrize("value", [np.zeros(7, np.float32), np.array(True), np.array(1j)], ids=str)
def test_what_is_no_number_is_refused_when_traced_too(name, value):
    nca, state = make_nca(), np.zeros((5, 7, CHANNELS), np.float32)
    call = jax.jit(lambda value: nca(state, KEY, **{name: value}))
    reference.refuses(lambda: call(value), f"{name} must be a finite number")


@pytest.mark.parametrize(
    "kind", [int, np.int8, np.float16, np.float64, np.asarray, jnp.bfloat16, jnp.asarray]
)
def test_a_number_of_any_kind_is_taken(kind):
    nca, state = make_nca(), jnp.asarray(reference.random_state(GRID, seed=15), jnp.float32)
    wanted = nca(state, KEY, fire_rate=1.0, angle=2.0, step_size=1.0)
    after = nca(state, KEY, fire_rate=kind(1), angle=kind(2), step_size=kind(1))
    np.testing.assert_allclose(after, wanted, rtol=0, atol=1e-2)
    np.testing.assert_allclose(perceive(state, kind(2)), perceive(state, 2.0), rtol=0, atol=1e-1)


@pytest.mark.parametrize("shape", [(5, 7, CHANNELS + 1), (5, 7, 4), (7, CHANNELS), (CHANNELS,)])
def test_step_refuses_a_state_of_another_shape(shape):
    nca, state = make_nca(), np.zeros(shape, np.float32)
    reference.refuses(lambda: nca(state, KEY), "state", str(shape))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_step_refuses_a_state_that_is_not_of_floats(dtype):
    nca, state = make_nca(), np.ones((5, 7, CHANNELS), dtype)
    reference.refuses(lambda: nca(state, KEY), "state", np.dtype(dtype).name)


@pytest.mark.parametrize("function", [perceive, living_mask])
def test_perception_and_living_mask_refuse_a_state_without_a_grid(function):
    state = np.zeros((7, CHANNELS), np.float32)
    reference.refuses(lambda: function(state, 0.1), "state", str(state.shape))


def test_living_mask_refuses_a_state_without_alpha():
    state = np.zeros((5, 7, 3), np.float32)
    reference.refuses(lambda: living_mask(state, 0.1), "state", str(state.shape))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("height", 0),
        ("height", -2),
        ("width", 0),
        ("width", 2.5),
        ("height", True),
        ("channels", 3),
        ("channels", -1),
    ],
)
def test_seed_state_refuses(argument, value):
    sizes = {"height": 4, "width": 4, "channels": 16}
    reference.refuses(lambda: seed_state(**{**sizes, argument: value}), argument, str(value))
