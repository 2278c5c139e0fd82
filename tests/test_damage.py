"""Wounds against discs and halves drawn in NumPy."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import scipy.stats
from hypothesis import given, settings

from nca_helpers.damage import circle, halve, hole, random_circles

KEY = np.array([0, 5], np.uint32)
SIDES = ("left", "right", "top", "bottom")


def disc(shape, centre, radius) -> np.ndarray:
    """(h, w), True within `radius` cells of `centre` (row, column)."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.hypot(rows - centre[0], columns - centre[1]) <= radius


def make_state(*shape: int) -> np.ndarray:
    """Nothing in it is zero, so that every erased value shows."""
    return np.random.default_rng(0).uniform(0.1, 1, shape).astype(np.float32)


def assert_erased(wounded, state, erased) -> None:
    """All channels of the cells of `erased` (..., h, w) are zero, the others as before."""
    np.testing.assert_array_equal(wounded, np.where(erased[..., None], 0, state))


@settings(max_examples=50, deadline=None)
@given(
    centre=st.tuples(st.integers(-6, 30), st.integers(-6, 30)),
    radius=st.integers(0, 60),
)
def test_circle_equals_a_disc(centre, radius):
    state = make_state(9, 12, 5)
    centre = (centre[0] / 2, centre[1] / 2)  # halves are exact, so are distances on the rim
    radius = radius / 4
    assert_erased(circle(state, centre, radius), state, disc((9, 12), centre, radius))


def test_circle_with_its_rim():
    state = make_state(11, 11, 4)
    wounded = np.asarray(circle(state, (5, 5), 5))
    assert not wounded[5, 0].any() and not wounded[1, 2].any()  # 3² + 4² = 5²
    assert wounded[0, 4].all()
    assert_erased(circle(state, (2, 3), 0), state, disc((11, 11), (2, 3), 0))
    assert not np.asarray(circle(state, (5, 5), 100.0)).any()


@pytest.mark.parametrize("size", [(9, 11), (8, 12), (1, 1)])
@pytest.mark.parametrize("radius", [0.75, 2, 3.6])
def test_hole_is_a_circle_where_the_seed_was(size, radius):
    state = make_state(*size, 5)
    middle = size[0] // 2, size[1] // 2
    assert_erased(hole(state, radius), state, disc(size, middle, radius))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", [(6, 8), (2, 2)])
def test_halve(size, side):
    state = make_state(*size, 4)
    rows, columns = np.broadcast_arrays(*np.ogrid[: size[0], : size[1]])
    erased = {
        "left": columns < size[1] // 2,
        "right": columns >= size[1] // 2,
        "top": rows < size[0] // 2,
        "bottom": rows >= size[0] // 2,
    }[side]
    assert_erased(halve(state, side), state, erased)


@pytest.mark.parametrize("side", SIDES)
def test_halve_of_an_odd_grid_takes_half_rounded(side):
    state = make_state(7, 7, 4)
    gone = ~np.asarray(halve(state, side)).any(-1)
    along = gone if side in ("left", "right") else gone.T
    assert (along == along[0]).all()
    assert along[0].sum() in (3, 4)
    near_side = along[0] if side in ("left", "top") else along[0][::-1]
    assert near_side[:3].all() and not near_side[4:].any()


# Random circles


def discs_of(wounded) -> tuple[np.ndarray, np.ndarray]:
    """The centres (n, 2) and radii (n,) of the round wounds of (n, h, w, c) states."""
    centres, radii = [], []
    for gone in ~np.asarray(wounded).any(-1):
        centres.append(np.argwhere(gone).mean(axis=0))
        radii.append(np.sqrt(gone.sum() / np.pi))
    return np.array(centres), np.array(radii)


def one_batch(state, samples):
    return random_circles(np.broadcast_to(state, (samples, *state.shape)), KEY)


def one_key_each(state, samples):
    keys = jax.random.split(jax.random.key(0), samples)
    return jax.vmap(random_circles, (None, 0))(state, keys)


@pytest.mark.parametrize("wounded", [one_batch, one_key_each])
def test_random_circles_follow_distills_distribution(wounded):
    samples, size = 400, 64
    half = size / 2
    centres, radii = discs_of(wounded(np.ones((size, size, 4), np.float32), samples))
    # 1.96 / sqrt(400) = 0.098 is where a Kolmogorov–Smirnov test rejects at 0.1 %.
    radius = scipy.stats.uniform(0.1 * half, 0.3 * half)
    assert scipy.stats.kstest(radii, radius.cdf).statistic < 0.098
    centre = scipy.stats.uniform((size - 1) / 2 - 0.5 * half, half)
    for coordinate in centres.T:
        assert scipy.stats.kstest(coordinate, centre.cdf).statistic < 0.098
    drawn = np.corrcoef([*centres.T, radii])
    assert np.abs(drawn - np.eye(3)).max() < 0.2


def test_random_circles_are_discs_within_their_bounds():
    size = 64
    state = np.ones((100, size, size, 4), np.float32)
    wounded = np.asarray(random_circles(state, KEY))
    centres, radii = discs_of(wounded)
    assert (np.abs(centres - (size - 1) / 2) <= size / 4 + 1).all()
    assert (radii >= 0.1 * size / 2 - 0.5).all() and (radii <= 0.4 * size / 2 + 0.5).all()
    for gone, centre, radius in zip(wounded[..., 0] == 0, centres, radii, strict=True):
        assert gone[disc(gone.shape, centre, radius - 1)].all()
        assert not gone[~disc(gone.shape, centre, radius + 1)].any()


def test_random_circles_differ_between_samples_and_keys():
    state = make_state(2, 3, 32, 40, 4)
    wounded = np.asarray(random_circles(state, KEY))
    np.testing.assert_array_equal(wounded, random_circles(state, KEY))
    gone = ~wounded.any(-1)
    assert_erased(wounded, state, gone)
    other = ~np.asarray(random_circles(state, KEY + 1)).any(-1)
    drawn = [*gone.reshape(6, -1), *other.reshape(6, -1)]
    assert len({sample.tobytes() for sample in drawn}) == 12
    assert all(sample.any() and not sample.all() for sample in drawn)


def test_random_circles_of_one_state():
    state = make_state(32, 32, 4)
    gone = ~np.asarray(random_circles(state, jax.random.key(5))).any(-1)
    assert 0 < gone.sum() < gone.size / 2
    assert_erased(random_circles(state, KEY), state, gone)


# What all wounds share

WOUNDS = {
    "circle": functools.partial(circle, centre=(2.0, 3.0), radius=2.5),
    "random_circles": functools.partial(random_circles, key=KEY),
    "halve": functools.partial(halve, side="top"),
    "hole": functools.partial(hole, radius=2.5),
}
EACH_WOUND = pytest.mark.parametrize("wound", WOUNDS.values(), ids=WOUNDS)


@EACH_WOUND
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_wounds_keep_shape_and_dtype_under_jit(wound, dtype):
    state = jnp.asarray(make_state(2, 3, 8, 9, 4), dtype)
    wounded = wound(state)
    assert (wounded.shape, wounded.dtype) == (state.shape, dtype)
    np.testing.assert_array_equal(
        np.asarray(wounded, np.float32), np.asarray(jax.jit(wound)(state), np.float32)
    )
    assert (np.asarray(wounded, np.float32) == 0).any(axis=(2, 3, 4)).all(), "a sample is whole"


@pytest.mark.parametrize("name", ["circle", "halve", "hole"])
def test_wounds_of_a_batch_are_those_of_its_samples(name):
    state = make_state(2, 3, 8, 9, 4)
    wounded = np.asarray(WOUNDS[name](state))
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(wounded[index], WOUNDS[name](state[index]))


def test_centre_and_radius_may_be_traced():
    state = make_state(9, 12, 4)
    cut = jax.jit(circle)(state, jnp.array([4.0, 5.5]), 2.5)
    assert_erased(cut, state, disc((9, 12), (4, 5.5), 2.5))
    centres = jnp.array([[4.0, 5.0], [1.0, 2.0]])
    cuts = jax.vmap(circle, in_axes=(None, 0, 0))(state, centres, jnp.array([1.0, 3.0]))
    assert_erased(cuts[1], state, disc((9, 12), (1, 2), 3))
    middle = disc((9, 12), (4, 6), 2.5)
    assert_erased(jax.jit(hole)(state, 2.5), state, middle)


@EACH_WOUND
def test_no_gradient_flows_through_a_wound(wound):
    state = jnp.asarray(make_state(8, 9, 4))
    gradient = jax.grad(lambda state: wound(state).sum())(state)
    np.testing.assert_array_equal(gradient, np.asarray(wound(state)) != 0)


# Bad input


@pytest.mark.parametrize("side", ["middle", "Left", "", None])
def test_an_unknown_side_is_refused(side):
    state = np.ones((4, 4, 4), np.float32)
    reference.refuses(lambda: halve(state, side), "side", str(side), *SIDES)


@pytest.mark.parametrize("kind", [float, np.float32, np.asarray, jnp.asarray])
@pytest.mark.parametrize("radius", [-1.0, -0.5, float("nan")])
def test_a_radius_below_zero_is_refused(radius, kind):
    state, given = np.ones((4, 4, 4), np.float32), kind(radius)
    reference.refuses(lambda: circle(state, (1, 1), given), "radius", repr(given))
    reference.refuses(lambda: hole(state, given), "radius", repr(given))


@pytest.mark.parametrize("radius", [None, "1", np.ones(2)], ids=str)
def test_a_radius_that_is_no_number_is_refused(radius):
    state = np.ones((4, 4, 4), np.float32)
    reference.refuses(
        lambda: circle(state, (1, 1), radius),
        "radius",
        "shape (2,)" if np.ndim(radius) else repr(radius),
    )


@EACH_WOUND
@pytest.mark.parametrize("shape", [(5, 4), ()])
def test_a_state_without_a_grid_is_refused(wound, shape):
    reference.refuses(
        lambda: wound(np.ones(shape, np.float32)), "state", str(shape) if shape else "array("
    )


@pytest.mark.parametrize("centre", [(1,), (1, 2, 3), 4.0, (1, float("nan"))])
def test_a_centre_that_is_no_row_and_column_is_refused(centre):
    state = np.ones((5, 5, 4), np.float32)
    reference.refuses(lambda: circle(state, centre, 1), "centre", str(centre))
